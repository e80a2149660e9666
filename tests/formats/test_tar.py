"""Reading and writing tar headers: against the standard library, and against bad input."""

import io
import struct
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyfs.formats.streams.limits import Limits
from lazyfs.formats.tars.tar import BadTar, TarMember, TarScanner
from lazyfs.formats.tars.tar_header import END_OF_ARCHIVE, build_header, name_of, padding
from lazyfs.formats.tocs.tar_fields import MAX_SECONDS, parse_records
from lazyfs.formats.tocs.toc import Kind
from tests.support.formats.estargz import encoded, xattrs_of
from tests.support.formats.images import (
    block_device,
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    source_tar,
    symlink,
    tar_bytes,
)
from tests.support.formats.readers import check_flips, cuts

SOURCES = ("edge", "edge-nodup", "big", "empty", "real-gnu", "real-pax", "real-ustar")
KINDS = {
    tarfile.REGTYPE: Kind.REGULAR,
    tarfile.AREGTYPE: Kind.REGULAR,
    tarfile.CONTTYPE: Kind.REGULAR,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.CHRTYPE: Kind.CHAR,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


def scan(pieces: Iterable[bytes], limits: Limits | None = None) -> list[TarMember]:
    scanner = TarScanner(limits) if limits else TarScanner()
    found = [member for piece in pieces for member in scanner.feed(piece)]
    scanner.finish()
    return found


def by_tarfile(tar: bytes) -> list[TarMember]:
    """Return what the standard library reads, in our form."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        for member in archive:
            kind = KINDS[member.type]
            is_device = kind in (Kind.CHAR, Kind.BLOCK)
            seconds, nanoseconds = member.mtime, 0
            if "mtime" in member.pax_headers:  # a float there has lost digits
                seconds, nanoseconds = decimal_time(member.pax_headers["mtime"])
            link = member.linkname.encode("utf-8", "surrogateescape")
            found.append(
                TarMember(
                    path=encoded(member.name),
                    kind=kind,
                    mode=member.mode & 0o7777,
                    uid=member.uid,
                    gid=member.gid,
                    size=member.size if kind is Kind.REGULAR else 0,
                    mtime_seconds=int(seconds),
                    mtime_nanoseconds=nanoseconds,
                    link=link if kind in (Kind.SYMLINK, Kind.HARDLINK) else b"",
                    dev_major=member.devmajor if is_device else 0,
                    dev_minor=member.devminor if is_device else 0,
                    xattrs=xattrs_of(member),
                    user_name=member.uname.encode(),
                    group_name=member.gname.encode(),
                    offset=member.offset_data if kind is Kind.REGULAR else 0,
                )
            )
    return found


def decimal_time(text: str) -> tuple[int, int]:
    whole, _, fraction = text.lstrip("-").partition(".")
    total = int(whole) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
    return divmod(-total if text.startswith("-") else total, 10**9)


# Whole tars


@pytest.mark.parametrize("name", SOURCES)
def test_members_are_those_that_tarfile_reads(name: str):
    tar = source_tar(name)
    assert scan([tar]) == by_tarfile(tar)


@pytest.mark.parametrize("name", ["edge", "real-gnu"])
def test_how_the_stream_is_cut_changes_nothing(name: str):
    tar = source_tar(name)
    expected = scan([tar])
    assert len(expected) > 20
    for pieces in cuts(tar):
        assert scan(pieces) == expected


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_kind_in_both_dialects(format: int):
    long_name = b"d/" + b"n" * 200
    tar = tar_bytes(
        [
            directory("d", mode=0o1777),
            file("d/suid", b"x" * 1000, mode=0o4755, uid=2**31, gid=70_000),
            file(long_name, b"long"),
            file(b"d/latin-\xe9", b""),
            symlink("d/s", "t" * 300),
            hardlink("d/h", "d/suid"),
            hardlink("d/h2", long_name),
            char_device("d/c", 1, 3),
            block_device("d/b", 259, 70_000),
            fifo("d/f"),
            file("old", mtime=-5),
            file("future", mtime=2**34),
        ],
        format=format,
    )
    members = {member.path: member for member in scan([tar])}
    assert scan([tar]) == by_tarfile(tar)
    assert members[b"d/suid"].uid == 2**31
    assert members[b"d/suid"].mode == 0o4755
    assert members[b"d/latin-\xe9"].kind is Kind.REGULAR
    assert members[long_name].size == 4
    assert members[b"d/s"].link == b"t" * 300
    assert members[b"d/h2"].link == long_name
    assert (members[b"d/b"].dev_major, members[b"d/b"].dev_minor) == (259, 70_000)
    assert (members[b"old"].mtime_seconds, members[b"future"].mtime_seconds) == (-5, 2**34)


def test_ustar_prefix_is_part_of_the_name():
    name = "p" * 120 + "/" + "n" * 90
    tar = tar_bytes([file(name, b"1")], format=tarfile.USTAR_FORMAT)
    assert scan([tar])[0].path == name.encode()


def test_star_prefix_ends_before_its_times():
    block = bytearray(build_header(TarMember(b"n", Kind.REGULAR)))
    block[345:347] = b"pp"
    block[476:488] = b"00000000001\0"  # access time
    block[508:512] = b"tar\0"
    assert scan([summed(block)])[0].path == b"pp/n"


def test_v7_spells_a_directory_with_a_slash():
    block = bytearray(build_header(TarMember(b"d", Kind.DIRECTORY)))
    block[156:157] = b"\0"
    block[257:265] = bytes(8)
    assert scan([summed(block)])[0].kind is Kind.DIRECTORY


def test_contiguous_files_are_files():
    block = bytearray(build_header(TarMember(b"f", Kind.REGULAR, size=3)))
    block[156:157] = b"7"
    member = scan([summed(block) + b"abc".ljust(512, b"\0")])[0]
    assert (member.kind, member.size, member.offset) == (Kind.REGULAR, 3, 512)


def test_checksums_of_signed_bytes_pass():
    block = bytearray(build_header(TarMember(b"\xe9\xff", Kind.REGULAR)))
    signed = sum(struct.unpack("512b", bytes(block[:148]) + b" " * 8 + bytes(block[156:])))
    block[148:156] = b"%06o\0 " % signed
    assert scan([bytes(block)])[0].path == b"\xe9\xff"


def test_names_are_normalised():
    tar = tar_bytes([directory("./"), file("./a//b"), file("/x/../c"), hardlink("h", "./a/b")])
    assert [member.path for member in scan([tar])] == [b"", b"a/b", b"c", b"h"]
    assert scan([tar])[3].link == b"a/b"


def test_payloads_of_kinds_that_have_none_are_not_skipped():
    block = bytearray(build_header(TarMember(b"l", Kind.SYMLINK, link=b"t")))
    block[124:136] = b"00000001000\0"
    tar = summed(block) + build_header(TarMember(b"next", Kind.REGULAR)) + END_OF_ARCHIVE
    assert [(member.path, member.size) for member in scan([tar])] == [(b"l", 0), (b"next", 0)]


# Extended headers


def test_fractions_of_seconds_are_exact():
    times = {"0.5": (0, 500_000_000), "-0.25": (-1, 750_000_000), "-1.5": (-2, 500_000_000)}
    times |= {"1.0000000009": (1, 0), "-3": (-3, 0), "7.": (7, 0)}
    for text, expected in times.items():
        member = scan([extended({b"mtime": text.encode()})])[0]
        assert (member.mtime_seconds, member.mtime_nanoseconds) == expected


def test_records_win_over_the_header_and_empty_ones_do_not():
    tar = extended({b"path": b"other", b"size": b"0", b"uid": b"77", b"gid": b"", b"uname": b"u"})
    member = scan([tar])[0]
    assert (member.path, member.uid, member.gid, member.user_name) == (b"other", 77, 5, b"u")


def test_xattrs_may_be_empty_or_binary_and_come_sorted():
    attributes = {b"user.z": b"", b"user.a": bytes(range(256)), b"security.x": b"a=b\nc"}
    tar = extended({b"SCHILY.xattr." + name: value for name, value in attributes.items()})
    assert scan([tar])[0].xattrs == tuple(sorted(attributes.items()))


def test_global_headers_are_dropped():
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "no", "uid": "9"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("yes"))
    assert [(member.path, member.uid) for member in scan([stream.getvalue()])] == [(b"yes", 0)]


def test_a_record_speaks_for_one_member_only():
    tar = extended({b"path": b"first"}) + build_header(TarMember(b"second", Kind.REGULAR))
    assert [member.path for member in scan([tar])] == [b"first", b"second"]


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"4 a=\n",
        b"99 a=b\n",
        b"6 a=b",
        b"0 \n",
        b"5 a\n",
        b"6 =ab\n",
        b"8 \0a=bc\n",
        b"-6 a=b\n",
        b" 6 a=b\n",
        b"10 path=a\0\n",
        b"11 uname=a\0\n",
    ],
)
def test_records_that_are_none(content: bytes):
    with pytest.raises(ValueError, match="not of the form LENGTH"):
        parse_records(content)
    with pytest.raises(BadTar):
        scan([raw_extended(content)])


def test_records_that_are_some():
    assert parse_records(b"") == {}
    assert parse_records(b"6 a=b\n6 a=c\n7 b==\n\n") == {b"a": b"c", b"b": b"=\n"}
    assert parse_records(b"07 a=b\n+08 a=c\n") == {b"a": b"c"}


# What is refused


@pytest.mark.parametrize("kind", [b"D", b"M", b"V", b"X", b"A", b"\xff", b" "])
def test_other_types_are_refused_by_name(kind: bytes):
    block = bytearray(build_header(TarMember(b"f", Kind.REGULAR)))
    block[156:157] = kind
    with pytest.raises(BadTar, match=r"not a file|is not one of"):
        scan([summed(block)])


@pytest.mark.parametrize(
    "records",
    [
        {b"size": b"-1"},
        {b"size": b"99999999999999999999"},
        {b"size": b"0x10"},
        {b"uid": b"4294967296"},
        {b"uid": b"-2147483649"},
        {b"mtime": b"1e5"},
        {b"atime": b"soon"},
        {b"path": b"a\0b"},
        {b"path": b"n" * 256},
        {b"path": b"a/" * 2100},
        {b"SCHILY.xattr.": b"x"},
        {b"SCHILY.xattr." + b"n" * 256: b"x"},
        {b"SCHILY.xattr.user.x": b"x" * 65_537},
    ],
)
def test_what_linux_cannot_hold_is_refused(records: dict[bytes, bytes]):
    with pytest.raises(BadTar, match=r"negative|bits|seconds|of the form LENGTH|at most"):
        scan([extended(records)])


@pytest.mark.parametrize("kind", [Kind.SYMLINK, Kind.HARDLINK])
def test_links_need_targets(kind: Kind):
    member = TarMember(b"l", kind, link=b"t")
    block = bytearray(build_header(member))
    block[157:257] = bytes(100)
    with pytest.raises(BadTar, match=r"link target .* is not valid"):
        scan([summed(block)])


def test_numbers_that_are_none_are_refused():
    fields = {124: b"0000000009 \0", 108: b"\xbf" * 8, 100: b"0x00755\0", 116: b"0 1", 329: b"8"}
    for at, field in fields.items():
        block = bytearray(build_header(TarMember(b"f", Kind.REGULAR)))
        block[at : at + len(field)] = field
        with pytest.raises(BadTar, match=r"octal number|bits"):
            scan([summed(block)])


def test_extended_headers_are_bounded():
    block = bytearray(build_header(TarMember(b"x", Kind.REGULAR, size=2 << 20)))
    block[156:157] = b"x"
    with pytest.raises(BadTar, match="extended header"):
        scan([summed(block)])


def test_members_are_bounded():
    tar = tar_bytes(file(f"f{number}") for number in range(20))
    assert len(scan([tar], Limits(entries=20))) == 20
    with pytest.raises(BadTar, match="more than 19 members"):
        scan([tar], Limits(entries=19))


def test_a_wrong_checksum_is_refused():
    tar = bytearray(tar_bytes([file("a", b"x")], format=tarfile.USTAR_FORMAT))
    tar[0] ^= 1
    with pytest.raises(BadTar, match="checksum"):
        scan([bytes(tar)])


# Ends


def test_cut_anywhere_it_raises_or_ends_between_members():
    tar = tar_bytes([file("a", b"x" * 600), symlink("b", "y" * 150), directory("c")])
    whole = scan([tar])
    ends = set()
    for size in range(len(tar)):
        try:
            members = scan([tar[:size]])
        except BadTar:
            continue
        assert members == whole[: len(members)]
        ends.add((len(members), size))
    # the start; after a, with any of its padding; before and after b's extended header; after c
    assert {number for number, _ in ends} == {0, 1, 2, 3}
    padding_of_a = range(512 + 600, 512 + 1024 + 1)
    extended_of_b = range(1536 + 512 + 164, 1536 + 1024 + 1)
    assert [size for number, size in sorted(ends) if number < 3] == [
        *(0, *padding_of_a, *extended_of_b, 3072),
    ]


def test_what_follows_the_end_is_ignored():
    tar = build_header(TarMember(b"a", Kind.DIRECTORY)) + END_OF_ARCHIVE
    for junk in (b"x", bytes(10_000), tar, b"\xff" * 512):
        assert [member.path for member in scan([tar + junk])] == [b"a"]


def test_one_block_of_zeros_is_an_end_only_if_nothing_follows():
    header = build_header(TarMember(b"a", Kind.DIRECTORY))
    assert len(scan([header + bytes(512)])) == 1
    with pytest.raises(BadTar, match="follows a block of zeros"):
        scan([header + bytes(512) + header])


def test_an_extended_header_that_nothing_follows_says_nothing():
    tar = extended({b"path": b"other"})[: -len(build_header(TarMember(b"f", Kind.REGULAR)))]
    assert scan([tar]) == scan([tar + END_OF_ARCHIVE]) == []
    with pytest.raises(BadTar, match="within a header"):
        scan([tar[:520]])


def test_flipped_bits_never_surprise():
    tar = source_tar("edge")
    headers = tar[: 40 * 512]
    assert check_flips(lambda data: scan([data]), headers, BadTar, count=400) > 100


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_junk_never_surprises(data: bytes):
    try:
        assert scan([data]) == [] or len(data) >= 512
    except BadTar:
        pass


# Writing

names = st.binary(min_size=1, max_size=60).filter(
    lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..")
)
paths = (
    st.lists(names, min_size=1, max_size=5)
    .map(b"/".join)
    .filter(lambda path: b".wh." not in path)  # of which xattrs are not kept
)
links = st.binary(min_size=1, max_size=300).filter(lambda link: b"\0" not in link)
xattr_names = st.text(
    st.characters(blacklist_characters="=\0", blacklist_categories=["Cs"]), min_size=1, max_size=30
).map(str.encode)


@st.composite
def tar_members(draw: st.DrawFn) -> TarMember:
    kind = draw(st.sampled_from(list(Kind)))
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    link = b""
    if kind is Kind.SYMLINK:
        link = draw(links)
    elif kind is Kind.HARDLINK:
        link = draw(paths)
    return TarMember(
        path=draw(paths),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 2)),
        gid=draw(st.integers(0, 2**32 - 2)),
        size=draw(st.integers(0, 2**40)) if kind is Kind.REGULAR else 0,
        mtime_seconds=draw(st.integers(-MAX_SECONDS + 1, MAX_SECONDS)),
        mtime_nanoseconds=draw(st.integers(0, 10**9 - 1)),
        link=link,
        dev_major=draw(st.integers(0, 4095)) if is_device else 0,
        dev_minor=draw(st.integers(0, 2**20 - 1)) if is_device else 0,
        xattrs=tuple(
            sorted(draw(st.dictionaries(xattr_names, st.binary(max_size=99), max_size=4)).items())
        ),
        user_name=draw(st.text("abcü", max_size=40)).encode(),
        group_name=draw(st.text("abc-", max_size=40)).encode(),
    )


@settings(max_examples=300, deadline=None)
@given(tar_members())
def test_headers_round_trip(member: TarMember):
    header = build_header(member)
    assert len(header) % 512 == 0
    scanner = TarScanner()
    (found,) = scanner.feed(header)
    offset = len(header) if member.kind is Kind.REGULAR else 0
    assert found == replace(member, offset=offset)


@settings(max_examples=150, deadline=None)
@given(tar_members())
def test_tarfile_reads_the_same(member: TarMember):
    member = replace(member, size=min(member.size, 512))
    tar = build_header(member) + bytes(member.size) + padding(member.size) + END_OF_ARCHIVE
    (found,) = by_tarfile(tar)
    assert replace(found, path=member.path, offset=0) == member
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        name = archive.getmembers()[0].name.encode("utf-8", "surrogateescape")
    assert name.rstrip(b"/") == name_of(member).rstrip(b"/")


def test_what_a_tar_cannot_say_is_refused():
    for member in (
        TarMember(b"a\0b", Kind.REGULAR),
        TarMember(b"a", Kind.REGULAR, xattrs=((b"user.a=b", b""),)),
        TarMember(b"a", Kind.CHAR, dev_minor=2**21),
    ):
        with pytest.raises(BadTar, match=r"NUL|larger than"):
            build_header(member)


def test_the_root_has_a_name():
    header = build_header(TarMember(b"", Kind.DIRECTORY, mode=0o700))
    assert header.startswith(b"./\0")
    assert scan([header])[0].path == b""


def summed(block: bytes | bytearray) -> bytes:
    """Return a header block with its checksum made right."""
    block = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def raw_extended(content: bytes) -> bytes:
    """Return a member ``f`` after a PAX header with *content*."""
    block = bytearray(build_header(TarMember(b"x", Kind.REGULAR, size=len(content))))
    block[156:157] = b"x"
    member = build_header(TarMember(b"f", Kind.REGULAR, gid=5))
    return summed(block) + content + padding(len(content)) + member


def extended(records: dict[bytes, bytes]) -> bytes:
    content = b""
    for key, value in records.items():
        size = len(key) + len(value) + 3
        while len(str(size)) + len(key) + len(value) + 3 != size:
            size = len(str(size)) + len(key) + len(value) + 3
        content += b"%d %s=%s\n" % (size, key, value)
    return raw_extended(content)


@pytest.mark.parametrize(
    "more",
    [
        {"pax_headers": {"SCHILY.xattr.user.a": "x" * 60_000}},
        {"uname": "u" * 60_000},
        {"name": "./" * 30_000 + "f"},
    ],
)
def test_what_members_say_is_bounded_by_the_memory_it_takes(more: dict):
    """A few MB can be inflated to headers of many GB, all of them within their own limits."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(20):
            member = tarfile.TarInfo(f"f{number}")
            for name, value in more.items():
                setattr(member, name, value)
            archive.addfile(member)
    tar = buffer.getvalue()
    assert len(scan([tar])) == 20
    with pytest.raises(BadTar, match="names and extended headers take more than 1000000 bytes"):
        scan([tar], Limits(toc_size=1_000_000))


def test_extended_headers_before_one_member_are_bounded():
    records = [b"%d vendor.%07d=%s\n" % (1_000_020, number, b"x" * 999_996) for number in range(9)]
    assert all(len(parse_records(record)) == 1 for record in records)
    tar = b"".join(
        build_header(TarMember(b"x", Kind.REGULAR, size=len(record)))
        + record
        + padding(len(record))
        for record in records
    )
    tar = _retyped(tar, b"x", len(records[0]))
    with pytest.raises(BadTar, match="bytes before one member"):
        scan([tar])


def _retyped(tar: bytes, kind: bytes, size: int) -> bytes:
    """Return *tar*, of members of *size* bytes, with all of them of another type."""
    changed = bytearray(tar)
    for at in range(0, len(tar), 512 + -(-size // 512) * 512):
        header = changed[at : at + 512]
        header[156:157], header[148:156] = kind, b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        changed[at : at + 512] = header
    return bytes(changed)
