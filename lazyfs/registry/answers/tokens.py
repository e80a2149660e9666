"""Tokens: what a token service is asked and what it answers.  No I/O here.

Spec: distribution, "Token Authentication Specification" (GET) and "OAuth2 Token Authentication"
(POST, for identity tokens).
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec

from lazyfs.registry.config.errors import BadAnswer
from lazyfs.registry.config.keychain import Credential, Kind

ANSWER_LIMIT = 256 << 10
CLIENT = "lazyfs"
DEFAULT_SECONDS = 60.0
"""The lifetime of a token whose answer does not say (token specification)."""

LONGEST_SECONDS = 86400.0
DUE = 0.8
"""The part of its lifetime after which a token is replaced although it is still good."""

# A token goes into a header field: nothing that could end one.
TOKEN_RE = re.compile(r"[\x21-\x7e]{1,65536}")
SECONDS_RE = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
BOM = b"\xef\xbb\xbf"
SCOPE_RE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token; ``due`` and ``expiry`` are moments of the clock that ``now`` came from."""

    text: str = field(repr=False)
    received: float
    due: float
    expiry: float

    @property
    def authorization(self) -> str:
        """The header's value."""
        return f"Bearer {self.text}"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """How to ask for a token; ``authorization`` is for the token service's own origin only."""

    method: str
    url: str
    authorization: str | None = field(default=None, repr=False)
    body: bytes | None = field(default=None, repr=False)


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | str | None = None  # Azure spells it as text


def pull_scope(repository: str) -> str:
    """Return the scope for reading a repository."""
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    """Return the scope for reading and writing a repository."""
    return f"repository:{repository}:pull,push"


def basic_authorization(credential: Credential) -> str:
    """Return the header's value for a user name and a password."""
    pair = f"{credential.username}:{credential.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def scopes_to_ask(scope: str, asked: str) -> list[str]:
    """Return the words of *scope*, and those *asked* for by a challenge that they do not cover."""
    wanted = scope.split()
    scopes = list(wanted)
    for word in asked.split():
        if word in scopes or SCOPE_RE.fullmatch(word) is None:
            continue
        if not any(_is_within(word, each) for each in wanted):
            scopes.append(word)
    return scopes


def build_token_request(
    realm: str, service: str, scopes: Sequence[str], credential: Credential | None
) -> TokenRequest:
    """Return the request for a token of *scopes*; *service* is what the challenge calls itself."""
    pairs = [("service", service)] if service else []
    if credential is not None and credential.kind is Kind.IDENTITY_TOKEN:
        pairs += [
            ("scope", " ".join(scopes)),
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT),
            ("refresh_token", credential.secret),
        ]
        return TokenRequest("POST", realm, body=urlencode(pairs).encode())
    pairs += [("scope", scope) for scope in scopes]
    parts = urlsplit(realm)
    query = "&".join(filter(None, (parts.query, urlencode(pairs))))
    url = urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
    return TokenRequest("GET", url, basic_authorization(credential) if credential else None)


def decode_token(body: bytes, now: float) -> Token:
    """Return the token of a token service's answer, received at *now*.

    The lifetime counts from now: clocks differ, and ``issued_at`` is another machine's.
    """
    try:
        answer = msgspec.json.decode(body.removeprefix(BOM), type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Neither the body nor what the decoder says about it: it may hold a token.
        raise BadAnswer("token service: the answer is not valid JSON") from None
    text = answer.token or answer.access_token or ""
    if TOKEN_RE.fullmatch(text) is None:
        raise BadAnswer("token service: the answer has no usable token")
    seconds = _seconds(answer.expires_in)
    seconds = min(max(seconds, 1.0), LONGEST_SECONDS) if seconds == seconds else DEFAULT_SECONDS
    return Token(text, now, now + seconds * DUE, now + seconds)


def _seconds(stated: float | str | None) -> float:
    """Return a lifetime that may be a number in text; the default where it is neither."""
    if isinstance(stated, str):
        return float(stated) if SECONDS_RE.fullmatch(stated) else DEFAULT_SECONDS
    return DEFAULT_SECONDS if stated is None else stated


def _is_within(word: str, scope: str) -> bool:
    """Say whether *scope* allows all that *word* does: same resource, no further action."""
    resource, _, actions = word.rpartition(":")
    wanted, _, allowed = scope.rpartition(":")
    return resource == wanted and set(actions.split(",")) <= set(allowed.split(","))
