"""Templates: what a sandbox consists of, in YAML or JSON.

The field names are those of agent-substrate's ActorTemplate where they mean the same.  A template
is immutable: another text that means something else is another template, told apart by the digest
of its canonical form.  Contract: docs/reference/template.md.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lazyfs.documents.documents import canonical_digest
from lazyfs.documents.security import MEANINGS as SECURITY_MEANINGS
from lazyfs.documents.security import Logs, Resources, Security

PAUSE = "pause"
"""The name of the container that a pause image makes."""

LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z"
TEMPLATE_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z"
VARIABLE = r"^[^=\x00]+\Z"
NO_NUL = r"^[^\x00]*\Z"
ABSOLUTE = r"^/[^\x00]*\Z"
HOSTNAME = r"^[a-zA-Z0-9]([-a-zA-Z0-9.]{0,62}[a-zA-Z0-9])?\Z"
KEPT = r"^(Full|Data)\Z"
SANDBOX_CLASS = r"^gvisor\Z"
RUNTIME = r"^(runsc|crun|runc|bwrap)\Z"
OVERLAY = r"^(none|(root|all):(memory|self|dir=/[^\x00-\x1f\x7f,:]*))\Z"
NETWORK = r"^(none|sandbox|host)\Z"
FLAG = r"^--?[a-z][a-z0-9-]*(=[^\x00]*)?\Z"
CAPABILITY = r"^(CAP_)?[A-Z_]+\Z"
HOST_PATH_TYPE = r"^(Directory|File)?\Z"
MEANINGS = {
    LABEL: "1 to 63 of a-z, 0-9 and '-', with no '-' at either end",
    TEMPLATE_NAME: "a name of a-z, 0-9, '-' and '.'",
    VARIABLE: "a name without '='",
    NO_NUL: "text without NUL",
    ABSOLUTE: "an absolute path",
    HOSTNAME: "a host name of at most 64 letters, digits, '-' and '.'",
    KEPT: '"Full" or "Data"',
    SANDBOX_CLASS: '"gvisor"',
    RUNTIME: '"runsc", "crun", "runc" or "bwrap"',
    OVERLAY: '"root:memory", "root:self", "root:dir=/PATH", "all:memory" or "none"',
    NETWORK: '"none", "sandbox" or "host"',
    FLAG: "an option like --ignore-cgroups",
    CAPABILITY: "a capability like NET_BIND_SERVICE",
    HOST_PATH_TYPE: '"Directory" or "File"',
} | SECURITY_MEANINGS

Text = Annotated[str, Meta(pattern=NO_NUL)]
Label = Annotated[str, Meta(pattern=LABEL)]
AbsolutePath = Annotated[str, Meta(pattern=ABSOLUTE)]
Kept = Annotated[str, Meta(pattern=KEPT)]
Words = Annotated[tuple[Text, ...], Meta(max_length=64)]
Id = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]
Capabilities = tuple[Annotated[str, Meta(pattern=CAPABILITY)], ...]


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class SecretKey(_Part, frozen=True):
    """A value that is looked up when the sandbox starts, and written down nowhere."""

    name: Text
    key: Text
    optional: bool = False


class ValueFrom(_Part, frozen=True):
    """Where a variable's value is."""

    secret_key_ref: SecretKey


class EnvVar(_Part, frozen=True):
    """A variable: its value, or where that is."""

    name: Annotated[str, Meta(pattern=VARIABLE)]
    value: Text | None = None
    value_from: ValueFrom | None = None


class VolumeMount(_Part, frozen=True):
    """Where a container sees the volume ``name``."""

    name: Label
    mount_path: AbsolutePath
    read_only: bool = False


class HttpGet(_Part, frozen=True):
    """A request that a ready container answers with a status from 200 to 399."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    path: AbsolutePath = "/readyz"


class Readyz(_Part, frozen=True):
    """How to find out that a container is ready, and for how long to try."""

    http_get: HttpGet
    timeout_seconds: Annotated[int, Meta(ge=1, le=3600)] = 60


class CapabilityChanges(_Part, frozen=True):
    """Capabilities beyond, or short of, the default set; "ALL" may be dropped."""

    add: Capabilities = ()
    drop: Capabilities = ()


class SecurityContext(_Part, frozen=True):
    """Who a container's process is."""

    run_as_user: Id | None = None
    run_as_group: Id | None = None
    supplemental_groups: tuple[Id, ...] = ()
    read_only_root_filesystem: bool = False
    capabilities: CapabilityChanges = CapabilityChanges()


class Container(_Part, frozen=True):
    """A container; ``user`` is an image's USER: name or number, with ":group" if wanted."""

    name: Label
    image: Text
    command: Words = ()
    args: Words = ()
    env: Annotated[tuple[EnvVar, ...], Meta(max_length=32)] = ()
    working_dir: AbsolutePath | None = None
    user: Text | None = None
    security_context: SecurityContext = SecurityContext()
    volume_mounts: Annotated[tuple[VolumeMount, ...], Meta(max_length=32)] = ()
    readyz: Readyz | None = None


class DurableDir(_Part, frozen=True):
    """A directory that belongs to the sandbox and outlives its processes."""


class HostPath(_Part, frozen=True):
    """A directory or file of this machine; "" takes what is there."""

    path: AbsolutePath
    type: Annotated[str, Meta(pattern=HOST_PATH_TYPE)] = ""


class Volume(_Part, frozen=True):
    """Something to be mounted: exactly one kind."""

    name: Label
    durable_dir: DurableDir | None = None
    host_path: HostPath | None = None


class SnapshotsConfig(_Part, frozen=True):
    """Where snapshots go, and what of the sandbox they keep."""

    location: Text | None = None
    on_pause: Kept = "Full"
    on_commit: Kept = "Full"


class RuntimeOptions(_Part, frozen=True):
    """How the runtime is called; None and () leave it to the command line and to defaults."""

    name: Annotated[str, Meta(pattern=RUNTIME)] | None = None
    overlay: Annotated[str, Meta(pattern=OVERLAY)] | None = None
    network: Annotated[str, Meta(pattern=NETWORK)] | None = None
    flags: tuple[Annotated[str, Meta(pattern=FLAG)], ...] = ()


class Template(_Part, frozen=True):
    """What a sandbox consists of.  A pause image makes the root container, called "pause"."""

    name: Annotated[str, Meta(pattern=TEMPLATE_NAME)]
    containers: Annotated[tuple[Container, ...], Meta(min_length=1, max_length=10)]
    pause_image: Text | None = None
    volumes: Annotated[tuple[Volume, ...], Meta(max_length=32)] = ()
    snapshots_config: SnapshotsConfig = SnapshotsConfig()
    hostname: Annotated[str, Meta(pattern=HOSTNAME)] | None = None
    sandbox_class: Annotated[str, Meta(pattern=SANDBOX_CLASS)] = "gvisor"
    platform: Text | None = None
    runtime: RuntimeOptions = RuntimeOptions()
    security: Security = Security()
    resources: Resources = Resources()
    logs: Logs = Logs()

    @property
    def all_containers(self) -> tuple[Container, ...]:
        """All containers, the root one first."""
        if self.pause_image is None:
            return self.containers
        return (Container(name=PAUSE, image=self.pause_image), *self.containers)

    @property
    def images(self) -> dict[str, str]:
        """Each container's name with the reference that was typed for it."""
        return {container.name: container.image for container in self.all_containers}

    @property
    def digest(self) -> str:
        """The digest of the canonical form: the template's identity."""
        return canonical_digest(self.to_document())

    def to_document(self) -> dict[str, Any]:
        """Return the canonical form: what differs from the defaults, as JSON's types."""
        document: dict[str, Any] = _document_of(self)
        return document


def _document_of(value: Any) -> Any:
    """Return a part as JSON's types, without what equals its default, written out or not."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        members = [(field, getattr(value, field.name)) for field in fields]
        return {
            field.encode_name: _document_of(inner)
            for field, inner in members
            if inner != field.default
        }
    return [_document_of(inner) for inner in value] if isinstance(value, tuple) else value
