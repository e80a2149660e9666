"""What is done with a root filesystem, mounted or unpacked; takes its path, returns seconds."""

import os
import stat
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

PIECE_SIZE = 1 << 20
SMALL_SIZE = 32 << 10
SECONDS = 600
FIRST_COMMANDS = {
    "python": ["python3", "-c", "import json; print(json.dumps([1]))"],
    "node": ["node", "-e", "require('fs'); console.log(1)"],
    "large": ["head", "-c", "1000000", "/srv/data/part-0.bin"],
    "small": ["cat", "/srv/modules/00/package-0000/lib/module-000000.js"],
}


def files_of(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and attributes of each regular file below *root*; a hard-linked one once.

    An ordinary user gets what everybody may read, by the modes, so that a mount that shows the
    image's owners and an unpacked tree of one's own mean the same files.
    """
    needed = 0 if os.geteuid() == 0 else stat.S_IROTH
    seen: set[int] = set()
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                attributes = entry.stat(follow_symlinks=False)
                if attributes.st_mode & needed != needed:
                    continue
                if stat.S_ISDIR(attributes.st_mode):
                    folders.append(entry.path)
                elif stat.S_ISREG(attributes.st_mode) and attributes.st_ino not in seen:
                    seen.add(attributes.st_ino)
                    yield entry.path, attributes


def read_file(path: str) -> int:
    """Read a file to its end; return the bytes there were."""
    size = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while piece := os.read(descriptor, PIECE_SIZE):
            size += len(piece)
    finally:
        os.close(descriptor)
    return size


def run_first_command(image: str, root: Path) -> None:
    """Run the image's program from *root*: chroot, in a user namespace of one's own if need be."""
    line = ["chroot", str(root), *FIRST_COMMANDS[image]]
    if os.geteuid():
        line = ["unshare", "--user", "--map-root-user", *line]
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=path, timeout=SECONDS)


def walk(root: Path) -> None:
    """List every directory and stat every entry."""
    for _ in files_of(str(root)):
        pass


def read_small_files(root: Path) -> None:
    """Open, read and close each file of at most SMALL_SIZE bytes."""
    for path, attributes in files_of(str(root)):
        if attributes.st_size <= SMALL_SIZE:
            read_file(path)


def read_share(share: float, root: Path) -> None:
    """Read files that together hold *share* of all bytes, chosen by name, the same ones each time.

    Raises ValueError if a file ends before its size, as no file of a mount ever may.
    """
    for path, attributes in files_of(str(root)):
        relative = os.fsencode(path[len(str(root)) :])
        if zlib.crc32(relative) < share * 2**32 and read_file(path) != attributes.st_size:
            raise ValueError(f"{path}: shorter than its {attributes.st_size} bytes")


def works(image: str) -> dict[str, Callable[[Path], None]]:
    """Return what can be measured on *image*, by the name that the table shows."""
    return {
        "first command": partial(run_first_command, image),
        "walk with stat": walk,
        "small files": read_small_files,
        "read 1 %": partial(read_share, 0.01),
        "read 10 %": partial(read_share, 0.1),
        "read 50 %": partial(read_share, 0.5),
        "read everything": partial(read_share, 1.0),
    }


def timed(work: Callable[[Path], None], root: Path) -> float:
    """Return the seconds that *work* takes on *root*."""
    started = time.perf_counter()
    work(root)
    return time.perf_counter() - started
