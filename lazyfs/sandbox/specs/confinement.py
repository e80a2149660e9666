"""How containers are confined: which parts of an OCI config do that, by runtime.

crun, runc and bwrap share the machine's kernel with what they run.  gVisor has a kernel of its
own: there the system calls of a program never reach this one, devices are its own, and setuid
bits do nothing; what is said of privileges is passed on for those to come.

As root, crun and runc give a container a user namespace in which ids mean what they mean outside.
The kernel makes no device node for such a container and lends it no capability over the machine;
the root is mounted nodev before, which nobody in there can undo.
"""

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lazyfs.documents.errors import TemplateInvalid, Unsupported
from lazyfs.documents.plans import SandboxPlan
from lazyfs.documents.security import Lent, Security, lent_devices
from lazyfs.sandbox.specs.cgroups import find_parents
from lazyfs.sandbox.specs.seccomp import default_profile
from lazyfs.sandbox.specs.spec_parts import MASKED_PATHS, READ_ONLY_PATHS

OWN_KERNEL = "runsc"
# One less than there are: programs take a map of all ids for no namespace at all.
ALL_IDS = {"containerID": 0, "hostID": 0, "size": (1 << 32) - 2}
MAX_USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")


def has_own_kernel(runtime_name: str) -> bool:
    """Say whether what a runtime runs never talks to this machine's kernel."""
    return runtime_name == OWN_KERNEL


def wants_user_namespace(security: Security, runtime_name: str, *, is_rootless: bool) -> bool:
    """Say whether a container gets a user namespace from its runtime: root's by crun and runc.

    Without root the stage is in one already; bwrap mounts all that it shows nodev.
    """
    return security.user_namespace and not is_rootless and runtime_name in ("crun", "runc")


def confinement_of(
    security: Security, capabilities: Collection[str], runtime_name: str
) -> dict[str, Any]:
    """Return what ``linux`` of an OCI config has of masks and system calls.

    *capabilities* are those that a program may have.  Raises TemplateInvalid for a profile that
    cannot be used.
    """
    if has_own_kernel(runtime_name):
        return {}
    hidden = {"maskedPaths": MASKED_PATHS, "readonlyPaths": READ_ONLY_PATHS}
    found: dict[str, Any] = {
        key: [path for path in paths if not _is_unmasked(path, security.unmask)]
        for key, paths in hidden.items()
    }
    if security.seccomp == "default":
        found["seccomp"] = default_profile(capabilities, os.uname().machine)
    elif security.seccomp != "unconfined":
        from lazyfs.sandbox.specs.seccomp_file import load_profile  # noqa: PLC0415 - few name one

        found["seccomp"] = load_profile(Path(security.seccomp), capabilities)
    return found


def _is_unmasked(path: str, words: Collection[str]) -> bool:
    return "ALL" in words or path in words


def device_mounts(
    security: Security, runtime_name: str, *, is_rootless: bool
) -> list[dict[str, Any]]:
    """Return the mounts that lend devices of this machine, which must be there.

    Raises TemplateInvalid; Unsupported for a runtime that cannot.
    """
    mounts = []
    for lent in lent_devices(security):
        _number(lent)
        if has_own_kernel(runtime_name):
            raise Unsupported(
                f"device {lent.source}: {runtime_name} cannot give a sandbox devices of this "
                "machine",
                hint="use --runtime crun, runc or bwrap",
            )
        if not {"r", "w"} <= set(lent.access) and (runtime_name != "runc" or is_rootless):
            # A mount that is read-only is no limit for devices: a list of them is.
            raise Unsupported(
                f"device {lent.source}: {runtime_name} can only give it for both reading and "
                "writing",
                hint="for only one of them, use --runtime runc as root",
            )
        options = ["bind", "dev", "nosuid", "noexec"]
        mounts.append(
            {
                "destination": lent.target,
                "type": "bind",
                "source": lent.source,
                "options": options,
            }
        )
    return mounts


def device_rules(security: Security) -> list[dict[str, Any]]:
    """Return what ``linux.resources.devices`` has for runtimes that keep a list: runc's."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for lent in lent_devices(security):
        kind, number = _number(lent)
        rules.append(
            {
                "allow": True,
                "type": kind,
                "major": os.major(number),
                "minor": os.minor(number),
                "access": lent.access,
            }
        )
    return rules if len(rules) > 1 else []


def _number(lent: Lent) -> tuple[str, int]:
    try:
        found = os.stat(lent.source)
    except OSError as exc:
        raise TemplateInvalid(f"device {lent.source}: {exc.strerror}") from exc
    for kind, is_it in (("b", stat.S_ISBLK), ("c", stat.S_ISCHR)):
        if is_it(found.st_mode):
            return kind, found.st_rdev
    raise TemplateInvalid(f"device {lent.source} is not a device")


def check_confinement(
    security: Security, plan: SandboxPlan, runtime_name: str, *, is_rootless: bool
) -> None:
    """Raise Unsupported for what cannot be closed, limited or left out as was asked.

    Nothing has been made by then.
    """
    find_parents(plan.limits)
    if plan.limits.storage is not None and (
        has_own_kernel(runtime_name) or plan.overlay != "root:memory"
    ):
        raise Unsupported(
            f"limits: {runtime_name} cannot limit storage with overlay {plan.overlay}",
            hint="use --runtime crun, runc or bwrap with --overlay root:memory; with runsc, files "
            "kept in memory count towards the memory limit",
        )
    if runtime_name == "bwrap" and not security.no_new_privileges:
        raise Unsupported(
            "no-new-privileges=false: bwrap never lets programs gain privileges",
            hint="use --runtime crun or runc",
        )
    if wants_user_namespace(security, runtime_name, is_rootless=is_rootless):
        try:
            count = int(MAX_USER_NAMESPACES.read_text())
        except (OSError, ValueError):
            count = 0
        if count == 0 or not os.path.exists("/proc/self/ns/user"):
            raise Unsupported(
                f"{runtime_name}: user namespaces are disabled on this machine; without one, "
                "device nodes in the image open the machine's devices",
                hint=f"enable them ({MAX_USER_NAMESPACES}), use --runtime runsc or bwrap, or, for "
                "an image that you trust with this machine, --security-opt userns=host",
            )
