"""Hosts in URLs: where a redirect leads, and through which proxy a host is reached.  No I/O here.

The proxy variables are those of curl.
"""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from lazyfs.printable import printable
from lazyfs.registry.config.errors import BadAnswer, Refused, redact_url

DEFAULT_PORTS = {"http": 80, "https": 443}
URL_LIMIT = 16 << 10
"""Signed URLs of object stores are below 4 KiB; servers refuse more than 8 to 16 KiB."""

# What urllib and httpx read alike; anything else could name one host here and another there.
AUTHORITY_RE = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin:
    """Return scheme, host and port of an absolute http or https URL."""
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname
        port = parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError as error:
        raise BadAnswer(f"{redact_url(url)!r} is not a valid URL") from error
    if scheme not in DEFAULT_PORTS or not host or port is None or "\\" in url:
        raise BadAnswer(f"{redact_url(url)!r} is not an http or https URL with a host")
    if AUTHORITY_RE.fullmatch(parts.netloc) is None:
        raise BadAnswer(f"{redact_url(url)!r} has more than a host and a port before its path")
    return scheme, host.lower(), port


def next_url(url: str, location: str | None) -> str:
    """Return where the Location of an answer from *url* points.

    Relative ones are resolved, a fragment is dropped; user information, other schemes and the way
    from https to http are refused.
    """
    if not location:
        raise BadAnswer(f"{redact_url(url)}: the redirect has no Location")
    if len(location) > URL_LIMIT:
        raise BadAnswer(
            f"{redact_url(url)}: Location: got {len(location)} bytes, expected at most {URL_LIMIT}"
        )
    if not location.isascii() or not location.isprintable() or " " in location:
        raise BadAnswer(
            f"{redact_url(url)}: Location {printable(location, 100)!r} is not a valid URL"
        )
    try:
        target = urljoin(url, location).partition("#")[0]
    except ValueError as error:
        raise BadAnswer(
            f"{redact_url(url)}: Location {printable(location, 100)!r} is not a valid URL"
        ) from error
    scheme, _, _ = origin_of(target)
    if scheme == "http" and origin_of(url)[0] == "https":
        raise Refused(
            f"{redact_url(url)}: redirected from https to http: {redact_url(target)}",
            hint="lazyfs does not follow it: the transfer would no longer be encrypted",
        )
    return target


def proxy_for(origin: Origin, environment: Mapping[str, str]) -> str | None:
    """Return the proxy's URL for *origin*, None to connect directly.

    ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``ALL_PROXY`` in either case, the lower one first
    (``HTTP_PROXY`` in capitals too: this is no CGI program); ``NO_PROXY`` lists names with their
    subdomains, ``name:port``, addresses, networks, or ``*``.  Loopback is never proxied.
    """
    scheme, host, port = origin
    if _is_loopback_host(host):
        return None
    proxy = None
    for name in (f"{scheme}_proxy", "all_proxy"):
        proxy = proxy or environment.get(name) or environment.get(name.upper())
    if not proxy:
        return None
    spared = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if any(_is_spared(host, port, rule.strip().lower()) for rule in spared.split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_spared(host: str, port: int, rule: str) -> bool:
    if rule == "*":
        return True
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return rule in (f"{host}:{port}", f"[{host}]:{port}")
    name, colon, wanted_port = rule.partition(":")
    name = name.removeprefix("*").lstrip(".")
    if not name or (colon and wanted_port != str(port)):
        return False
    return host == name or host.endswith(f".{name}")


def _is_loopback_host(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
