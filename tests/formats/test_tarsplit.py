"""tar-split: the tar again bit for bit, or a reason."""

import base64
import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import digest_of
from lazyfs.formats.layers import find_layer_toc, read_layer_toc
from lazyfs.formats.streams.unzstd import unzstd
from lazyfs.formats.tars.tarsplit import BadTarSplit
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.formats.tocs.toc import Toc
from tests.support.formats.images import Layer
from tests.support.formats.tarsplit import rebuild_tar
from tests.support.formats.zstdchunked import contents, zstd_layer

FILES = {"a": [b"one chunk"], "b": [b"x" * 300, 5000, b"y" * 4000], "empty": [], "c": [b"last"]}


def parts_of(layer: Layer) -> tuple[bytes, Toc]:
    claims = claims_of(layer.annotations)
    place = find_layer_toc(layer.blob, layer.size, claims)
    toc = read_layer_toc(layer.blob[place.start : place.end], place, claims).toc
    frame = layer.blob[claims.tar_split.offset : claims.tar_split.end]
    return unzstd(frame, claims.tar_split.raw_size, "tar-split"), toc


DOCUMENT, TOC = parts_of(zstd_layer(FILES))
LINES = [json.loads(line) for line in DOCUMENT.splitlines()]


def rebuilt(document: bytes, toc: Toc = TOC) -> bytes:
    files = contents(FILES)
    return rebuild_tar(document, toc, lambda entry: files[entry.path.decode()])


def spelled(lines: list[dict]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_the_tar_is_the_same():
    tar = rebuilt(DOCUMENT)
    assert digest_of(tar) == zstd_layer(FILES).diff_id
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getnames() == list(FILES)


def test_the_last_line_may_have_no_end():
    assert rebuilt(DOCUMENT.rstrip(b"\n")) == rebuilt(DOCUMENT)


@pytest.mark.parametrize(
    ("number", "fields", "message"),
    [
        (0, {"type": 3}, "type 3"),
        (0, {"type": "2"}, "not a valid entry"),
        (0, {"payload": "!"}, "not a valid entry"),
        (0, {"position": 1}, "position 1"),
        (1, {"name": "b"}, "'b' of 9 bytes"),
        (1, {"name": "../../x"}, "expected b'a' of 9"),
        (1, {"name": "x" * 5000}, "5000 bytes"),
        (1, {"size": 8}, "of 8 bytes"),
        (1, {"size": -1}, "not a valid entry"),
        (1, {"size": 2**63}, "not a valid entry"),
    ],
)
def test_wrong_lines(number, fields, message):
    lines = [dict(line) for line in LINES]
    lines[number].update(fields)
    with pytest.raises(BadTarSplit, match=message):
        rebuilt(spelled(lines))


def renumbered(lines: list[dict]) -> list[dict]:
    return [{**line, "position": number} for number, line in enumerate(lines)]


def test_entries_too_few_and_too_many():
    with pytest.raises(BadTarSplit, match="1 entries of the TOC are missing"):
        rebuilt(spelled(renumbered([line for line in LINES if line.get("name") != "c"])))
    with pytest.raises(BadTarSplit, match="is not in the TOC"):
        rebuilt(spelled(renumbered([*LINES, LINES[1]])))


def test_names_that_are_not_utf8_are_taken_by_their_place():
    raw = base64.b64encode(b"\xff\xfe").decode()
    lines = [dict(line) for line in LINES]
    del lines[1]["name"]
    lines[1]["name_raw"] = raw
    assert rebuilt(spelled(lines)) == rebuilt(DOCUMENT)


def test_cut_anywhere():
    whole = rebuilt(DOCUMENT)
    for size in range(0, len(DOCUMENT) - 1, 7):
        try:
            assert rebuilt(DOCUMENT[:size]) != whole
        except BadTarSplit:
            pass


@given(st.binary(max_size=200))
def test_any_bytes(data):
    try:
        rebuilt(data)
    except BadTarSplit:
        pass
