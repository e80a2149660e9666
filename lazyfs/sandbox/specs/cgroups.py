"""Limits of a whole sandbox, by control groups that lazyfs creates, for every runtime.

Sources: the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/.  A group is made below the one that
we are in (version 1), or beside it (version 2, where a group has processes or children with
controllers); a user needs one that was delegated to it, as systemd does for sessions.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import Limits, SandboxPlan

PERIOD = 100_000  # microseconds over which processors are counted
REMOVE_SECONDS = 5.0  # a group goes when the last of its processes has been reaped
POLL_SECONDS = 0.01
KEPT_NAME = "cgroups.json"
# Arguments: how many folders, these, the program's words.  The shell becomes the program.
ENTER = r"""
set -e
count=$1
shift
while [ "$count" -gt 0 ]; do
    echo $$ >"$1/cgroup.procs"
    shift
    count=$((count - 1))
done
exec "$@"
"""


class Mount(msgspec.Struct, frozen=True):
    """A hierarchy: where it is mounted, what of it, and its controllers; none: version 2."""

    point: Path
    root: str
    controllers: frozenset[str]


def wanted(limits: Limits) -> dict[str, float]:
    """Return controller → limit, for those that are limited."""
    found = {"memory": limits.memory, "cpu": limits.cpus, "pids": limits.pids}
    return {name: value for name, value in found.items() if value is not None}


def find_parents(
    limits: Limits, *, proc: Path = Path("/proc/self"), is_root: bool | None = None
) -> dict[str, Path]:
    """Return controller → the group below which one for it can be made; {} where none is wanted.

    Raises Unsupported, naming what cannot be limited.
    """
    needed = wanted(limits)
    if not needed:
        return {}
    is_root = os.geteuid() == 0 if is_root is None else is_root
    try:
        mounts = list(parse_mounts((proc / "mountinfo").read_text()))
        own = parse_own((proc / "cgroup").read_text())
    except (OSError, ValueError, IndexError) as exc:
        raise Unsupported(f"cannot find out the cgroups of this process: {exc}") from exc
    found: dict[str, Path] = {}
    for mount in mounts:
        if mount.controllers:
            for name in mount.controllers & needed.keys() & own.keys():
                folder = _inside(mount, own[name])
                if os.access(folder, os.W_OK | os.X_OK):
                    found[name] = folder
    unified = [mount for mount in mounts if not mount.controllers]
    for mount in unified:
        others = needed.keys() - found.keys()
        place = _unified_parent(mount, own.get("", "/"), others, is_root=is_root)
        if place is not None:
            found |= dict.fromkeys(others, place)
    if missing := sorted(needed.keys() - found.keys()):
        raise Unsupported(
            f"limits: {' and '.join(missing)} cannot be limited here: the cgroups of this "
            "process do not offer these controllers",
            hint="run it as root, or in a session with delegated cgroups (systemd-run --user "
            "--scope), or leave the limit out",
            details={"controllers": missing},
        )
    return found


def parse_mounts(text: str) -> Iterator[Mount]:
    """Yield the hierarchies in a mountinfo; ValueError or IndexError for what is none."""
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        kind, _, options = back.split(" ", 2)
        fields = front.split(" ")
        if kind in ("cgroup", "cgroup2"):
            words: frozenset[str] = frozenset()
            if kind == "cgroup":
                words = frozenset(options.split(","))
            if kind == "cgroup" and not words & {"memory", "cpu", "pids"}:
                continue
            yield Mount(Path(fields[4]), fields[3], words)


def parse_own(text: str) -> dict[str, str]:
    """Return controller → path of /proc/PID/cgroup; "" is version 2's."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        found |= dict.fromkeys(names.split(","), path)
    return found


def _inside(mount: Mount, path: str) -> Path:
    """Return where a group is, of which the mount may show a part only."""
    if mount.root != "/" and (path + "/").startswith(mount.root + "/"):
        path = path[len(mount.root) :]
    return mount.point / path.lstrip("/")


def _unified_parent(mount: Mount, own: str, needed: set[str], *, is_root: bool) -> Path | None:
    """Return the nearest group of version 2 that can give *needed* to a child."""
    here = _inside(mount, own)
    # Where we are there are processes, so that it cannot have children with controllers; but the
    # root of all can.
    candidates = [each for each in here.parents if each.is_relative_to(mount.point)]
    if here == mount.point:
        candidates = [here]
    for folder in candidates:
        enabled = _words(folder / "cgroup.subtree_control")
        # Whoever moves a process must be able to write where it comes from, and what is above both.
        may_move = os.access(folder / "cgroup.procs", os.W_OK)
        if needed <= enabled and may_move and os.access(folder, os.W_OK | os.X_OK):
            return folder
    if is_root and mount.root == "/" and needed <= _words(mount.point / "cgroup.controllers"):
        with suppress(OSError):
            words = " ".join(f"+{name}" for name in sorted(needed))
            (mount.point / "cgroup.subtree_control").write_text(words)
            return mount.point
    return None


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def settings(controller: str, limit: float, *, is_unified: bool) -> list[tuple[str, str, bool]]:
    """Return what to write for a limit: file, text, and whether it must be there."""
    number = str(int(limit))
    if controller == "memory":
        if is_unified:
            return [("memory.max", number, True), ("memory.swap.max", "0", False)]
        swap = "memory.memsw.limit_in_bytes"
        return [("memory.limit_in_bytes", number, True), (swap, number, False)]
    if controller == "pids":
        return [("pids.max", number, True)]
    quota = str(max(1000, int(limit * PERIOD)))
    if is_unified:
        return [("cpu.max", f"{quota} {PERIOD}", True)]
    return [("cpu.cfs_period_us", str(PERIOD), True), ("cpu.cfs_quota_us", quota, True)]


def make_groups(plan: SandboxPlan) -> list[Path]:
    """Make the groups of a sandbox, with its limits in force; return them.

    Raises Unsupported, RuntimeFailed; nothing is left then.
    """
    limits = wanted(plan.limits)
    parents = find_parents(plan.limits)
    folders: list[Path] = []
    try:
        for controller, parent in parents.items():
            folder = parent / _name(plan)
            if folder not in folders:
                folder.mkdir(mode=0o755, exist_ok=True)
                folders.append(folder)
            is_unified = (folder / "cgroup.controllers").exists()
            for name, text, is_needed in settings(
                controller, limits[controller], is_unified=is_unified
            ):
                if is_needed or (folder / name).exists():
                    (folder / name).write_text(text)
        if folders:
            kept = plan.state_dir / KEPT_NAME
            kept.write_bytes(msgspec.json.encode([str(folder) for folder in folders]))
    except OSError as exc:
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        raise RuntimeFailed(f"limits: {exc.filename}: {exc.strerror}") from exc
    return folders


def entering(folders: Sequence[Path]) -> list[str | Path]:
    """Return the words to put before those of a program, so that it starts in these groups."""
    if not folders:
        return []
    return ["sh", "-c", ENTER, "lazyfs-cgroup", str(len(folders)), *folders]


def remove_groups(plan: SandboxPlan) -> None:
    """Remove the groups of a sandbox whose processes have ended; nothing where it has none."""
    kept = plan.state_dir / KEPT_NAME
    try:
        folders = msgspec.json.decode(kept.read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    deadline = time.monotonic() + REMOVE_SECONDS
    for folder in map(Path, folders):
        if folder.name != _name(plan):
            continue  # not what we wrote
        while True:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    continue
            break
    with suppress(OSError):
        kept.unlink()


def _name(plan: SandboxPlan) -> str:
    """Return what the groups of a sandbox are called: others may have one of that id elsewhere."""
    place = hashlib.sha256(os.fsencode(plan.state_dir.absolute())).hexdigest()[:12]
    return f"lazyfs-{plan.sandbox_id}-{place}"
