"""What disks, power cuts and people do to files of a store, with a trace and without."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from lazyfs.store.content.presence import HEADER_SIZE, Header, read_header, write_header

Damage = Callable[[Path], None]


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_a_page(path: Path) -> None:
    """Cut in the middle of a page: its rest is zeros when the file grows again."""
    os.truncate(path, max(0, path.stat().st_size - 4096 - 100))


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more than there was" * 300)


def zero(path: Path) -> None:
    """Leave zeros of the same size, as ext4 and xfs may after a power cut."""
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def overwrite_with_zeros(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    """Flip bits all over the file; always the same ones."""
    chosen = random.Random(path.stat().st_size)
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 20)):
        data[min(len(data) - 1, place + chosen.randrange(64))] ^= 1 << chosen.randrange(8)
    with path.open("r+b") as file:
        file.write(data)


def copy_over(path: Path) -> None:
    """Put another file with the same bytes in its place."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def put_zeros_over(path: Path) -> None:
    """Put another file of the same size, all zeros, in its place."""
    path.with_name("zeros").write_bytes(b"")
    os.truncate(path.with_name("zeros"), path.stat().st_size)
    path.with_name("zeros").replace(path)


def put_link_over(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def put_pipe_over(path: Path) -> None:
    """A pipe without a writer: who opens it as a file waits for ever."""
    path.unlink()
    os.mkfifo(path)


def put_folder_over(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_file_over(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"a file")


DAMAGES: dict[str, Damage] = {
    each.__name__: each
    for each in (
        *(delete, empty, halve, cut_a_page, lengthen, zero, overwrite_with_zeros, flip),
        *(copy_over, put_zeros_over, put_link_over, put_pipe_over),
    )
}
"""What may be done to any file while nobody uses it."""

LIVE_DAMAGES: dict[str, Damage] = {
    each.__name__: each
    for each in (delete, empty, halve, cut_a_page, zero, copy_over, put_zeros_over)
}
"""What may be done under a live mount, and is noticed there; see docs/format.md."""


def rot(content: Path, place: int) -> None:
    """Change a byte of a content file as a disk does: nothing about the file says so."""
    with content.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0x40]), place)
    forge(content.parent, changed_at=content.stat().st_ctime_ns)


def forge(folder: Path, **changes: object) -> None:
    """Change the header of a layer's presence map that nobody uses, seal and all."""
    with (folder / "presence").open("r+b", buffering=0) as file:
        header = read_header(file.fileno())
        assert isinstance(header, Header)
        marks = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, HEADER_SIZE)
        write_header(file.fileno(), replace(header, **changes), marks)


def reboot(folder: Path) -> None:
    """Have the map say that it is of another start of the machine."""
    forge(folder, boot=hashlib.sha256(os.urandom(8)).digest()[:16])


def age(folder: Path, seconds: int) -> None:
    """Have the map say that its chunks were hashed so many seconds earlier."""
    with (folder / "presence").open("rb") as file:
        header = read_header(file.fileno())
    assert header is not None
    forge(folder, since=header.since - seconds)
