"""Which protections a sandbox has, found by running a program in one that tries them.

The program is this machine's Python, on an otherwise empty root, started as any other sandbox is.
"""

import json
import os
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import ContainerPlan, Limits, SandboxPlan
from lazyfs.documents.template import Container, HostPath, Template, Volume, VolumeMount
from lazyfs.sandbox.runtimes.runtime import Runtime
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.cgroups import find_parents
from lazyfs.sandbox.specs.confinement import check_confinement, has_own_kernel
from lazyfs.sandbox.specs.spec import Rootless, build_spec
from lazyfs.sandbox.specs.spec_parts import DEFAULT_CAPABILITIES, NUMBERS
from lazyfs.sandbox.specs.syscalls import ARCHITECTURES, has_table, numbers

CLOSED, OPEN, OWN_KERNEL, UNKNOWN = "closed", "open", "own kernel", "not tried"
PROTECTIONS = (
    *("systemCalls", "newPrivileges", "keys", "capabilities", "namespaces", "devices"),
    *("hiddenPaths", "readOnlyPaths"),
)
LIMITS = {"memory": Limits(memory=1), "cpus": Limits(cpus=1.0), "pids": Limits(pids=1)}
SECONDS = 30.0
NAME = "probe"
FOLDERS = ("dev", "proc", "sys", "tmp")
SYSTEM = ("bin", "lib", "lib32", "lib64", "sbin", "usr")
ZERO = os.makedev(1, 5)
NODE = "node"

# Arguments: numbers of keyctl(2) and unshare(2), the default capabilities as a number.
PROBE = r"""
import ctypes, json, os, sys
keyctl, unshare, allowed = map(int, sys.argv[1:])
call = ctypes.CDLL(None, use_errno=True).syscall
def opens(path, flags):
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return bool(flags & os.O_WRONLY) or os.read(fd, 1) != b""
    except OSError:
        return False
    finally:
        os.close(fd)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
seen = {
    "kernel": [os.uname().release, os.uname().version],
    "systemCalls": status.get("Seccomp", "").strip() == "2",
    "newPrivileges": status.get("NoNewPrivs", "").strip() == "1",
    "keys": call(keyctl, 0, -3, 0) < 0,
    "capabilities": int(status["CapBnd"], 16) & ~allowed == 0,
    "devices": not opens("/node", os.O_RDONLY) if os.path.lexists("/node") else None,
    "hiddenPaths": not any(opens(path, os.O_RDONLY) for path in ("/proc/kcore", "/proc/keys")),
    "readOnlyPaths": not any(
        opens(path, os.O_WRONLY) for path in ("/proc/sys/kernel/core_pattern", "/sys/power/state")
    ),
    "namespaces": call(unshare, 0x10000000) < 0,
}
print(json.dumps(seen), flush=True)
"""


def look_at_protections(runtime: Runtime, name: str, rootless: Rootless | None) -> dict[str, str]:
    """Return protection → "closed", "open", "own kernel" or "not tried" for sandboxes of *runtime*.

    Raises SnapshotError if none could be started.
    """
    with tempfile.TemporaryDirectory(prefix="lazyfs-doctor-") as folder:
        seen = _run(runtime, name, Path(folder), rootless)
    own = has_own_kernel(name)
    if own and seen.get("kernel") == [os.uname().release, os.uname().version]:
        own = False  # it should have been another
    return {protection: _word(seen.get(protection), own=own) for protection in PROTECTIONS}


def look_at_limits() -> dict[str, str]:
    """Return limit → "can be set", or why it cannot be."""
    found = {}
    for name, limits in LIMITS.items():
        try:
            find_parents(limits)
            found[name] = "can be set"
        except Unsupported:
            found[name] = "cannot be set"
    return found


def _word(value: Any, *, own: bool) -> str:
    if own:
        return OWN_KERNEL
    if not isinstance(value, bool):
        return UNKNOWN
    return CLOSED if value else OPEN


def _run(runtime: Runtime, name: str, folder: Path, rootless: Rootless | None) -> Mapping[str, Any]:
    architecture = ARCHITECTURES.get(os.uname().machine, ("",))[0]
    if not has_table(architecture):
        raise Unsupported(f"lazyfs does not know the system calls of {os.uname().machine}")
    table = numbers(architecture)
    allowed = sum(1 << NUMBERS[each] for each in DEFAULT_CAPABILITIES)
    words = [str(table["keyctl"]), str(table["unshare"]), str(allowed)]
    plan = _plan(folder, name, words, rootless)
    check_confinement(_template((), ()).security, plan, name, is_rootless=rootless is not None)
    try:
        runtime.start(plan)
        runtime.wait(plan, SECONDS)
        text = (plan.log_dir / f"{NAME}.log").read_text(errors="replace")
    except OSError as exc:
        raise RuntimeFailed(f"{name}: {exc.strerror or exc}") from exc
    finally:
        runtime.delete(plan)
    for line in reversed(text.splitlines()):
        try:
            seen = json.loads(line)
        except ValueError:
            continue
        if isinstance(seen, dict):
            return seen
    said = "; ".join(text.splitlines()[-3:])[:300]
    raise RuntimeFailed(f"{name}: the test program printed no result: {said}")


def _plan(folder: Path, name: str, words: list[str], rootless: Rootless | None) -> SandboxPlan:
    bundle = folder / "bundle"
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    for each in FOLDERS:
        (root / each).mkdir()
    if os.geteuid() == 0:
        os.mknod(root / NODE, stat.S_IFCHR | 0o666, ZERO)
        (root / NODE).chmod(0o666)
    places = _places(root)
    program = os.path.realpath(sys.executable)
    template = _template((program, "-I", "-S", "-c", PROBE, *words), places)
    (container,) = template.containers
    spec = build_spec(
        container,
        {},
        template,
        is_root=True,
        sandbox_id=f"doctor-{os.getpid()}",
        runtime_name=name,
        rootless=rootless,
    )
    write_bundle(bundle, spec)
    planned = ContainerPlan(NAME, f"doctor-{os.getpid()}-{name}", bundle, is_root=True)
    return SandboxPlan("doctor", folder / "state", folder / "logs", (planned,))


def _places(root: Path) -> tuple[str, ...]:
    """Return what of this machine Python needs, with places for it in *root*."""
    places: list[str] = []
    prefix = sysconfig.get_config_var("base") or sys.base_prefix
    for path in (*(f"/{each}" for each in SYSTEM), os.path.realpath(str(prefix))):
        inside = root / path.lstrip("/")
        if os.path.islink(path):
            inside.symlink_to(os.readlink(path))
        elif os.path.isdir(path) and not any(
            path == each or path.startswith(f"{each}/") for each in places
        ):
            inside.mkdir(parents=True, exist_ok=True)
            places.append(path)
    return tuple(places)


def _template(words: tuple[str, ...], places: tuple[str, ...]) -> Template:
    names = {f"place-{number}": path for number, path in enumerate(places)}
    container = Container(
        name=NAME,
        image="scratch",
        command=words,
        user="0",
        volume_mounts=tuple(VolumeMount(each, path, True) for each, path in names.items()),
    )
    volumes = tuple(Volume(each, host_path=HostPath(path)) for each, path in names.items())
    return Template(name="doctor", containers=(container,), volumes=volumes)
