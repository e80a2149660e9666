"""Every rule of decode_toc: what passes, what it becomes, what is refused and why."""

import base64
import json

import pytest
from msgspec.structs import replace

from lazyfs.digest import DigestMismatch, digest_of
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.formats.tocs.toc_reader import decode_toc
from tests.support.formats.tocs import (
    BLOB_SIZE,
    EMPTY,
    raw_chunk,
    raw_entry,
    raw_file,
    sha,
    spelled,
)


def decode(*entries, limits: Limits = DEFAULT_LIMITS, **fields) -> Toc:
    return decode_toc(
        spelled(*entries, **fields), expected=None, blob_size=BLOB_SIZE, limits=limits
    )


def only(*entries) -> TocEntry:
    (entry,) = decode(*entries).entries
    return entry


def refused(*entries, **kwargs) -> str:
    with pytest.raises(BadToc) as caught:
        decode(*entries, **kwargs)
    return str(caught.value)


class TestDocument:
    def test_digest_is_checked_over_the_bytes(self):
        data = spelled(raw_entry("a"))
        digest = digest_of(data)
        assert decode_toc(data, expected=digest, blob_size=1).digest == digest
        with pytest.raises(DigestMismatch, match="TOC"):
            decode_toc(data + b" ", expected=digest, blob_size=1)

    def test_another_algorithm(self):
        data = spelled(raw_entry("a"))
        digest = digest_of(data, "sha512")
        assert decode_toc(data, expected=digest, blob_size=1).digest == digest

    def test_an_empty_toc_is_a_layer(self):
        assert decode().entries == ()
        assert decode_toc(b'{"version":1,"entries":null}', expected=None, blob_size=0).entries == ()
        assert decode_toc(b'{"version":1}', expected=None, blob_size=0).entries == ()

    def test_any_spelling_of_json_passes(self):
        data = json.dumps(
            json.loads(spelled(raw_entry("a<b>"))), indent="\t", ensure_ascii=True
        ).replace("<", "\\u003c")
        (entry,) = decode_toc(data.encode() + b"\n", expected=None, blob_size=0).entries
        assert entry.path == b"a<b>"

    def test_unknown_keys_are_ignored(self):
        entry = raw_entry("a", NumLink=3, userName="root", accesstime="x", deep=[[{}]])
        assert decode(entry, tarSplitDigest=EMPTY).entries[0].path == b"a"

    @pytest.mark.parametrize("version", [0, 2, -1])
    def test_other_versions(self, version):
        assert "version" in refused(version=version)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b'{"version":"1","entries":[]}',
            b'{"version":1,"entries":{}}',
            b'{"version":1,"entries":[]} x',
            b'{"version":1,"entries":[]}{}',
            b'{"version":1,"entries":[null]}',
            b'{"version":1,"entries":[{"name":"a"}]}',
            b'{"version":1,"entries":[{"type":"dir"}]}',
            b'{"version":1,"entries":[{"name":"\\ud800","type":"dir"}]}',
            b'{"version":1,"entries":[{"name":"\xff","type":"dir"}]}',
            b'\xef\xbb\xbf{"version":1,"entries":[]}',
            b'{"version":1,"entries":' + b"[" * 100_000,
            b'{"version":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"version":1,"entries":[{"name":"a","type":"dir","mode":' + b"9" * 10_000 + b"}]}",
        ],
    )
    def test_other_json(self, data):
        with pytest.raises(BadToc, match="TOC"):
            decode_toc(data, expected=None, blob_size=BLOB_SIZE)

    def test_the_bad_entry_is_named(self):
        assert "entry 1" in refused(raw_entry("a"), raw_entry("b", mode=-1))
        assert "'evil'" in refused(raw_entry("a"), raw_entry("evil", kind="door"))

    def test_size_limit(self):
        limits = replace(DEFAULT_LIMITS, toc_size=100)
        assert "at most 100" in refused(raw_entry("x" * 100), limits=limits)

    def test_entry_limit(self):
        limits = replace(DEFAULT_LIMITS, entries=3)
        names = [raw_entry(str(number)) for number in range(4)]
        assert len(decode(*names[:3], limits=limits).entries) == 3
        assert "at most 3" in refused(*names, limits=limits)
        # So many that they are refused before they are decoded.
        assert "more than 3 entries" in refused(*names * 1000, limits=limits)

    def test_chunks_count_as_entries(self):
        limits = replace(DEFAULT_LIMITS, entries=3)
        file = raw_file("a", 40, chunkSize=10)
        chunks = [raw_chunk(10 * n, 10, 100 + n) for n in (1, 2, 3)]
        assert "at most 3" in refused(file, *chunks, limits=limits)


class TestFields:
    def test_all_of_a_file(self):
        entry = only(
            raw_file(
                "./bin/su",
                7,
                300,
                mode=0o104755,
                uid=4_294_967_295,
                gid=5,
                modtime="1969-12-31T23:59:59.25Z",
                innerOffset=512,
                xattrs={"user.b": "AAE=", "user.a": ""},
            )
        )
        digest = bytes.fromhex(sha(b"./bin/su")[7:])
        assert entry == TocEntry(
            path=b"bin/su",
            kind=Kind.REGULAR,
            mode=0o4755,
            uid=4_294_967_295,
            gid=5,
            size=7,
            mtime_seconds=-1,
            mtime_nanoseconds=250_000_000,
            xattrs=((b"user.a", b""), (b"user.b", b"\0\1")),
            digest=digest,
            chunks=(Chunk(0, 7, 300, 512, digest),),
        )

    def test_type_bits_of_the_mode_are_dropped(self):
        assert only(raw_entry("a", mode=16877)).mode == 0o755
        assert only(raw_entry("a", mode=2**62 + 0o1777)).mode == 0o1777

    def test_absent_time_is_zero(self):
        assert only(raw_entry("a")).mtime_seconds == 0
        assert only(raw_entry("a", modtime="")).mtime_seconds == 0

    def test_devices(self):
        entry = only(raw_entry("null", "char", devMajor=1, devMinor=3))
        assert (entry.kind, entry.dev_major, entry.dev_minor) == (Kind.CHAR, 1, 3)
        entry = only(raw_entry("b", "block", devMajor=4095, devMinor=1_048_575))
        assert (entry.kind, entry.dev_minor) == (Kind.BLOCK, 1_048_575)
        assert only(raw_entry("p", "fifo", devMajor=1)).dev_major == 0

    def test_names_that_are_not_text(self):
        name = base64.b64encode(b"dir/\xe9\xff").decode()
        target = base64.b64encode(b"\xfe").decode()
        entry = only(raw_entry("dir/\ufffd", "symlink", nameBytes=name, linkNameBytes=target))
        assert (entry.path, entry.link) == (b"dir/\xe9\xff", b"\xfe")

    def test_bytes_of_names_are_checked_like_names(self):
        name = base64.b64encode(b"a\0b").decode()
        assert "NUL" in refused(raw_entry("a", nameBytes=name))
        name = base64.b64encode(b"../../x").decode()
        assert only(raw_entry("a", nameBytes=name)).path == b"x"

    @pytest.mark.parametrize(
        "fields",
        [
            {"uid": -(2**31) - 1},
            {"uid": 2**32},
            {"gid": 2**32},
            {"gid": 1.5},
            {"uid": "0"},
            {"mode": None},
            {"mode": -1},
            {"modtime": "yesterday"},
            {"modtime": 5},
            {"xattrs": {"a": "%%%"}},
            {"xattrs": {"a": "AA"}},
            {"xattrs": {"a": 1}},
            {"xattrs": {"": "AAAA"}},
            {"xattrs": {"a\0b": "AAAA"}},
            {"xattrs": {"x" * 256: "AAAA"}},
            {"xattrs": {"a": "A" * 87_384}},
            {"xattrs": {f"user.{'x' * 200}{n}": "" for n in range(400)}},
            {"nameBytes": "%"},
            {"type": "chunk"},
            {"type": "socket"},
            {"type": "REG"},
            {"name": "a\0b"},
            {"name": "x" * 256},
            {"name": "x/" * 2048},
        ],
    )
    def test_refused(self, fields):
        assert refused({**raw_entry("a"), **fields}).startswith("TOC")

    @pytest.mark.parametrize("kind", ["reg", "dir", "fifo"])
    def test_of_devices_only_device_numbers_count(self, kind):
        """GNU cpio writes others into the headers of directories, and skopeo copies them."""
        entry = only(raw_entry("a", kind, devMajor=-1, devMinor=0o7777777))
        assert (entry.dev_major, entry.dev_minor) == (0, 0)

    def test_owners_are_32_bits_of_a_number(self):
        entry = only(raw_entry("a", "dir", uid=-2, gid=-1))
        assert (entry.uid, entry.gid) == (2**32 - 2, 0)

    @pytest.mark.parametrize("name", [".wh.", "d/.wh..", ".wh..."])
    @pytest.mark.parametrize("kind", ["reg", "dir"])
    def test_a_whiteout_of_nothing(self, name, kind):
        assert "is a whiteout that names nothing" in refused(raw_entry(name, kind))

    def test_a_hardlink_with_a_whiteout_s_name_leads_nowhere(self):
        assert only(raw_entry(".wh.a", "hardlink", linkName="gone")).path == b".wh.a"

    @pytest.mark.parametrize("kind", ["char", "block"])
    @pytest.mark.parametrize("device", [{"devMajor": 4096}, {"devMinor": 2**20}, {"devMinor": -1}])
    def test_impossible_devices(self, kind, device):
        assert "TOC" in refused(raw_entry("a", kind, **device))


class TestPayload:
    def test_empty_files_have_no_chunks(self):
        entry = only(raw_entry("a", "reg", digest=EMPTY))
        assert (entry.size, entry.chunks, entry.digest) == (0, (), bytes.fromhex(EMPTY[7:]))

    def test_a_file_at_the_start_of_the_blob(self):
        """An absent offset is 0, which the first stream may have."""
        chunk = only(raw_file("a", 10, offset=None, innerOffset=512)).chunks[0]
        assert (chunk.blob_offset, chunk.inner_offset) == (0, 512)

    @pytest.mark.parametrize("chunk_size", [0, 10, 11, 4 << 20])
    def test_one_chunk_whatever_chunk_size_says(self, chunk_size):
        """Absent, exact, or the setting of a producer that writes it everywhere."""
        entry = only(raw_file("a", 10, chunkSize=chunk_size))
        assert [chunk.size for chunk in entry.chunks] == [10]

    @pytest.mark.parametrize("last", [0, 5])
    def test_three_chunks(self, last):
        file = raw_file("a", 25, 100, chunkSize=10)
        entry = only(file, raw_chunk(10, 10, 200), raw_chunk(20, last, 300, innerOffset=7))
        assert [(c.offset, c.size, c.blob_offset, c.inner_offset) for c in entry.chunks] == [
            (0, 10, 100, 0),
            (10, 10, 200, 0),
            (20, 5, 300, 7),
        ]

    def test_exact_multiple(self):
        entry = only(raw_file("a", 20, chunkSize=10), raw_chunk(10, 10, 200))
        assert [chunk.size for chunk in entry.chunks] == [10, 10]

    def test_chunks_are_sorted(self):
        file = raw_file("a", 30, chunkSize=10)
        entry = only(file, raw_chunk(20, 10, 300), raw_chunk(10, 10, 200))
        assert [chunk.blob_offset for chunk in entry.chunks] == [100, 200, 300]

    def test_chunks_belong_to_the_entry_before_them(self):
        toc = decode(
            raw_file("a", 20, chunkSize=10), raw_chunk(10, 10, 200, name="b"), raw_entry("b")
        )
        assert [len(entry.chunks) for entry in toc.entries] == [2, 0]

    @pytest.mark.parametrize(
        ("size", "chunks"),
        [
            (20, []),  # the second half is missing
            (25, [(10, 10)]),
            (30, [(10, 10), (21, 9)]),  # a gap
            (30, [(10, 10), (19, 11)]),  # an overlap
            (30, [(10, 10), (10, 10), (20, 10)]),  # twice
            (20, [(10, 11)]),  # beyond the end
            (20, [(10, 10), (20, 0)]),  # one more, empty
            (20, [(0, 10), (10, 10)]),
            (20, [(10, 2**62)]),
        ],
    )
    def test_chunks_that_do_not_add_up(self, size, chunks):
        parts = [raw_chunk(offset, length, 200 + offset) for offset, length in chunks]
        assert "expected" in refused(raw_file("a", size, chunkSize=10), *parts)

    def test_chunks_of_nothing(self):
        assert "file is empty" in refused(raw_entry("a", "reg"), raw_chunk(0, 10, 100))
        assert "not a regular file (type dir)" in refused(raw_entry("a"), raw_chunk(0, 10, 100))
        assert "no file comes before it" in refused(raw_chunk(0, 10, 100))

    def test_the_first_chunk_starts_at_zero(self):
        assert "expected" in refused(raw_file("a", 10, chunkOffset=1))

    def test_a_chunk_that_nothing_verifies(self):
        assert "chunkDigest" in refused(raw_file("a", digest=None, chunkDigest=None))

    def test_the_files_digest_stands_in_for_one_chunk(self):
        entry = only(raw_file("a", chunkDigest=None))
        assert entry.chunks[0].digest == entry.digest

    def test_but_not_for_several(self):
        parts = [raw_chunk(10, 10, 200)]
        file = raw_file("a", 20, chunkSize=10, chunkDigest=None)
        assert "chunkDigest" in refused(file, *parts)
        assert "chunkDigest" in refused(
            raw_file("a", 20, chunkSize=10), raw_chunk(10, 10, 200, chunkDigest="")
        )

    def test_a_file_without_its_own_digest(self):
        entry = only(raw_file("a", digest=None))
        assert entry.digest is None
        assert entry.chunks[0].digest == bytes.fromhex(sha(b"a")[7:])

    def test_digests_that_contradict_each_other(self):
        assert "digest of the file" in refused(raw_file("a", digest=sha(b"1")))

    @pytest.mark.parametrize(
        "digest",
        [
            "sha256:",
            sha(b"")[:-1],
            sha(b"") + "0",
            sha(b"").upper(),
            "SHA256:" + sha(b"")[7:],
            sha(b"")[7:],
            "sha256:" + sha(b"")[7:].upper(),
            "sha256:" + sha(b"")[7:69] + " 0",
            "sha256:" + "zz" * 32,
            "sha512:" + "ab" * 64,
            "md5:" + "ab" * 32,
        ],
    )
    @pytest.mark.parametrize("key", ["digest", "chunkDigest"])
    def test_spelling_of_digests(self, key, digest):
        assert "sha256" in refused(raw_file("a", **{key: digest}))

    @pytest.mark.parametrize(
        "fields",
        [
            {"size": -1},
            {"size": 2**63},
            {"offset": -1},
            {"offset": BLOB_SIZE},
            {"offset": 2**63 - 1},
            {"innerOffset": -1},
            {"innerOffset": 2**63 - 1},
            {"innerOffset": 2**31},
            {"chunkSize": -1},
            {"chunkOffset": -1},
            {"size": 300 << 20},  # more than one chunk may take
        ],
    )
    def test_impossible_numbers(self, fields):
        assert "expected" in refused({**raw_file("a"), **fields})

    def test_more_than_a_device_can_hold(self):
        message = refused(raw_file("a", 2**60))
        assert (
            f"the files up to it have more than {2**44} bytes, the size of an EROFS device"
            in message
        )

    def test_more_than_the_blob_can_hold(self):
        """Deflate expands 1032 times at most: a chunk at the end of a blob is short."""
        assert only(raw_file("a", 1032, BLOB_SIZE - 1)).size == 1032
        assert "expected at most 1032" in refused(raw_file("a", 1033, BLOB_SIZE - 1))
        file = raw_file("a", 1000, BLOB_SIZE - 1, innerOffset=33)
        assert "expected at most 1032" in refused(file)

    def test_total_size(self):
        limits = replace(DEFAULT_LIMITS, device_size=3 * 4096)
        files = [raw_file(str(number), 1) for number in range(4)]
        assert len(decode(*files[:3], limits=limits).entries) == 3
        assert "EROFS" in refused(*files, limits=limits)


class TestTree:
    def test_the_root(self):
        for name in ("./", "", ".", "/", "a/.."):
            assert only(raw_entry(name, mode=0o700)).path == b""
        assert "root" in refused(raw_file("./"))
        assert "root" in refused(raw_entry("x/..", "symlink", linkName="y"))

    def test_duplicates_stay(self):
        toc = decode(raw_entry("a"), raw_file("a"), raw_entry("./a/", mode=0o700))
        assert [entry.kind for entry in toc.entries] == [
            Kind.DIRECTORY,
            Kind.REGULAR,
            Kind.DIRECTORY,
        ]

    def test_children_before_parents_and_without_them(self):
        assert len(decode(raw_file("a/b/c"), raw_entry("a")).entries) == 2

    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize("depth", ["a/c", "a/b/c"])
    @pytest.mark.parametrize(
        "parent",
        [
            raw_entry("a", "symlink", linkName="/etc"),
            raw_file("a"),
            raw_entry("a", "fifo"),
            raw_entry("a", "hardlink", linkName="z"),
        ],
    )
    def test_nothing_lies_below_a_non_directory(self, parent, depth, order):
        reason = refused(*[parent, raw_file(depth)][::order], raw_file("z"))
        assert "is not a directory" in reason

    def test_what_counts_is_the_last_entry_of_the_parent(self):
        assert decode(raw_file("a"), raw_entry("a"), raw_file("a/b"))
        assert "directory" in refused(raw_entry("a"), raw_file("a/b"), raw_file("a"))

    def test_implied_directories_are_bounded(self):
        limits = replace(DEFAULT_LIMITS, implied_size=10_000)
        deep = "/".join("abcdefgh")
        assert decode(raw_file(deep), limits=limits)
        many = [raw_file(f"{number}/{deep}") for number in range(50)]
        assert "without entries" in refused(*many, limits=limits)


class TestLinks:
    def test_symlinks_are_verbatim(self):
        for target in ("../x", "/a//b/", ".", "x" * 4095, "ü"):
            assert only(raw_entry("a", "symlink", linkName=target)).link == target.encode()

    @pytest.mark.parametrize("target", ["", "x" * 4096, "a\0b"])
    def test_refused_symlinks(self, target):
        assert "symlink target" in refused(raw_entry("a", "symlink", linkName=target))

    def test_hardlinks_are_normalised(self):
        toc = decode(raw_file("d/a"), raw_entry("b", "hardlink", linkName="./d//a"))
        assert toc.entries[1].link == b"d/a"

    def test_chains_and_forward_references(self):
        toc = decode(
            raw_entry("a", "hardlink", linkName="b"),
            raw_entry("b", "hardlink", linkName="c"),
            raw_file("c"),
            raw_entry("d", "hardlink", linkName="s"),
            raw_entry("s", "symlink", linkName="x"),
        )
        assert [entry.link for entry in toc.entries] == [b"b", b"c", b"", b"s", b"x"]

    def test_missing_target(self):
        assert "not in this layer" in refused(raw_entry("a", "hardlink", linkName="b"))
        chain = [
            raw_entry("a", "hardlink", linkName="b"),
            raw_entry("b", "hardlink", linkName="c"),
        ]
        assert "b'c'" in refused(*chain)

    def test_targets_that_are_directories(self):
        assert "directory" in refused(raw_entry("a"), raw_entry("b", "hardlink", linkName="a"))
        assert "directory" in refused(raw_entry("b", "hardlink", linkName="/"), raw_entry("/"))

    @pytest.mark.parametrize("length", [1, 2, 3, 1000])
    def test_circles(self, length):
        ring = [
            raw_entry(str(n), "hardlink", linkName=str((n + 1) % length)) for n in range(length)
        ]
        assert "circle" in refused(*ring)
        assert "circle" in refused(raw_entry("tail", "hardlink", linkName="0"), *ring)

    def test_a_replaced_target(self):
        assert decode(
            raw_entry("a", "hardlink", linkName="b"), raw_entry("b", "fifo"), raw_file("b")
        )
        assert "directory" in refused(
            raw_file("b"), raw_entry("a", "hardlink", linkName="b"), raw_entry("b")
        )

    def test_a_replaced_link_need_not_lead_anywhere(self):
        assert decode(raw_entry("a", "hardlink", linkName="gone"), raw_file("a"))

    def test_long_chains_are_resolved_once(self):
        count = 20_000
        links = [raw_entry(str(n), "hardlink", linkName=str(n + 1)) for n in range(count)]
        assert len(decode(*links, raw_file(str(count))).entries) == count + 1


class TestLandmarks:
    def test_a_range(self):
        toc = decode(raw_file("a"), raw_file(".prefetch.landmark", 1, 500), raw_file("b", 1, 600))
        assert toc.prefetch_end == 500

    def test_none(self):
        assert decode(raw_file("a")).prefetch_end is None

    def test_do_not(self):
        marks = [raw_file(".no.prefetch.landmark", 1), raw_file(".prefetch.landmark", 1, 500)]
        assert decode(marks[0]).prefetch_end == 0
        assert decode(*marks).prefetch_end == 0
        assert decode(*reversed(marks)).prefetch_end == 0

    def test_only_in_the_root(self):
        toc = decode(raw_file("a/.prefetch.landmark", 1), raw_file("b/.no.prefetch.landmark", 1))
        assert toc.prefetch_end is None

    def test_an_empty_one_says_nothing(self):
        assert decode(raw_entry(".prefetch.landmark", "reg")).prefetch_end is None
