"""Which entries of an index are tried for a platform, and in which order."""

import json

import pytest
from msgspec.structs import replace

from lazyfs.digest import digest_of
from lazyfs.oci.choosing import FEATURES, no_platform, rank
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    decode_manifest,
)
from lazyfs.oci.platforms import Platform, normalise, parse_platform

AMD64 = Platform("linux", "amd64")


def entry(number: int, platform: str | None = None, media_type: str = OCI_MANIFEST) -> Descriptor:
    """Return a descriptor of its own digest."""
    found = None if platform is None else normalise(*platform.split("/"))
    return Descriptor(media_type, digest_of(b"%d" % number), 7, {}, found)


def described(number: int) -> dict:
    return {"mediaType": OCI_MANIFEST, "digest": str(digest_of(b"%d" % number)), "size": 7}


def decode_index(entries: list[dict]) -> Index:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    index = decode_manifest(json.dumps(document).encode(), None)
    assert isinstance(index, Index)
    return index


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/386"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64/v3", ["linux/386", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 2),
        ("linux/amd64/v3", ["linux/386", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm/v8"], 1),
        ("linux/arm64/v9", ["linux/arm/v7", "linux/arm64"], 1),
        ("linux/arm64/v9", ["linux/arm64/v8.6", "linux/arm64", "linux/arm64/v8.5"], 2),
        ("linux/arm64/v9.2", ["linux/arm64/v8.8", "linux/arm64/v8.6", "linux/arm64/v8.7"], 2),
        ("linux/arm64/v9.7", ["linux/arm64", "linux/arm64/v8.9", "linux/arm64/v9.6"], 2),
        ("linux/arm64", ["linux/arm64/v8.1", "linux/arm64/v8.0"], 1),
        ("linux/arm64/v9.0", ["linux/arm64/v8", "linux/arm64/v9"], 1),
        ("linux/arm64/v8.2", ["linux/arm64", "linux/arm64/v8.1"], 1),
        ("linux/arm64/v8.2", ["linux/arm/v7", "linux/arm64"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/386", ["linux/amd64", "linux/386"], 1),
        ("linux/amd64", ["unknown/unknown", "windows/amd64", "linux/amd64"], 2),
    ],
)
def test_choose(wanted, offered, expected):
    entries = [entry(number, text) for number, text in enumerate(offered)]
    assert rank(entries, parse_platform(wanted))[0] is entries[expected]


def test_foreign_spellings_in_an_index():
    data = {"os": "Linux", "architecture": "x86_64"}
    (found,) = decode_index([described(1) | {"platform": data}]).manifests
    assert rank([found], Platform("linux", "amd64")) == [found]


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", ["linux/arm64", "windows/amd64"]),
        ("linux/arm/v6", ["linux/arm/v7"]),
        ("linux/386", ["linux/amd64"]),
        ("linux/amd64", ["linux/amd64/v2"]),
        ("linux/amd64", []),
    ],
)
def test_nothing_fits(wanted, offered):
    names = [*offered, "unknown/unknown"]
    entries = tuple(entry(number, text) for number, text in enumerate(names))
    assert rank(entries, parse_platform(wanted)) == []
    error = no_platform(entries, parse_platform(wanted))
    for text in offered:
        assert text in str(error)
    assert "unknown" not in str(error)


def test_who_says_nothing_comes_after_who_matches_and_indexes_last() -> None:
    nested = entry(1, media_type=OCI_INDEX)
    silent, older = entry(2), entry(3, "linux/386")
    exact, foreign = entry(4, "linux/amd64"), entry(5, "linux/arm64")
    assert rank([nested, silent, older, foreign, exact], AMD64) == [exact, older, silent, nested]


def test_an_index_for_the_platform_is_as_good_as_a_manifest() -> None:
    nested, plain = entry(1, "linux/amd64", DOCKER_INDEX), entry(2, "linux/amd64", DOCKER_MANIFEST)
    assert rank([nested, plain], AMD64) == [nested, plain]


@pytest.mark.parametrize(
    "other",
    [
        {"artifactType": "application/spdx+json"},
        {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        {"platform": {"os": "unknown", "architecture": "unknown"}},
        {"platform": {"architecture": "unknown"}},
        {"mediaType": "application/vnd.example.thing.v1+json"},
        {"platform": {"os": "linux", "architecture": "amd64", "os.features": ["erofs"]}},
        {"platform": {"os.features": ["erofs"]}},
    ],
)
def test_what_is_no_image_or_demands_something_is_never_taken(other: dict) -> None:
    index = decode_index([described(1) | other, described(2)])
    assert rank(index.manifests, AMD64) == [index.manifests[1]]
    assert rank(index.manifests[:1], AMD64) == []


def test_a_feature_that_is_there_may_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    wanting = replace(entry(1, "linux/amd64"), os_features=("erofs",))
    assert rank([wanting], AMD64) == []
    assert "linux/amd64 (needs erofs)" in str(no_platform([wanting], AMD64))
    monkeypatch.setattr("lazyfs.oci.choosing.FEATURES", FEATURES | {"erofs"})
    assert rank([wanting], AMD64) == [wanting]


def test_an_entry_without_a_media_type_is_looked_into() -> None:
    plain = entry(1, "linux/amd64", "")
    assert rank([plain], AMD64) == [plain]


@pytest.mark.parametrize(
    "artifact_type",
    [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        "",
    ],
)
def test_an_image_may_be_called_by_the_type_of_its_config(artifact_type: str) -> None:
    index = decode_index([described(1) | {"artifactType": artifact_type}])
    assert rank(index.manifests, AMD64) == [*index.manifests]


@pytest.mark.parametrize("system", [{}, {"os": None}, {"os": ""}, {"os.version": "6.1"}])
def test_an_architecture_alone_is_linuxs(system: dict) -> None:
    platform = system | {"architecture": "arm64", "variant": None, "os.features": None}
    index = decode_index([described(1) | {"platform": platform}])
    assert index.manifests[0].platform == Platform("linux", "arm64")


def test_versions_of_systems_do_not_count() -> None:
    """Linux has none to compare; containerd compares those of Windows only."""
    versions = [{"os": "linux", "architecture": "amd64", "os.version": text} for text in "12"]
    index = decode_index([described(n) | {"platform": each} for n, each in enumerate(versions)])
    assert rank(index.manifests, AMD64) == [*index.manifests]


@pytest.mark.parametrize(
    "platform",
    [{}, {"os": "", "architecture": ""}, {"os": None, "architecture": None}, None],
)
def test_an_empty_platform_is_none(platform: dict | None) -> None:
    index = decode_index([described(1) | {"platform": platform}])
    assert index.manifests[0].platform is None
