"""Reading the configuration of registries, and the one list of endpoints that comes of it.

Order: the hosts that containerd's ``hosts.toml`` names, the mirrors of containers'
``registries.conf``, the registry itself.  The command line's word on the registry itself counts
more than a file's.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from lazyfs.errors import UsageError
from lazyfs.oci.reference import Reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.registry.config.endpoints import Endpoint, Tls, distinct, endpoint_of
from lazyfs.registry.config.files import read_regular
from lazyfs.registry.config.hosts_toml import FILE_LIMIT, directory_names, parse_hosts
from lazyfs.registry.config.registries_conf import (
    Registry,
    choose_registry,
    endpoints_in,
    merge_registries,
    parse_registries,
)

SYSTEM = Path("/etc")


class ConfigurationUnreadable(UsageError):
    """A file of the configuration is there and cannot be read, or was named and is not there."""

    code = "E_REGISTRY_CONFIG"


def load_endpoints(
    reference: Reference, options: AccessOptions, *, system: Path = SYSTEM
) -> tuple[Endpoint, ...]:
    """Return the endpoints for *reference*, in the order in which they are asked.

    Raises BadEndpoint, Blocked or ConfigurationUnreadable.  *system* stands for ``/etc``.
    """
    roots = _roots(options.environment, system)
    own = endpoint_of(
        reference.registry,
        reference.repository,
        plain_http=options.plain_http,
        is_verified=options.is_verified,
    )
    hosts = _load_hosts(reference, options, roots, own)
    registry = choose_registry(_load_registries(options.environment, roots), reference.name)
    mirrors: tuple[Endpoint, ...] = ()
    origins: tuple[Endpoint, ...] = (own,)
    if registry is not None:
        mirrors, origins = endpoints_in(
            registry, reference.name, own, is_by_digest=reference.digest is not None
        )
    if hosts:
        mirrors = (*hosts[:-1], *mirrors)
        if origins == (own,) or hosts[-1].url != own.url:
            origins = hosts[-1:]
    if not options.is_verified:
        origins = tuple(replace(each, tls=replace(each.tls, is_verified=False)) for each in origins)
    if options.cert_dir is not None:
        origins = _with_own_certificates(origins, options.cert_dir)
    return tuple(_with_certificates(each, roots) for each in distinct((*mirrors, *origins)))


def _with_own_certificates(origins: tuple[Endpoint, ...], folder: Path) -> tuple[Endpoint, ...]:
    """Return *origins* with the certificates in *folder*, which the user has named."""
    found = _certificates(folder)
    if found is None:
        raise ConfigurationUnreadable(
            f"{folder} has no certificates",
            hint="name certificate authorities NAME.crt, a client certificate NAME.cert and "
            "its key NAME.key",
        )
    return tuple(
        replace(each, tls=replace(found, is_verified=each.tls.is_verified)) for each in origins
    )


def _roots(environment: Mapping[str, str], system: Path) -> list[Path]:
    """Return the directories that hold ``containerd``, ``containers`` and ``docker``."""
    home = environment.get("HOME")
    user = environment.get("XDG_CONFIG_HOME") or (home and f"{home}/.config")
    return [Path(user), system] if user else [system]


def _load_hosts(
    reference: Reference, options: AccessOptions, roots: list[Path], own: Endpoint
) -> tuple[Endpoint, ...]:
    """Return what containerd's directory for the registry says; nothing if there is none."""
    folders = [root / "containerd" / "certs.d" for root in roots]
    if options.hosts_dir is not None:
        if not options.hosts_dir.is_dir():
            raise ConfigurationUnreadable(f"{options.hosts_dir} is not a directory")
        folders.insert(0, options.hosts_dir)
    for folder in folders:
        for name in directory_names(reference.registry):
            path = folder / name / "hosts.toml"
            data = _read(path)
            if data is not None:
                return parse_hosts(data, str(path), reference.registry, reference.repository, own)
            tls = _certificates(folder / name)
            if tls is not None:  # a directory as docker has them
                tls = replace(tls, is_verified=own.tls.is_verified)
                return (replace(own, tls=tls, source=str(folder / name)),)
    return ()


def _load_registries(environment: Mapping[str, str], roots: list[Path]) -> list[Registry]:
    """Return the tables of ``registries.conf`` and of the directories beside it."""
    named = environment.get("CONTAINERS_REGISTRIES_CONF")
    main: list[Path] = [Path(named)] if named else []
    if not named:
        candidates = [root / "containers" / "registries.conf" for root in roots]
        main = [path for path in candidates if path.is_file()][:1]
    added = [
        path
        for root in reversed(roots)
        for path in _listed(root / "containers" / "registries.conf.d", ".conf")
    ]
    files = []
    for path in [*main, *added]:
        data = _read(path)
        if data is None and path in main:
            raise ConfigurationUnreadable(f"{path} does not exist")
        if data is not None:
            files.append(parse_registries(data, str(path)))
    return merge_registries(files)


def _with_certificates(endpoint: Endpoint, roots: list[Path]) -> Endpoint:
    """Add the certificates that ``certs.d`` directories hold for an endpoint without its own."""
    if not endpoint.is_secure or endpoint.tls.authorities or endpoint.tls.clients:
        return endpoint
    host = endpoint.url.partition("://")[2].partition("/")[0]
    names = (host, endpoint.registry) if endpoint.is_origin else (host,)
    for root in roots:
        for tool in ("containers", "docker"):
            for name in names:
                tls = _certificates(root / tool / "certs.d" / name)
                if tls is not None:
                    return replace(endpoint, tls=replace(tls, is_verified=endpoint.tls.is_verified))
    return endpoint


def _certificates(folder: Path) -> Tls | None:
    """Return what a directory holds: ``*.crt`` authorities, ``*.cert`` with ``*.key`` to show."""
    authorities = tuple(map(str, _listed(folder, ".crt")))
    clients = []
    for path in _listed(folder, ".cert"):
        key = path.with_suffix(".key")
        if not key.exists():
            raise ConfigurationUnreadable(f"{path} has no {key.name} beside it")
        clients.append((str(path), str(key)))
    if not authorities and not clients:
        return None
    return Tls(authorities, tuple(clients))


def _listed(folder: Path, suffix: str) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigurationUnreadable(f"cannot read {folder}: {error.strerror}") from error
    for name in names:
        if PurePath(name).suffix == suffix:
            yield folder / name


def _read(path: Path) -> bytes | None:
    try:
        return read_regular(path, FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationUnreadable(f"cannot read {path}: {error.strerror}") from error
