"""Confinement in a template: protections turned off by name, devices given, limits.

The default is as much confinement as possible.  Contract: docs/reference/template.md.
"""

import re
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from lazyfs.documents.plans import Limits

SECCOMP = r"^(default|unconfined|/[^\x00]*)\Z"
CPUS = r"^([0-9]{1,4}(\.[0-9]{1,3})?|[0-9]{1,7}m)\Z"
SIZE = r"^[1-9][0-9]{0,15}([kKmMgGtT](i?[bB])?)?\Z"
UNMASKED = r"^(ALL|/[^\x00:]*)\Z"
_NAME = r"(?!\.\.?(?:[/:]|\Z))[^\x00:/]+"  # of one part of a path, and not ``.`` or ``..``
DEVICE = rf"^/dev/(?:{_NAME}/)*{_NAME}(:/[^\x00:]+)?(:[rwm]{{1,3}})?\Z"
MEANINGS = {
    SECCOMP: '"default", "unconfined" or the path of a profile',
    SIZE: "bytes, or a number with K, M, G or T",
    CPUS: 'a number of processors such as "1.5" or "1500m"',
    UNMASKED: '"ALL" or an absolute path',
    DEVICE: "/dev/NAME[:/PATH][:rwm]",
}
UNITS = ("", "k", "m", "g", "t")

Size = Annotated[int, Meta(ge=1, le=1 << 60)] | Annotated[str, Meta(pattern=SIZE)]


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class Security(_Part, frozen=True):
    """What of the confinement is turned off.  ``devices`` of this machine are lent by name."""

    seccomp: Annotated[str, Meta(pattern=SECCOMP)] = "default"
    no_new_privileges: bool = True
    user_namespace: bool = True
    new_keyring: bool = True
    unmask: Annotated[tuple[Annotated[str, Meta(pattern=UNMASKED)], ...], Meta(max_length=64)] = ()
    devices: Annotated[tuple[Annotated[str, Meta(pattern=DEVICE)], ...], Meta(max_length=64)] = ()


class Resources(_Part, frozen=True):
    """Limits of a whole sandbox; None: there is none.  ``storage``: what its root may grow by."""

    memory: Size | None = None
    cpus: Annotated[int, Meta(ge=1, le=9999)] | Annotated[str, Meta(pattern=CPUS)] | None = None
    pids: Annotated[int, Meta(ge=1, le=1 << 22)] | None = None
    storage: Size | None = None


class Logs(_Part, frozen=True):
    """What is kept of a container's output: at most so many files, each of about that size."""

    max_size: Size = "10M"
    max_files: Annotated[int, Meta(ge=1, le=100)] = 3


class Lent(msgspec.Struct, frozen=True):
    """A device of this machine, where a sandbox sees it, and what it may do: of "rwm"."""

    source: str
    target: str
    access: str


def lent_devices(security: Security) -> Iterator[Lent]:
    """Yield the devices that are lent, in their order."""
    for text in security.devices:
        words = text.split(":")
        access = words.pop() if len(words) > 1 and not words[-1].startswith("/") else "rwm"
        yield Lent(words[0], words[-1], access)


def size_of(text: int | str) -> int:
    """Return the bytes that a size means: ``10M`` and ``10MiB`` alike, ``10MB`` of 1000."""
    if isinstance(text, int):
        return text
    match = re.match(r"(\d+)([kmgt]?)(i?b)?", text.lower())
    assert match is not None, "sizes have been looked at"
    base = 1000 if match[3] == "b" else 1024
    return int(match[1]) * int(base ** UNITS.index(match[2]))


def cpus_of(text: int | str) -> float:
    """Return the processors that a number of them, or of thousandths ("m"), means."""
    if isinstance(text, int):
        return float(text)
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def limits_of(resources: Resources, logs: Logs) -> Limits:
    """Return the limits that a template says, as numbers."""
    return Limits(
        memory=None if resources.memory is None else size_of(resources.memory),
        cpus=None if resources.cpus is None else cpus_of(resources.cpus),
        pids=resources.pids,
        storage=None if resources.storage is None else size_of(resources.storage),
        log_size=size_of(logs.max_size),
        log_files=logs.max_files,
    )


def openings(security: Security) -> list[str]:
    """Return the words for what is turned off or lent, for whoever must agree to it."""
    words = []
    if security.seccomp != "default":
        words.append(f"seccomp={security.seccomp}")
    for is_on, word in (
        (security.no_new_privileges, "no-new-privileges=false"),
        (security.user_namespace, "userns=host"),
        (security.new_keyring, "keyring=host"),
    ):
        if not is_on:
            words.append(word)
    words += [f"unmask={path}" for path in security.unmask]
    words += [f"device={device}" for device in security.devices]
    return words
