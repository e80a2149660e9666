"""bubblewrap as a Runtime: what of config.json it can do becomes its options.

It has no notion of a container: a sandbox is its process, run on a stage (staged.py).  Programs get
no privileges but the capabilities of config.json.  Its limits (``process.rlimits``) are not set.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.snapshot.bundle import load_bundle, rootfs_of
from lazyfs.snapshot.errors import RuntimeFailed, Unsupported
from lazyfs.snapshot.runtime import ContainerPlan, SandboxPlan
from lazyfs.snapshot.staged import Staged, pid_path

CHILD_RE = re.compile(r'"child-pid"\s*:\s*(\d+)')
# Of config.json's mounts: those that --dev brings itself, and what there is no use for here.
IN_DEV = ("/dev/pts", "/dev/shm", "/dev/mqueue")
LEFT_OUT = ("cgroup", "cgroup2")
STATUS_FD = 3
NAMESPACES = {
    "pid": "--unshare-pid",
    "ipc": "--unshare-ipc",
    "uts": "--unshare-uts",
    "network": "--unshare-net",
}

# sh gives it a file to write its child's number to: options cannot name files.
REDIRECT = 'exec "$@" 3>"$LAZYFS_PID_FILE"'


@dataclass
class Bubblewrap(Staged):
    """The program ``bwrap``."""

    name: str = "bwrap"

    def _command(
        self, plan: SandboxPlan, container: ContainerPlan, *, attached: bool
    ) -> list[str | Path]:
        spec = load_bundle(container.bundle)
        options = build_options(
            spec,
            container.bundle,
            is_root=os.geteuid() == 0,
            is_writable=plan.overlay != "none",
        )
        words: list[str | Path] = [self.path.absolute(), *plan.flags]
        if attached:
            return [*words, "--die-with-parent", *options]
        target = pid_path(plan, container)
        shell = ["env", f"LAZYFS_PID_FILE={target}", "sh", "-c", REDIRECT, "bwrap"]
        return [*shell, *words, "--json-status-fd", str(STATUS_FD), *options]

    def _load_pid(self, plan: SandboxPlan, container: ContainerPlan) -> int:
        try:
            match = CHILD_RE.search(pid_path(plan, container).read_text())
        except (OSError, UnicodeDecodeError):
            return 0
        return int(match[1]) if match else 0


def build_options(
    spec: Mapping[str, Any], bundle: Path, *, is_root: bool, is_writable: bool
) -> list[str]:
    """Return bwrap's options and the program's words for *spec*, an OCI config.

    *is_writable*: whether the rootfs can be written, and mountpoints be made in it.  What this
    machine's /proc and /sys lack is not masked.  Raises Unsupported for what bwrap cannot do,
    RuntimeFailed for what is no config.
    """
    try:
        process, root = spec["process"], spec.get("root", {})
        words = [str(word) for word in process["args"]]
        read_only = bool(root.get("readonly")) or not is_writable
        options = ["--ro-bind" if read_only else "--bind", str(rootfs_of(bundle, spec)), "/"]
        options += _mounts(spec.get("mounts") or (), bundle)
        options += _masks((spec.get("linux") or {}).get("maskedPaths") or ())
        kinds = {each["type"] for each in (spec.get("linux") or {}).get("namespaces") or ()}
        options += [option for kind, option in NAMESPACES.items() if kind in kinds]
        options += ["--unshare-cgroup-try", "--new-session", "--cap-drop", "ALL"]
        bounding = (process.get("capabilities") or {}).get("bounding") or ()
        for name in bounding:
            options += ["--cap-add", str(name)]
        options += _user(process.get("user") or {}, is_root=is_root)
        if (hostname := spec.get("hostname")) and "uts" in kinds:
            options += ["--hostname", str(hostname)]
        options.append("--clearenv")
        for variable in process.get("env") or ():
            name, _, value = str(variable).partition("=")
            options += ["--setenv", name, value]
        options += ["--chdir", str(process.get("cwd") or "/")]
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise RuntimeFailed(f"bwrap: got a config.json with {exc!r} missing or odd") from exc
    return [*options, "--", *words]


def _user(user: Mapping[str, Any], *, is_root: bool) -> list[str]:
    uid, gid = int(user.get("uid", 0)), int(user.get("gid", 0))
    if (uid, gid) == (0, 0):
        return []
    if is_root:
        # It could only rename root: the program would own root's files.
        raise Unsupported(
            f"bwrap as root: got user {uid}:{gid}, expected 0:0",
            hint="take --runtime crun, or run it as an ordinary user",
        )
    return ["--unshare-user", "--uid", str(uid), "--gid", str(gid)]


def _mounts(mounts: Sequence[Mapping[str, Any]], bundle: Path) -> list[str]:
    options: list[str] = []
    for mount in mounts:
        target, kind = str(mount["destination"]), str(mount.get("type", "bind"))
        flags = mount.get("options") or ()
        if kind in LEFT_OUT or target in IN_DEV:
            continue
        if target == "/dev":
            options += ["--dev", target]
        elif kind == "proc":
            options += ["--proc", target]
        elif kind == "tmpfs":
            options += ["--tmpfs", target]
        elif kind == "mqueue":
            options += ["--mqueue", target]
        elif kind == "sysfs":
            options += ["--ro-bind", "/sys", target]
        elif kind in ("bind", "none") or "bind" in flags or "rbind" in flags:
            source = bundle / str(mount["source"])  # an absolute one stays as it is
            options += ["--ro-bind" if "ro" in flags else "--bind", str(source), target]
        else:
            raise Unsupported(
                f"bwrap: mount on {target}: got type {kind!r}, expected bind or tmpfs"
            )
    return options


def _masks(paths: Sequence[str]) -> list[str]:
    options: list[str] = []
    for path in map(str, paths):
        if os.path.isdir(path):
            options += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.lexists(path):
            options += ["--ro-bind", "/dev/null", path]
    return options
