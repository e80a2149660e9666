"""What an ELF file needs, read from files that are right, odd, cut, and random."""

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.rootfs.elf import (
    MAX_DYNAMIC_SIZE,
    MAX_NAME_SIZE,
    PAGE_SIZE,
    BadElf,
    Dynamic,
    is_elf,
    parse_dynamic,
    parse_header,
    parse_name,
)
from tests.support.formats.elf import make_elf

LOADER = b"/lib64/ld-linux-x86-64.so.2"


def needs(data: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """Return interpreter, libraries and search path of a whole file."""
    header = parse_header(data[:PAGE_SIZE])
    interpreter = b""
    if header.interpreter is not None:
        start, size = header.interpreter
        interpreter = data[start : start + size].rstrip(b"\0")
    if header.dynamic is None:
        return interpreter, [], []
    start, size = header.dynamic
    dynamic = parse_dynamic(data[start : start + size], header)
    return interpreter, names(data, dynamic, dynamic.needed), names(data, dynamic, dynamic.search)


def names(data: bytes, dynamic: Dynamic, places: Sequence[int]) -> list[bytes]:
    ranges = map(dynamic.name_range, places)
    return [parse_name(data[start : start + size]) for start, size in ranges]


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("is_big", [True, False])
def test_what_a_program_names(is_wide: bool, is_big: bool) -> None:
    data = make_elf(
        [b"libz.so.1", b"libc.so.6"],
        interpreter=LOADER,
        search=b"$ORIGIN/../lib:/opt/lib",
        is_wide=is_wide,
        is_big=is_big,
        filler=bytes(10_000),
    )
    assert needs(data) == (
        LOADER, [b"libz.so.1", b"libc.so.6"], [b"$ORIGIN/../lib:/opt/lib"]
    )  # fmt: skip


def test_what_is_read_at_once_covers_what_is_written_to() -> None:
    data = make_elf([b"libc.so.6"], filler=bytes(100_000))
    header = parse_header(data[:PAGE_SIZE])
    assert header.dynamic is not None
    start, size = header.dynamic
    assert (start, size) in parse_dynamic(data[start:], header).ranges


def test_a_file_of_this_machine() -> None:
    """readelf is the oracle, where it is."""
    program = Path("/bin/sh").resolve()
    try:
        done = subprocess.run(
            ["readelf", "-d", str(program)], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("readelf is not installed")
    listed = [
        line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "NEEDED" in line
    ]
    assert [name.decode() for name in needs(program.read_bytes())[1]] == listed


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" * 10,
        b"\x7fELF" + b"\x03" * 100,
        b"\x7fELF\x02\x01" + b"\xff" * 90,
    ],
)
def test_no_elf_file(page: bytes) -> None:
    with pytest.raises(BadElf):
        parse_header(page)


def test_a_page_that_ends_early() -> None:
    data = make_elf([b"libc.so.6"], interpreter=LOADER)
    for size in range(64 + 3 * 56 + 40):  # the last 16 bytes say nothing that is needed
        with pytest.raises(BadElf):
            parse_header(data[:size])


def test_a_section_without_names() -> None:
    data = make_elf([b"libc.so.6"])
    with pytest.raises(BadElf, match="no table of names"):
        parse_dynamic(b"", parse_header(data))


def test_what_is_read_at_once_covers_the_tables() -> None:
    data = make_elf([b"libc.so.6"], filler=bytes(100_000), is_split=True)
    header = parse_header(data[:PAGE_SIZE])
    assert header.dynamic is not None
    ranges = parse_dynamic(data[header.dynamic[0] :], header).ranges
    first = len(data) - header.dynamic[1] - 100_000
    assert (0, first) in ranges, "the segment that its names are in"
    assert all(start + size <= first or start >= first + 100_000 for start, size in ranges)


def test_names_at_the_end_of_a_large_table() -> None:
    """Linkers put the names of libraries behind those of all symbols: 5 MB of node's."""
    others = b"symbol\0" * 1_000_000
    data = make_elf([b"libz.so.1", b"libc.so.6"], search=b"/opt", others=others)
    assert needs(data) == (b"", [b"libz.so.1", b"libc.so.6"], [b"/opt"])


def test_names_outside_of_the_table() -> None:
    dynamic = Dynamic((100, 16), (), (), ())
    assert [dynamic.name_range(place) for place in (0, 11, 16, 500, 1 << 63)] == [
        (100, 16), (111, 5), (116, 0), (600, 0), ((1 << 63) + 100, 0)
    ]  # fmt: skip
    assert Dynamic((100, 1 << 63), (), (), ()).name_range(7) == (107, MAX_NAME_SIZE)
    assert parse_name(b"libc.so.6\0open") == b"libc.so.6"
    assert [parse_name(data) for data in (b"", b"\0", b"open", b"\0open\0")] == [b""] * 4


@pytest.mark.parametrize("start", [PAGE_SIZE, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_segments_beyond_the_page(start: int) -> None:
    data = bytearray(make_elf([b"libz.so.1"]))
    struct.pack_into("<Q", data, 32, start)
    with pytest.raises(BadElf, match="expected all segments"):
        parse_header(bytes(data))


@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    """Whatever is read, it is bounded, and only BadElf says no."""
    whole = bytearray(make_elf([b"libz.so.1"] * 3, interpreter=LOADER, search=b"/opt"))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header(bytes(whole[:PAGE_SIZE]))
        if header.dynamic is not None:
            assert header.dynamic[1] <= MAX_DYNAMIC_SIZE
            dynamic = parse_dynamic(bytes(whole), header)
            for place in (*dynamic.needed, *dynamic.search):
                assert 0 <= dynamic.name_range(place)[1] <= MAX_NAME_SIZE
    except BadElf:
        pass


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    header = parse_header(make_elf([b"libc.so.6"]))
    try:
        parse_dynamic(data, header)
    except BadElf:
        pass
    try:
        parse_header(b"\x7fELF\x02\x01" + data)
    except BadElf:
        pass
    assert not is_elf(b"\x00" + data)
