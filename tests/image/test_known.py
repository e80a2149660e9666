"""Finding what is on this machine, by any name, with nothing asked of anybody."""

from pathlib import Path

import pytest

from lazyfs.image.known import known_images, note_name, spell
from lazyfs.oci.reference import parse_reference
from lazyfs.store.images import load_record
from lazyfs.store.names import NameRecord, load_names, names_of, save_name
from lazyfs.store.paths import Store
from lazyfs.store.profiles import Profile, save_profile
from tests.support.formats.layers import make_layer
from tests.support.mounts.stores import KeptImage, keep_image


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def images(store: Store) -> tuple[KeptImage, KeptImage]:
    """The same tag for two platforms."""
    layer = make_layer([10])
    name = "docker.io/library/python:3.12"
    one = keep_image(store, layer, name=name)
    other = keep_image(store, layer, make_layer([10], seed=1), name=name, platform="linux/arm64")
    return one, other


@pytest.mark.parametrize(
    "spelling",
    [
        *("python:3.12", "docker://python:3.12", "docker.io/library/python:3.12"),
        "index.docker.io/python:3.12",
    ],
)
def test_by_name(store: Store, images: tuple[KeptImage, KeptImage], spelling: str) -> None:
    assert known_images(store, spelling) == sorted(str(each.manifest) for each in images)


@pytest.mark.parametrize("spelling", ["{}", "{:.13}", "{hex}", "{hex:.6}", "python@{}", "x:1@{}"])
def test_by_digest(store: Store, images: tuple[KeptImage, KeptImage], spelling: str) -> None:
    digest = images[0].manifest
    assert known_images(store, spelling.format(str(digest), hex=digest.hex)) == [str(digest)]


def test_by_the_digest_of_an_index(store: Store, images: tuple[KeptImage, KeptImage]) -> None:
    for image in images:
        assert known_images(store, f"python@{image.index}") == [str(image.manifest)]
        assert known_images(store, image.index.hex) == [str(image.manifest)]


@pytest.mark.parametrize(
    "text",
    [
        *("python", "python:3.13", "other/python:3.12", "", "Bad Name", "oci:", "\0", "abcde"),
        *(
            "sha256:",
            "sha256:zz",
            "python@sha256:" + "0" * 64,
            "f" * 64,
            "python:3.12@sha256:123456",
        ),
    ],
)
def test_what_is_not_here(store: Store, images: tuple[KeptImage, KeptImage], text: str) -> None:
    assert known_images(store, text) == []


def test_a_tag_that_looks_like_a_digest_is_a_tag(store: Store) -> None:
    one = keep_image(store, make_layer([10]), name="one")
    tag = one.manifest.hex[:8]
    assert known_images(store, f"python:{tag}") == []
    other = keep_image(store, make_layer([10]), name=f"docker.io/library/python:{tag}")
    assert known_images(store, f"python:{tag}") == [str(other.manifest)]


def test_a_profile_alone_is_known_too(store: Store) -> None:
    image = keep_image(store, make_layer([10]), name="docker.io/library/x:1")
    save_profile(store, image.manifest, Profile(str(image.manifest), 1, (), ()))
    store.discard(store.image_path(image.manifest))
    assert known_images(store, "x:1") == known_images(store, image.manifest.hex[:9])
    assert known_images(store, "x:1") == [str(image.manifest)]


def test_a_tag_that_has_moved_means_the_new_image(store: Store) -> None:
    old = keep_image(store, make_layer([10]), name="docker.io/library/x:1")
    new = keep_image(
        store, make_layer([10]), make_layer([10], seed=1), name="docker.io/library/x:1"
    )
    assert old.manifest != new.manifest
    assert known_images(store, "x:1") == [str(new.manifest)]
    assert names_of(store) == {str(new.manifest): ["docker.io/library/x:1"]}


def test_names_of_layouts_are_absolute(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = keep_image(store, make_layer([10]))
    record = load_record(store.image_path(image.manifest))
    assert record is not None
    monkeypatch.chdir(tmp_path)
    note_name(store, parse_reference("oci:a/../images:tag"), record, None)
    (known,) = load_names(store)
    assert known.name == f"oci:{tmp_path}/images:tag"
    assert known_images(store, f"oci:{tmp_path}/images:tag") == [str(image.manifest)]
    assert known_images(store, "oci:images") == []


def test_only_tags_are_noted_and_only_what_is_text(store: Store) -> None:
    image = keep_image(store, make_layer([10]))
    record = load_record(store.image_path(image.manifest))
    assert record is not None
    note_name(store, parse_reference(f"python@{image.manifest}"), record, None)
    note_name(store, parse_reference(f"python:1@{image.manifest}"), record, None)
    note_name(store, parse_reference("oci:/\udcff"), record, None)
    assert load_names(store) == []
    assert spell(parse_reference("python")) == "docker.io/library/python:latest"


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"\xff", b'{"name":"a","platform":"b","manifest_digest":"c"}', b"[" * 9999]
)
def test_what_is_no_record_is_left_out(store: Store, junk: bytes) -> None:
    save_name(store, NameRecord("a", "b", f"sha256:{'0' * 64}"))
    (store.names / ("0" * 64)).write_bytes(junk)
    assert [record.name for record in load_names(store)] == ["a"]
