"""Scopes: the names under which a policy, or a section of registries.d, holds for an image.

Spec: containers-policy.json(5), "docker:" and "oci:"; containers-registries.d(5), "Registries,
Scopes and Search Order".  An image has many scopes, and the most specific one that is listed wins:

    docker.io/library/app:1   docker.io/library/app   docker.io/library   docker.io   *.io
"""

from collections.abc import Iterator

from lazyfs.oci.reference import (
    DEFAULT_TAG,
    DOMAIN_RE,
    PATH_COMPONENT_RE,
    TAG_RE,
    LayoutReference,
    Reference,
)

DOCKER = "docker"
LAYOUT = "oci"


def transport_of(reference: Reference | LayoutReference) -> str:
    """Return what containers/image calls the way to this image: ``docker`` or ``oci``."""
    return DOCKER if isinstance(reference, Reference) else LAYOUT


def scopes_of(reference: Reference | LayoutReference) -> Iterator[str]:
    """Yield the scopes that an image is in, the most specific first, without the default "".

    The host is in lower case: its spelling must not choose the policy.  The directory of a layout
    must be absolute and without symbolic links.
    """
    if isinstance(reference, LayoutReference):
        path = reference.path.rstrip("/")
        while path:
            yield path
            path = path.rpartition("/")[0]
        return
    host = reference.registry.lower()
    name = f"{host}/{reference.repository}"
    if reference.digest is not None:
        yield f"{name}@{reference.digest}"
    else:
        yield f"{name}:{reference.tag or DEFAULT_TAG}"
    while "/" in name:
        yield name
        name = name.rpartition("/")[0]
    yield host
    # A wildcard stands for names below a domain, whatever their port.
    domain = "" if host.startswith("[") else host.partition(":")[0]
    while "." in domain:
        domain = domain.partition(".")[2]
        yield f"*.{domain}"


def normalised(scope: str) -> str:
    """Return a scope for registries as ``scopes_of`` spells it: the host in lower case."""
    host, slash, path = scope.partition("/")
    return host.lower() + slash + path


def fault_of(scope: str) -> str | None:
    """Say why a scope for registries matches no image, in a few words; None: it may match some."""
    if scope.startswith("*."):
        domain = scope.removeprefix("*.")
        is_domain = DOMAIN_RE.fullmatch(domain) is not None and ":" not in domain
        return None if is_domain else "a wildcard is *. and a domain, without port or path"
    name, at, digest = scope.partition("@")
    host, slash, path = name.partition("/")
    if not DOMAIN_RE.fullmatch(host):
        return "it does not begin with a host"
    if not _is_registry(host):
        return "the host is missing: images of Docker Hub are docker.io/library/NAME"
    path, colon, tag = path.partition(":")
    if (colon and not TAG_RE.fullmatch(tag)) or (at and not (slash and digest)):
        return "the tag or digest is not valid"
    if slash and not all(map(PATH_COMPONENT_RE.fullmatch, path.split("/"))):
        return "the repository is not valid"
    return None


def _is_registry(host: str) -> bool:
    """Say whether a reference can begin with this host: see ``oci.reference``."""
    return "." in host or ":" in host or host == "localhost" or host != host.lower()
