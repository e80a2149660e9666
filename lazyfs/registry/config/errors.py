"""The errors that a registry can cause.

    NotFound            ── Missing               404: no such manifest, blob, repository
    AccessDenied        ── Denied                401, 403
    Unavailable         ── ConnectionTrouble     no connection, or it was lost           *
                        ├─ Overloaded            408, 429, 5xx                           *
                        ├─ BadAnswer             an answer that breaks the protocol      *
                        ├─ TlsRefused            no trust in a certificate, no common TLS
                        ├─ Unsettled             what was written was overwritten by others
                        └─ Refused               any other status; redirects that lead nowhere
    DeadlineExceeded    ── Silent                no data for too long                    *
                           └─ Slow               too little data for too long            *
    VerificationFailed  ── SizeMismatch          a blob longer or shorter than its descriptor
                        └─ ContentRefused        the registry found a digest or size wrong
    FormatError         ── TooLarge              more than may be held in memory

Those with a star may go away by themselves: ``TEMPORARY``.  All of these but BadAnswer say that the
registry is away, throttles or stalls: ``is_away``.  The others fail at once, with their reason:
they last until somebody changes something.  A name that does not resolve is ConnectionTrouble,
since without a network no name does.  No I/O here.

Spec: OCI distribution-spec, "Error Codes".
"""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec

from lazyfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    FormatError,
    LazyfsError,
    NotFound,
    Unavailable,
    VerificationFailed,
)
from lazyfs.printable import printable

ERROR_BODY_LIMIT = 64 << 10
"""How much of an error's body is read; the documents of real registries are below 4 KiB."""

SHOWN_FAULTS = 3
SHOWN_TEXT = 300
PLAIN_QUERY = frozenset({"digest", "n", "last", "ns", "scope", "service"})
"""Query parameters that may be shown; any other may be a signature."""


class Missing(NotFound):
    """The registry does not have it."""


class Denied(AccessDenied):
    """The registry wants other credentials, or none would do."""


class ConnectionTrouble(Unavailable):
    """No connection could be made, or it was lost.

    ``is_stale``: lost before any answer, as happens to a connection kept too long.
    ``is_garbled``: somebody is there, and may speak TLS where we do not, or the reverse.
    """

    is_away = True

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        is_stale: bool = False,
        is_garbled: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.is_stale = is_stale
        self.is_garbled = is_garbled


class Overloaded(Unavailable):
    """The registry is overloaded; ``retry_after`` is the header's value, as it stands."""

    is_away = True

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class BadAnswer(Unavailable):
    """An answer that breaks the protocol: another range, a loop of redirects, no Location."""


class Refused(Unavailable):
    """The registry understood and will not: *status* 400, 405, 501 …

    ``is_garbled``: it says that it speaks TLS, which the request did not.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, status: int = 0, is_garbled: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.is_garbled = is_garbled


class TlsRefused(Unavailable):
    """Certificates or versions of TLS do not do, for one side or the other, or there is no TLS.

    ``is_garbled``: the other side seems not to speak TLS at all.
    """

    def __init__(self, message: str, *, hint: str | None = None, is_garbled: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_garbled = is_garbled


class Unsettled(Unavailable):
    """What we write is overwritten by others."""


class Silent(DeadlineExceeded):
    """No data came for longer than the limit."""

    is_away = True


class Slow(Silent):
    """So little data came that it counts as none, or that other endpoints may be faster."""


class SizeMismatch(VerificationFailed):
    """A blob that does not have the size that its descriptor states."""


class ContentRefused(VerificationFailed):
    """The registry received other bytes than their digest says."""


class TooLarge(FormatError):
    """A document or a blob that is to be held in memory, and is larger than it may be."""


TEMPORARY = (ConnectionTrouble, Overloaded, BadAnswer, Silent)


class Fault(msgspec.Struct, frozen=True):
    """One entry of a registry's error document."""

    code: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.code} ({self.message})" if self.message else self.code


class _Entry(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Body(msgspec.Struct):
    errors: list[_Entry] = []


def decode_faults(body: bytes) -> tuple[Fault, ...]:
    """Return what an error document says; nothing if *body* is not one.

    Texts are bounded and free of control characters: they end up on terminals.
    """
    try:
        document = msgspec.json.decode(body[:ERROR_BODY_LIMIT], type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(
        Fault(
            printable(entry.code or "UNKNOWN", 60),
            printable((entry.message or "").strip(), SHOWN_TEXT),
        )
        for entry in document.errors[:SHOWN_FAULTS]
    )


def redact_url(url: str) -> str:
    """Return *url* without what may be secret: user information and signatures in the query."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return "(a URL that cannot be parsed)"
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(f"{k}={v}" if k in PLAIN_QUERY else f"{k}=…" for k, v in pairs)
    return printable(urlunsplit((parts.scheme, host, parts.path, query, "")), 500)


def error_for(
    method: str, url: str, status: int, headers: Mapping[str, str], body: bytes, *, registry: str
) -> LazyfsError:
    """Return the error that an answer with *status* stands for; *registry* is named in hints."""
    faults = decode_faults(body)
    said = "; ".join(map(str, faults))
    message = f"{method} {redact_url(url)}: HTTP status {status}{', ' if said else ''}{said}"
    if status in (401, 403):
        return Denied(message, hint=f"check the image name, or {LOGIN_HINT.format(registry)}")
    if status in (404, 410):
        return Missing(message, hint="check the registry, the repository and the tag")
    if status in (408, 429) or (status >= 500 and status != 501):
        hint = "the registry limits the rate of requests; logging in may raise the limit"
        return Overloaded(
            message,
            hint=hint if status == 429 else None,
            retry_after=headers.get("retry-after"),
        )
    if any(fault.code in ("DIGEST_INVALID", "SIZE_INVALID") for fault in faults):
        return ContentRefused(message)
    return Refused(message, status=status, is_garbled=is_meant_for_tls(status, body))


def is_meant_for_tls(status: int, body: bytes) -> bool:
    """Say whether an answer is what servers that speak TLS say to plain http.

    Go's: "Client sent an HTTP request to an HTTPS server."  nginx's: "The plain HTTP request was
    sent to HTTPS port".  Apache's: "You're speaking plain HTTP to an SSL-enabled server port."
    """
    return status == 400 and any(word in body for word in (b"HTTPS", b"SSL-enabled"))


LOGIN_HINT = "log in with `docker login {0}` or `podman login {0}`"
