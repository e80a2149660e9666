"""Authorization for one repository: which header to send, and what to do when it is refused.

Nothing is sent before the registry has asked for it.  Tokens are kept per scope and replaced
before they expire; credentials are searched for again each time one is needed, so a new login
counts at once.  However many requests wait for a token, one fetches it.
"""

import logging
from collections import defaultdict

import trio

from lazyfs.errors import AccessDenied, LazyfsError
from lazyfs.registry.answers.challenges import Challenge, choose_challenge, parse_challenges
from lazyfs.registry.answers.tokens import (
    ANSWER_LIMIT,
    Token,
    basic_authorization,
    build_token_request,
    decode_token,
    scopes_to_ask,
)
from lazyfs.registry.config.endpoints import Endpoint
from lazyfs.registry.config.errors import error_for
from lazyfs.registry.config.helpers import find_credential
from lazyfs.registry.config.hosts import DEFAULT_PORTS, Origin, next_url, origin_of
from lazyfs.registry.config.keychain import Credential, Kind
from lazyfs.registry.redirects import discard, follow
from lazyfs.registry.source import AccessOptions
from lazyfs.registry.transport import Answer, Transport

log = logging.getLogger(__name__)

FRESH_SECONDS = 10.0
"""A token younger than this that is answered with 403 is simply not enough."""

PAUSE_SECONDS = 5.0
"""How long a token that is still good is left alone after it could not be replaced."""


class _Slot:
    """The token of one scope, and the lock under which it is fetched.

    ``attempts`` counts fetches that failed; who waited through one shares its error.  A token that
    is due but good is not replaced before ``pause_end``.  ``asked`` is what the registry wanted
    besides when it refused a request of this scope.
    """

    def __init__(self) -> None:
        self.token: Token | None = None
        self.error: LazyfsError | None = None
        self.attempts = 0
        self.pause_end = 0.0
        self.asked = ""
        self.lock = trio.Lock()


class Authorizer:
    """Authorization headers for the repository at *endpoint*.

    Credentials are searched for under the endpoint's own name; those of the command line are for
    the registry itself.
    """

    def __init__(self, transport: Transport, endpoint: Endpoint, options: AccessOptions) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._options = options
        self._challenge: Challenge | None = None
        self._basic: str | None = None
        self._slots: defaultdict[str, _Slot] = defaultdict(_Slot)

    def at(self, origin: Origin) -> "Authorizer":
        """Return one for another place, a registry of its own: with credentials for that only."""
        scheme, host, port = origin
        name = f"[{host}]" if ":" in host else host
        registry = name if port == DEFAULT_PORTS[scheme] else f"{name}:{port}"
        endpoint = Endpoint(f"{scheme}://{registry}", registry, is_origin=False)
        return Authorizer(self._transport, endpoint, self._options)

    async def authorization(self, scope: str) -> str | None:
        """Return the header's value for a request of *scope*; None to send none."""
        if self._challenge is None:
            return None
        if self._challenge.scheme == "basic":
            return self._basic
        slot = self._slots[scope]
        token = slot.token
        now = trio.current_time()
        if token is not None and now < max(token.due, min(slot.pause_end, token.expiry)):
            return token.authorization
        try:
            return await self._token(slot, scope, token)
        except LazyfsError as error:
            now = trio.current_time()
            if token is None or now >= token.expiry:
                raise
            # Still good: whatever is wrong with the service or the credentials may be over later.
            log.debug("%s: cannot renew the token yet: %s", scope, error.message)
            slot.pause_end = now + PAUSE_SECONDS
            return token.authorization

    async def renewed(self, scope: str, answer: Answer, rejected: str | None) -> str | None:
        """Return another header than *rejected*, which got *answer* (401 or 403).

        None if there is none to be had; raises what went wrong while looking for one.
        """
        if answer.status == 401:
            header = answer.headers.get("www-authenticate", "")
            challenge = choose_challenge(parse_challenges(header))
            if challenge is None:
                return None
            self._challenge = self._chosen(challenge, rejected)
        elif self._challenge is None or rejected is None:
            return None
        if self._challenge.scheme == "basic":
            return await self._renewed_basic(rejected)
        if answer.status == 401:
            self._slots[scope].asked = self._challenge.parameters.get("scope", "")
        return await self._renewed_token(scope, answer.status, rejected)

    def _chosen(self, challenge: Challenge, rejected: str | None) -> Challenge:
        """Return the challenge to answer now: *challenge*, or the one known before.

        Harbor offers only Basic to whoever brings a token that has ended.  A new token is what
        helps, and all that somebody without credentials can have.
        """
        known = self._challenge
        if known is None or rejected is None or not rejected.startswith("Bearer "):
            return challenge
        is_instead = known.scheme == "bearer" and challenge.scheme == "basic"
        return known if is_instead else challenge

    async def _renewed_basic(self, rejected: str | None) -> str | None:
        if self._basic is not None and self._basic != rejected:
            return self._basic  # another request found it meanwhile
        credential = await self._credential()
        if credential is None or credential.kind is Kind.IDENTITY_TOKEN:
            return None
        header = _direct(credential)
        self._basic = header
        return header if header != rejected else None

    async def _renewed_token(self, scope: str, status: int, rejected: str | None) -> str | None:
        slot = self._slots[scope]
        token = slot.token
        if token is not None and token.authorization == rejected:
            is_fresh = trio.current_time() - token.received < FRESH_SECONDS
            if status == 403 and is_fresh:
                return None
        elif token is not None and trio.current_time() < token.expiry:
            return token.authorization  # another request fetched it meanwhile
        renewed = await self._token(slot, scope, token)
        return renewed if renewed != rejected else None

    async def _token(self, slot: _Slot, scope: str, stale: Token | None) -> str:
        """Return a token that is not *stale*; one caller fetches it, the others wait."""
        attempts = slot.attempts
        async with slot.lock:
            if slot.token is not None and slot.token is not stale:
                return slot.token.authorization
            if slot.attempts != attempts and slot.error is not None:
                raise slot.error
            try:
                slot.token = await self._fetch_token(slot, scope)
            except LazyfsError as error:
                slot.error = error
                slot.attempts += 1
                raise
            # A caller that is cancelled leaves no outcome: the next one fetches for itself.
            slot.error = None
            return slot.token.authorization

    async def _fetch_token(self, slot: _Slot, scope: str) -> Token:
        challenge = self._challenge
        assert challenge is not None
        realm = next_url(self._endpoint.api + "/", challenge.parameters.get("realm"))
        credential = await self._credential()
        if credential is not None and credential.kind is Kind.REGISTRY_TOKEN:
            now = trio.current_time()
            return Token(credential.secret, now, now + 60.0, now + 60.0)
        service = challenge.parameters.get("service", "")
        scopes = scopes_to_ask(scope, slot.asked)
        request = build_token_request(realm, service, scopes, credential)
        headers = {"accept": "application/json"}
        if request.body is not None:
            headers["content-type"] = "application/x-www-form-urlencoded"
        answer = await follow(
            self._transport,
            request.method,
            request.url,
            headers,
            request.body,
            authorization=request.authorization,
            origin=origin_of(realm),
            is_secret=request.body is not None,
        )
        if answer.status not in (200, 201):  # some say that a token was created
            body = await discard(answer)
            raise self._refusal(answer, body, credential)
        try:
            return decode_token(await answer.read(ANSWER_LIMIT), trio.current_time())
        finally:
            await answer.aclose()

    def _refusal(self, answer: Answer, body: bytes, credential: Credential | None) -> LazyfsError:
        registry = self._endpoint.registry
        error = error_for(
            answer.method, answer.url, answer.status, answer.headers, body, registry=registry
        )
        if isinstance(error, AccessDenied) and credential is not None:
            return type(error)(
                f"{error.message}; the credentials came from {credential.source}",
                hint=error.hint,
            )
        return error

    async def _credential(self) -> Credential | None:
        options = self._options
        if options.is_anonymous:
            return None
        if options.login is not None and self._endpoint.is_origin:
            return Credential(*options.login, source="the command line")
        return await find_credential(self._endpoint.registry, self._endpoint.repository, options)


def _direct(credential: Credential) -> str:
    if credential.kind is Kind.REGISTRY_TOKEN:
        return f"Bearer {credential.secret}"
    return basic_authorization(credential)
