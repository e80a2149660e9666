"""Which files have bytes in ranges of a device, against a look at every byte."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.formats.tocs.toc import Kind
from lazyfs.rootfs.owners import owners_of
from tests.support.mounts.mounted import MadeImage, other, regular

SIZES = (1, 4096, 5000, 70_000, 0, 12_288, 100)
IMAGE = MadeImage(
    [
        other(b"d", Kind.DIRECTORY),
        *(regular(b"d/f%d" % number, bytes([number + 1]) * n) for number, n in enumerate(SIZES)),
        other(b"d/link", Kind.SYMLINK, link=b"f0"),
    ],
    [regular(b"top", b"x" * 9000)],
)
END = 32 * 4096


@settings(max_examples=150, deadline=None)
@given(st.sets(st.integers(0, END), max_size=8))
def test_owners(places: set[int]) -> None:
    cuts = sorted(places)
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    found: set[tuple[int, int]] = set()
    for nid, offset, size in owners_of(IMAGE.index, 1, ranges):
        assert size > 0
        assert found.isdisjoint((nid, place) for place in range(offset, offset + size))
        found |= {(nid, place) for place in range(offset, offset + size)}
    expected = set()
    for number, size in enumerate(SIZES):
        nid = IMAGE.nid(f"d/f{number}")
        extent = IMAGE.index.extent(nid)
        if extent is None or not extent.size:
            continue
        for start, stop in ranges:
            low, high = max(start, extent.offset), min(stop, extent.offset + size)
            expected |= {(nid, place - extent.offset) for place in range(low, high)}
    assert found == expected


def test_the_other_device() -> None:
    assert list(owners_of(IMAGE.index, 2, [(0, 1 << 40)])) == [(IMAGE.nid("top"), 0, 9000)]
    assert list(owners_of(IMAGE.index, 2, [])) == []
    assert list(owners_of(IMAGE.index, 9, [(0, 1 << 40)])) == []
