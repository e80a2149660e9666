"""The places that may serve a repository, and what each of them may be asked.  No I/O here.

The *origin* is the registry that the reference names; every other endpoint is a mirror.  What a
mirror says about a tag cannot be checked, so one that is not trusted to resolve tags is asked by
digest only; that is safe, since every byte is verified.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from lazyfs.errors import UsageError
from lazyfs.oci.reference import api_host, is_loopback

RESOLVE, PULL, PUSH, REFERRERS = "resolve", "pull", "push", "referrers"
ALL = frozenset({RESOLVE, PULL, PUSH, REFERRERS})

# What the transport or a request decides; a configured header must not contradict it.
RESERVED = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "range", "accept-encoding"}
)
HEADER_RE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
VALUE_RE = re.compile(r"[\x20-\x7e]{0,8192}")
URL_RE = re.compile(
    r"(https?)://((?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?)((?:/[\x21\x24-\x3e\x40-\x7e]*)?)"
)


class BadEndpoint(UsageError):
    """A configuration that describes no endpoint, or contradicts itself."""

    code = "E_REGISTRY_CONFIG"


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust: files beside the machine's own authorities, and certificates to show.

    ``clients`` are pairs of files, certificate and key; without a key both are in the first.
    """

    authorities: tuple[str, ...] = ()
    clients: tuple[tuple[str, str | None], ...] = ()
    is_verified: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves a repository.

    ``url`` has no slash at the end; ``/v2`` follows unless ``has_whole_path``.  ``registry`` is
    the name that credentials for it are kept under, ``repository`` the name that it uses itself.
    ``namespace`` is told to proxies that serve several registries (``?ns=``).  ``headers`` may
    hold secrets.  ``source`` says which configuration it is from.  ``other_url`` is the same place
    by the other of http and https, where nobody said which it speaks and either will do.
    """

    url: str
    registry: str
    repository: str = ""
    is_origin: bool = True
    capabilities: frozenset[str] = ALL
    namespace: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    tls: Tls = Tls()
    connect_seconds: float | None = None
    has_whole_path: bool = False
    source: str = "default"
    other_url: str | None = None

    @property
    def api(self) -> str:
        """Where the API begins: ``https://ghcr.io/v2``."""
        return self.url if self.has_whole_path else f"{self.url}/v2"

    def address(self, rest: str) -> str:
        """Return the URL of *rest* (``manifests/latest``) in the repository."""
        return f"{self.api}/{self.repository}/{rest}{self.query}"

    @property
    def query(self) -> str:
        """What follows each URL."""
        return "" if self.namespace is None else f"?ns={quote(self.namespace, safe=':')}"

    @property
    def is_secure(self) -> bool:
        """Whether connections are encrypted."""
        return self.url.startswith("https:")

    def can(self, capability: str) -> bool:
        """Say whether it may be asked to do this."""
        return capability in self.capabilities


def endpoint_of(
    registry: str, repository: str = "", *, plain_http: bool, is_verified: bool = True
) -> Endpoint:
    """Return the endpoint of a registry: https, or plain http where that is asked for.

    On loopback http is tried first and then https, which costs a registry that speaks http
    nothing.  Where certificates are not checked, https is tried first and then http, as podman and
    skopeo do: whoever could answer in plain could answer with any certificate.
    """
    host = api_host(registry)
    secure, plain = f"https://{host}", f"http://{host}"
    url, other = secure, None if is_verified else plain
    if plain_http:
        url, other = plain, None
    elif is_loopback(registry):
        url, other = plain, secure
    return Endpoint(url, registry, repository, tls=Tls(is_verified=is_verified), other_url=other)


def parse_base(text: str, what: str) -> tuple[str, str]:
    """Return a configured URL without a slash at its end, and its host with the port.

    A name alone is taken for https, or http if it is this machine.
    """
    spelled = text
    if "://" not in text:
        spelled = f"{'http' if is_loopback(text.partition('/')[0]) else 'https'}://{text}"
    match = URL_RE.fullmatch(spelled)
    try:
        is_good = match is not None and urlsplit(spelled).port != 0
    except ValueError:
        is_good = False
    if match is None or not is_good:
        raise BadEndpoint(f"{what}: {text[:100]!r} is not of the form http(s)://HOST[:PORT][/PATH]")
    return spelled.rstrip("/"), match[2].lower()


def checked_headers(
    pairs: Iterable[tuple[str, str | list[str]]], what: str
) -> Iterator[tuple[str, str]]:
    """Yield configured headers, names in lower case; refuse what would break a request."""
    for name, values in pairs:
        for value in [values] if isinstance(values, str) else values:
            if HEADER_RE.fullmatch(name) is None or name.lower() in RESERVED:
                raise BadEndpoint(f"{what}: header {name[:60]!r} cannot be set here")
            if VALUE_RE.fullmatch(value) is None:  # not shown: it may be a secret
                raise BadEndpoint(f"{what}: header {name}: the value is not printable text")
            yield name.lower(), value


def distinct(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Return *endpoints* without those that lead where an earlier one has led.

    Of a mirror that is the origin too, the origin stays: credentials go there.
    """
    listed = list(endpoints)
    found: list[Endpoint] = []
    for number, endpoint in enumerate(listed):
        same = [each for each in found if _place(each) == _place(endpoint)]
        is_later_origin = not endpoint.is_origin and any(
            each.is_origin and _place(each) == _place(endpoint) for each in listed[number + 1 :]
        )
        if not same and not is_later_origin:
            found.append(endpoint)
    return tuple(found)


def _place(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.api, endpoint.repository
