"""Reading an index: another tool's image, hostile bytes, and the paths of a tree."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.formats.tocs.toc import Kind
from lazyfs.rootfs.erofs_format import superblock_checksum
from lazyfs.rootfs.erofs_reader import ErofsIndex, IndexCorrupt, WrongKind
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.walk import PathNotFound, walk_path
from tests.support.formats.rootfs import (
    device,
    directory,
    facts_of,
    hardlink,
    index_of,
    regular,
    symlink,
    toc_of,
)

NO_BLOCK = 0xFFFFFFFF


def sealed(image: bytearray, block_size: int = 4096) -> bytes:
    """Return *image* with a right checksum: what an attacker would do."""
    struct.pack_into("<I", image, 1028, 0)
    size = block_size - 1024 if block_size > 1024 else block_size
    struct.pack_into("<I", image, 1028, superblock_checksum(image[1024 : 1024 + size]))
    return bytes(image)


def foreign_index() -> bytes:
    """An index as mkfs.erofs 1.9 writes it for a small tar: blocks of 512 bytes, one device.

    ./ ./bin/ ./bin/a (5,000 bytes) ./bin/b (hardlink to a) ./etc/ ./etc/link ./etc/motd (6 bytes)
    """
    image = bytearray(2048)
    struct.pack_into(
        "<IIIBBHQQIIII16s16sIHHHBBIQ", image, 1024,
        0xE0F5E1E2, 0, 3, 9, 0, 40, 6, 0, 0, 4, 0, 0, b"u" * 16, b"",
        8, 0, 1, 9, 0, 0, 0, 0,
    )  # fmt: skip
    struct.pack_into("<64sII", image, 1152, b"", 20, 4)

    def inode(nid: int, layout: int, mode: int, size: int, union: int, nlink: int) -> int:
        struct.pack_into(
            "<HHHHQIIIIqII", image, nid * 32, layout, 0, mode, 0, size, union,
            0, 0, 0, 1_700_000_000, 0, nlink,
        )  # fmt: skip
        return nid * 32 + 64

    def names(position: int, *entries: tuple[bytes, int, int]) -> None:
        offset = 12 * len(entries)
        for number, (name, nid, kind) in enumerate(entries):
            struct.pack_into("<QHBx", image, position + 12 * number, nid, offset, kind)
            struct.pack_into(f"<{len(name)}s", image, position + offset, name)
            offset += len(name)

    end = inode(40, 5, 0o40755, 57, NO_BLOCK, 4)
    names(end, (b".", 40, 2), (b"..", 40, 2), (b"bin", 44, 2), (b"etc", 48, 2))
    end = inode(44, 5, 0o40755, 53, NO_BLOCK, 2)
    names(end, (b".", 44, 2), (b"..", 40, 2), (b"a", 52, 1), (b"b", 52, 1))
    end = inode(48, 5, 0o40755, 59, NO_BLOCK, 2)
    names(end, (b".", 48, 2), (b"..", 40, 2), (b"link", 55, 7), (b"motd", 58, 1))
    # The two bytes behind a chunk format are reserved, and that tool leaves rubbish in them.
    end = inode(52, 9, 0o100644, 5000, 0x24 | 0xABCD0000, 2)
    struct.pack_into("<HHI", image, end, 0, 1, 3)
    end = inode(55, 5, 0o120777, 8, NO_BLOCK, 1)
    image[end : end + 8] = b"../bin/a"
    end = inode(58, 9, 0o100644, 6, 0x20, 1)
    struct.pack_into("<HHI", image, end, 0, 1, 17)
    return sealed(image, 512)


class TestForeignIndex:
    def test_all_of_it(self) -> None:
        index = ErofsIndex(foreign_index())
        assert (index.root_nid, index.inode_count, index.block_size) == (40, 6, 512)
        assert [(d.tag, d.size) for d in index.devices] == [("", 10240)]
        facts = facts_of(index)
        assert sorted(facts) == [b"", b"bin", b"bin/a", b"bin/b", b"etc", b"etc/link", b"etc/motd"]
        assert facts[b"bin/a"].names == {b"bin/a", b"bin/b"}
        assert facts[b"etc/link"].link == b"../bin/a"
        found = {path: index.extent(walk_path(index, path)) for path in (b"bin/b", b"etc/motd")}
        assert [(e.device, e.offset, e.size) for e in found.values() if e] == [
            (1, 1536, 5000),
            (1, 8704, 6),
        ]

    def test_each_bit_of_the_first_block_is_under_the_checksum(self) -> None:
        good = foreign_index()
        for position in range(1024, 1536):
            bad = bytearray(good)
            bad[position] ^= 0x10
            with pytest.raises(IndexCorrupt):
                ErofsIndex(bad)


def sample() -> bytes:
    """An image with one of everything, small enough to break in each byte."""
    toc = toc_of(
        directory(b"", xattrs=((b"user.a", b"1"),)),
        regular(b"d/file", b"x" * 5000, xattrs=((b"user.name", b"value"), (b"trusted.t", b""))),
        regular(b"d/empty"),
        hardlink(b"d/other", b"d/file"),
        symlink(b"link", b"d/file"),
        symlink(b"long", b"d/../" * 819),
        device(b"null", Kind.CHAR, 1, 3),
        *(regular(b"many/" + b"%03d" % n * 60) for n in range(40)),
    )
    return index_of(toc)[1].image


SAMPLE = sample()


def visit(image: bytes) -> int:
    """Open *image* and ask everything of everything reachable; return how much there was."""
    index = ErofsIndex(image)
    seen = set()
    pending = [index.root_nid]
    count = 0
    while pending:
        nid = pending.pop()
        if nid in seen:
            continue
        seen.add(nid)
        count += 1
        try:
            kind = index.inode(nid).kind
            index.xattrs(nid)
            if kind == Kind.REGULAR:
                index.extent(nid)
            elif kind == Kind.SYMLINK:
                index.readlink(nid)
            elif kind == Kind.DIRECTORY:
                index.lookup(nid, b"file")
                index.lookup(nid, b"\xff")
                offset = 0
                for entry in index.entries(nid):
                    assert entry.next_offset > offset
                    offset = entry.next_offset
                    pending.append(entry.nid)
                    count += 1
                    index.lookup(nid, entry.name)
        except IndexCorrupt:
            continue
    return count


class TestHostile:
    def test_truncated(self) -> None:
        for size in [*range(1024, 1500), *range(0, len(SAMPLE), 97)]:
            with pytest.raises(IndexCorrupt):
                ErofsIndex(SAMPLE[:size])

    def test_trailing_bytes(self) -> None:
        for junk in (b"\0", bytes(4096), SAMPLE):
            with pytest.raises(IndexCorrupt, match=r"expected .* blocks"):
                ErofsIndex(SAMPLE + junk)

    @given(st.binary(max_size=200))
    def test_random(self, data: bytes) -> None:
        with pytest.raises(IndexCorrupt):
            ErofsIndex(data)

    @pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])  # 1, 2 and 0 modulo 3
    def test_each_byte_of_the_metadata_flipped(self, mask: int) -> None:
        """Sealed again, so that the rest of the reader is reached."""
        whole = visit(SAMPLE)
        for position in range(1024 + mask % 3, 4096, 3):
            bad = bytearray(SAMPLE)
            bad[position] ^= mask
            try:
                assert visit(sealed(bad)) < 20 * whole
            except IndexCorrupt:
                pass

    @settings(max_examples=300, deadline=5000)
    @given(
        st.lists(st.tuples(st.integers(1032, len(SAMPLE) - 1), st.integers(0, 255)), max_size=30)
    )
    def test_random_bytes_in_a_valid_image(self, changes: list[tuple[int, int]]) -> None:
        bad = bytearray(SAMPLE)
        for position, value in changes:
            bad[position] = value
        try:
            visit(sealed(bad))
        except IndexCorrupt:
            pass

    @settings(max_examples=200, deadline=5000)
    @given(st.integers(1280 // 4, len(SAMPLE) // 4 - 1), st.integers(0, 2**32 - 1))
    def test_random_words_in_a_valid_image(self, word: int, value: int) -> None:
        bad = bytearray(SAMPLE)
        struct.pack_into("<I", bad, word * 4, value)
        try:
            visit(sealed(bad))
        except IndexCorrupt:
            pass

    def test_nids_outside(self) -> None:
        index = ErofsIndex(SAMPLE)
        for nid in (-1, 0, len(SAMPLE) // 32 - 1, len(SAMPLE) // 32, 2**63, 2**64 - 1):
            with pytest.raises(IndexCorrupt):
                index.inode(nid)

    def test_a_directory_that_claims_to_be_huge(self) -> None:
        for size in (2**63, 2**64 - 1, 4096, len(SAMPLE)):
            for layout in (1, 5, 9):
                bad = bytearray(SAMPLE)
                index = ErofsIndex(SAMPLE)
                position = index.root_nid * 32
                struct.pack_into("<H", bad, position, layout)
                struct.pack_into("<QI", bad, position + 8, size, 0)
                broken = ErofsIndex(sealed(bad))
                with pytest.raises(IndexCorrupt):
                    for _ in broken.entries(broken.root_nid):
                        pass
                with pytest.raises(IndexCorrupt):
                    broken.lookup(broken.root_nid, b"x")

    @pytest.mark.parametrize(
        ("offset", "form", "value", "message"),
        [
            (0, "<I", 0xE0F5E1E3, "magic"),
            (8, "<I", 2, "checksum"),
            (12, "<B", 13, "block bits 13"),
            (12, "<B", 8, "block bits 8"),
            (90, "<B", 1, "directory bits 1"),
            (80, "<I", 0xD, "features 0xd"),
            (80, "<I", 0x4, "features 0x4"),
            (36, "<I", 1, "expected 1 blocks"),
            (86, "<H", 9999, "device table"),
            (88, "<H", 9999, "device table"),
            (14, "<H", 0, "inode 0"),
            (40, "<I", 7, "inode 40"),
        ],
    )
    def test_superblock(self, offset: int, form: str, value: int, message: str) -> None:
        bad = bytearray(SAMPLE)
        struct.pack_into(form, bad, 1024 + offset, value)
        with pytest.raises(IndexCorrupt, match=message):
            ErofsIndex(sealed(bad))

    def test_root_that_is_a_file(self) -> None:
        bad = bytearray(SAMPLE)
        struct.pack_into("<H", bad, 1024 + 14, walk_path(ErofsIndex(SAMPLE), b"d/file"))
        with pytest.raises(IndexCorrupt, match="root inode"):
            ErofsIndex(sealed(bad))

    def test_extent_outside_of_its_device(self) -> None:
        nid = walk_path(ErofsIndex(SAMPLE), b"d/file")
        for offset, form, value in [
            (8, "<Q", 8193),  # behind the device's end, and more than its chunk
            (16, "<H", 0x00),  # block map instead of chunk indexes
            (16, "<H", 0x20),  # chunks of 4096 bytes: two of them
            (16, "<H", 0x61),  # 48-bit addresses
        ]:
            bad = bytearray(SAMPLE)
            struct.pack_into(form, bad, nid * 32 + offset, value)
            with pytest.raises(IndexCorrupt):
                ErofsIndex(sealed(bad)).extent(nid)
        bad = bytearray(SAMPLE)
        struct.pack_into("<I", bad, 1152 + 64, 1)
        with pytest.raises(IndexCorrupt, match="beyond the end of device 1"):
            ErofsIndex(sealed(bad)).extent(nid)


class TestContradictions:
    """One field changed in an otherwise sound image: refused, and not read past."""

    @staticmethod
    def broken(path: bytes, offset: int, form: str, *values: int) -> tuple[ErofsIndex, int]:
        """Change what lies *offset* bytes behind the inode of *path*; return index and nid."""
        nid = walk_path(ErofsIndex(SAMPLE), path)
        bad = bytearray(SAMPLE)
        struct.pack_into(form, bad, nid * 32 + 64 + offset, *values)
        return ErofsIndex(sealed(bad)), nid

    # Directory d has five entries: "." ".." "empty" "file" "other", names from byte 60 to 77.
    @pytest.mark.parametrize(
        ("offset", "form", "value"),
        [
            (8, "<H", 0),  # no entries at all
            (8, "<H", 61),  # not a whole number of entries
            (8, "<H", 84),  # names behind the end
            (20, "<H", 59),  # the second name begins among the entries
            (20, "<H", 300),  # and behind the end
            (32, "<H", 60),  # names out of order
            (56, "<H", 78),  # the last one behind the end
            (56, "<H", 0xFFFF),
            (44, "<H", 63),  # an empty name before it
            (10, "<B", 0),  # kinds that do not exist
            (58, "<B", 6),
            (58, "<B", 8),
        ],
    )
    def test_directory(self, offset: int, form: str, value: int) -> None:
        index, nid = self.broken(b"d", offset, form, value)
        with pytest.raises(IndexCorrupt):
            list(index.entries(nid))

    def test_lookup_among_names_out_of_order(self) -> None:
        index, nid = self.broken(b"d", 32, "<H", 60)
        with pytest.raises(IndexCorrupt, match="out of order"):
            index.lookup(nid, b"..")

    def test_more_entries_than_the_index_has_bytes(self) -> None:
        """In the very last block, so that reading them would pass the buffer's end."""
        bad = bytearray(SAMPLE)
        first_name = len(bad) - 4096 + 8
        assert struct.unpack_from("<H", bad, first_name)[0] < 4096
        struct.pack_into("<H", bad, first_name, 5461 * 12)
        index = ErofsIndex(sealed(bad))
        nid = walk_path(index, b"many")
        with pytest.raises(IndexCorrupt):
            list(index.entries(nid))
        with pytest.raises(IndexCorrupt):
            index.lookup(nid, b".")

    # d/file has the xattrs user.name = "value" and trusted.t = "", in a body of 36 bytes.
    @pytest.mark.parametrize(
        ("offset", "form", "value"),
        [
            (4, "<B", 1),  # shared xattrs
            (12, "<B", 200),  # a name behind the end of the body
            (13, "<B", 5),  # prefixes that do not exist
            (13, "<B", 0x81),
            (14, "<H", 17),  # values behind the end of the body
            (14, "<H", 0xFFFF),
            (28, "<H", 1),
        ],
    )
    def test_xattrs(self, offset: int, form: str, value: int) -> None:
        index, nid = self.broken(b"d/file", offset, form, value)
        with pytest.raises(IndexCorrupt):
            index.xattrs(nid)

    @pytest.mark.parametrize(
        ("offset", "form", "value"),
        [
            (0, "<H", 1),  # a block number of more than 32 bits
            (2, "<H", 0),  # the index itself as the device
            (2, "<H", 2),  # no such device
            (4, "<I", 7),  # behind the end of the device
            (4, "<I", NO_BLOCK),  # a hole
        ],
    )
    def test_chunk_index(self, offset: int, form: str, value: int) -> None:
        """Of d/file, behind its xattrs."""
        index, nid = self.broken(b"d/file", 40 + offset, form, value)
        with pytest.raises(IndexCorrupt):
            index.extent(nid)

    def test_the_image_itself_is_sound(self) -> None:
        index, nid = self.broken(b"d", 8, "<H", 60)
        assert [entry.name for entry in index.entries(nid)] == [
            b".",
            b"..",
            b"empty",
            b"file",
            b"other",
        ]
        nid = walk_path(index, b"d/file")
        assert index.inode(nid).xattr_words == (36 - 12) // 4 + 1
        assert index.extent(nid) is not None


class TestAnswers:
    def test_wrong_kind(self) -> None:
        index = ErofsIndex(SAMPLE)
        file, link = walk_path(index, b"d/file"), walk_path(index, b"link", follow=False)
        with pytest.raises(WrongKind, match="is of kind regular, not directory"):
            index.lookup(file, b"x")
        with pytest.raises(WrongKind):
            list(index.entries(link))
        with pytest.raises(WrongKind):
            index.readlink(file)
        with pytest.raises(WrongKind):
            index.extent(link)

    def test_entries_from_every_offset(self) -> None:
        index = ErofsIndex(SAMPLE)
        for nid in (index.root_nid, walk_path(index, b"many")):
            every = list(index.entries(nid))
            assert [entry.name for entry in index.entries(nid, 0)] == [e.name for e in every]
            for number, entry in enumerate(every):
                rest = list(index.entries(nid, entry.next_offset))
                assert rest == every[number + 1 :]
            assert list(index.entries(nid, 2**63)) == []
        assert len(list(index.entries(walk_path(index, b"many")))) == 42

    def test_no_body_no_xattrs(self) -> None:
        index = ErofsIndex(SAMPLE)
        assert index.xattrs(walk_path(index, b"d")) == {}
        assert index.xattrs(walk_path(index, b"d/file")) == {
            b"user.name": b"value",
            b"trusted.t": b"",
        }
        assert index.extent(walk_path(index, b"d/empty")) is None

    def test_devices_of_files_only_have_numbers(self) -> None:
        index = ErofsIndex(SAMPLE)
        null, file = (
            index.inode(walk_path(index, b"null")),
            index.inode(walk_path(index, b"d/file")),
        )
        assert (null.rdev_major, null.rdev_minor) == (1, 3)
        assert (file.rdev_major, file.rdev_minor) == (0, 0)


class TestWalk:
    INDEX = index_of(
        toc_of(
            regular(b"etc/passwd", b"x"),
            symlink(b"abs", b"/etc/passwd"),
            symlink(b"etc/up", b"../etc/./passwd"),
            symlink(b"out", b"../../../../etc/passwd"),
            symlink(b"dir", b"etc"),
            symlink(b"dir2", b"dir/"),
            symlink(b"root", b"/"),
            symlink(b"gone", b"nowhere"),
            symlink(b"loop", b"loop"),
            symlink(b"a", b"b"),
            symlink(b"b", b"a"),
            directory(b"deep/er"),
            symlink(b"deep/er/abs", b"/abs"),
            *(symlink(b"chain%d" % n, b"chain%d" % (n + 1)) for n in range(41)),
            regular(b"chain41", b"y"),
        )
    )[0]

    @pytest.mark.parametrize(
        "path",
        [
            b"etc/passwd", b"/etc/passwd", b"//etc//./passwd", b"abs", b"etc/up", b"out",
            b"dir/passwd", b"dir2/passwd", b"dir2/up", b"deep/er/abs", b"../../etc/passwd",
            b"deep/er/../../abs", b"root/root/etc/passwd", b"dir/../abs", b"deep/er/../../../abs",
        ],
    )  # fmt: skip
    def test_all_lead_to_the_same_file(self, path: bytes) -> None:
        root = self.INDEX.root_nid
        expected = self.INDEX.lookup(self.INDEX.lookup(root, b"etc"), b"passwd")
        assert walk_path(self.INDEX, path) == expected

    @pytest.mark.parametrize("path", [b"", b"/", b".", b"..", b"root", b"/root/", b"dir/.."])
    def test_all_lead_to_the_root(self, path: bytes) -> None:
        assert walk_path(self.INDEX, path) == self.INDEX.root_nid

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (b"nothing", "does not exist"),
            (b"gone", "does not exist"),
            (b"etc/passwd/x", "parent of it is not a directory"),
            (b"etc/passwd/..", "not a directory"),
            (b"etc/passwd/", "not a directory"),
            (b"abs/", "not a directory"),
            (b"loop", "more than 40 symlinks"),
            (b"a/x", "more than 40 symlinks"),
            (b"chain0", "more than 40 symlinks"),
            (b"etc/no\nsuch\xff", "does not exist"),
        ],
    )
    def test_not_found(self, path: bytes, message: str) -> None:
        with pytest.raises(PathNotFound, match=message):
            walk_path(self.INDEX, path)

    def test_forty_links_are_allowed(self) -> None:
        assert self.INDEX.inode(walk_path(self.INDEX, b"chain1")).kind == Kind.REGULAR

    def test_the_last_link_itself(self) -> None:
        nid = walk_path(self.INDEX, b"dir2", follow=False)
        assert self.INDEX.readlink(nid) == b"dir/"
        assert (
            self.INDEX.inode(walk_path(self.INDEX, b"dir2/", follow=False)).kind == Kind.DIRECTORY
        )
        assert walk_path(self.INDEX, b"dir/up", follow=False) != walk_path(self.INDEX, b"dir/up")


def test_an_empty_image() -> None:
    built = build_index([], root_xattrs={}, device_tags=[])
    index = ErofsIndex(built.image)
    assert index.devices == ()
    assert [entry.name for entry in index.entries(index.root_nid)] == [b".", b".."]
