"""The bytes of the rootfs index, and what it cannot express."""

import hashlib
import struct
import subprocess
import sys
import tracemalloc
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.rootfs.erofs_format import (
    UnsupportedByErofs,
    decode_device_number,
    encode_device_number,
    superblock_checksum,
)
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.whiteout import LANDMARKS
from tests.support.formats.naive_merge import naive_facts, naive_merge
from tests.support.formats.rootfs import (
    device,
    directory,
    facts_of,
    hardlink,
    index_of,
    listing,
    paths_of,
    regular,
    symlink,
    toc_of,
)


def test_checksum_of_the_format() -> None:
    assert superblock_checksum(b"123456789") == 0x1CF96D7C


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_device_numbers(major: int, minor: int) -> None:
    assert decode_device_number(encode_device_number(major, minor)) == (major, minor)


def test_device_number_as_linux_encodes_it() -> None:
    assert encode_device_number(259, 70000) == 70000 & 0xFF | 259 << 8 | (70000 & ~0xFF) << 12
    for major, minor in ((0x1000, 0), (0, 0x100000), (-1, 0), (0, -1)):
        with pytest.raises(UnsupportedByErofs, match="device number"):
            encode_device_number(major, minor)


class TestBytes:
    def test_every_byte_of_a_small_image(self) -> None:
        """One directory, one file with an xattr, one symlink, spelled out by hand."""
        toc = toc_of(
            directory(b"d", mode=0o1700, uid=70000, gid=70001, mtime_nanoseconds=5),
            regular(b"d/f", b"x" * 5000, mtime_seconds=-2, xattrs=((b"user.a", b"12345"),)),
            symlink(b"s", b"d/f"),
        )
        image = index_of(toc)[1].image

        expected = bytearray(4096)
        digest = hashlib.sha256(f"lazyfs rootfs index 2\n{toc.digest}".encode()).digest()
        identity = bytearray(digest[:16])
        identity[6] = identity[6] & 0x0F | 0x80
        identity[8] = identity[8] & 0x3F | 0x80
        assert uuid.UUID(bytes=bytes(identity)).version == 8
        struct.pack_into(
            "<IIIBBHQQIIII16s16sIHHHBBIQ", expected, 1024,
            0xE0F5E1E2, 0, 3, 12, 0, 40, 4, 0, 0, 1, 0, 0, bytes(identity), b"",
            0xC, 0, 1, 9, 0, 0, 0, 0,
        )  # fmt: skip
        tag = toc.digest.hex.encode()
        assert len(tag) == 64
        struct.pack_into("<64sIIHH", expected, 1152, tag, 2, 1, 0, 0)
        inode = "<HHHHQIIIIqII"
        no_block = 0xFFFFFFFF
        # The root, nid 40: four names of together 5 bytes.
        struct.pack_into(inode, expected, 1280, 5, 0, 0o40755, 0, 53, no_block, 1, 0, 0, 0, 0, 3)
        struct.pack_into("<QHBxQHBxQHBxQHBx5s", expected, 1344,
            40, 48, 2, 40, 49, 2, 44, 51, 2, 51, 52, 7, b"...ds")  # fmt: skip
        # d, nid 44: its inode straddles nothing, the tail is behind it.
        struct.pack_into(
            inode, expected, 1408, 5, 0, 0o41700, 0, 40, no_block, 2, 70000, 70001,
            1_700_000_000, 5, 2,
        )  # fmt: skip
        struct.pack_into("<QHBxQHBxQHBx4s", expected, 1472,
            44, 36, 2, 40, 37, 2, 48, 39, 1, b"...f")  # fmt: skip
        # d/f, nid 48: xattr body of 12 + 4 + 1 + 5 bytes, padded to 24; then the chunk index.
        struct.pack_into(inode, expected, 1536, 9, 4, 0o100644, 0, 5000, 0x21, 3, 0, 0, -2, 0, 1)
        struct.pack_into("<12xBBH1s5s", expected, 1600, 1, 1, 5, b"a", b"12345")
        struct.pack_into("<HHI", expected, 1624, 0, 1, 0)
        # s, nid 51 = the next slot of 32 bytes.
        struct.pack_into(inode, expected, 1632, 5, 0, 0o120777, 0, 3, no_block, 4, 0, 0, 0, 0, 1)
        struct.pack_into("<3s", expected, 1696, b"d/f")
        assert image[1024:1344] != expected[1024:1344]  # the checksum comes last
        checksum = superblock_checksum(expected[1024:])
        struct.pack_into("<I", expected, 1028, checksum)
        assert image == expected

    def test_the_same_bytes_in_every_process(self) -> None:
        program = (
            "import hashlib\n"
            "from tests.rootfs.test_erofs_writer import various\n"
            "from tests.support.formats.rootfs import index_of\n"
            "built = index_of(*various())[1]\n"
            "print(hashlib.sha256(built.image + built.provenance).hexdigest())\n"
        )
        digests = {
            subprocess.run(
                [sys.executable, "-c", program],
                env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                check=True,
                capture_output=True,
                timeout=60,
            ).stdout
            for seed in ("1", "2")
        }
        built = index_of(*various())[1]
        here = hashlib.sha256(built.image + built.provenance).hexdigest()
        assert digests == {here.encode() + b"\n"}

    def test_uuid_says_which_layers(self) -> None:
        one, other = toc_of(seed=1), toc_of(seed=2)
        uuids = {index_of(*tocs)[0].uuid for tocs in ([one], [other], [one, other], [other, one])}
        assert len(uuids) == 4

    def test_devices(self) -> None:
        index, built = index_of(
            toc_of(regular(b"a", bytes(4097)), seed=1), toc_of(seed=2), toc_of(regular(b"b", b"x"))
        )
        assert [device.size for device in index.devices] == [8192, 0, 4096]
        assert [device.tag for device in index.devices] == [
            toc_of(seed=seed).digest.hex for seed in (1, 2, 0)
        ]
        starts = [struct.unpack_from("<I", built.image, 1152 + 128 * k + 68)[0] for k in range(3)]
        assert starts == [1, 3, 3]

    def test_device_number_is_the_layer(self) -> None:
        index, _ = index_of(toc_of(regular(b"a", b"1")), toc_of(regular(b"b", b"22")))
        found = [index.extent(index.lookup(index.root_nid, name)) for name in (b"a", b"b")]
        assert [(e.device, e.offset, e.size) for e in found if e] == [(1, 0, 1), (2, 0, 2)]


def various() -> list[Toc]:
    """Two layers with one of everything."""
    return [
        toc_of(
            directory(b"", mode=0o711),
            directory(b"big"),
            *(regular(b"big/%05d" % n, b"%d" % n) for n in range(700)),
            symlink(b"long", b"t" * 4095),
            symlink(b"short", b"t"),
            regular(b"x", b"y", xattrs=((b"security.capability", b"\0\1"), (b"user.b", b""))),
            hardlink(b"z", b"x"),
            seed=1,
        ),
        toc_of(
            regular(b"big/.wh.00007"),
            device(b"dev/null", Kind.CHAR, 1, 3),
            device(b"dev/disk", Kind.BLOCK, 259, 70000),
            device(b"dev/fifo", Kind.FIFO, 0, 0),
            regular(b"empty"),
            seed=2,
        ),
    ]


def file_of(path: bytes, size: int) -> TocEntry:
    """Return a regular file of *size* bytes that nobody has to hold in memory."""
    return TocEntry(
        path, Kind.REGULAR, 0o644, 0, 0, size=size, chunks=(Chunk(0, size, 0, 0, bytes(32)),)
    )


class TestSizes:
    @pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 8192, 8193, 1 << 30, 8 << 40])
    def test_files(self, size: int) -> None:
        index, _ = index_of(toc_of(file_of(b"f", size), regular(b"g", b"x")))
        extent = index.extent(index.lookup(index.root_nid, b"f"))
        assert extent is not None
        assert (extent.offset, extent.size) == (0, size)
        other = index.extent(index.lookup(index.root_nid, b"g"))
        assert other is not None
        assert other.offset == -(-size // 4096) * 4096

    def test_devices_that_no_unified_address_reaches(self) -> None:
        """Three devices of 8 TiB: only the first one's blocks have 32-bit numbers in one space."""
        tocs = [toc_of(file_of(b"%d" % n, 8 << 40), seed=n) for n in range(3)]
        index, built = index_of(*tocs)
        starts = [struct.unpack_from("<I", built.image, 1152 + 128 * k + 68)[0] for k in range(3)]
        assert starts == [1, 0, 0]
        extent = index.extent(index.lookup(index.root_nid, b"2"))
        assert extent is not None
        assert extent.device == 3

    def test_a_file_beyond_one_chunk(self) -> None:
        with pytest.raises(UnsupportedByErofs, match="file b'f': got"):
            index_of(toc_of(file_of(b"f", (8 << 40) + 1)))

    def test_depth_first_with_the_root_first(self) -> None:
        toc = toc_of(regular(b"b/x"), regular(b"a/z"), regular(b"a/y/w"), regular(b"c"))
        index, _ = index_of(toc)
        order = {}
        for path in (b"a", b"a/y", b"a/y/w", b"a/z", b"b", b"b/x", b"c"):
            nid = index.root_nid
            for name in path.split(b"/"):
                nid = index.lookup(nid, name)
            order[path] = nid
        assert sorted(order, key=order.get) == list(order)
        assert index.root_nid < min(order.values())

    def test_names_that_sort_before_the_dots(self) -> None:
        names = [b"!", b"#x", b"+", b",", b"-", b".a", b"...", b"..-", b".-", b"0"]
        names += [b"\x01", b"\xff\xfe", "ü".encode()]
        index, _ = index_of(toc_of(*(regular(name) for name in names)))
        found = [entry.name for entry in index.entries(index.root_nid)]
        assert found == sorted([*names, b".", b".."])
        assert all(index.lookup(index.root_nid, name) for name in found)

    @pytest.mark.parametrize(
        ("count", "length"),
        [(n, 1) for n in (1, 100, 200)]
        + [(n, 6) for n in (223, 224, 225, 226, 227, 228, 229, 448, 455, 5000)]
        + [(n, 255) for n in (1, 13, 14, 15, 16, 30, 31, 5000)],
    )
    def test_directories(self, count: int, length: int) -> None:
        """Around the places where the tail no longer fits, and where a block is full."""
        names = [bytes([number + 48]) if length == 1 else b"%0*d" % (length, number)
                 for number in range(count)]  # fmt: skip
        index, _ = index_of(toc_of(*(regular(b"d/" + name) for name in names), regular(b"e")))
        nid = index.lookup(index.root_nid, b"d")
        found = [entry.name for entry in index.entries(nid)]
        assert found == sorted([*names, b".", b".."])
        assert all(index.lookup(nid, name) for name in found)
        assert index.lookup(nid, b"absent") is None
        assert index.lookup(index.root_nid, b"e")

    def test_empty_directory(self) -> None:
        index, _ = index_of(toc_of(directory(b"d")))
        nid = index.lookup(index.root_nid, b"d")
        assert [entry.name for entry in index.entries(nid)] == [b".", b".."]
        assert index.lookup(nid, b"a") is None

    @given(st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=60, unique=True))
    def test_any_names(self, names: list[bytes]) -> None:
        names = [name.translate(None, b"\0/") or b"x" for name in names]
        names = [name for name in names if not name.startswith((b".wh.", *LANDMARKS))]
        names = sorted(set(names) - {b".", b".."})
        index, _ = index_of(toc_of(*(regular(name) for name in names)))
        assert [e.name for e in index.entries(index.root_nid)] == sorted([*names, b".", b".."])
        for name in names:
            assert index.lookup(index.root_nid, name) is not None
            assert index.lookup(index.root_nid, name + b"x") is None or name + b"x" in names

    def test_100_000_names_in_one_directory(self) -> None:
        names = [b"file-%06d" % number for number in range(100_000)]
        index, built = index_of(toc_of(*(regular(b"d/" + name) for name in names)))
        nid = index.lookup(index.root_nid, b"d")
        assert [entry.name for entry in index.entries(nid)][2:] == names
        for number in range(0, 100_000, 997):
            assert index.lookup(nid, names[number]) is not None
        assert index.lookup(nid, b"file-100000") is None
        assert built.inode_count == 100_002

    @pytest.mark.parametrize("size", [1, 59, 60, 4031, 4032, 4033, 4095])
    def test_symlinks(self, size: int) -> None:
        """The longest one that fits beside its inode has 4032 bytes; others get a block."""
        links = [
            symlink(b"l%d" % number, b"%d" % number + b"t" * (size - 1)) for number in range(5)
        ]
        index, _ = index_of(toc_of(*links))
        for number in range(5):
            nid = index.lookup(index.root_nid, b"l%d" % number)
            assert index.readlink(nid) == links[number].link[:4095]

    @pytest.mark.parametrize("value_size", [0, 1, 3, 4000, 4032, 5000, 65535])
    def test_xattrs_of_any_size_on_any_kind(self, value_size: int) -> None:
        xattrs = ((b"trusted.t", b"v" * value_size), (b"user.u", b""))
        toc = toc_of(
            directory(b"d", xattrs=xattrs),
            regular(b"d/f", b"data", xattrs=xattrs),
            symlink(b"s", b"target", xattrs=xattrs),
        )
        index, _ = index_of(toc)
        facts = facts_of(index)
        for path in (b"d", b"d/f", b"s"):
            assert facts[path].xattrs == dict(xattrs)
        assert facts[b"s"].link == b"target"

    def test_times_and_owners(self) -> None:
        extremes = [
            (-(2**63), 0), (2**63 - 1, 999_999_999), (-1, 1), (-62_135_596_800, 0), (2**33, 5)
        ]  # fmt: skip
        toc = toc_of(
            *(
                regular(b"%d" % n, mtime_seconds=s, mtime_nanoseconds=ns, uid=2**32 - 1, gid=2**31)
                for n, (s, ns) in enumerate(extremes)
            )
        )
        facts = facts_of(index_of(toc)[0])
        assert [facts[b"%d" % n].mtime for n in range(len(extremes))] == extremes
        assert (facts[b"0"].uid, facts[b"0"].gid) == (2**32 - 1, 2**31)


class TestLimits:
    def test_names(self) -> None:
        assert listing(toc_of(regular(b"n" * 255))) == [b"n" * 255]
        for name in (b"n" * 256, b"a\0b"):
            with pytest.raises(UnsupportedByErofs, match="file name"):
                index_of(toc_of(regular(name)))

    def test_symlinks(self) -> None:
        for target in (b"", b"t" * 4096, b"a\0b"):
            with pytest.raises(UnsupportedByErofs, match="symlink b's': a target"):
                index_of(toc_of(symlink(b"s", target)))

    def test_numbers(self) -> None:
        for wrong in ({"uid": 2**32}, {"gid": -1}, {"mtime_seconds": 2**63}):
            with pytest.raises(UnsupportedByErofs, match="entry b'f': owner"):
                index_of(toc_of(regular(b"f", **wrong)))
        with pytest.raises(UnsupportedByErofs, match="device number: got 4096:0"):
            index_of(toc_of(device(b"n", Kind.CHAR, 4096, 0)))

    def test_xattr_value(self) -> None:
        with pytest.raises(UnsupportedByErofs, match="a value of 65536 bytes"):
            index_of(toc_of(regular(b"f", xattrs=((b"user.a", bytes(65536)),))))

    def test_xattr_name(self) -> None:
        fits = b"user." + b"n" * 250
        assert facts_of(index_of(toc_of(regular(b"f", xattrs=((fits, b""),))))[0])[b"f"].xattrs
        with pytest.raises(UnsupportedByErofs, match="got a name of 256"):
            index_of(toc_of(regular(b"f", xattrs=((fits + b"n", b""),))))

    def test_xattrs_together(self) -> None:
        xattrs = [(b"user.%d" % n, bytes(65535)) for n in range(4)]
        # Header, then four entries of 4 + 1 + 65535 bytes: just below the limit of the count.
        with pytest.raises(UnsupportedByErofs, match="expected at most 262148"):
            index_of(toc_of(regular(b"f", xattrs=tuple(xattrs))))
        xattrs[3] = (b"user.3", bytes(65535 - 24))
        index, _ = index_of(toc_of(regular(b"f", xattrs=tuple(xattrs))))
        assert facts_of(index)[b"f"].xattrs == dict(xattrs)

    @pytest.mark.parametrize(
        ("layers", "names"), [(22, 10), (21, 10), (23, 10), (1, 156), (1, 300), (1, 446), (1, 451)]
    )
    def test_a_root_whose_names_move_it(self, layers: int, names: int) -> None:
        """Its names may not cross a block's end: the root is then in the block that follows."""
        tocs = [toc_of(seed=seed) for seed in range(layers - 1)]
        tocs.append(toc_of(*(regular(b"%06d" % number) for number in range(names)), seed=layers))
        index, _ = index_of(*tocs)
        assert len(list(paths_of(index))) == names + 1
        assert index.root_nid in (36 + 4 * layers, -(-(36 + 4 * layers) // 128) * 128)

    def test_devices(self) -> None:
        with pytest.raises(UnsupportedByErofs, match="got 1 layers and 0 tags"):
            build_index([toc_of()], root_xattrs={}, device_tags=[])
        with pytest.raises(UnsupportedByErofs, match="at most 16342"):
            build_index([toc_of()] * 16343, root_xattrs={}, device_tags=[""] * 16343)
        index = ErofsIndex(
            build_index([toc_of()] * 16342, root_xattrs={}, device_tags=[""] * 16342).image
        )
        assert index.root_nid == 65404
        with pytest.raises(UnsupportedByErofs, match="got 65 characters"):
            build_index([toc_of()], root_xattrs={}, device_tags=["x" * 65])

    def test_root_stays_within_16_bits_with_many_layers(self) -> None:
        tocs = [toc_of(regular(b"f%d" % n, b"x"), seed=n) for n in range(1024)]
        index, _ = index_of(*tocs)
        assert index.root_nid == 36 + 4 * 1024
        assert len(index.devices) == 1024
        extent = index.extent(index.lookup(index.root_nid, b"f1023"))
        assert extent is not None
        assert extent.device == 1024


ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")


class TestXattrs:
    @pytest.mark.parametrize(
        "value",
        [b"", b"\2\0\0", b"\2\0\0\0", b"\1" + ACL[1:], ACL[:-1], ACL + b"\0",
         ACL[:4] + b"\x40" + ACL[5:]],
    )  # fmt: skip
    def test_an_acl_that_linux_cannot_decode(self, value: bytes) -> None:
        """It would make the file inaccessible on a mount by the kernel."""
        name = b"system.posix_acl_access"
        index, built = index_of(toc_of(regular(b"a", xattrs=((name, value),))))
        assert index.xattrs(index.lookup(index.root_nid, b"a")) == {}
        assert [x.name for x in built.dropped_xattrs] == [name]

    def test_namespaces(self) -> None:
        kept = {
            b"security.capability": b"\1\0",
            b"system.posix_acl_access": ACL,
            b"system.posix_acl_default": ACL + ACL[4:12],
            b"trusted.overlay": b"",
            b"user.a": b"\0",
        }
        dropped = {
            b"user.lazyfs.schema": b"forged",
            b"user.lazyfs.": b"",
            b"trusted.overlay.opaque": b"y",
            b"trusted.overlay.overlay.redirect": b"/etc",
            b"user.overlay.": b"",
            b"user.overlay.metacopy": b"",
            b"system.nfs4_acl": b"x",
            b"system.posix_acl_accessx": b"x",
            b"btrfs.compression": b"x",
            b"user.": b"",
            b"plain": b"",
        }
        every = tuple(sorted((kept | dropped).items()))
        toc = toc_of(regular(b"a", xattrs=every), directory(b"d", xattrs=every))
        index, built = index_of(toc)
        facts = facts_of(index)
        assert facts[b"a"].xattrs == facts[b"d"].xattrs == kept
        # In the order of their prefixes' numbers.
        assert [name.partition(b".")[0] for name in facts[b"a"].xattrs] == [
            b"user", b"system", b"system", b"trusted", b"security"
        ]  # fmt: skip
        assert [(x.name, x.count, x.example) for x in built.dropped_xattrs] == [
            (name, 2, b"a") for name in sorted(dropped)
        ]

    def test_only_dropped_ones_leave_no_body(self) -> None:
        index, _ = index_of(toc_of(regular(b"a", xattrs=((b"system.x", b""),))))
        assert index.inode(index.lookup(index.root_nid, b"a")).xattr_words == 0

    def test_of_the_root(self) -> None:
        toc = toc_of(
            directory(b"", xattrs=((b"user.lazyfs.schema", b"forged"), (b"user.own", b"1")))
        )
        added = {b"user.lazyfs.schema": b"1", b"user.lazyfs.layers": b"[]"}
        index, built = index_of(toc, root_xattrs=added)
        assert index.xattrs(index.root_nid) == {b"user.own": b"1", **added}
        assert [x.name for x in built.dropped_xattrs] == [b"user.lazyfs.schema"]

    def test_of_a_root_without_an_entry(self) -> None:
        index, _ = index_of(toc_of(regular(b"a")), root_xattrs={b"user.lazyfs.x": b"y"})
        assert index.xattrs(index.root_nid) == {b"user.lazyfs.x": b"y"}
        assert index.inode(index.root_nid).mode == 0o40755

    def test_of_the_root_that_erofs_lacks(self) -> None:
        with pytest.raises(UnsupportedByErofs, match=r"root: .* b'system\.x'"):
            index_of(toc_of(), root_xattrs={b"system.x": b""})


NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: name not in (b".", b"..") and not {0, 0x2F} & set(name)
    and not name.startswith(b".wh.")
)  # fmt: skip
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
TIMES = st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999))
XATTRS = st.dictionaries(
    st.sampled_from([b"user.", b"trusted.", b"security."]).flatmap(
        lambda prefix: NAMES.map(lambda name: prefix + name)
    ),
    st.binary(max_size=6000),
    max_size=3,
).map(lambda found: tuple(sorted(found.items())))
OWNERS = st.integers(0, 2**32 - 1)
ENTRIES = st.one_of(
    st.builds(
        lambda path, size, mode, uid, gid, time, xattrs: regular(
            path, bytes(size), mode=mode, uid=uid, gid=gid, mtime_seconds=time[0],
            mtime_nanoseconds=time[1], xattrs=xattrs,
        ),
        PATHS, st.sampled_from([0, 1, 4096, 70_000]), st.integers(0, 0o7777), OWNERS, OWNERS,
        TIMES, XATTRS,
    ),
    st.builds(
        lambda path, mode, uid, gid, time, xattrs: directory(
            path, mode=mode, uid=uid, gid=gid, mtime_seconds=time[0], mtime_nanoseconds=time[1],
            xattrs=xattrs,
        ),
        st.one_of(PATHS, st.just(b"")), st.integers(0, 0o7777), OWNERS, OWNERS, TIMES, XATTRS,
    ),
    st.builds(
        lambda path, size, xattrs: symlink(path, b"t" * size, xattrs=xattrs),
        PATHS, st.integers(1, 4095), XATTRS,
    ),
    st.builds(
        device, PATHS, st.sampled_from([Kind.CHAR, Kind.BLOCK]), st.integers(0, 0xFFF),
        st.integers(0, 0xFFFFF),
    ),
    st.builds(lambda path: device(path, Kind.FIFO, 0, 0), PATHS),
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(ENTRIES, max_size=30))
def test_any_tree_is_read_back(entries: list) -> None:
    toc = toc_of(*entries)
    index, built = index_of(toc)
    assert facts_of(index) == naive_facts(naive_merge([toc]))
    assert index_of(toc)[1] == built


def test_memory_stays_near_the_size_of_the_image() -> None:
    toc = toc_of(*(regular(b"d%d/f%d" % (n // 50, n), b"x") for n in range(20_000)))
    tracemalloc.start()
    try:
        built = build_index([toc], root_xattrs={}, device_tags=[toc.digest.hex])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * (len(built.image) + len(built.provenance))
