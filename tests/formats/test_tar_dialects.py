"""Tars that unpackers read in several ways: as Go's archive/tar does, by which layers are unpacked.

Each was found in its test data, or in that of libarchive and commons-compress.
"""

import pytest

from lazyfs.formats.tars.tar import BadTar, TarMember, TarScanner
from lazyfs.formats.tocs.toc import Kind
from tools.differential.headers import Header, base_256, built, extended, long_name, padded, summed

DATA = padded(b"abc")


def scan(tar: bytes) -> list[TarMember]:
    scanner = TarScanner()
    found = [
        member for at in range(0, len(tar), 700) for member in scanner.feed(tar[at : at + 700])
    ]
    scanner.finish()
    return found


def only(tar: bytes) -> TarMember:
    (member,) = scan(tar)
    return member


def with_field(at: int, field: bytes, header: Header) -> bytes:
    block = bytearray(built(header))
    block[at : at + len(field)] = field
    return summed(block)


# Extended headers


def test_of_two_pax_headers_before_a_member_the_last_counts():
    first, second = extended([(b"path", b"no"), (b"uid", b"7")]), extended([(b"gid", b"8")])
    member = only(first + second + built(Header(b"yes", size=3)) + DATA)
    assert (member.path, member.uid, member.gid) == (b"yes", 0, 8)
    assert only(first + extended([]) + built(Header(b"yes"))).path == b"yes"


def test_gnu_long_names_win_over_pax_in_any_order():
    headers = [extended([(b"path", b"pax"), (b"linkpath", b"p")]), long_name(b"L", b"gnu")]
    headers.append(long_name(b"K", b"g"))
    for order in (headers, headers[::-1]):
        member = only(b"".join(order) + built(Header(b"x", b"2", link=b"l")))
        assert (member.path, member.link) == (b"gnu", b"g")
    assert only(long_name(b"L", b"") + built(Header(b"own"))).path == b"own"


def test_a_global_header_takes_what_stands_before_it_along():
    before = extended([(b"path", b"no")]) + long_name(b"L", b"nor this")
    tar = before + extended([(b"path", b"all")], flag=b"g") + built(Header(b"yes"))
    assert only(tar).path == b"yes"
    bad = padded(b"x")
    with pytest.raises(BadTar):
        scan(built(Header(b"g", b"g", 1)) + bad + built(Header(b"f")))


@pytest.mark.parametrize("text", [b"%024d" % 3, b"+3", b"3"])
def test_sizes_with_leading_zeros(text: bytes):
    tar = extended([(b"size", text)]) + built(Header(b"a", size=1)) + DATA + built(Header(b"b"))
    assert [(member.path, member.size) for member in scan(tar)] == [(b"a", 3), (b"b", 0)]


@pytest.mark.parametrize("key", [b"mtime", b"atime", b"ctime"])
def test_every_time_must_be_one(key: bytes):
    for text in (b"soon", b".5", b"1.x", b"9" * 20, b""):
        tar = extended([(key, text)]) + built(Header(b"a"))
        if text:
            with pytest.raises(BadTar, match="not a time in seconds"):
                scan(tar)
        else:
            assert only(tar).mtime_seconds == 1_600_000_000


# Numbers


@pytest.mark.parametrize(
    "field",
    [
        bytes(7) + b"0003\0",
        b"       0003 ",
        b"3\0" + b"7" * 10,
        b"3".ljust(12),
        b"000000000003",
        base_256(3, 12),
    ],
)
def test_spellings_of_a_size(field: bytes):
    tar = with_field(124, field, Header(b"a")) + DATA + built(Header(b"b", size=1)) + padded(b"x")
    assert [(member.path, member.size) for member in scan(tar)] == [(b"a", 3), (b"b", 1)]


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (124, b"0000000000a\0"),
        (124, b"1 2".ljust(12)),
        (124, b"\x80\0\0\0" + b"\x80" + bytes(7)),
        (329, b"0000009\0"),
        (337, b"x"),
        (136, b"-1".ljust(12)),
    ],
)
def test_every_number_must_be_one(at: int, field: bytes):
    with pytest.raises(BadTar, match=r"octal number|64 bits"):
        scan(with_field(at, field, Header(b"a", b"5")))


def test_numbers_that_v7_does_not_have_are_not_looked_at():
    assert only(with_field(329, b"junk", Header(b"a", dialect="v7"))).path == b"a"


@pytest.mark.parametrize(
    ("uid", "expected"), [(-2, 2**32 - 2), (2**32 - 2, 2**32 - 2), (-1, 0), (2**32 - 1, 0)]
)
def test_owners_are_what_the_kernel_takes(uid: int, expected: int):
    assert only(built(Header(b"a", uid=uid))).uid == expected
    assert only(extended([(b"gid", b"%d" % uid)]) + built(Header(b"a"))).gid == expected


@pytest.mark.parametrize("uid", [2**32, 2**32 + 5, -(2**31) - 1])
def test_owners_that_would_become_others_are_refused(uid: int):
    with pytest.raises(BadTar, match="32 bits"):
        scan(built(Header(b"a", uid=uid)))


def test_sizes_below_zero_are_refused():
    for tar in (
        built(Header(b"a", size=-1)),
        extended([(b"size", b"-1")]) + built(Header(b"a")),
        extended([(b"size", b"0")]) + built(Header(b"a", size=-1)),
    ):
        with pytest.raises(BadTar, match="size -1"):
            scan(tar)
    assert only(built(Header(b"d", b"5", size=-1))).size == 0


def test_a_time_beyond_all_calendars_is_the_epoch():
    assert only(built(Header(b"a", mtime=2**62))).mtime_seconds == 0


# Names


def test_the_prefix_of_go_before_1_8():
    header = Header(b"foo", size=3, dialect="gnu", tail=b"a" * 98)
    assert only(built(header) + DATA).path == b"a" * 98 + b"/foo"
    header.tail = b"00000000001\x0000000000002\0"
    assert only(built(header) + DATA).path == b"foo"
    header.tail = b"\x7f\xe9" * 20  # not ASCII
    assert only(built(header) + DATA).path == b"foo"


def test_v7_has_no_prefix():
    assert only(built(Header(b"foo", dialect="v7", prefix=b"pre"))).path == b"foo"


def test_a_v7_directory_has_no_payload_whatever_its_size():
    tar = built(Header(b"d/", b"\0", 1, dialect="v7")) + built(Header(b"f", size=3)) + DATA
    assert [(each.path, each.kind) for each in scan(tar)] == [
        (b"d", Kind.DIRECTORY),
        (b"f", Kind.REGULAR),
    ]


@pytest.mark.parametrize("name", [b"", b".", b"/", b"..", b"a/..", b"./"])
@pytest.mark.parametrize("flag", [b"0", b"1", b"2", b"3", b"6", b"X"])
def test_what_has_no_name_is_a_file_of_no_name(name: bytes, flag: bytes):
    payload = DATA if flag in b"0X" else b""
    tar = built(Header(name, flag, 3, link=b"l")) + payload + built(Header(b"next"))
    first, second = scan(tar)
    assert (first.path, first.kind, second.path) == (b"", Kind.REGULAR, b"next")


@pytest.mark.parametrize("flag", [b"1", b"2", b"7", b"X", b"V", b"\xff"])
def test_of_whiteouts_nobody_asks_the_type(flag: bytes):
    header = Header(b"d/.wh.x", flag, link=b"nowhere")
    attribute = extended([(b"SCHILY.xattr.", b"x")])  # which no other member may have
    assert only(attribute + built(header)).path == b"d/.wh.x"
    with pytest.raises(BadTar):
        scan(attribute + built(Header(b"x", b"0")))


def test_device_numbers_are_looked_at_where_there_is_a_device():
    header = Header(b"d", b"5", device=(-1, 2**31))
    assert only(built(header)).dev_major == 0
    for flag in (b"3", b"4", b"6"):
        header.flag = flag
        with pytest.raises(BadTar, match="got device"):
            scan(built(header))


# The end


def test_the_last_payload_needs_no_padding():
    assert only(built(Header(b"f", size=3)) + b"abc").size == 3
    with pytest.raises(BadTar, match="1 before the end of a file"):
        scan(built(Header(b"f", size=3)) + b"ab")
