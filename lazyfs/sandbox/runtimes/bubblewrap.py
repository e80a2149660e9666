"""bubblewrap as a Runtime: translates those parts of config.json that it supports to its options.

It has no notion of a container: a sandbox is its process, run on a stage (staged.py).  Programs get
no privileges but the capabilities of config.json, and never new ones.  What it mounts is nodev.
Its limits (``process.rlimits``) are not set.

It leaves the bounding set of capabilities as it is: setpriv (util-linux) starts it with a smaller
one, and with what it needs for itself as inheritable, which it takes away from the program.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.sandbox.runtimes.staged import Staged, pid_path, seccomp_path
from lazyfs.sandbox.specs.bundle import load_bundle, rootfs_of
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.specs.spec_parts import NUMBERS

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

SECCOMP_FD = 4
SETPRIV = "setpriv"
NEEDED = ("dac_override", "net_admin", "setfcap", "setgid", "setpcap", "setuid", "sys_admin",
          "sys_chroot", "sys_ptrace")  # fmt: skip
DEV_SIZE = str(64 << 20)  # bytes of /dev/shm

# sh gives it files, which its options cannot name: for its child's number, and with a program of
# BPF.  Arguments: these, or "".
REDIRECT = r"""
pid_file=$1 seccomp_file=$2
shift 2
if [ -n "$pid_file" ]; then exec 3>"$pid_file"; fi
if [ -n "$seccomp_file" ]; then exec 4<"$seccomp_file"; fi
exec "$@"
"""


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
        words: list[str | Path] = [*bounded(spec), self.path.absolute(), *plan.flags]
        target: Path | str = ""
        if attached:
            words.append("--die-with-parent")
        else:
            target = pid_path(plan, container)
            words += ["--json-status-fd", str(STATUS_FD)]
        program = seccomp_program(spec)
        filter_path: Path | str = ""
        if program is not None:
            filter_path = seccomp_path(plan, container)
            with local_errors(filter_path, "write"):
                filter_path.write_bytes(program)
            words += ["--seccomp", str(SECCOMP_FD)]
        return ["sh", "-c", REDIRECT, "bwrap", target, filter_path, *words, *options]

    def _load_pid(self, plan: SandboxPlan, container: ContainerPlan) -> int:
        try:
            match = CHILD_RE.search(pid_path(plan, container).read_text())
        except (OSError, UnicodeDecodeError):
            return 0
        return int(match[1]) if match else 0


def bounded(spec: Mapping[str, Any]) -> list[str]:
    """Return the words that start bwrap with the bounding set of *spec*.

    Raises Unsupported where nothing can.
    """
    path = shutil.which(SETPRIV)
    if path is None:
        raise Unsupported(
            f"bwrap: {SETPRIV} (util-linux), which limits capabilities, is not installed"
        )
    try:
        names = spec["process"].get("capabilities", {}).get("bounding") or ()
        kept = [str(name).removeprefix("CAP_").lower() for name in names]
    except (KeyError, TypeError, AttributeError) as exc:
        raise RuntimeFailed(f"bwrap: config.json is not valid: {exc!r}") from exc
    own = ",".join(f"+{name}" for name in sorted({*NEEDED, *kept} & _permitted()))
    bounding = ",".join(["-all", *(f"+{name}" for name in kept)])
    return [path, f"--inh-caps={own}", path, f"--bounding-set={bounding}"]


def _permitted() -> set[str]:
    """Return the capabilities that may be passed on: all as root of the stage's own namespace."""
    names = {name.removeprefix("CAP_").lower(): number for name, number in NUMBERS.items()}
    if os.geteuid() != 0:
        return set(names)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            mask = int(line.split()[1], 16)
            return {name for name, number in names.items() if mask >> number & 1}
    return set()


def seccomp_program(spec: Mapping[str, Any]) -> bytes | None:
    """Return the program of BPF for the profile in *spec*, None if it has none.

    Raises Unsupported for what cannot be said to bwrap, RuntimeFailed for what is no profile.
    """
    linux = spec.get("linux")
    profile = linux.get("seccomp") if isinstance(linux, dict) else None
    if profile is None:
        return None
    from lazyfs.sandbox.specs.bpf import compile_profile  # noqa: PLC0415 - others need none

    try:
        return compile_profile(profile, os.uname().machine)
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise RuntimeFailed(f"bwrap: the seccomp profile is not valid: {exc!r:.80}") from exc


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
        options += _read_only(spec.get("linux") or {})
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
        raise RuntimeFailed(f"bwrap: config.json is not valid: {exc!r}") from exc
    return [*options, "--", *words]


def _user(user: Mapping[str, Any], *, is_root: bool) -> list[str]:
    uid, gid = int(user.get("uid", 0)), int(user.get("gid", 0))
    if (uid, gid) == (0, 0):
        return []
    if is_root:
        # It could only rename root: the program would own root's files.
        raise Unsupported(
            f"bwrap cannot run programs as user {uid}:{gid} when started by root",
            hint="use --runtime crun, or run it as an ordinary user",
        )
    return ["--unshare-user", "--uid", str(uid), "--gid", str(gid)]


def _mounts(mounts: Sequence[Mapping[str, Any]], bundle: Path) -> list[str]:
    options: list[str] = []
    has_dev = False
    for mount in mounts:
        target, kind = str(mount["destination"]), str(mount.get("type", "bind"))
        flags = mount.get("options") or ()
        if kind in LEFT_OUT or target in IN_DEV:
            continue
        if target == "/dev":
            # What --dev makes has no size: it is closed once all mounts in it are there.
            options += ["--dev", target, "--size", DEV_SIZE, "--perms", "1777"]
            options += ["--tmpfs", "/dev/shm"]
            has_dev = True
        elif kind == "proc":
            options += ["--proc", target]
        elif kind == "tmpfs":
            sizes = [word.removeprefix("size=") for word in flags if word.startswith("size=")]
            if sizes and (size := _bytes(sizes[-1])):
                options += ["--size", size]
            options += ["--tmpfs", target]
        elif "dev" in flags:
            options += ["--dev-bind", str(mount["source"]), target]
        elif kind == "mqueue":
            options += ["--mqueue", target]
        elif kind == "sysfs":
            options += ["--ro-bind", "/sys", target]
        elif kind in ("bind", "none") or "bind" in flags or "rbind" in flags:
            source = bundle / str(mount["source"])  # an absolute one stays as it is
            options += ["--ro-bind" if "ro" in flags else "--bind", str(source), target]
        else:
            raise Unsupported(
                f"bwrap: mount on {target}: type {kind!r} is not supported; use bind or tmpfs"
            )
    return [*options, "--remount-ro", "/dev"] if has_dev else options


def _bytes(text: str) -> str:
    """Return the number that a size of mount(8) means, "" for others: a part of all memory."""
    number, unit = text.rstrip("kKmMgG"), text.lstrip("0123456789").lower()
    if not number.isdecimal() or unit not in ("", "k", "m", "g"):
        return ""
    return str(int(number) << {"": 0, "k": 10, "m": 20, "g": 30}[unit])


def _read_only(linux: Mapping[str, Any]) -> list[str]:
    hidden = linux.get("maskedPaths") or ()
    return [
        word
        for path in map(str, linux.get("readonlyPaths") or ())
        if os.path.lexists(path) and path not in hidden
        for word in ("--ro-bind", path, path)
    ]


def _masks(paths: Sequence[str]) -> list[str]:
    options: list[str] = []
    for path in map(str, paths):
        if os.path.isdir(path):
            options += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.lexists(path):
            options += ["--ro-bind", "/dev/null", path]
    return options
