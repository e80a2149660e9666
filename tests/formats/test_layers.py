"""Which format a layer is of: by its annotations, then by its magic; whoever lies is refused."""

import json
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.digest import DigestMismatch, digest_of, parse_digest
from lazyfs.errors import FormatError, LazyfsError, VerificationFailed
from lazyfs.formats.estargz import NotEstargz
from lazyfs.formats.footer import BadFooter
from lazyfs.formats.layers import BY_NUMBER, Format, LayerToc, find_layer_toc, read_layer_toc
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import Limits
from lazyfs.formats.tocs.claims import (
    CONTAINERS,
    PREFIXES,
    STARGZ,
    BadAnnotation,
    Claims,
    Place,
    claims_of,
)
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.zstdchunked import BadZstdFooter, parse_zstd_footer
from tests.formats.test_footer import EXTERNAL, LEGACY, ZSTD_CHUNKED
from tests.support.formats.images import Layer, layer_from_fixture, sha256
from tests.support.formats.readers import check_document, check_flips
from tests.support.formats.zstdchunked import frame, skippable, zstd_layer

TOC_KEY = "containerd.io/snapshot/stargz/toc.digest"
ALL_KEYS = [
    prefix + name
    for prefix in PREFIXES.values()
    for name in (
        "manifest-checksum", "manifest-position", "tarsplit-position", "tarsplit-checksum",
    )
]  # fmt: skip
FILES = {"a": [b"one chunk"], "b": [b"x" * 300, 5000, b"y" * 4000], "empty": []}


def read(layer: Layer, limits: Limits | None = None) -> LayerToc:
    """Go the whole way from a blob to its TOC."""
    claims = claims_of(layer.annotations)
    place = find_layer_toc(layer.blob, layer.size, claims, media_type=layer.media_type)
    data = layer.blob[place.start : place.end]
    options = {} if limits is None else {"limits": limits}
    return read_layer_toc(data, place, claims, **options)


def refused(layer: Layer, error: type[LazyfsError]) -> str:
    with pytest.raises(error) as caught:
        read(layer)
    return caught.value.message


class TestClaims:
    def test_none(self):
        assert claims_of({"org.example": "1"}) == Claims()
        assert claims_of({}).key is None

    def test_each_producer(self):
        stargz = claims_of(layer_from_fixture("zstdchunked-go-0.12/big-default").annotations)
        assert stargz.dialect == STARGZ
        assert stargz.key == stargz.toc_digest != stargz.checksum
        assert stargz.place == Place(56907, 550, 1630)
        old = claims_of(layer_from_fixture("zstdchunked-skopeo-1.9.3/big").annotations)
        assert (old.dialect, old.toc_digest, old.key) == (STARGZ, None, old.checksum)
        new = claims_of(layer_from_fixture("zstdchunked-skopeo-1.18.0/big").annotations)
        assert (new.dialect, new.toc_digest, new.key) == (CONTAINERS, None, new.checksum)
        assert new.tar_split == Place(54929, 413, 7965)
        estargz = claims_of(layer_from_fixture("edge-default").annotations)
        assert (estargz.dialect, estargz.is_zstd) == (None, False)

    @pytest.mark.parametrize(
        "text",
        [
            "", "1:2:3", "1:2:3:4", "1:2:3:0", "1:2:3:1:1", "1:2:3:", "-1:2:3:1", "+1:2:3:1",
            " 1:2:3:1", "0x1:2:3:1", "1_0:2:3:1", "1:2:3:1\n", "9" * 20 + ":2:3:1",
        ],
    )  # fmt: skip
    def test_positions(self, text):
        annotations = zstd_layer(FILES).annotations
        key = PREFIXES[CONTAINERS] + "manifest-position"
        with pytest.raises(BadAnnotation, match="manifest-position"):
            claims_of({**annotations, key: text})

    def test_a_checksum_that_is_none(self):
        annotations = zstd_layer(FILES).annotations
        key = PREFIXES[CONTAINERS] + "manifest-checksum"
        with pytest.raises(BadAnnotation, match="manifest-checksum"):
            claims_of({**annotations, key: "md5:x"})
        with pytest.raises(BadAnnotation, match="lack manifest-checksum"):
            claims_of({k: v for k, v in annotations.items() if k != key})

    def test_two_dialects_that_disagree(self):
        one = zstd_layer(FILES).annotations
        other = zstd_layer({"other": [b"x"]}, dialect="stargz").annotations
        with pytest.raises(BadAnnotation, match="state different TOCs"):
            claims_of({**one, **other})

    def test_two_dialects_that_agree(self):
        layer = zstd_layer(FILES)
        claims = claims_of({**layer.annotations, **as_stargz(layer.annotations)})
        assert claims.dialect is None
        assert claims.tar_split is not None
        both = replace(layer, annotations={**layer.annotations, **as_stargz(layer.annotations)})
        assert read(both).format is Format.ZSTD_CONTAINERS

    @given(st.dictionaries(st.sampled_from([TOC_KEY, *ALL_KEYS]), st.text(max_size=90)))
    def test_any_text(self, annotations):
        try:
            claims_of(annotations)
        except BadAnnotation:
            pass


def as_stargz(annotations: dict[str, str]) -> dict[str, str]:
    """Return the annotations of one dialect in the words of the other."""
    return {
        key.replace(PREFIXES[CONTAINERS], PREFIXES[STARGZ]): value
        for key, value in annotations.items()
        if "tarsplit" not in key
    }


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "layer_format"),
        [
            ("estargz-go-0.12/edge-default", Format.ESTARGZ),
            ("estargz-ctr-remote-0.14.3/edge-minchunk", Format.ESTARGZ),
            ("estargz-ctr-remote-0.14.3/edge-exttoc", Format.EXTERNAL_TOC),
            ("zstdchunked-go-0.12/edge-default", Format.ZSTD_STARGZ),
            ("zstdchunked-skopeo-1.9.3/edge", Format.ZSTD_STARGZ),
            ("zstdchunked-skopeo-1.18.0/edge-nodup", Format.ZSTD_CONTAINERS),
        ],
    )
    def test_each(self, name, layer_format):
        layer = layer_from_fixture(name)
        place = find_layer_toc(layer.blob, layer.size, claims_of(layer.annotations))
        assert place.format is layer_format
        # The magic says so too, where there is nothing else.
        assert find_layer_toc(layer.blob, layer.size, Claims()).format is layer_format

    def test_numbers_are_for_ever(self):
        numbers = {number: str(each) for number, each in BY_NUMBER.items()}
        assert (
            numbers.items()
            >= {
                0: "estargz",
                1: "stargz",
                2: "estargz-external-toc",
                3: "zstd:chunked (stargz)",
                4: "zstd:chunked (containers)",
            }.items()
        )

    def test_legacy(self):
        blob = b"p" * 0x1A2B3C + b"toc" + LEGACY
        place = find_layer_toc(blob[-4096:], len(blob), Claims())
        assert (place.format, place.start, place.end) == (
            Format.LEGACY, 0x1A2B3C, 0x1A2B3C + 3,
        )  # fmt: skip
        assert place.payload_end == place.start

    def test_legacy_beyond_the_blob(self):
        with pytest.raises(BadFooter, match="TOC offset 1715004"):
            find_layer_toc(b"p" * 100 + LEGACY, 100 + len(LEGACY), Claims())

    def test_external(self):
        blob = b"payload" + EXTERNAL
        place = find_layer_toc(blob, len(blob), Claims(digest_of(b"")))
        assert (place.start, place.end, place.payload_end) == (7, 7, 7)

    @pytest.mark.parametrize("tail", [b"", b"\0", b"x" * 51, b"\x28\xb5\x2f\xfd" + bytes(60)])
    def test_others(self, tail):
        with pytest.raises(NotEstargz, match=r"not eStargz or zstd:chunked|expected at least 51"):
            find_layer_toc(tail, len(tail), Claims())

    @pytest.mark.parametrize("name", ["edge-default", "edge-exttoc"])
    def test_estargz_that_claims_to_be_zstd(self, name):
        layer = layer_from_fixture(name)
        claimed = zstd_layer(FILES).annotations
        message = refused(
            replace(layer, annotations={**layer.annotations, **claimed}), BadAnnotation
        )
        assert "the annotations say zstd:chunked" in message

    def test_a_plain_layer_that_claims_to_be_zstd(self):
        layer = replace(zstd_layer(FILES), blob=frame(b"tar"))
        assert "it is plain zstd" in refused(layer, BadAnnotation)

    @pytest.mark.parametrize("dialect", [STARGZ, CONTAINERS])
    def test_the_other_dialects_annotations(self, dialect):
        layer = zstd_layer(FILES, dialect=dialect)
        (other,) = {STARGZ, CONTAINERS} - {dialect}
        annotations = {
            key.replace(PREFIXES[dialect], PREFIXES[other]): value
            for key, value in layer.annotations.items()
        }
        message = refused(replace(layer, annotations=annotations), BadAnnotation)
        assert f"got dialect {dialect}" in message

    def test_an_estargz_digest_that_is_of_another_toc(self):
        layer = zstd_layer(FILES)
        wrong = {**layer.annotations, TOC_KEY: sha256(b"")}
        assert "TOC: got sha256" in refused(replace(layer, annotations=wrong), DigestMismatch)

    def test_both_digests(self):
        layer = zstd_layer(FILES, with_toc_digest=True)
        assert str(read(layer).toc.digest) == layer.annotations[TOC_KEY]
        key = PREFIXES[CONTAINERS] + "manifest-checksum"
        wrong = {**layer.annotations, key: sha256(b"")}
        message = refused(replace(layer, annotations=wrong), DigestMismatch)
        assert message.startswith("compressed TOC")


class TestZstdFooter:
    def test_known_vector(self):
        footer = parse_zstd_footer(ZSTD_CHUNKED, 2000)
        assert footer.toc == Place(1000, 300, 2000)
        assert (footer.dialect, footer.tar_split) == (STARGZ, None)

    @pytest.mark.parametrize("dialect", [STARGZ, CONTAINERS])
    def test_cut_and_bent(self, dialect):
        layer = zstd_layer(FILES, dialect=dialect)
        size = 48 if dialect == STARGZ else 72
        footer = layer.blob[-size:]

        def parse(data: bytes) -> object:
            return parse_zstd_footer(data, layer.size)

        check_document(parse, footer, BadZstdFooter)
        assert check_flips(parse, footer, BadZstdFooter) > 100

    @pytest.mark.parametrize(
        ("number", "value"),
        [
            (0, 0), (0, 7), (0, 2**63), (0, 2**64 - 1), (1, 0), (1, 2**40), (1, 2**64 - 1),
            (3, 0), (3, 2), (4, 0), (4, 2**64 - 1), (5, 2**40),
        ],
    )  # fmt: skip
    def test_footers_that_lie(self, number, value):
        def bend(numbers: list[int]) -> None:
            numbers[number] = value

        layer = zstd_layer(FILES, bend_footer=bend)
        claimed = {TOC_KEY: sha256(b"")}  # whatever the annotations say
        assert "footer: got" in refused(replace(layer, annotations=claimed), BadZstdFooter)

    @pytest.mark.parametrize("number", [0, 1, 2, 4, 5, 6])
    def test_a_footer_that_says_otherwise_than_the_annotations(self, number):
        layer = zstd_layer(FILES)

        def bend(numbers: list[int]) -> None:
            numbers[number] -= 1

        bent = zstd_layer(FILES, bend_footer=bend)
        message = refused(replace(bent, annotations=layer.annotations), BadAnnotation)
        assert "as in the annotations" in message

    @given(st.binary(max_size=100), st.sampled_from([b"GnUlInUx", b"GNUlInUx"]))
    def test_any_bytes(self, data, magic):
        try:
            parse_zstd_footer(data + magic, len(data) + 8)
        except BadZstdFooter:
            pass

    @given(st.lists(st.integers(0, 2**64 - 1), min_size=7, max_size=7))
    def test_any_numbers(self, numbers):
        tail = skippable(struct.pack("<7Q", *numbers) + b"GNUlInUx")
        try:
            footer = parse_zstd_footer(tail, 1 << 30)
        except BadZstdFooter:
            return
        assert 8 <= footer.toc.offset < footer.toc.end <= 1 << 30


class TestToc:
    def test_chunks(self):
        found = read(zstd_layer(FILES))
        entries = {entry.path: entry for entry in found.toc.entries}
        assert found.toc.digest == parse_digest(
            zstd_layer(FILES).annotations[PREFIXES[CONTAINERS] + "manifest-checksum"]
        )
        assert found.frame is not None
        (chunk,) = entries[b"a"].chunks
        assert (chunk.size, chunk.codec) == (9, Codec.ZSTD)
        assert [chunk.codec for chunk in entries[b"b"].chunks] == [
            Codec.ZSTD, Codec.HOLE, Codec.ZSTD,
        ]  # fmt: skip
        hole = entries[b"b"].chunks[1]
        assert (hole.offset, hole.size, hole.blob_offset, hole.digest) == (300, 5000, 0, bytes(32))
        assert entries[b"empty"].chunks == ()

    def test_a_file_that_is_a_hole(self):
        (entry,) = read(zstd_layer({"zeros": [70000]})).toc.entries
        assert [chunk.codec for chunk in entry.chunks] == [Codec.HOLE]

    def test_a_hole_larger_than_any_chunk(self):
        def bend(toc):
            toc["entries"][0]["size"] = toc["entries"][0]["chunkSize"] = 1 << 40

        (entry,) = read(zstd_layer({"zeros": [1]}, bend=bend)).toc.entries
        assert entry.chunks[0].size == 1 << 40

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"chunkType": "ones"}, "chunkType 'ones'"),
            ({"chunkDigest": ""}, "has no chunkDigest"),
            ({"offset": 1 << 50}, "offset 1125899906842624"),
            ({"chunkOffset": 299}, "a chunk at 299"),
            ({"chunkSize": 9999999}, "of 9999999 bytes"),
            ({"name": "../../escape/" + "x" * 300}, None),
        ],
    )
    def test_parts_that_break_a_rule(self, fields, message):
        def bend(toc):
            part = toc["entries"][2]  # the part of b that is a hole, or its data again
            part.pop("chunkType")
            part.update(fields)

        layer = zstd_layer(FILES, bend=bend)
        if message is None:  # a part's name says nothing
            read(layer)
        else:
            assert message in refused(layer, BadToc)

    def test_names_that_escape(self):
        def bend(toc):
            toc["entries"][0]["name"] = "../../etc/passwd"

        assert read(zstd_layer(FILES, bend=bend)).toc.entries[0].path == b"etc/passwd"

    def test_a_bad_tar_split_digest(self):
        def bend(toc):
            toc["tarSplitDigest"] = "sha256:x"

        assert "tarSplitDigest" in refused(zstd_layer(FILES, bend=bend), BadToc)

    def test_a_frame_of_more_than_it_says(self):
        layer = zstd_layer(FILES, toc_frame=frame(bytes(10 << 20)))
        assert "expand to more than" in refused(layer, BadToc)

    def test_a_frame_of_less(self):
        layer = zstd_layer(FILES, toc_frame=frame(b"{}"))
        assert "got 2 bytes" in refused(layer, BadToc)

    def test_a_bomb(self):
        def bend(numbers):
            numbers[2] = 100 << 20

        bomb = frame(bytes(100 << 20), level=19)
        assert len(bomb) < 10000
        layer = zstd_layer(FILES, toc_frame=bomb, bend_footer=bend)
        assert "expected at most" in refused(layer, BadToc)

    @pytest.mark.parametrize("data", [b"", b"{}", b"\x28\xb5\x2f\xfd", b"\x1f\x8b" * 20])
    def test_what_is_no_frame(self, data):
        layer = zstd_layer(FILES, toc_frame=data or b"?")
        refused(layer, BadToc)

    def test_cut_anywhere(self):
        good = zstd_layer(FILES)
        claims = claims_of(good.annotations)
        unclaimed = Claims()
        place = find_layer_toc(good.blob, good.size, claims)
        data = good.blob[place.start : place.end]
        for size in range(len(data)):
            with pytest.raises(DigestMismatch):
                read_layer_toc(data[:size], place, claims)
        for size in range(len(data) - 8):  # the last bytes are a checksum of the frame
            with pytest.raises(BadToc):
                read_layer_toc(data[:size], place, unclaimed)

    def test_bent_anywhere(self):
        good = zstd_layer(FILES)
        claims = claims_of(good.annotations)
        place = find_layer_toc(good.blob, good.size, claims)
        data = good.blob[place.start : place.end]

        def verified(bent: bytes) -> None:
            read_layer_toc(bent, place, claims)

        def unverified(bent: bytes) -> None:
            read_layer_toc(bent, place, Claims())

        assert check_flips(verified, data, VerificationFailed, count=100) == 100
        check_flips(unverified, data, FormatError)

    @given(st.binary(max_size=400))
    @settings(max_examples=200)
    def test_any_bytes(self, data):
        layer = zstd_layer({"a": [b"x"]}, toc_frame=data or b"?")
        try:
            read(layer)
        except FormatError:
            pass

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(
                        ["type", "name", "size", "offset", "chunkType", "chunkSize", "chunkOffset"]
                    ),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=12,
        )
    )
    def test_any_json(self, document):
        data = json.dumps({"version": 1, "entries": document}).encode()
        layer = zstd_layer({"a": [b"x"]}, toc_frame=frame(data), bend_footer=size_of(data))
        try:
            read(layer)
        except BadToc:
            pass


def size_of(data: bytes):
    def bend(numbers: list[int]) -> None:
        numbers[2] = len(data)

    return bend
