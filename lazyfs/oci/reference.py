"""References: what users type to name an image.

Two kinds.  An image in a registry follows the distribution project's grammar with Docker's
defaults (``python`` is ``docker.io/library/python:latest``); ``docker://`` before it is accepted.
An image in an OCI image layout on disk is ``oci:DIR[:TAG][@DIGEST]``.

Spec: distribution/reference, "Grammar".  No list of registries is searched and nothing is asked:
a reference means one image on every machine.
"""

import ipaddress
import re

import msgspec

from lazyfs.digest import BadDigest, Digest, parse_digest
from lazyfs.errors import UsageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library/"
DEFAULT_TAG = "latest"
REGISTRY_ALIASES = {"index.docker.io": DEFAULT_REGISTRY}
# Where docker.io's API is, and under which name its credentials are kept.
API_HOSTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}
AUTH_KEYS = {DEFAULT_REGISTRY: "https://index.docker.io/v1/"}
MAX_REPOSITORY_SIZE = 255

# domain-component := alpha-numeric [alpha-numeric or "-"]* alpha-numeric
DOMAIN_COMPONENT = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
# domain := (domain-component ("." domain-component)* or "[" IPv6 "]") [":" port]
DOMAIN_RE = re.compile(
    rf"(?:{DOMAIN_COMPONENT}(?:\.{DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?"
)
# path-component := alpha-numeric (separator alpha-numeric)*, lower case;
# separator := "." or "_" or "__" or "-"*.  Matched component by component: the whole path in one
# expression can backtrack for a long time.
PATH_COMPONENT_RE = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
TAG_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
BARE_HEX_RE = re.compile(r"[a-f0-9]{64}")


class BadReference(UsageError):
    """Text that names no image."""

    code = "E_REFERENCE"


class Reference(msgspec.Struct, frozen=True):
    """An image in a registry.  With a digest the tag says only what the user had in mind.

    ``registry`` is a host with an optional port; ``text`` is what the user typed.
    """

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None
    text: str

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/library/python``."""
        return f"{self.registry}/{self.repository}"

    @property
    def identifier(self) -> str | Digest:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


class LayoutReference(msgspec.Struct, frozen=True):
    """An image in an OCI image layout: a directory, and a tag or digest in its index."""

    path: str
    tag: str | None
    digest: Digest | None
    text: str

    @property
    def name(self) -> str:
        """What a resolved reference starts with: ``oci:DIR``."""
        return f"oci:{self.path}"

    @property
    def identifier(self) -> str | Digest:
        """What to look for in the layout; empty for "the only image there"."""
        return self.digest or self.tag or ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def parse_reference(text: str) -> Reference | LayoutReference:
    """Return the image that *text* names, or raise BadReference."""
    if "\0" in text:
        raise BadReference(f"reference {text!r} contains a NUL byte")
    if text.startswith("oci:"):
        return _parse_layout(text)
    return _parse_registry(text.removeprefix("docker://"), text)


def api_host(registry: str) -> str:
    """Return the host that serves *registry*'s API."""
    return API_HOSTS.get(registry, registry)


def auth_key(registry: str) -> str:
    """Return the name under which credential files keep *registry*'s credentials."""
    return AUTH_KEYS.get(registry, registry)


def is_loopback(registry: str) -> bool:
    """Say whether *registry* is this machine, by its name alone."""
    host = registry.rpartition("]")[0].removeprefix("[") or registry.partition(":")[0]
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_layout(text: str) -> LayoutReference:
    path, digest = _split_digest(text.removeprefix("oci:"), text, is_optional=True)
    before, colon, last = path.rpartition(":")
    tag = None
    if colon and not last:
        raise BadReference(f"reference {text!r} has no tag after the colon")
    if colon and TAG_RE.fullmatch(last):
        path, tag = before, last
    if not path:
        raise BadReference(f"reference {text!r} has no directory: oci:DIR[:TAG]")
    return LayoutReference(path, tag, digest, text)


def _parse_registry(name: str, text: str) -> Reference:
    if BARE_HEX_RE.fullmatch(name):
        raise BadReference(
            f"reference {text!r} is a digest without a name",
            hint=f"name an image by its digest like this: NAME@sha256:{name}",
        )
    name, digest = _split_digest(name, text, is_optional=False)
    registry, path = _split_registry(name)
    path, colon, tag = path.partition(":")
    if colon and not TAG_RE.fullmatch(tag):
        raise BadReference(
            f"reference {text!r}: tag {tag!r} is not valid: 1 to 128 letters, digits, '_', '.', "
            "'-', of which the first is not '.' or '-'"
        )
    if not DOMAIN_RE.fullmatch(registry):
        raise BadReference(
            f"reference {text!r}: registry {registry!r} is not of the form HOST[:PORT]"
        )
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = DEFAULT_NAMESPACE + path
    _check_repository(path, text)
    if not colon:
        return Reference(registry, path, None if digest else DEFAULT_TAG, digest, text)
    return Reference(registry, path, tag, digest, text)


def _split_digest(name: str, text: str, *, is_optional: bool) -> tuple[str, Digest | None]:
    """Split ``@DIGEST`` off; a directory may have an ``@`` of its own (*is_optional*)."""
    before, at, spelled = name.rpartition("@")
    if not at or (is_optional and not spelled.startswith(("sha256:", "sha512:"))):
        return name, None
    try:
        return before, parse_digest(spelled)
    except BadDigest as exc:
        raise BadReference(f"reference {text!r}: {exc}") from exc


def _split_registry(name: str) -> tuple[str, str]:
    """Tell a registry from the first component of a repository, as Docker does.

    It is one if it has a dot, a colon or a capital letter, or is ``localhost``.
    """
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return REGISTRY_ALIASES.get(first, first), rest
    return DEFAULT_REGISTRY, name


def _check_repository(path: str, text: str) -> None:
    if len(path) > MAX_REPOSITORY_SIZE:
        raise BadReference(
            f"reference: got a repository of {len(path)} characters,"
            f" expected at most {MAX_REPOSITORY_SIZE}"
        )
    for component in path.split("/"):
        if not PATH_COMPONENT_RE.fullmatch(component):
            hint = "write the repository in lower case" if component != component.lower() else None
            raise BadReference(
                f"reference {text!r}: {component!r} is not valid in a repository:"
                " a-z and 0-9, with single '.', '_', '__' or dashes between them",
                hint=hint,
            )
