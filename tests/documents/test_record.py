"""The base record and the two witnesses: table D.3 of the contract, every row of it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.errors import BaseCorrupt, BaseDrift, BaseUnresolved, RecordMissing
from lazyfs.documents.manifest import Image, Layer
from lazyfs.documents.manifest_json import decode_manifest
from lazyfs.documents.record import (
    BaseRecord,
    RecordedImage,
    adopted_image,
    compare_witnesses,
    drift_of,
    image_of_identity,
    load_record,
    mounted_image,
    remove_record,
    save_record,
)
from lazyfs.image.identity import layers_value
from lazyfs.store.images import ImageRecord, LayerRecord

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
COUNTER, PAUSE = decode_manifest((REFERENCE / "snapshot-manifest.example.json").read_bytes()).images
OTHER = "sha256:" + "ab" * 32
Identity = dict[str, str]
Change = Callable[[Identity], object]


def identity(image: Image, mount_id: str) -> Identity:
    """Return the attributes of a mount of *image*, as a mount states them."""
    layers = tuple(
        LayerRecord(each.digest, each.size, each.media_type, each.diff_id, OTHER, "estargz")
        for each in image.layers
    )
    record = ImageRecord(
        image.manifest_digest,
        image.manifest_media_type,
        image.config_digest,
        f"{image.platform.os}/{image.platform.architecture}",
        layers,
    )
    values = {
        "schema": "1",
        "manifest.digest": image.manifest_digest,
        "manifest.mediatype": image.manifest_media_type,
        "config.digest": image.config_digest,
        "platform": record.platform,
        "layers": layers_value(record).decode(),
        "ref.requested": image.resolved_ref,
        "ref.resolved": image.resolved_ref,
        "resolved-at": image.resolved_at,
        "mount.id": mount_id,
        "source": "registry",
        "verify": "on-read",
        "health": "ok",
    }
    return {f"user.lazyfs.{name}": value for name, value in values.items()}


def record_of(*images: Image) -> BaseRecord:
    recorded = tuple(
        RecordedImage(image=image, mount_id=f"id-{image.name}", mountpoint=f"/m/{image.name}")
        for image in images or (COUNTER, PAUSE)
    )
    return BaseRecord(1, "counter-1", "2026-11-20T19:40:03Z", recorded)


def identities() -> dict[str, Identity | None]:
    return {image.name: identity(image, f"id-{image.name}") for image in (COUNTER, PAUSE)}


def put(name: str, value: str) -> Change:
    return lambda attributes: attributes.update({f"user.lazyfs.{name}": value})


def drop(name: str) -> Change:
    return lambda attributes: attributes.pop(f"user.lazyfs.{name}")


def change_layer(field: str, value: object) -> Change:
    def change(attributes: Identity) -> None:
        layers = json.loads(attributes["user.lazyfs.layers"])
        layers[0][field] = value
        attributes["user.lazyfs.layers"] = json.dumps(layers)

    return change


# The file


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "base-record.json"
    assert load_record(path) is None
    save_record(path, record_of())
    assert load_record(path) == record_of()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    document = json.loads(path.read_bytes())
    assert document["images"][0]["image"]["originalRef"] == "busybox:latest"
    assert document["images"][0]["mountId"] == "id-counter"
    save_record(path, record_of(COUNTER))
    assert load_record(path) == record_of(COUNTER)


def test_a_record_is_removed_for_good(tmp_path: Path) -> None:
    path = tmp_path / "base-record.json"
    remove_record(path)
    save_record(path, record_of())
    remove_record(path)
    assert load_record(path) is None


def test_what_no_manifest_could_say_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "base-record.json"
    wrong = msgspec.structs.replace(COUNTER, manifest_digest=OTHER)
    with pytest.raises(BaseUnresolved, match=r"images\[0\].image.resolvedRef: got digest"):
        save_record(path, record_of(wrong))
    with pytest.raises(BaseUnresolved, match="a name appears more than once"):
        save_record(path, record_of(COUNTER, COUNTER))
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "base-record.json"
    save_record(path, record_of())
    with pytest.raises(OSError, match=r"base.record"):
        save_record(tmp_path / "none" / "base-record.json", record_of())
    assert load_record(path) == record_of()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"version": 2}',
        b'{"version": 1}',
        b'{"version": 1, "version": 1}',
        b"\xff",
        b"[" * 100_000,
        b"x" * (5 << 20),
    ],
)
def test_a_damaged_record_counts_as_missing_and_says_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "base-record.json"
    path.write_bytes(data)
    with pytest.raises(RecordMissing, match=r"base.record") as caught:
        load_record(path)
    assert caught.value.exit_code == 23


def test_a_truncated_record(tmp_path: Path) -> None:
    path = tmp_path / "base-record.json"
    save_record(path, record_of())
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(RecordMissing):
            load_record(path)


# The table


def test_both_there_and_equal() -> None:
    found = compare_witnesses(record_of(), identities())
    assert [image.name for image in found] == ["counter", "pause"]
    assert found == (COUNTER, PAUSE)
    assert {image.source for image in found} == {"xattr+record"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("mount.id", "another"), "mount.id: got another, expected id-counter"),
        (put("manifest.digest", OTHER), f"manifest.digest: got {OTHER}, expected sha256:4ed"),
        (put("config.digest", OTHER), "config.digest"),
        (put("index.digest", OTHER), "index.digest"),
        (put("platform", "linux/arm64"), "platform: got linux/arm64, expected linux/amd64"),
        (put("platform", "?"), "platform"),
        (put("ref.resolved", f"busybox@{OTHER}"), "ref.resolved"),
        (put("ref.resolved", "busybox:latest"), "ref.resolved"),
        (put("layers", "[]"), "layers: got 0, expected 1"),
        (change_layer("digest", OTHER), r"layers\[0\]"),
        (change_layer("diffId", OTHER), r"layers\[0\]"),
        (change_layer("size", 1), r"layers\[0\]"),
        (change_layer("mediaType", "x"), r"layers\[0\]"),
        (drop("manifest.digest"), "manifest.digest: got none"),
        (drop("mount.id"), "mount.id: got none"),
        (drop("layers"), "layers: got none"),
        (drop("ref.resolved"), "ref.resolved: got none"),
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_both_there_and_different(change: Change, message: str, allow: bool) -> None:
    witnesses = identities()
    assert witnesses["counter"] is not None
    change(witnesses["counter"])
    with pytest.raises(BaseDrift, match=f"counter: {message}") as caught:
        compare_witnesses(record_of(), witnesses, allow_dead_mount=allow)
    assert caught.value.exit_code == 22
    assert caught.value.details["container"] == "counter"


def test_the_record_there_and_a_mount_dead_or_gone() -> None:
    for dead in (None, {}, identity(COUNTER, "id-counter")):
        if dead:
            put("health", "unknown: the server has ended")(dead)
        witnesses = identities() | {"counter": dead}
        with pytest.raises(BaseUnresolved, match="/m/counter is dead or gone") as no:
            compare_witnesses(record_of(), witnesses)
        assert no.value.exit_code == 23
        found = compare_witnesses(record_of(), witnesses, allow_dead_mount=True)
        assert [image.source for image in found] == ["record", "xattr+record"]
    del witnesses["counter"]  # not even asked
    with pytest.raises(BaseUnresolved):
        compare_witnesses(record_of(), witnesses)


def test_the_record_missing_and_the_mounts_there() -> None:
    with pytest.raises(RecordMissing, match="base record of counter, pause is missing") as caught:
        compare_witnesses(None, identities(), allow_dead_mount=True)
    assert (caught.value.code, caught.value.exit_code) == ("E_RECORD_MISSING", 23)


@pytest.mark.parametrize("witnesses", [{}, {"counter": None, "pause": None}])
def test_both_missing(witnesses: dict[str, None]) -> None:
    with pytest.raises(BaseUnresolved, match="neither a record nor a live mount") as caught:
        compare_witnesses(None, witnesses, allow_dead_mount=True)
    assert (caught.value.code, caught.value.exit_code) == ("E_BASE_UNRESOLVED", 23)


@pytest.mark.parametrize("record", [None, record_of()])
@pytest.mark.parametrize("health", [f"corrupt {OTHER}", "", "OK", "sick"])
@pytest.mark.parametrize("allow", [False, True])
def test_any_record_and_ill_health(record: BaseRecord | None, health: str, allow: bool) -> None:
    witnesses = identities()
    assert witnesses["pause"] is not None
    put("health", health)(witnesses["pause"])
    with pytest.raises(BaseCorrupt, match="pause: health of the mount is") as caught:
        compare_witnesses(record, witnesses, allow_dead_mount=allow)
    assert caught.value.exit_code == 21


def test_a_mount_that_the_record_does_not_know() -> None:
    witnesses = identities() | {"web": identity(COUNTER, "x")}
    with pytest.raises(BaseDrift, match="it has counter, pause, but not web"):
        compare_witnesses(record_of(), witnesses)


def test_what_was_assumed_once_stays_an_assumption() -> None:
    assumed = msgspec.structs.replace(COUNTER, source="assumed")
    inherited = msgspec.structs.replace(PAUSE, source="inherited")
    found = compare_witnesses(record_of(assumed, inherited), identities())
    assert [image.source for image in found] == ["assumed", "xattr+record"]
    assert found[0].original_ref == "busybox:latest"


def test_what_may_differ() -> None:
    """A mount by digest knows of no index; lists of layers that are too long are only hashed."""
    (counter, _) = record_of().images
    attributes = identity(COUNTER, "id-counter")
    put("index.digest", str(COUNTER.index_digest))(attributes)
    put("platform", "linux/x86_64")(attributes)
    put("ref.requested", "something:else")(attributes)
    assert drift_of(counter, attributes) == []
    drop("layers")(attributes)
    put("layers.digest", OTHER)(attributes)
    assert drift_of(counter, attributes) == []


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(identity(COUNTER, "id-counter"))),
    st.text(max_size=20) | st.just('[{"digest": 1}]') | st.just("[" * 5000),
)
def test_an_attribute_with_anything_in_it(name: str, value: str) -> None:
    """Never an exception that is not ours; never an image that differs."""
    attributes = identity(COUNTER, "id-counter") | {name: value}
    try:
        (found,) = compare_witnesses(record_of(COUNTER), {"counter": attributes})
    except (BaseCorrupt, BaseDrift, BaseUnresolved):
        return
    assert found == COUNTER


# What a mount says of itself


def test_the_image_of_an_identity() -> None:
    attributes = identity(PAUSE, "x")
    put("index.digest", str(PAUSE.index_digest))(attributes)
    assert image_of_identity("pause", attributes, PAUSE.original_ref) == PAUSE
    plain = image_of_identity("counter", identity(COUNTER, "x"), "busybox:latest")
    assert plain == msgspec.structs.replace(COUNTER, index_digest=None)
    assert plain.source == "xattr+record"


def test_what_a_mount_by_the_manifest_says_of_an_index() -> None:
    """It says nothing of it: who was started on the image knows, or the pin itself."""
    pinned = msgspec.structs.replace(COUNTER, original_ref=f"busybox@{OTHER}", index_digest=OTHER)
    attributes = identity(COUNTER, "x")
    assert attributes.pop("user.lazyfs.index.digest", None) in (None, COUNTER.index_digest)
    wanted = msgspec.structs.replace(pinned, pinned=True)
    assert mounted_image(wanted, attributes) == wanted
    assert adopted_image("counter", attributes, wanted.original_ref) == wanted
    own = f"busybox@{COUNTER.manifest_digest}"
    assert adopted_image("counter", attributes, own).index_digest is None
    with pytest.raises(BaseUnresolved, match="'b' is not a digest: it does not begin with sha256:"):
        adopted_image("counter", attributes, "a@b")


def test_layers_that_are_too_many_for_an_attribute() -> None:
    attributes = identity(COUNTER, "x")
    drop("layers")(attributes)
    with pytest.raises(BaseUnresolved, match="lists the layers"):
        image_of_identity("counter", attributes, "busybox")
    layers = (Layer(OTHER, OTHER, "x", 3),)
    assert image_of_identity("counter", attributes, "busybox", layers=layers).layers == layers


@pytest.mark.parametrize(
    ("change", "ref", "message"),
    [
        (drop("manifest.digest"), "a", "the mount has no user.lazyfs.manifest.digest"),
        (drop("platform"), "a", "the mount has no user.lazyfs.platform"),
        (put("platform", "a b"), "a", "platform 'a b' is not of the form OS/ARCH"),
        (put("layers", "{"), "a", "user.lazyfs.layers: not valid JSON"),
        (put("layers", '[{"digest": 1}]'), "a", "user.lazyfs.layers: layers"),
        (put("manifest.digest", OTHER), "a", "resolvedRef: got digest"),
        (put("x", "y"), "a@b", "'b' is not a digest: it does not begin with sha256:"),
        (put("x", "y"), f"a@{OTHER}", "originalRef: got digest"),
    ],
)
def test_an_identity_that_cannot_be(change: Change, ref: str, message: str) -> None:
    attributes = copy.deepcopy(identity(COUNTER, "x"))
    change(attributes)
    with pytest.raises(BaseUnresolved, match=message):
        image_of_identity("counter", attributes, ref)


def test_a_record_names_no_secrets(tmp_path: Path) -> None:
    """Only what a manifest may have is in it."""
    path = tmp_path / "base-record.json"
    save_record(path, record_of())
    document: dict[str, Any] = json.loads(path.read_bytes())
    assert set(document) == {"version", "sandboxId", "createdAt", "images"}
    assert set(document["images"][0]) == {"image", "mountId", "mountpoint"}
