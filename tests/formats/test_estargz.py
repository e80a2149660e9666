"""From the tail of a blob to its TOC: where it is, how it is packed, what else a blob may be."""

import gzip
import io
import tarfile
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyfs.digest import DigestMismatch, digest_of
from lazyfs.errors import FormatError, LazyfsError
from lazyfs.formats.estargz import TAIL_SIZE, NotEstargz, TocLocation, find_toc, read_toc
from lazyfs.formats.footer import FOOTER_SIZE, build_footer
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tocs.claims import TOC_DIGEST_KEYS, BadAnnotation, toc_digest_of
from lazyfs.formats.tocs.rawtoc import BadToc
from tests.formats.test_footer import EXTERNAL, LEGACY, ZSTD_CHUNKED
from tests.support.formats.estargz import reference_layers
from tests.support.formats.readers import check_flips
from tests.support.formats.tocs import raw_entry, raw_file, spelled

JSON = spelled(raw_entry("a"))


def tar_of(data: bytes, name: str = "stargz.index.json", **attributes) -> bytes:
    stream = io.BytesIO()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def read(member: bytes, *, before: int = 100, expected=None, limits: Limits = DEFAULT_LIMITS):
    blob_size = before + len(member) + FOOTER_SIZE
    return read_toc(member, expected=expected, blob_size=blob_size, limits=limits)


def refused(member: bytes, **kwargs) -> str:
    with pytest.raises(BadToc) as caught:
        read(member, **kwargs)
    return str(caught.value)


class TestFindToc:
    def test_whole_and_tail(self):
        blob = b"x" * 5000 + b"T" * 300 + build_footer(5000)
        for size in (FOOTER_SIZE, 100, len(blob)):
            assert find_toc(blob[-size:], len(blob)) == TocLocation(5000, 5300)

    def test_a_layer_of_nothing_but_its_toc(self):
        blob = b"T" * 300 + build_footer(0)
        assert find_toc(blob, len(blob)) == TocLocation(0, 300)

    @pytest.mark.parametrize("offset", [300, 301, 351, 2**40])
    def test_offsets_outside_the_blob(self, offset):
        blob = b"T" * 300 + build_footer(offset)
        with pytest.raises(NotEstargz, match=f"TOC offset {offset}, expected less than 300"):
            find_toc(blob, len(blob))

    @pytest.mark.parametrize("size", range(FOOTER_SIZE))
    def test_short_blobs(self, size):
        with pytest.raises(NotEstargz, match="layer"):
            find_toc(build_footer(1)[:size], size)

    @pytest.mark.parametrize(
        ("blob", "media_type", "looks"),
        [
            (gzip.compress(b"x" * 1000, mtime=0) + bytes(60), None, "plain gzip"),
            (b"\x28\xb5\x2f\xfd" + bytes(100), None, "plain zstd"),
            (tar_of(b"x"), None, "plain tar"),
            (b"?" * 100, None, "no footer"),
            (b"?" * 100, "application/vnd.oci.image.layer.v1.tar+gzip", "plain gzip"),
            (b"?" * 100, "application/vnd.docker.image.rootfs.diff.tar.gzip", "plain gzip"),
            (b"?" * 100, "application/vnd.oci.image.layer.v1.tar+zstd", "plain zstd"),
            (b"?" * 100, "application/vnd.oci.image.layer.v1.tar", "plain tar"),
            (b"?" * 100 + LEGACY, None, "legacy stargz"),
            (b"?" * 100 + EXTERNAL, None, "external TOC"),
            (b"?" * 100 + ZSTD_CHUNKED, None, "zstd:chunked"),
            (b"?" * 100 + build_footer(5)[:-1] + b"x", None, "damaged"),
        ],
    )
    def test_what_it_is_instead(self, blob, media_type, looks):
        with pytest.raises(NotEstargz, match=looks) as caught:
            find_toc(blob, len(blob), media_type=media_type)
        assert caught.value.hint
        # A tail that is not the whole blob gives the format away by its end only.
        with pytest.raises(NotEstargz):
            find_toc(blob[-60:], len(blob), media_type=media_type)

    @given(st.binary(max_size=200), st.integers(0, 10**12))
    def test_random_bytes(self, tail, more):
        with pytest.raises(NotEstargz):
            find_toc(tail, len(tail) + more)


class TestReadToc:
    def test_the_plain_case(self):
        layer = read(gzip.compress(tar_of(JSON)), before=4321, expected=digest_of(JSON))
        assert layer.toc_bytes == JSON
        assert layer.payload_end == 4321
        assert layer.toc.entries[0].path == b"a"

    def test_the_digest_is_of_the_json(self):
        for wrong in (tar_of(JSON), gzip.compress(tar_of(JSON)), JSON.rstrip(b"}")):
            with pytest.raises(DigestMismatch):
                read(gzip.compress(tar_of(JSON)), expected=digest_of(wrong))

    def test_payloads_end_where_the_toc_starts(self):
        member = gzip.compress(tar_of(spelled(raw_file("a", 10, 100))))
        assert read(member, before=101).toc.entries[0].chunks
        assert "offset 100, expected less than 100" in refused(member, before=100)

    def test_a_member_longer_than_the_blob(self):
        member = gzip.compress(tar_of(JSON))
        with pytest.raises(BadToc):
            read_toc(member, expected=None, blob_size=len(member))

    def test_exactly_one_member(self):
        member = gzip.compress(tar_of(JSON))
        assert "follow its gzip member" in refused(member + b"\0")
        assert "follow its gzip member" in refused(member + gzip.compress(b""))
        half = len(tar_of(JSON)) // 2
        split = gzip.compress(tar_of(JSON)[:half]) + gzip.compress(tar_of(JSON)[half:])
        assert "TOC" in refused(split)

    def test_cut_anywhere(self):
        member = gzip.compress(tar_of(JSON))
        for size in range(len(member)):
            assert "TOC" in refused(member[:size])

    def test_other_compressions(self):
        assert "gzip data are damaged" in refused(zlib.compress(tar_of(JSON)))
        assert "gzip data are damaged" in refused(tar_of(JSON))

    def test_gzip_checks_count(self):
        member = bytearray(gzip.compress(tar_of(JSON)))
        member[-5] ^= 1  # CRC
        assert "gzip data are damaged" in refused(bytes(member))

    @pytest.mark.parametrize(
        "name", ["./stargz.index.json", "/stargz.index.json", "stargz.index", "a/stargz.index.json"]
    )
    def test_the_name_is_exact(self, name):
        assert "its tar begins with" in refused(gzip.compress(tar_of(JSON, name)))

    @pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_it_is_a_regular_file(self, kind):
        assert "tar" in refused(gzip.compress(tar_of(JSON, type=kind)))

    def test_the_header_is_checked(self):
        tar = bytearray(tar_of(JSON))
        tar[105] ^= 1
        assert "checksum" in refused(gzip.compress(bytes(tar)))

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (b"00000777777\0", f"got a tar entry of {0o777777} bytes, expected at most"),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\1", "the size in its tar header is not an octal number"),
            (b"-0000000001\0", "the size in its tar header is not an octal number"),
        ],
    )
    def test_the_size_is_checked(self, size, message):
        tar = bytearray(tar_of(JSON))
        tar[124:136] = size
        tar[148:156] = b" " * 8
        tar[148:156] = b"%06o\0 " % sum(tar[:512])
        assert message in refused(gzip.compress(bytes(tar)))

    @pytest.mark.parametrize("tar", [b"", b"x", bytes(512), bytes(1024), tar_of(JSON)[:511]])
    def test_no_tar(self, tar):
        assert "tar" in refused(gzip.compress(tar))

    def test_a_bit_flipped_anywhere(self):
        member = gzip.compress(tar_of(JSON), mtime=0)
        digest = digest_of(JSON)
        check_flips(lambda bent: read(bent, expected=digest), member, LazyfsError)


class TestLimits:
    def test_compressed_size(self):
        limits = replace(DEFAULT_LIMITS, member_size=50)
        assert "compressed bytes, expected at most 50" in refused(
            gzip.compress(tar_of(JSON)), limits=limits
        )

    def test_raw_size(self):
        limits = replace(DEFAULT_LIMITS, toc_size=1000)
        assert "expand to more than" in refused(gzip.compress(bytes(10_000)), limits=limits)

    def test_ratio(self):
        """What is far smaller packed than any TOC is refused after little of it."""
        bomb = gzip.compress(bytes(60 << 20))
        tracemalloc.start()
        try:
            assert "expand to more than" in refused(bomb)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 25 << 20
        small = spelled(*[raw_entry("a") for _ in range(5000)])
        assert len(gzip.compress(small)) * DEFAULT_LIMITS.toc_ratio > 0
        assert len(read(gzip.compress(tar_of(small))).toc.entries) == 5000


class TestAnnotations:
    ONE, OTHER = str(digest_of(b"1")), str(digest_of(b"2"))

    def test_none(self):
        assert toc_digest_of({}) is None
        assert toc_digest_of({"io.containers.estargz.uncompressed-size": "5"}) is None

    @pytest.mark.parametrize("key", TOC_DIGEST_KEYS)
    def test_each_key(self, key):
        assert str(toc_digest_of({key: self.ONE, "other": "x"})) == self.ONE

    def test_agreement(self):
        assert str(toc_digest_of(dict.fromkeys(TOC_DIGEST_KEYS, self.ONE))) == self.ONE

    def test_disagreement(self):
        annotations = dict(zip(TOC_DIGEST_KEYS, (self.ONE, self.OTHER, self.ONE), strict=True))
        with pytest.raises(BadAnnotation, match="different TOC digests"):
            toc_digest_of(annotations)

    @pytest.mark.parametrize("value", ["", "x", "sha256:12", "sha256:" + "A" * 64])
    @pytest.mark.parametrize("key", TOC_DIGEST_KEYS)
    def test_no_digest(self, key, value):
        with pytest.raises(BadAnnotation, match=key):
            toc_digest_of({key: value})
        with pytest.raises(BadAnnotation, match=key):
            toc_digest_of({**dict.fromkeys(TOC_DIGEST_KEYS, self.ONE), key: value})


def test_a_reference_layer_cut_anywhere():
    """Whatever the size at which a blob is cut, there is no TOC, and that is said."""
    blob = next(layer.blob for layer in reference_layers() if layer.name == "estargz-go-0.12/empty")
    for size in range(len(blob)):
        with pytest.raises(NotEstargz):
            find_toc(blob[:size], size)
        # The manifest's size, a shorter body.
        with pytest.raises(NotEstargz):
            find_toc(blob[:size], len(blob))


def test_a_reference_layer_bent_anywhere():
    reference = next(layer for layer in reference_layers() if layer.name == "estargz-go-0.12/empty")
    blob = reference.blob

    def open_layer(bent: bytes) -> None:
        location = find_toc(bent[-TAIL_SIZE:], len(bent))
        layer = read_toc(
            bent[location.start : location.end],
            expected=reference.toc_digest,
            blob_size=len(bent),
        )
        assert layer.toc.digest == reference.toc_digest

    harmless = []
    for at in range(len(blob)):
        try:
            open_layer(blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :])
        except LazyfsError:
            continue
        harmless.append(at)
    # The payload is not read here; the member has a time, a system, and bits that mean nothing.
    payload_end = find_toc(blob, len(blob)).start
    assert harmless[:payload_end] == list(range(payload_end))
    assert len(harmless) < payload_end + 10


def test_errors_belong_to_the_family():
    for error in (NotEstargz, BadAnnotation):
        assert issubclass(error, FormatError)
        assert error("a", hint="b").hint == "b"
