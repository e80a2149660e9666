"""Seccomp profiles in files, as podman and docker have them.

Format: containers-common's seccomp.json, moby's profiles/seccomp: OCI's with ``archMap`` in place
of ``architectures``, and entries that hold for some capabilities, architectures or kernels.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lazyfs.documents.documents import parse_json
from lazyfs.documents.errors import TemplateInvalid
from lazyfs.sandbox.specs.syscalls import ARCHITECTURES

FILE_LIMIT = 1 << 20  # bytes
ENTRY = ("names", "action", "errnoRet", "args")
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


def load_profile(path: Path, capabilities: Collection[str]) -> dict[str, Any]:
    """Return the OCI profile in a file, for this machine.  Raises TemplateInvalid."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as exc:
        raise TemplateInvalid(f"seccomp profile {path}: {exc.strerror}") from exc
    uname = os.uname()
    return parse_profile(data, capabilities, uname.machine, uname.release, what=str(path))


def parse_profile(
    data: bytes,
    capabilities: Collection[str],
    machine: str,
    release: str,
    *,
    what: str = "file",
) -> dict[str, Any]:
    """Return the OCI profile that *data* means on *machine* with the kernel *release*.

    Raises TemplateInvalid.
    """

    def complain(text: str) -> TemplateInvalid:
        return TemplateInvalid(f"seccomp profile {what}: {text}")

    if len(data) > FILE_LIMIT:
        raise complain(f"longer than {FILE_LIMIT} bytes")
    document = parse_json(data, complain)
    try:
        profile: dict[str, Any] = {"defaultAction": str(document["defaultAction"])}
        if document.get("defaultErrnoRet") is not None:
            profile["defaultErrnoRet"] = int(document["defaultErrnoRet"])
        architectures = _architectures(document, machine)
        if architectures:
            profile["architectures"] = architectures
        profile["syscalls"] = [
            _entry(each)
            for each in document.get("syscalls") or ()
            if _holds(each, set(capabilities), ARCHES.get(machine, machine), release)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise complain(f"not a valid seccomp profile: {exc!r:.80}") from exc
    return profile


def _architectures(document: Mapping[str, Any], machine: str) -> list[str]:
    if "archMap" not in document:
        return [str(each) for each in document.get("architectures") or ()]
    own = ARCHITECTURES.get(machine, ("",))[0]
    for each in document["archMap"] or ():
        if each["architecture"] == own:
            return [own, *map(str, each.get("subArchitectures") or ())]
    return []


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: entry[key] for key in ENTRY if entry.get(key) is not None}
    if "names" not in found:
        found["names"] = [entry["name"]]
    if not all(isinstance(name, str) for name in found["names"]):
        raise ValueError("names must be a list of system calls")
    str(found["action"])
    return found


def _holds(
    entry: Mapping[str, Any], capabilities: set[str], architecture: str, release: str
) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if set(includes.get("caps") or ()) - capabilities:
        return False
    if set(excludes.get("caps") or ()) & capabilities:
        return False
    arches = includes.get("arches") or ()
    if arches and architecture not in arches:
        return False
    if architecture in (excludes.get("arches") or ()):
        return False
    least = includes.get("minKernel")
    return least is None or _version(release) >= _version(str(least))


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (0, 0) if match is None else (int(match[1]), int(match[2]))
