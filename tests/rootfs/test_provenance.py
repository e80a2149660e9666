"""The provenance table."""

import hashlib
import mmap
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.tocs.toc import Chunk, Kind, TocEntry
from lazyfs.rootfs.provenance import BadProvenance, Provenance
from lazyfs.rootfs.walk import walk_path
from tests.support.formats.rootfs import directory, hardlink, index_of, regular, symlink, toc_of

EMPTY = hashlib.sha256(b"").digest()


def in_chunks(path: bytes, digest: bytes | None) -> TocEntry:
    """A file of two chunks, whose producer says *digest* of the whole."""
    chunks = (Chunk(0, 4, 10, 0, b"1" * 32), Chunk(4, 2, 20, 0, b"2" * 32))
    return TocEntry(path, Kind.REGULAR, 0o644, 0, 0, size=6, digest=digest, chunks=chunks)


LAYERS = (
    toc_of(
        directory(b"d"),
        regular(b"d/low", b"low"),
        hardlink(b"d/link", b"d/low"),
        in_chunks(b"whole", b"w" * 32),
        in_chunks(b"parts", None),
        regular(b"i/j", b"x"),
        seed=1,
    ),
    toc_of(
        directory(b"d", mode=0o700),
        regular(b"d/high", b"high"),
        regular(b"empty"),
        symlink(b"s", b"d"),
        seed=2,
    ),
)


def test_origins() -> None:
    index, built = index_of(*LAYERS)
    table = Provenance(built.provenance)

    def of(path: bytes) -> tuple[int, bytes | None] | None:
        origin = table.of(walk_path(index, path, follow=False))
        return None if origin is None else (origin.layer, origin.digest)

    assert of(b"d") == (1, None)
    assert of(b"d/low") == of(b"d/link") == (0, hashlib.sha256(b"low").digest())
    assert of(b"d/high") == (1, hashlib.sha256(b"high").digest())
    assert of(b"whole") == (0, b"w" * 32)
    assert of(b"parts") == (0, None)
    assert of(b"empty") == (1, EMPTY)
    assert of(b"s") == (1, None)
    assert of(b"i") is None
    assert of(b"") is None
    for nid in (-1, 0, 10**6, 2**32, 2**64):
        assert table.of(nid) is None


def test_exact_bytes() -> None:
    index, built = index_of(toc_of(regular(b"a", b"x"), symlink(b"s", b"t")))
    first, second = (index.lookup(index.root_nid, name) for name in (b"a", b"s"))
    body = struct.pack("<8sIIQ8x", b"LFSPROV1", 40, 0, 2)
    body += struct.pack("<IHH32s", first, 0, 1, hashlib.sha256(b"x").digest())
    body += struct.pack("<IHH32s", second, 0, 0, b"")
    assert built.provenance == body + hashlib.sha256(body).digest()


def test_in_a_memory_map_that_can_be_closed() -> None:
    data = index_of(*LAYERS)[1].provenance
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        table = Provenance(mapped)
        assert table.of(5) is None
        table.release()
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data[:-1] + b"?"
        with pytest.raises(BadProvenance, match="trailer"):
            Provenance(mapped)


def test_empty() -> None:
    assert Provenance(index_of(toc_of())[1].provenance).of(40) is None


class TestBad:
    GOOD = index_of(*LAYERS)[1].provenance

    def test_truncated_at_each_offset(self) -> None:
        for size in range(len(self.GOOD)):
            with pytest.raises(BadProvenance):
                Provenance(self.GOOD[:size])

    def test_trailing_bytes(self) -> None:
        for junk in (b"\0", bytes(40), self.GOOD):
            with pytest.raises(BadProvenance):
                Provenance(self.GOOD + junk)

    def test_each_byte_flipped(self) -> None:
        for position in range(len(self.GOOD)):
            bad = bytearray(self.GOOD)
            bad[position] ^= 0x20
            with pytest.raises(BadProvenance):
                Provenance(bad)

    @given(st.binary(max_size=200))
    def test_random(self, data: bytes) -> None:
        with pytest.raises(BadProvenance):
            Provenance(data)
