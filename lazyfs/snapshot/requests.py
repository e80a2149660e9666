"""What a snapshot asks of the machine that restores it, beyond images, files and memory.

Whoever can write to a store can change everything in its snapshots.  So all that a manifest
and the template in it can say is classified here, field by field, and nothing of it is done
because the snapshot says so (``grants``).  Each kind of request:

    host-path=PATH:ro|rw    a directory or file of the machine is mounted into a container
    capability=NAME         a capability beyond those that every container has
    network=host            the machine's network instead of none, or one of the sandbox's own
    overlay=KIND            what is written goes to a folder of the machine, or into a host path
    runtime-flag=--NAME=…   an option of the runtime that opens something of the machine
    secret=NAME/KEY         a value of this user's secrets in a container's environment
    port=NUMBER             a readiness request to a port of the machine
    device=/dev/NAME…       a device of the machine
    seccomp=unconfined      no filter of system calls, or the one of a file of the machine
    no-new-privileges=false, userns=host, keyring=host, unmask=PATH      less confinement
    template-field=PLACE=…  a field of the template that is not classified below

Pure.  A field that is in no table is a request: what a later release adds to templates is refused
until somebody has thought about it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from lazyfs.documents import template as t
from lazyfs.documents.manifest import Runtime
from lazyfs.sandbox.runtimes.runsc_flags import Verdict, judge
from lazyfs.sandbox.specs.spec_parts import DEFAULT_CAPABILITIES

HOST_PATH = "host-path"
CAPABILITY = "capability"
NETWORK = "network"
OVERLAY = "overlay"
FLAG = "runtime-flag"
SECRET = "secret"
PORT = "port"
DEVICE = "device"
SECCOMP = "seccomp"
PRIVILEGES = "no-new-privileges"
USERNS = "userns"
KEYRING = "keyring"
UNMASK = "unmask"
FIELD = "template-field"
KINDS = (
    *(HOST_PATH, CAPABILITY, NETWORK, OVERLAY, FLAG, SECRET, PORT),
    *(DEVICE, SECCOMP, PRIVILEGES, USERNS, KEYRING, UNMASK, FIELD),
)
# Overlays whose files are in the sandbox's memory, or nowhere.
PLAIN_OVERLAYS = ("none", "root:memory", "root:self", "all:memory")
DIR = "dir="  # of an overlay: what follows is a folder
LONGEST = 1024  # characters of what can be allowed: longer words nobody reads


class Request(msgspec.Struct, frozen=True, order=True):
    """Something that is asked for: its kind, what exactly, and the field that asks.

    ``is_allowable``: whether there are words that allow it.
    """

    kind: str
    value: str
    place: str
    is_allowable: bool = True

    @property
    def words(self) -> str:
        """The words that allow it."""
        return f"{self.kind}={self.value}"


class _Walk(msgspec.Struct, frozen=True):
    """The template that is gone through, and whether it is to share the machine's network."""

    template: t.Template
    is_host_network: bool


Rule = Callable[[Any, _Walk, str], Iterator[Request]]


def requests_of_runtime(runtime: Runtime) -> tuple[Request, ...]:
    """Return what the manifest's ``runtime`` asks for."""
    found = [
        *_overlay(runtime.overlay or None, None, "runtime.overlay"),
        *_network(runtime.network or None, None, "runtime.network"),
        *_flags(runtime.flags or (), None, "runtime.flags"),
    ]
    return _each_once(found)


def requests_of_template(template: t.Template, network: str) -> tuple[Request, ...]:
    """Return what *template* asks for; *network* is what the sandbox was saved with."""
    walk = _Walk(template, "host" in (network, template.runtime.network))
    return _each_once(_inside(template, walk, ""))


def network_of(runtime: Runtime) -> str:
    """Return the network that a restored sandbox gets."""
    return "none" if runtime.network is UNSET else str(runtime.network)


def _each_once(requests: Any) -> tuple[Request, ...]:
    """Return requests without those that another says too: by the same words, or by "rw"."""
    found: dict[tuple[str, str], Request] = {}
    for each in requests:
        found.setdefault((each.kind, each.value), each)
    return tuple(
        sorted(
            each
            for (kind, value), each in found.items()
            if kind != HOST_PATH
            or not value.endswith(":ro")
            or (kind, f"{value[:-3]}:rw") not in found
        )
    )


def _request(kind: str, value: str, place: str) -> Request:
    # What cannot be shown as it is, nobody can have meant to allow.
    return Request(kind, value, place, value.isprintable() and len(value) <= LONGEST)


# Rules: what a field asks for.


def _data(value: Any, walk: Any, place: str) -> Iterator[Request]:
    """Ask for nothing: it says what is in the sandbox, or names an image, or is for people."""
    yield from ()


def _inside(value: Any, walk: Any, place: str) -> Iterator[Request]:
    """Go through the fields of a part, or of each of several."""
    if isinstance(value, tuple):
        for number, each in enumerate(value):
            yield from _inside(each, walk, f"{place}[{number}]")
        return
    if not isinstance(value, msgspec.Struct):
        return
    rules = FIELDS.get(type(value).__name__, {})
    for field in msgspec.structs.fields(value):
        inner = getattr(value, field.name)
        below = f"{place}.{field.encode_name}".removeprefix(".")
        rule = rules.get(field.name)
        if rule is not None:
            yield from rule(inner, walk, below)
        elif inner != _default_of(field):
            yield from _itself(inner, walk, below)


def _itself(value: Any, walk: Any, place: str) -> Iterator[Request]:
    """Ask for just what the field says."""
    said = json.dumps(msgspec.to_builtins(value), sort_keys=True)
    yield _request(FIELD, f"{place}={said}", place)


def _unless(usual: Any, kind: str, said: str = "") -> Rule:
    """Return a rule for a field that asks for something unless it is *usual*: *said*, or itself."""

    def rule(value: Any, walk: Any, place: str) -> Iterator[Request]:
        if value != usual:
            yield _request(kind, said or str(value), place)

    return rule


def _unless_itself(usual: Any) -> Rule:
    """Return a rule for a field that asks for just what it says, unless that is *usual*."""

    def rule(value: Any, walk: Any, place: str) -> Iterator[Request]:
        if value != usual:
            yield from _itself(value, walk, place)

    return rule


def _each_of(kind: str) -> Rule:
    """Return a rule for a field each of whose words asks for something."""

    def rule(values: tuple[str, ...], walk: Any, place: str) -> Iterator[Request]:
        for number, value in enumerate(values):
            yield _request(kind, value, f"{place}[{number}]")

    return rule


def _default_of(field: Any) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _host_paths(mounts: tuple[t.VolumeMount, ...], walk: _Walk, place: str) -> Iterator[Request]:
    volumes = {each.name: each for each in walk.template.volumes}
    for number, mount in enumerate(mounts):
        volume = volumes.get(mount.name)
        if volume is not None and volume.host_path is not None:
            mode = "ro" if mount.read_only else "rw"
            yield _request(HOST_PATH, f"{volume.host_path.path}:{mode}", f"{place}[{number}]")
    yield from _inside(mounts, walk, place)


def _capabilities(names: tuple[str, ...], walk: Any, place: str) -> Iterator[Request]:
    for name in names:
        if f"CAP_{name.removeprefix('CAP_')}" not in DEFAULT_CAPABILITIES:
            yield _request(CAPABILITY, name.removeprefix("CAP_"), place)


def _secret(key: t.SecretKey, walk: Any, place: str) -> Iterator[Request]:
    yield _request(SECRET, f"{key.name}/{key.key}", place)
    yield from _inside(key, walk, place)


def _port(port: int, walk: _Walk, place: str) -> Iterator[Request]:
    if walk.is_host_network:  # elsewhere nothing is sent
        yield _request(PORT, str(port), place)


def _overlay(overlay: str | None, walk: Any, place: str) -> Iterator[Request]:
    if overlay is not None and overlay not in PLAIN_OVERLAYS:
        yield _request(OVERLAY, overlay, place)


def _network(network: str | None, walk: Any, place: str) -> Iterator[Request]:
    if network not in (None, "none", "sandbox"):
        yield _request(NETWORK, str(network), place)


def _flags(flags: tuple[str, ...], walk: Any, place: str) -> Iterator[Request]:
    for number, flag in enumerate(flags):
        verdict = judge(flag)
        if verdict is Verdict.OPENING:
            yield _request(FLAG, f"--{flag.lstrip('-')}", f"{place}[{number}]")
        elif verdict is Verdict.REFUSED:
            yield Request(FLAG, flag, f"{place}[{number}]", is_allowable=False)


# Part of a template, by its class → field → rule.  All fields are here: tests/attacks/ compares.
FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "Template": {
        "name": _data,
        "containers": _inside,
        "pause_image": _data,
        "volumes": _inside,
        "snapshots_config": _inside,
        "hostname": _data,
        "sandbox_class": _data,
        "platform": _data,
        "runtime": _inside,
        "security": _inside,
        "resources": _inside,
        "logs": _inside,
    },
    "Container": {
        "name": _data,
        "image": _data,
        "command": _data,
        "args": _data,
        "env": _inside,
        "working_dir": _data,
        "user": _data,  # a user of the sandbox, of whatever number
        "security_context": _inside,
        "volume_mounts": _host_paths,
        "readyz": _inside,
    },
    "EnvVar": {"name": _data, "value": _data, "value_from": _inside},
    "ValueFrom": {"secret_key_ref": _secret},
    "SecretKey": {"name": _data, "key": _data, "optional": _data},
    "VolumeMount": {"name": _data, "mount_path": _data, "read_only": _data},
    "Readyz": {"http_get": _inside, "timeout_seconds": _data},
    "HttpGet": {"port": _port, "path": _data},
    "SecurityContext": {
        "run_as_user": _data,
        "run_as_group": _data,
        "supplemental_groups": _data,
        "read_only_root_filesystem": _data,
        "capabilities": _inside,
    },
    "CapabilityChanges": {"add": _capabilities, "drop": _data},
    "Volume": {"name": _data, "durable_dir": _inside, "host_path": _inside},
    "DurableDir": {},
    "HostPath": {"path": _data, "type": _data},  # asked for by whoever mounts it
    # Where snapshots would go is not taken over from a snapshot: see ``review``.
    "SnapshotsConfig": {"location": _data, "on_pause": _data, "on_commit": _data},
    "Security": {
        "seccomp": _unless("default", SECCOMP),
        "no_new_privileges": _unless(True, PRIVILEGES, "false"),
        "user_namespace": _unless(True, USERNS, "host"),
        "new_keyring": _unless(True, KEYRING, "host"),
        "unmask": _each_of(UNMASK),
        "devices": _each_of(DEVICE),
    },
    # Limits only take away; what logs may occupy is the machine's.
    "Resources": {"memory": _data, "cpus": _data, "pids": _data, "storage": _data},
    "Logs": {"max_size": _unless_itself("10M"), "max_files": _unless_itself(3)},
    "RuntimeOptions": {"name": _data, "overlay": _overlay, "network": _network, "flags": _flags},
}
