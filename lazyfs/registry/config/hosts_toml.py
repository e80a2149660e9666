"""containerd's ``hosts.toml``: which hosts serve a registry, in which order.  No I/O here.

Spec: containerd docs/hosts.md.  Paths in the file are relative to its directory.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import TypeVar

import msgspec

from lazyfs.oci.reference import api_host
from lazyfs.printable import printable
from lazyfs.registry.config.endpoints import (
    ALL,
    PULL,
    PUSH,
    REFERRERS,
    RESOLVE,
    BadEndpoint,
    Endpoint,
    Tls,
    checked_headers,
    parse_base,
)

FILE_LIMIT = 1 << 20
HOST_LIMIT = 64
DURATION_RE = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|µs|ms|s|m|h))+")
PART_RE = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


T = TypeVar("T")


class _Host(msgspec.Struct):
    capabilities: list[str] | None = None
    ca: str | list[str] | None = None
    client: str | list[str | list[str]] | None = None
    skip_verify: bool | None = None
    header: dict[str, str | list[str]] | None = None
    override_path: bool | None = None
    dial_timeout: str | None = None


class _File(_Host):
    server: str | None = None
    host: dict[str, _Host] | None = None


def directory_names(registry: str) -> list[str]:
    """Return the names under which a registry's directory may be found, best first."""
    host, colon, port = registry.rpartition(":")
    names = [registry, "_default"]
    if colon and port.isdigit():
        names.insert(0, f"{host}_{port}_")
    return names


def parse_hosts(
    data: bytes, path: str, registry: str, repository: str, origin: Endpoint
) -> tuple[Endpoint, ...]:
    """Return the endpoints that a ``hosts.toml`` names for a registry; the origin is the last.

    *origin* is what it is where the file does not say.
    """
    file = _decode(data, path)
    found = [
        _endpoint(text, host, path, registry, repository, is_origin=False)
        for text, host in (file.host or {}).items()
    ]
    if len(found) > HOST_LIMIT:
        raise BadEndpoint(f"{path}: got {len(found)} hosts, expected at most {HOST_LIMIT}")
    if file.server:
        found.append(_endpoint(file.server, file, path, registry, repository, is_origin=True))
    else:
        found.append(_configured(origin, file, path))
    return tuple(found)


def parse_duration(text: str) -> float | None:
    """Return the seconds that a duration of Go (``1m30s``) stands for, None if it is none."""
    if text == "0":
        return 0.0
    if len(text) > 60 or DURATION_RE.fullmatch(text) is None:
        return None
    return sum(float(number) * UNITS[unit] for number, unit in PART_RE.findall(text))


def _decode(data: bytes, path: str) -> _File:
    if len(data) > FILE_LIMIT:
        raise BadEndpoint(f"{path}: got {len(data)} bytes, expected at most {FILE_LIMIT}")
    return decode_toml(data, path, _File)


def decode_toml(data: bytes, path: str, kind: type[T]) -> T:
    """Return the TOML document in *data* as a *kind*; what it does not know is left out."""
    import tomllib  # noqa: PLC0415 - most machines have no such file, and mounts start often

    try:
        return msgspec.convert(tomllib.loads(data.decode()), kind)
    except (ValueError, RecursionError) as error:  # of UTF-8, TOML and msgspec alike
        reason = printable(str(error), 150)
        raise BadEndpoint(f"{path} is not a valid configuration in TOML: {reason}") from None


def _endpoint(
    text: str, host: _Host, path: str, registry: str, repository: str, *, is_origin: bool
) -> Endpoint:
    url, name = parse_base(text, path)
    key = registry if name == api_host(registry) else name
    base = Endpoint(
        url,
        key,
        repository,
        is_origin=is_origin,
        # What a proxy needs to know: for which registry it is asked.
        namespace=None if key == registry else registry,
        capabilities=ALL if is_origin else frozenset({RESOLVE, PULL, PUSH}),
    )
    return _configured(base, host, path)


def _configured(base: Endpoint, host: _Host, path: str) -> Endpoint:
    """Return *base* with what the file says about it."""
    capabilities = base.capabilities
    if host.capabilities is not None:
        # A registry itself is always asked for referrers: it says if it has none.
        extra = {REFERRERS} if base.is_origin else set()
        capabilities = frozenset(host.capabilities) & ALL | extra
    seconds = None if host.dial_timeout is None else parse_duration(host.dial_timeout)
    if host.dial_timeout is not None and seconds is None:
        raise BadEndpoint(
            f"{path}: dial_timeout {printable(host.dial_timeout, 40)!r} is not a duration "
            "such as 3s"
        )
    url = base.url
    # As containerd does: a path that ends in /v2 is meant to be the whole one.
    is_whole = bool(host.override_path) or url.endswith("/v2")
    return replace(
        base,
        url=url,
        has_whole_path=is_whole,
        capabilities=capabilities,
        headers=tuple(checked_headers((host.header or {}).items(), path)),
        connect_seconds=seconds or None,
        tls=Tls(
            tuple(_absolute(name, path) for name in _listed(host.ca)),
            tuple(_clients(host.client, path)),
            base.tls.is_verified and not host.skip_verify,
        ),
        source=path,
    )


def _listed(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _clients(
    value: str | list[str | list[str]] | None, path: str
) -> Iterator[tuple[str, str | None]]:
    if value is None:
        return
    for each in [value] if isinstance(value, str) else value:
        pair = [each] if isinstance(each, str) else each
        if not 1 <= len(pair) <= 2 or not pair[0]:
            raise BadEndpoint(f"{path}: client: got {len(pair)} files, expected 1 or 2")
        key = _absolute(pair[1], path) if len(pair) == 2 and pair[1] else None
        yield _absolute(pair[0], path), key


def _absolute(name: str, path: str) -> str:
    if not name or "\0" in name:
        raise BadEndpoint(f"{path}: {name[:60]!r} is not the name of a file")
    return str(PurePath(path).parent / name)
