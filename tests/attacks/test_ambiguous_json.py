"""Documents that say something twice, so that two readers of one digest see two things.

msgspec, Go and Python let the last of equal keys count, others the first; Go's encoding/json takes
``Layers`` for ``layers``.  Scanners, signers and lazyfs must not be shown different images.
"""

# ruff: noqa: F811 - fixtures are imported by their names

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazyfs.formats.tocs import scan, toc_keys
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.json_keys import AmbiguousKeys, check_keys
from lazyfs.oci.config import BadConfig, decode_config
from lazyfs.oci.manifest import OCI_MANIFEST, BadManifest, decode_manifest
from lazyfs.registry.layout_files import BadLayout, decode_index
from tests.cli.conftest import Run, cache_dir, run  # noqa: F401
from tests.support.formats.contradicting import with_toc
from tests.support.formats.estargz import reference_layers
from tests.support.formats.images import estargz_layer, file, make_layout, tar_bytes
from tests.support.formats.tocs import raw_entry, raw_file, spelled

DIGEST = "sha256:" + "0" * 64
LAYER = f'{{"mediaType":"a","digest":"{DIGEST}","size":1}}'
CONFIG = '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


def manifest(layers: str = f'"layers":[{LAYER}]', more: str = "") -> bytes:
    return (
        f'{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{LAYER},{layers}{more}}}'
    ).encode()


@pytest.fixture(params=["native", "scanned by python", "python"])
def decode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Decode a TOC by the native scanner, or without it."""
    if request.param == "python":
        monkeypatch.setattr(scan, "scan_toc", None)
        monkeypatch.setattr(toc_keys, "has_plain_keys", None)
    elif request.param == "scanned by python":
        monkeypatch.setattr(scan, "scan_toc", None)
    elif scan.scan_toc is None:
        pytest.skip("nothing was compiled")
    return lambda data: decode_toc(data, expected=None, blob_size=1 << 20)


# TOCs


def toc_text(inner: str, more: str = "") -> bytes:
    return f'{{"version":1,"entries":[{{{inner}}}]{more}}}'.encode()


DIR = '"name":"d/","type":"dir","mode":493'
AMBIGUOUS_TOCS = {
    "a name twice": toc_text(f'{DIR},"name":"e/"'),
    "the same name twice": toc_text(f'{DIR},"name":"d/"'),
    "an escaped name": toc_text(f'{DIR},"n\\u0061me":"e/"'),
    "an escaped name first": toc_text('"n\\u0061me":"e/",' + DIR),
    "another case": toc_text(f'{DIR},"Name":"e/"'),
    "another case alone": toc_text('"Name":"d/","name":"d/","type":"dir"'),
    "a mode": toc_text(f'{DIR},"mode":2541'),
    "a mode in capitals": toc_text(f'{DIR},"MODE":2541'),
    "the Kelvin sign": toc_text(f'{DIR},"lin\\u212aName":"x"'),
    "a long s": toc_text(f'{DIR},"\\u017fize":1'),
    "an unknown key twice": toc_text(f'{DIR},"new":1,"new":2'),
    "xattrs": toc_text(f'{DIR},"xattrs":{{}},"xattrs":{{"user.a":"AA=="}}'),
    "an xattr": toc_text(f'{DIR},"xattrs":{{"user.a":"AA==","user.a":"AQ=="}}'),
    "an escaped xattr": toc_text(f'{DIR},"xattrs":{{"user.a":"AA==","user.\\u0061":"AQ=="}}'),
    "entries": toc_text(DIR, ',"entries":[]'),
    "entries in capitals": toc_text(DIR, ',"Entries":[]'),
    "the version": toc_text(DIR, ',"version":1'),
    "a tar-split digest": toc_text(
        DIR, f',"tarSplitDigest":"{DIGEST}","tarSplitDigest":"{DIGEST}"'
    ),
    "below an unknown key": toc_text(f'{DIR},"new":{{"a":1,"a":2}}'),
}


@pytest.mark.parametrize("data", AMBIGUOUS_TOCS.values(), ids=AMBIGUOUS_TOCS)
def test_a_toc(decode: Callable[..., Any], data: bytes) -> None:
    json.loads(data)
    with pytest.raises(BadToc, match=r"twice in one object|some readers ignore the case"):
        decode(data)


def test_honest_tocs(decode: Callable[..., Any]) -> None:
    plain = spelled(raw_entry("d/"), raw_file("d/f", xattrs={"user.a": "AA==", "user.A": "AQ=="}))
    assert len(decode(plain).entries) == 2
    unknown = spelled(raw_entry("d/", new=1), raw_entry("e/", new=2, NumLink=1))
    assert len(decode(unknown).entries) == 2


@pytest.mark.parametrize("reference", reference_layers(), ids=lambda layer: layer.name)
def test_official_producers_say_nothing_twice(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.formats.test_reference_layers import read_layer

    monkeypatch.setattr(scan, "scan_toc", None)
    assert read_layer(reference).toc


def test_no_command_takes_such_a_layer(run: Run, tmp_path: Path) -> None:
    layer = estargz_layer(tar_bytes([file("a", b"text")]))
    bent = with_toc(
        layer, lambda toc: json.dumps(toc).replace('"mode":', '"mode": 2541, "mode":', 1).encode()
    )
    make_layout(tmp_path / "image", [bent])
    for words in (("ls",), ("verify",), ("cat", "a")):
        done = run(words[0], f"oci:{tmp_path}/image", *words[1:])
        assert done.code == 7
        assert "'mode' occurs twice" in done.err


# Manifests, indexes, configs


AMBIGUOUS_MANIFESTS = {
    "layers": manifest(more=',"layers":[]'),
    "escaped layers": manifest(more=',"l\\u0061yers":[]'),
    "layers in capitals": manifest(more=',"Layers":[]'),
    "capitals alone": manifest(layers=f'"layers":[{LAYER}],"ANNOTATIONS":{{}}'),
    "a config": manifest(more=f',"config":{LAYER}'),
    "a digest of a layer": manifest(
        layers=f'"layers":[{{"mediaType":"a","digest":"{DIGEST}","Digest":"{DIGEST}","size":1}}]'
    ),
    "a size twice": manifest(
        layers=f'"layers":[{{"mediaType":"a","digest":"{DIGEST}","size":2,"size":1}}]'
    ),
    "an annotation": manifest(more=',"annotations":{"a":"1","a":"2"}'),
    "an unknown key": manifest(more=',"new":1,"new":2'),
    "below an unknown key": manifest(more=',"new":[{"a":1,"a":2}]'),
}


@pytest.mark.parametrize("data", AMBIGUOUS_MANIFESTS.values(), ids=AMBIGUOUS_MANIFESTS)
def test_a_manifest(data: bytes) -> None:
    json.loads(data)
    with pytest.raises(BadManifest, match=r"twice|some readers ignore the case"):
        decode_manifest(data, None)


def test_honest_manifests() -> None:
    decode_manifest(
        manifest(more=',"annotations":{"Config":"1","config":"2"},"new":{"Size":1}'), None
    )


def test_an_index() -> None:
    entry = f'{{"mediaType":"{OCI_MANIFEST}","digest":"{DIGEST}","size":1,%s}}'
    for inner in (
        '"platform":{"os":"linux","os":"windows","architecture":"amd64"}',
        '"platform":{"os":"linux","OS":"windows","architecture":"amd64"}',
        f'"digest":"{DIGEST}"',
    ):
        data = f'{{"schemaVersion":2,"manifests":[{entry % inner}]}}'.encode()
        with pytest.raises(BadManifest, match=r"twice|some readers ignore the case"):
            decode_manifest(data, None)
        with pytest.raises(BadLayout, match=r"twice|some readers ignore the case"):
            decode_index(data, "index.json")


AMBIGUOUS_CONFIGS = [
    CONFIG[:-1] + ',"os":"windows"}',
    CONFIG[:-1] + ',"OS":"windows"}',
    CONFIG[:-1] + ',"rootfs":{"type":"layers","diff_ids":[]}}',
    CONFIG[:-1] + ',"RootFS":{"type":"layers","diff_ids":[]}}',
    CONFIG.replace('"diff_ids":[]', f'"diff_ids":[],"diff_ids":["{DIGEST}"]'),
    CONFIG.replace('"diff_ids":[]', f'"diff_ids":[],"Diff_IDs":["{DIGEST}"]'),
    CONFIG[:-1] + ',"config":{"User":"1000","User":"0"}}',
    CONFIG[:-1] + ',"config":{"User":"1000","user":"0"}}',
    CONFIG[:-1] + ',"config":{"Labels":{"a":"1","a":"2"}}}',
]


@pytest.mark.parametrize("text", AMBIGUOUS_CONFIGS)
def test_a_config(text: str) -> None:
    with pytest.raises(BadConfig, match=r"twice|some readers ignore the case"):
        decode_config(text.encode())


def test_honest_configs() -> None:
    labels = '"config":{"Labels":{"User":"1","user":"2"},"ArgsEscaped":true,"Domainname":""}'
    legacy = '"docker_version":"20","container_config":{"Cmd":null},"history":[{"created_by":"x"}]'
    assert decode_config(f"{CONFIG[:-1]},{labels},{legacy}}}".encode()).os == "linux"


# The checker itself


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '[{"a":{"b":1,"b":2}}]', '{"":0,"":0}'])
def test_equal_names(text: str) -> None:
    with pytest.raises(AmbiguousKeys):
        check_keys(text)


@pytest.mark.parametrize("text", ["1", "[]", "{}", '{"a":{"a":{"a":[]}}}', '[{"a":1},{"a":1}]'])
def test_sound_documents(text: str) -> None:
    check_keys(text)


def test_deep_documents_end_in_an_error() -> None:
    with pytest.raises((ValueError, RecursionError)):
        check_keys('{"a":' * 100_000)
    with pytest.raises(BadManifest):
        decode_manifest(manifest(more=',"new":' + "[" * 100_000 + "]" * 100_000), None)
