"""One image, two trees: a layer whose table of contents shows other files than its tar.

All digests of such a layer are right.  Who unpacks it gets one tree, who mounts it lazily the
other: `verify` names the difference, and no conversion passes it on.
"""

# ruff: noqa: F811 - fixtures are imported by their names

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lazyfs.digest import digest_of, parse_digest
from lazyfs.formats.layers import TAIL_SIZE, find_layer_toc, read_layer_toc
from lazyfs.formats.streams.unpack import decompress
from lazyfs.formats.tars.comparison import Comparison, Disagreement
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.store.agreements import Agreement, load_agreement, save_agreement
from lazyfs.store.paths import Store
from tests.cli.conftest import Run, cache_dir, run  # noqa: F401
from tests.support.formats.contradicting import LIES, Bend, bent, bent_estargz, rich_tar, with_toc
from tests.support.formats.estargz import ReferenceLayer, reference_layers
from tests.support.formats.images import (
    Layer,
    directory,
    estargz_layer,
    file,
    hardlink,
    make_layout,
    members,
    plain_layer,
    sha256,
    source_tar,
    tamper_blob,
    tar_bytes,
    toc_layer_of,
)
from tests.support.formats.stargz import stargz_layer
from tests.support.formats.zstdchunked import zstd_layer

HARD = {"a": [b"text"], "b": [b"chunk " * 100, b"of two"]}


def image_of(folder: Path, *layers: Layer, tag: str = "latest") -> str:
    make_layout(folder / "image", layers, tag=tag)
    return f"oci:{folder}/image:{tag}"


def compare(toc: Toc, blob: bytes) -> Disagreement | None:
    comparison = Comparison(toc)
    for piece in decompress(io.BytesIO(blob).read):
        comparison.feed(piece)
    return comparison.finish()


def toc_of(blob: bytes, annotations: Any, toc_blob: bytes | None = None) -> Toc:
    claims = claims_of(annotations)
    place = find_layer_toc(blob[-TAIL_SIZE:], len(blob), claims)
    return read_layer_toc(toc_blob or blob[place.start : place.end], place, claims).toc


# What lies


@pytest.mark.parametrize(("bend", "said"), LIES.values(), ids=LIES)
def test_verify_names_the_difference(run: Run, tmp_path: Path, bend: Bend, said: str) -> None:
    image = image_of(tmp_path, bent_estargz(bend))
    done = run("verify", image, "--json")
    assert done.code == 6
    (error,) = done.json["errors"]
    assert error["code"] == "E_TREES_DIFFER"
    assert said in error["message"]
    assert not done.json["verified"]
    assert done.json["comparedLayers"] == []


@pytest.mark.parametrize("target", ["estargz", "zstd-chunked"])
@pytest.mark.parametrize("lie", ["a setuid bit", "a name more", "the order of chunks"])
def test_no_conversion_passes_it_on(run: Run, tmp_path: Path, lie: str, target: str) -> None:
    bend, said = LIES[lie]
    image = image_of(tmp_path, bent_estargz(bend))
    done = run("convert", "--to", target, image, f"oci:{tmp_path}/made")
    assert done.code == 6
    assert said in done.err
    assert (
        not (tmp_path / "made/index.json").exists()
        or not json.loads((tmp_path / "made/index.json").read_text())["manifests"]
    )


@pytest.mark.parametrize("dialect", ["stargz", "containers"])
def test_zstd_chunked(run: Run, tmp_path: Path, dialect: str) -> None:
    def bend(toc: dict[str, Any]) -> None:
        toc["entries"][0]["mode"] = 0o4755

    layer = zstd_layer(HARD, dialect=dialect, bend=bend)
    image = image_of(tmp_path, layer)
    done = run("verify", image)
    assert done.code == 6
    assert "b'a': mode 0644 in the tar, 4755 in the TOC" in done.err
    assert run("convert", "--to", "zstd-chunked", image, f"oci:{tmp_path}/made").code == 6
    honest = image_of(tmp_path, zstd_layer(HARD, dialect=dialect), tag="honest")
    assert run("verify", honest).code == 0


def test_a_hole_that_is_none(run: Run, tmp_path: Path) -> None:
    """A chunk of zeros has no digest: that it is one, the tar must say too."""

    def bend(toc: dict[str, Any]) -> None:
        first = next(entry for entry in toc["entries"] if entry["name"] == "b")
        first["chunkType"] = "zeros"

    image = image_of(tmp_path, zstd_layer(HARD, bend=bend))
    done = run("verify", image)
    assert done.code == 6
    assert "b'b': bytes 0 to 600 differ between the tar" in done.err


def test_legacy_stargz(run: Run, tmp_path: Path) -> None:
    honest = stargz_layer({"f": b"text", "g": b"more"})
    assert run("verify", "--verify=blob", image_of(tmp_path, honest)).code == 0
    lying = stargz_layer({"f": b"text", "g": b"more"}, mode=0o4755)
    image = image_of(tmp_path, lying, tag="lying")
    done = run("verify", "--verify=blob", image)
    assert done.code == 6
    assert "b'f': mode 0644 in the tar, 4755 in the TOC" in done.err


def test_an_external_toc(run: Run, tmp_path: Path) -> None:
    name = "estargz-ctr-remote-0.14.3/edge-exttoc"
    reference = next(layer for layer in reference_layers() if layer.name == name)
    layout = tmp_path / "image"
    honest = Layer(
        reference.blob,
        "application/vnd.oci.image.layer.v1.tar+gzip",
        reference.annotations,
        digest_of(b"".join(decompress(io.BytesIO(reference.blob).read))),
    )
    make_layout(layout, [honest], tag="v1")
    make_layout(layout, [toc_layer_of(name)], tag="v1-esgztoc")
    assert run("verify", f"oci:{layout}:v1").code == 0

    spelled: list[bytes] = []

    def spell(toc: dict[str, Any]) -> bytes:
        spelled.append(bent(toc, lambda named, entries: named["hl/target"].update(mode=0o4755)))
        return spelled[0]

    (_, member), *_ = members(with_toc(toc_layer_of(name), spell).blob)
    (key,) = (key for key in reference.annotations if key.endswith("toc.digest"))
    lying = replace(honest, annotations={**reference.annotations, key: sha256(spelled[0])})
    toc_blob = gzip.compress(member, mtime=0)
    listed = replace(toc_layer_of(name), blob=toc_blob, diff_id=digest_of(member))
    make_layout(layout, [lying], tag="v2")
    make_layout(layout, [listed], tag="v2-esgztoc")
    done = run("verify", f"oci:{layout}:v2")
    assert done.code == 6
    assert "4755 in the TOC" in done.err


def test_many_differences_are_counted(run: Run, tmp_path: Path) -> None:
    def bend(named: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            entry["uid"] = 7

    tar = tar_bytes([file(f"f{number}") for number in range(40)])
    done = run("verify", image_of(tmp_path, bent_estargz(bend, tar)))
    assert done.code == 6
    assert done.err.count("owner 0:0 in the tar, 7:0 in the TOC") == 10
    assert "and 30 more" in done.err


def test_the_same_words_and_another_tree(run: Run, tmp_path: Path) -> None:
    """Played in order, the link is to the first file of a name; in a set, to the last."""
    tar = tar_bytes(
        [file("a", b"first"), hardlink("b", "a"), file("a", b"second", mtime=1_600_000_000)]
    )
    toc = decode_toc(
        json.dumps(
            {
                "version": 1,
                "entries": [
                    _entry("a", b"first", 100),
                    {"name": "b", "type": "hardlink", "linkName": "a", "mode": 0o644}
                    | {"modtime": "2023-11-14T22:13:20Z"},
                    _entry("a", b"second", 200) | {"modtime": "2020-09-13T12:26:40Z"},
                ],
            }
        ).encode(),
        expected=None,
        blob_size=1000,
    )
    found = compare(toc, tar)
    assert found is not None
    assert "b'b': regular in the tar, a hard link to b'a' in the TOC" in str(found)


def _entry(name: str, data: bytes, offset: int) -> dict[str, Any]:
    return {
        "name": name,
        "type": "reg",
        "mode": 0o644,
        "size": len(data),
        "offset": offset,
        "modtime": "2023-11-14T22:13:20Z",
        "chunkDigest": sha256(data),
    }


def test_bytes_that_another_entry_vouches_for() -> None:
    """The link takes over the first file's payload, and the TOC has other bytes for it."""
    tar = tar_bytes([file("a", b"same"), hardlink("b", "a"), file("a", b"same")])
    entries = [_entry("b", b"evil", 100), _entry("a", b"same", 200)]
    data = json.dumps({"version": 1, "entries": entries}).encode()
    found = compare(decode_toc(data, expected=None, blob_size=1000), tar)
    assert "b'b': the TOC gives it the bytes of another file" in str(found)


def test_names_that_become_one() -> None:
    """Of two names that JSON spoils to the same, a lazy mount shows one file."""
    tar = tar_bytes([file(b"\xff", b"x"), file(b"\xfe", b"x")])
    data = json.dumps({"version": 1, "entries": [_entry("\ufffd", b"x", 100)]}).encode()
    found = compare(decode_toc(data, expected=None, blob_size=1000), tar)
    assert "b'\\xfe': in the tar, and not in the TOC" in str(found)


def test_a_byte_of_the_blob_that_no_file_has(run: Run, tmp_path: Path) -> None:
    layer = estargz_layer(rich_tar())
    image = image_of(tmp_path, layer)
    tamper_blob(tmp_path / "image", layer.digest, 4)  # a time in the first member's header
    done = run("verify", image, "--json")
    assert done.code == 6
    assert f"layer {layer.digest}: got sha256:" in done.json["errors"][0]["message"]


@pytest.mark.parametrize("missing", [512, 6144, 1 << 20])
def test_zeros_that_a_producer_left_out(run: Run, tmp_path: Path, missing: int) -> None:
    """skopeo leaves the last zeros of a tar out of its layer, and not out of the diffID."""
    layer = estargz_layer(rich_tar())
    padded = gzip.decompress(layer.blob) + bytes(missing)
    image = image_of(tmp_path, replace(layer, diff_id=digest_of(padded)))
    assert run("verify", image).code == 0


@pytest.mark.parametrize("more", [bytes((1 << 20) + 512), bytes(511), bytes(511) + b"x"])
def test_what_nobody_may_have_left_out(run: Run, tmp_path: Path, more: bytes) -> None:
    layer = estargz_layer(rich_tar())
    other = gzip.decompress(layer.blob) + more
    image = image_of(tmp_path, replace(layer, diff_id=digest_of(other)))
    done = run("verify", image)
    assert done.code == 6
    assert "diffID" in done.err


def test_a_diff_id_of_another_tar(run: Run, tmp_path: Path) -> None:
    image = image_of(tmp_path, replace(estargz_layer(rich_tar()), diff_id=digest_of(b"other")))
    done = run("verify", image, "--json")
    assert (done.code, done.json["errors"][0]["code"]) == (6, "E_DIFF_ID")


# What is found once is remembered


def test_what_was_found_is_remembered(run: Run, tmp_path: Path, cache_dir: Path) -> None:
    bend, said = LIES["a setuid bit"]
    layer = bent_estargz(bend)
    image = image_of(tmp_path, layer)
    assert run("verify", image).code == 6
    again = run("verify", image)
    assert again.code == 6
    assert said in again.err
    (folder,) = (cache_dir / "layers").iterdir()
    toc_digest = parse_digest(next(iter(layer.annotations.values())))
    found = load_agreement(Store(cache_dir), toc_digest, layer.digest)
    assert found is not None
    assert said in found.differences
    for damage in (b"", bytes(100), b"{", b'{"blobs":[]}', b'{"rules":99,"blobs":{}}'):
        (folder / "agreed").write_bytes(damage)
        assert load_agreement(Store(cache_dir), toc_digest, layer.digest) is None
        assert run("verify", image).code == 6


def test_another_blob_of_the_same_toc_is_another_matter(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    toc, one, other = (digest_of(name) for name in (b"toc", b"one", b"other"))
    store.layer_path(toc).mkdir()
    save_agreement(store, toc, one, Agreement("sha256:1", ""))
    assert load_agreement(store, toc, other) is None
    save_agreement(store, toc, other, Agreement("sha256:2", "all of it"))
    assert load_agreement(store, toc, one) == Agreement("sha256:1", "")
    assert load_agreement(store, toc, other) == Agreement("sha256:2", "all of it")


# What honest producers make


@pytest.mark.parametrize("reference", reference_layers(), ids=lambda layer: layer.name)
def test_official_producers_make_one_tree(reference: ReferenceLayer) -> None:
    toc = toc_of(reference.blob, reference.annotations, reference.toc_blob)
    assert compare(toc, reference.blob) is None


@pytest.mark.parametrize("source", ["edge", "edge-nodup", "real-gnu", "real-pax", "real-ustar"])
@pytest.mark.parametrize("words", [["estargz"], ["zstd-chunked"], ["zstd-chunked", "--level=1"]])
def test_our_conversions_make_one_tree(
    run: Run,
    tmp_path: Path,
    source: str,
    words: list[str],
) -> None:
    image = image_of(tmp_path, plain_layer(source_tar(source)))
    done = run("convert", "--to", *words, image, f"oci:{tmp_path}/made:latest")
    assert done.code == 0, done.err
    verified = run("verify", f"oci:{tmp_path}/made:latest", "--json")
    assert verified.json["errors"] == []
    assert len(verified.json["comparedLayers"]) == 1
    again = run("convert", "--to", *words, f"oci:{tmp_path}/made:latest", f"oci:{tmp_path}/again")
    assert again.code == 0, again.err


HONEST: dict[str, bytes] = {
    "a fraction of a second": tar_bytes([file("a", mtime=1_700_000_000.75)]),
    "names that are not UTF-8": tar_bytes([file(b"\xe4\xbd", b"x"), file(b"\xff", b"y")]),
    "another spelling": tar_bytes([directory("./d/"), file("./d//f", b"x")]),
    "the root": tar_bytes([directory("./", mode=0o700), file("./f", b"x")]),
    "no parents": tar_bytes([file("deep/below/f", b"x")]),
    "a chain": tar_bytes([file("c", b"x"), hardlink("b", "c"), hardlink("a", "b")]),
    "a name twice": tar_bytes([file("a", b"first"), file("a", b"last")]),
    "a file that becomes a directory": tar_bytes([file("a", b"x"), directory("a"), file("a/b")]),
}


@pytest.mark.parametrize("tar", HONEST.values(), ids=HONEST)
def test_what_is_spelled_differently_is_no_difference(tar: bytes) -> None:
    layer = estargz_layer(tar)
    assert compare(toc_of(layer.blob, layer.annotations), layer.blob) is None


def test_names_of_other_producers() -> None:
    """Go spoils each bad byte by itself; others a whole sequence."""
    tar = tar_bytes([file(b"\xe4\xbd.txt", b"x"), hardlink("b", b"\xe4\xbd.txt")])
    for name in ("\ufffd\ufffd.txt", "\ufffd.txt"):
        entries = [
            _entry(name, b"x", 100),
            {"name": "b", "type": "hardlink", "linkName": name, "mode": 0o644}
            | {"modtime": "2023-11-14T22:13:20Z"},
        ]
        data = json.dumps({"version": 1, "entries": entries}).encode()
        assert compare(decode_toc(data, expected=None, blob_size=1000), tar) is None


def test_a_hard_link_and_its_file_may_change_places() -> None:
    tar = tar_bytes([file("a", b"text"), hardlink("b", "a")])
    entries = [
        _entry("b", b"text", 100),
        {"name": "a", "type": "hardlink", "linkName": "b", "mode": 0o644}
        | {"modtime": "2023-11-14T22:13:20Z"},
    ]
    data = json.dumps({"version": 1, "entries": entries}).encode()
    assert compare(decode_toc(data, expected=None, blob_size=1000), tar) is None
