"""containers' ``registries.conf``: prefixes, locations, mirrors.  No I/O here.

Spec: containers-registries.conf(5), version 2.  The search list and the short names are not read:
a reference names the same image on every machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import msgspec

from lazyfs.errors import AccessDenied
from lazyfs.oci.reference import PATH_COMPONENT_RE
from lazyfs.registry.config.endpoints import (
    PULL,
    RESOLVE,
    BadEndpoint,
    Endpoint,
    Tls,
    endpoint_of,
    parse_base,
)
from lazyfs.registry.config.hosts_toml import FILE_LIMIT, decode_toml

REGISTRY_LIMIT = 10_000
MIRROR_LIMIT = 64


class Blocked(AccessDenied):
    """The configuration forbids this registry."""

    code = "E_BLOCKED"


class Mirror(msgspec.Struct, rename="kebab"):
    """A place that may be asked before the registry."""

    location: str
    insecure: bool = False
    pull_from_mirror: Literal["all", "digest-only", "tag-only", ""] = "all"


class Registry(msgspec.Struct, rename="kebab"):
    """What the configuration says about all repositories that begin with ``prefix``."""

    prefix: str = ""
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirror_by_digest_only: bool = False
    mirror: list[Mirror] = []
    source: str = ""

    @property
    def key(self) -> str:
        """The prefix; the location where it is not given."""
        return self.prefix or self.location


class _File(msgspec.Struct):
    registry: list[Registry] = []


def parse_registries(data: bytes, path: str) -> list[Registry]:
    """Return the ``[[registry]]`` tables of one file."""
    if len(data) > FILE_LIMIT:
        raise BadEndpoint(f"{path}: got {len(data)} bytes, expected at most {FILE_LIMIT}")
    found = decode_toml(data, path, _File).registry
    if len(found) > REGISTRY_LIMIT:
        raise BadEndpoint(f"{path}: got {len(found)} registries, expected at most {REGISTRY_LIMIT}")
    for registry in found:
        if not registry.key:
            raise BadEndpoint(f"{path}: a registry has neither prefix nor location")
        if registry.prefix.startswith("*.") and registry.location.startswith("*"):
            raise BadEndpoint(
                f"{path}: registry {registry.prefix}: a location cannot have a wildcard"
            )
        if len(registry.mirror) > MIRROR_LIMIT:
            raise BadEndpoint(
                f"{path}: registry {registry.key} has more than {MIRROR_LIMIT} mirrors"
            )
        registry.source = path
    return found


def merge_registries(files: Iterable[Sequence[Registry]]) -> list[Registry]:
    """Join the tables of several files; a later table replaces one with the same prefix."""
    found: dict[str, Registry] = {}
    for registries in files:
        for registry in registries:
            found[registry.key] = registry
    return list(found.values())


def matching_size(prefix: str, name: str) -> int:
    """Return how much of *name* (``HOST/REPOSITORY``) a prefix covers, 0 for nothing."""
    if prefix.startswith("*."):
        host = name.partition("/")[0]
        return len(prefix) if host.partition(":")[0].endswith(prefix[1:]) else 0
    if name == prefix or name.startswith(prefix.rstrip("/") + "/"):
        return len(prefix)
    return 0


def choose_registry(registries: Iterable[Registry], name: str) -> Registry | None:
    """Return the table whose prefix covers most of *name*, None if no prefix fits."""
    best, size = None, 0
    for registry in registries:
        covered = matching_size(registry.key, name)
        if covered > size:
            best, size = registry, covered
    return best


def endpoints_in(
    registry: Registry, name: str, origin: Endpoint, *, is_by_digest: bool
) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """Return the mirrors of *name* and its origin (several to be tried if it is insecure).

    *is_by_digest*: the reference has a digest, so mirrors for tags do not count.
    """
    if registry.blocked:
        raise Blocked(
            f"registry {registry.key} is blocked",
            hint=f"{registry.source} has blocked = true for it",
        )
    mirrors: list[Endpoint] = []
    for mirror in registry.mirror:
        kind = "digest-only" if registry.mirror_by_digest_only else mirror.pull_from_mirror
        if kind == "tag-only" and is_by_digest:
            continue
        capabilities = {PULL} if kind == "digest-only" else {PULL, RESOLVE}
        mirrors += _located(mirror.location, mirror.insecure, registry, name, capabilities)
    if not registry.location and not registry.insecure:
        return tuple(mirrors), (origin,)
    location = registry.location or name[: _covered(registry.key, name)]
    origins = _located(
        location, registry.insecure, registry, name, origin.capabilities, is_origin=True
    )
    # What the command line says about the registry holds wherever it is.
    if not origin.tls.is_verified:
        origins = [replace(each, tls=origin.tls) for each in origins]
    if not origin.is_secure:
        origins = [replace(origins[-1], url="http:" + origins[-1].url.partition(":")[2])]
    return tuple(mirrors), tuple(origins)


def _located(
    location: str,
    is_insecure: bool,
    registry: Registry,
    name: str,
    capabilities: Iterable[str],
    *,
    is_origin: bool = False,
) -> list[Endpoint]:
    """Return the endpoint at *location*: two if it is insecure, encrypted before plain."""
    if "://" in location:
        raise BadEndpoint(
            f"{registry.source}: location {location[:100]!r} is a URL, "
            "not of the form HOST[:PORT][/PATH]"
        )
    parse_base(location, registry.source)
    rest = name[_covered(registry.key, name) :]
    host, _, repository = (location.rstrip("/") + rest).partition("/")
    if not all(PATH_COMPONENT_RE.fullmatch(part) for part in repository.split("/")):
        raise BadEndpoint(
            f"{registry.source}: location {location[:100]!r}: "
            f"{repository[:100]!r} is not a valid repository name"
        )
    found = endpoint_of(host, repository, plain_http=False)
    found = replace(
        found,
        is_origin=is_origin,
        capabilities=frozenset(capabilities),
        source=registry.source,
        tls=Tls(is_verified=not is_insecure),
    )
    if not is_insecure or not found.is_secure:
        return [found]
    return [found, replace(found, url="http:" + found.url.partition(":")[2])]


def _covered(prefix: str, name: str) -> int:
    """Return how many characters of *name* a location stands for: with a wildcard, the host."""
    return name.index("/") if prefix.startswith("*.") else len(prefix.rstrip("/"))
