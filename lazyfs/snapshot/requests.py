"""What a snapshot asks of the machine that restores it, beyond images, files and memory.

A snapshot is data: whoever can write to its store chose every word of it.  So all that a manifest
and the template in it can say is classified here, field by field, and nothing of it is done
because the snapshot says so (``grants``).  Each kind of request:

    host-path=PATH:ro|rw    a directory or file of the machine is mounted into a container
    capability=NAME         a capability beyond those that every container has
    network=host            the machine's network instead of none, or one of the sandbox's own
    overlay=KIND            what is written goes to a folder of the machine, or into a host path
    runtime-flag=--NAME=…   an option of the runtime that opens something of the machine
    secret=NAME/KEY         a value of this user's secrets in a container's environment
    port=NUMBER             a readiness request to a port of the machine
    template-field=PLACE=…  a field of the template that is not classified below

Pure.  A field that is in no table is a request: what a later release adds to templates is refused
until somebody has thought about it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from lazyfs.snapshot import template as t
from lazyfs.snapshot.manifest import Runtime
from lazyfs.snapshot.runsc_flags import Verdict, judge
from lazyfs.snapshot.spec_parts import DEFAULT_CAPABILITIES

HOST_PATH = "host-path"
CAPABILITY = "capability"
NETWORK = "network"
OVERLAY = "overlay"
FLAG = "runtime-flag"
SECRET = "secret"
PORT = "port"
FIELD = "template-field"
KINDS = (HOST_PATH, CAPABILITY, NETWORK, OVERLAY, FLAG, SECRET, PORT, FIELD)
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
    rules = FIELDS.get(type(value), {})
    for field in msgspec.structs.fields(value):
        inner = getattr(value, field.name)
        below = f"{place}.{field.encode_name}".removeprefix(".")
        rule = rules.get(field.name)
        if rule is not None:
            yield from rule(inner, walk, below)
        elif inner != _default_of(field):
            said = json.dumps(msgspec.to_builtins(inner), sort_keys=True)
            yield _request(FIELD, f"{below}={said}", below)


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


# Part of a template → field → rule.  All fields are here: tests/attacks/ compares.
FIELDS: Mapping[type[msgspec.Struct], Mapping[str, Rule]] = {
    t.Template: {
        "name": _data,
        "containers": _inside,
        "pause_image": _data,
        "volumes": _inside,
        "snapshots_config": _inside,
        "hostname": _data,
        "sandbox_class": _data,
        "platform": _data,
        "runtime": _inside,
    },
    t.Container: {
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
    t.EnvVar: {"name": _data, "value": _data, "value_from": _inside},
    t.ValueFrom: {"secret_key_ref": _secret},
    t.SecretKey: {"name": _data, "key": _data, "optional": _data},
    t.VolumeMount: {"name": _data, "mount_path": _data, "read_only": _data},
    t.Readyz: {"http_get": _inside, "timeout_seconds": _data},
    t.HttpGet: {"port": _port, "path": _data},
    t.SecurityContext: {
        "run_as_user": _data,
        "run_as_group": _data,
        "supplemental_groups": _data,
        "read_only_root_filesystem": _data,
        "capabilities": _inside,
    },
    t.CapabilityChanges: {"add": _capabilities, "drop": _data},
    t.Volume: {"name": _data, "durable_dir": _inside, "host_path": _inside},
    t.DurableDir: {},
    t.HostPath: {"path": _data, "type": _data},  # asked for by whoever mounts it
    # Where snapshots would go is not taken over from a snapshot: see ``review``.
    t.SnapshotsConfig: {"location": _data, "on_pause": _data, "on_commit": _data},
    t.RuntimeOptions: {"name": _data, "overlay": _overlay, "network": _network, "flags": _flags},
}
