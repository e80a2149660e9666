"""Others read our indexes: the Linux kernel (as root) and erofs-utils."""

import os
import re
from pathlib import Path

import pytest

from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from tests.support.formats.rootfs import (
    device,
    directory,
    facts_of,
    fixture_layer,
    hardlink,
    index_of,
    paths_of,
    regular,
    symlink,
    toc_of,
)
from tests.support.mounts.kernel_erofs import (
    facts_on_disk,
    kernel_mount,
    run_tool,
    write_device,
)

pytestmark = pytest.mark.interop

Layers = list[tuple[Toc, dict[bytes, bytes]]]

# POSIX ACL: version 2, then tag, permissions and id of each entry.  One that only repeats the
# mode, and one that lets user 1000 read.
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff10000400ffffffff20000400ffffffff")
DEFAULT_ACL = bytes.fromhex(
    "02000000" "01000700ffffffff" "02000500e8030000" "04000500ffffffff"
    "10000500ffffffff" "20000000ffffffff"
)  # fmt: skip


def payload(name: bytes, size: int) -> bytes:
    """Return *size* bytes that no other name has."""
    return (name + b"\n") * (size // (len(name) + 1) + 1)


def made_layers() -> Layers:
    """Two layers with everything that the format has to carry."""
    sizes = [1, 511, 4095, 4096, 4097, 8192, 70_000, 1 << 20, (1 << 20) + 1]
    contents = {b"size/%d" % size: payload(b"%d" % size, size)[:size] for size in sizes}
    contents |= {b"!before-the-dots": b"!", b"-dash": b"-", b"both": b"lower", b"x": b"hard"}
    lower = toc_of(
        directory(b"", mode=0o751, uid=1, gid=2, xattrs=((b"user.root", b"yes"),)),
        *(regular(path, data) for path, data in contents.items()),
        regular(b"empty"),
        directory(b"many"),
        *(regular(b"many/%05d" % number) for number in range(3000)),
        *(directory(b"dirs/%s" % (b"d" * n)) for n in range(1, 255, 17)),
        hardlink(b"links/a", b"x"),
        hardlink(b"links/b", b"links/a"),
        symlink(b"links/short", b"../x"),
        symlink(b"links/fits", b"f" * 4032),
        symlink(b"links/block", b"b" * 4033),
        symlink(b"links/longest", b"l" * 4095),
        device(b"dev/null", Kind.CHAR, 1, 3),
        device(b"dev/big", Kind.BLOCK, 4095, 0xFFFFF),
        device(b"dev/minor", Kind.CHAR, 259, 70000),
        device(b"dev/fifo", Kind.FIFO, 0, 0),
        directory(b"x\xff\xfe", mode=0o2775),
        regular(b"suid", mode=0o6755, uid=2**32 - 2, gid=2**31),
        seed=1,
    )
    times = [(-1, 0), (-1, 999_999_999), (0, 1), (2**31, 5), (2**33, 0), (-(2**40), 7), (2**40, 0)]
    upper_contents = {b"both": b"upper layer", b"attributes/file": b"with xattrs"}
    upper = toc_of(
        *(regular(path, data) for path, data in upper_contents.items() if path == b"both"),
        *(
            regular(b"times/%d" % n, mtime_seconds=seconds, mtime_nanoseconds=nanoseconds)
            for n, (seconds, nanoseconds) in enumerate(times)
        ),
        regular(b"many/.wh.00100"),
        regular(
            b"attributes/file",
            b"with xattrs",
            xattrs=(
                (b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000")),
                (b"system.posix_acl_access", ACL),
                (b"trusted.empty", b""),
                (b"user.big", b"v" * 60_000),
                (b"user.binary", bytes(range(256))),
                (b"user." + b"n" * 250, b"long name"),
            ),
        ),
        directory(
            b"attributes",
            xattrs=((b"system.posix_acl_default", DEFAULT_ACL), (b"user.d", b"d" * 4000)),
        ),
        symlink(b"attributes/link", b"file", xattrs=((b"trusted.of-a-link", b"1"),)),
        seed=2,
    )
    return [(lower, contents), (upper, upper_contents)]


@pytest.fixture(scope="module", params=["made", "edge", "real and edge", "chunks", "empty", "none"])
def layers(request: pytest.FixtureRequest, fixtures: Path) -> Layers:
    edge = fixture_layer(fixtures, "edge-default", "edge")
    return {
        "made": made_layers,
        "edge": lambda: [edge],
        "real and edge": lambda: [fixture_layer(fixtures, "real-gnu", "real-gnu"), edge],
        "chunks": lambda: [
            fixture_layer(fixtures, "edge-chunk1000", "edge"),
            fixture_layer(fixtures, "big-chunk1m", "big"),
        ],
        "empty": lambda: [fixture_layer(fixtures, "empty", "empty"), (toc_of(), {})],
        "none": list,
    }[request.param]()


class Image:
    """An index on disk with its devices."""

    def __init__(self, layers: Layers, folder: Path) -> None:
        self.index, self.built = index_of(
            *(toc for toc, _ in layers), root_xattrs={b"user.lazyfs.schema": b"1"}
        )
        self.payloads = [payloads for _, payloads in layers]
        self.path = folder / "index.erofs"
        self.path.write_bytes(self.built.image)
        self.devices = [
            write_device(folder / f"device{number}", toc, payloads)
            for number, (toc, payloads) in enumerate(layers)
        ]

    def contents(self) -> dict[bytes, bytes]:
        """Return the bytes of every regular file, as the index and the devices have them."""
        devices = [path.read_bytes() for path in self.devices]
        contents = {}
        for path, nid in paths_of(self.index):
            if self.index.inode(nid).kind == Kind.REGULAR:
                extent = self.index.extent(nid)
                contents[path] = b""
                if extent is not None:
                    data = devices[extent.device - 1]
                    contents[path] = data[extent.offset : extent.offset + extent.size]
        return contents


@pytest.fixture
def image(layers: Layers, tmp_path: Path) -> Image:
    return Image(layers, tmp_path)


def compare(image: Image, root: Path) -> None:
    """Compare all names, attributes, xattrs, link targets and bytes."""
    facts, numbers = facts_on_disk(root)
    assert facts == facts_of(image.index)
    assert numbers == dict(paths_of(image.index))
    contents = image.contents()
    top = os.fsencode(root)
    for path, data in contents.items():
        with open(os.path.join(top, path), "rb") as file:
            assert file.read() == data, path


@pytest.mark.root
def test_kernel(image: Image, tmp_path: Path) -> None:
    with kernel_mount(image.path, image.devices, tmp_path / "mounted") as root:
        compare(image, root)
        status = os.statvfs(root)
        assert status.f_bsize == 4096
        assert not os.path.lexists(root / "absent")


@pytest.mark.root
def test_kernel_with_everything_in_one_file(image: Image, tmp_path: Path) -> None:
    """Devices behind the index, at their unified starts: no device= is needed."""
    flat = tmp_path / "flat"
    with flat.open("wb") as file:
        for part in (image.path, *image.devices):
            file.write(part.read_bytes())
    with kernel_mount(flat, [], tmp_path / "mounted") as root:
        compare(image, root)


@pytest.mark.root
def test_kernel_with_devices_beyond_32_bit_addresses(tmp_path: Path) -> None:
    """Devices of 4 TiB, sparse: by their numbers the kernel reaches all of them."""
    tocs = []
    for number in range(6):
        vast = TocEntry(
            b"vast%d" % number, Kind.REGULAR, 0o644, 0, 0,
            size=4 << 40, chunks=(Chunk(0, 4 << 40, 0, 0, bytes(32)),),
        )  # fmt: skip
        tocs.append(toc_of(vast, regular(b"small%d" % number, b"in layer %d" % number)))
    index, built = index_of(*tocs)
    image = tmp_path / "index.erofs"
    image.write_bytes(built.image)
    devices = []
    for number in range(6):
        devices.append(tmp_path / f"device{number}")
        with devices[-1].open("wb") as file:
            file.truncate((4 << 40) + 4096)
            file.seek(4 << 40)
            file.write(b"in layer %d" % number)
    with kernel_mount(image, devices, tmp_path / "mounted") as root:
        for number in range(6):
            assert (root / f"small{number}").read_bytes() == b"in layer %d" % number
            assert (root / f"vast{number}").stat().st_size == 4 << 40
            with (root / f"vast{number}").open("rb") as file:
                file.seek((4 << 40) - 5)
                assert file.read() == bytes(5)
    assert index.devices[5].size == (4 << 40) + 4096


@pytest.mark.root
def test_kernel_refuses_a_flipped_bit(tmp_path: Path) -> None:
    """The checksum is where the kernel looks for it."""
    image = Image([(toc_of(regular(b"a", b"x")), {b"a": b"x"})], tmp_path)
    broken = bytearray(image.built.image)
    broken[2000] ^= 1
    image.path.write_bytes(broken)
    with (
        pytest.raises(OSError, match="Bad message"),
        kernel_mount(image.path, image.devices, tmp_path / "mounted"),
    ):
        pass


def test_fsck(image: Image, tmp_path: Path) -> None:
    """erofs-utils finds no fault, and extracts the very bytes."""
    run_tool("fsck.erofs", image.path, image.devices)
    target = tmp_path / "extracted"
    target.mkdir()
    contents = image.contents()
    is_root = os.geteuid() == 0
    if not is_root and any(image.index.inode(nid).kind in (Kind.CHAR, Kind.BLOCK)
                           for _, nid in paths_of(image.index)):  # fmt: skip
        pytest.skip("extracting devices needs root")
    preserve = "--preserve" if is_root else "--no-preserve"
    run_tool("fsck.erofs", image.path, image.devices, f"--extract={target}", preserve)
    for path, data in contents.items():
        assert Path(os.fsdecode(os.path.join(os.fsencode(target), path))).read_bytes() == data


def test_dump(image: Image) -> None:
    output = run_tool("dump.erofs", image.path, image.devices, "-s", "-S")
    assert re.search(rf"root nid: +{image.index.root_nid}$", output, re.MULTILINE)
    assert re.search(rf"inode count: +{image.index.inode_count}$", output, re.MULTILINE)
    names = len(list(paths_of(image.index)))
    assert re.search(rf"total file count:\s+{names}$", output, re.MULTILINE)
    assert "sb_csum mtime chunked_file device_table" in output
