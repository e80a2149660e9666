"""What guards the fake registry: a token service, and URLs that are signed and expire."""

import base64
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.support.registries.registry_wire import Answer, Request

ROUTE_RE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs|tags|referrers)/(?P<rest>.+)")


def document(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    body = {"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}
    fields = {"Content-Type": "application/json", **(headers or {})}
    return Answer(status, fields, json.dumps(body).encode())


@dataclass
class Bearer:
    """A token service: who gets tokens, and which are good."""

    users: dict[str, str]
    identity_tokens: dict[str, str]
    lifetime_seconds: float
    realm: str
    is_public: bool
    tokens: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)
    issued: int = 0

    def refusal(self, request: Request, given: str) -> Answer | None:
        match = ROUTE_RE.fullmatch(request.path)
        actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
        scope = f"repository:{match['name']}:{actions}" if match else ""
        expiry, scopes = self.tokens.get(given.removeprefix("Bearer "), (0.0, frozenset()))
        allowed = {scope, scope.replace(":pull", ":pull,push")}
        if given.startswith("Bearer ") and expiry > time.monotonic():
            if not scope or allowed & scopes:
                return None
            return self._challenge(scope, "insufficient_scope")
        return self._challenge(scope, "invalid_token" if given else "")

    def _challenge(self, scope: str, reason: str) -> Answer:
        words = [f'realm="{self.realm}"', 'service="fake registry"']
        if scope:
            words.append(f'scope="{scope}"')
        if reason:
            words.append(f'error="{reason}"')
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": "Bearer " + ",".join(words)})

    def token(self, request: Request) -> Answer:
        form = request.query
        if request.method == "POST":
            form = Request("POST", "/?" + request.body.decode(), {}).query
            known = form.get("refresh_token") in self.identity_tokens
            known = known and form.get("grant_type") == "refresh_token"
        else:
            given = request.headers.get("authorization", "")
            known = given in map(basic_header, self.users.items())
            if given and not known:
                return error(401, "UNAUTHORIZED")
        scopes = frozenset(scopes_asked(request))
        is_push = any(",push" in scope for scope in scopes)
        if not known and not (self.is_public and not is_push):
            return error(401, "UNAUTHORIZED")
        token = secrets.token_urlsafe(16)
        self.issued += 1
        self.tokens[token] = (time.monotonic() + self.lifetime_seconds, scopes)
        name = "access_token" if request.method == "POST" else "token"
        return document({name: token, "expires_in": int(self.lifetime_seconds)})


def scopes_asked(request: Request) -> list[str]:
    """Return the scopes that a token is asked for: several words, or several parameters."""
    is_form = request.method == "POST"
    query = request.body.decode() if is_form else urlsplit(request.target).query
    return " ".join(parse_qs(query).get("scope", [])).split()


@dataclass
class Signed:
    """Signed URLs: under which base, which signatures are still good, how others are refused."""

    base: str
    refusal: int
    known: set[str]

    def sign(self, name: str, digest: str) -> str:
        signature = secrets.token_hex(8)
        self.known.add(signature)
        return f"{self.base}/_signed/{name}/{digest}?signature={signature}"


def basic_header(user: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(user).encode()).decode()
