"""The image of a program that attacks from within a sandbox, and what it may attack."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.formats.images import (
    block_device,
    char_device,
    directory,
    estargz_layer,
    file,
    make_layout,
    tar_bytes,
)
from tests.support.mounts.mounting import ROOT, run

SOURCE = ROOT / "tests" / "support" / "sandboxes" / "sandbox_probe.c"
ZERO = (1, 5)  # a device that anybody may open, wherever a node of it is served
DISK_SIZE = 1 << 20
MARK = b"this disk is the host's"


def why_no_probe() -> str | None:
    """Say why the program cannot be made; None if it can."""
    if shutil.which("cc") is None:
        return "no C compiler"
    return None


def compile_probe(target: Path) -> Path:
    """Compile the program that attacks, linked statically."""
    words = ["cc", "-O1", "-static", "-o", target, SOURCE]
    done = run(*words, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def make_hostile(layout: Path, program: Path, disk: tuple[int, int]) -> str:
    """Make an image of the program, of it setuid, and of device nodes; return its reference."""
    data = program.read_bytes()
    items = [
        *(directory(name) for name in ("bin", "dev", "etc", "nodes", "proc", "suid", "sys")),
        directory("tmp", mode=0o1777),
        file("bin/probe", data, mode=0o755),
        file("suid/probe", data, mode=0o4755),
        block_device("nodes/disk", *disk, mode=0o666),
        char_device("nodes/moved", *ZERO, mode=0o666),
        char_device("nodes/zero", *ZERO, mode=0o666),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
    ]
    make_layout(layout, [estargz_layer(tar_bytes(items))], cmd=("/bin/probe",))
    return f"oci:{layout}"


@contextmanager
def loop_device(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Give a disk of this machine: its path, and its number; it holds ``MARK``."""
    image = folder / "disk"
    image.write_bytes(MARK.ljust(DISK_SIZE, b"\0"))
    done = run("losetup", "--find", "--show", image)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    try:
        path.chmod(0o666)  # so that only the protection is in the way
        number = path.stat().st_rdev
        yield path, (number >> 8 & 0xFFF, number & 0xFF)
    finally:
        path.chmod(0o600)
        subprocess.run(["losetup", "--detach", path], timeout=30, check=False)
