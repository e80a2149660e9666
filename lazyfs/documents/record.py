"""The base record: which images a sandbox was started on, written down before its processes start.

At a checkpoint it is the second witness beside the live mounts; ``compare_witnesses`` refuses
unless they agree.  Contract: docs/reference/snapshot-manifest.md, "Two witnesses".
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents.documents import canonical, cut, make, parse_json, quote
from lazyfs.documents.durable import put_file, sync_path
from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseDrift,
    BaseUnresolved,
    RecordMissing,
    SnapshotError,
)
from lazyfs.documents.journal import SandboxBroken
from lazyfs.documents.manifest import MEANINGS, Image, Layer, Platform, Time
from lazyfs.documents.manifest_rules import image_faults
from lazyfs.documents.own import read_own
from lazyfs.errors import UsageError
from lazyfs.oci.platforms import BadPlatform, parse_platform
from lazyfs.oci.reference import parse_reference

RECORD_VERSION = 1
RECORD_LIMIT = 4 << 20  # bytes; a manifest of 1 MiB names fewer images
ATTRIBUTE_PREFIX = "user.lazyfs."
HEALTHY = "ok"
TRANSIENT = ("unavailable since ", "unstored since ")
INDEX_DIGEST = f"{ATTRIBUTE_PREFIX}index.digest"
SERVER_ENDED = "unknown"  # "unknown: …" is what a mount says of itself that nobody serves


class RecordedImage(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """An image with the mount that it was seen on; ``mount_id`` is that mount's alone."""

    image: Image
    mount_id: str
    mountpoint: str


class BaseRecord(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The images of a sandbox; ``created_at`` is RFC 3339, UTC."""

    version: int
    sandbox_id: str
    created_at: Time
    images: tuple[RecordedImage, ...]


class _Attributes(msgspec.Struct, frozen=True, rename="camel"):
    layers: tuple["_Layer", ...]


class _Layer(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    diff_id: str
    media_type: str
    size: int


def save_record(path: Path, record: BaseRecord, *, is_synced: bool = True) -> None:
    """Write *record*: all of it or nothing, on the disk when this returns, if *is_synced*.

    Raises BaseUnresolved for what no manifest could say; OSError.
    """
    data = canonical(msgspec.to_builtins(record))
    _decode(data, BaseUnresolved)
    put_file(path, data, path.with_name(f".{path.name}.{os.getpid()}"), is_synced=is_synced)


def load_record(path: Path) -> BaseRecord | None:
    """Return the record, None if there is none.  Raises RecordMissing for one that is damaged."""
    try:
        data = read_own(path, RECORD_LIMIT + 1)
    except FileNotFoundError:
        return None
    except SandboxBroken as error:
        raise RecordMissing(error.message, hint=error.hint) from error
    if len(data) > RECORD_LIMIT:
        raise RecordMissing(f"{path} is longer than {RECORD_LIMIT} bytes: it is not a base record")
    return _decode(data, RecordMissing)


def remove_record(path: Path) -> None:
    """Remove the record, for good when this returns; nothing to do where there is none."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_path(path.parent)


def image_of_identity(
    name: str,
    attributes: Mapping[str, str],
    original_ref: str,
    *,
    layers: tuple[Layer, ...] | None = None,
) -> Image:
    """Return the image that a mount says it is of; *attributes* by full name.

    *layers* stand in where the list is too long for an attribute.  Raises BaseUnresolved.
    """
    values = {
        key.removeprefix(ATTRIBUTE_PREFIX): value
        for key, value in attributes.items()
        if key.startswith(ATTRIBUTE_PREFIX)
    }

    def value(key: str) -> str:
        if key not in values:
            raise _unresolved(name, f"the mount has no {ATTRIBUTE_PREFIX}{key}")
        return values[key]

    stated = _layers(name, values) or layers
    if stated is None:
        raise _unresolved(name, "neither the mount nor its image lists the layers")
    try:
        platform = parse_platform(value("platform"))
        is_pinned = parse_reference(original_ref).digest is not None
    except UsageError as exc:
        raise _unresolved(name, exc.message) from exc
    image = Image(
        name=name,
        original_ref=original_ref,
        resolved_ref=value("ref.resolved"),
        pinned=is_pinned,
        platform=Platform(platform.os, platform.architecture, platform.variant or msgspec.UNSET),
        index_digest=values.get("index.digest"),
        manifest_digest=value("manifest.digest"),
        manifest_media_type=value("manifest.mediatype"),
        config_digest=value("config.digest"),
        layers=stated,
        resolved_at=value("resolved-at"),
        source="xattr+record",
    )
    for fault in image_faults(image, name):
        raise _unresolved(name, cut(fault))
    return image


def mounted_image(image: Image, attributes: Mapping[str, str]) -> Image:
    """Return what a mount says that it is of, in the words of *image*, which it should be.

    A mount by the manifest's digest knows of no index: which one it was chosen from is not its to
    say.
    """
    if image.index_digest is not None:
        attributes = {INDEX_DIGEST: image.index_digest, **attributes}
    return image_of_identity(image.name, attributes, image.original_ref, layers=image.layers)


def adopted_image(name: str, attributes: Mapping[str, str], original_ref: str) -> Image:
    """Return what a mount says that it is of, where nobody else is left to ask.

    A pin that is not the manifest's digest is that of the index it was chosen from.  Raises
    BaseUnresolved.
    """
    try:
        pinned = parse_reference(original_ref).digest
    except UsageError as exc:
        raise _unresolved(name, exc.message) from exc
    manifest = attributes.get(f"{ATTRIBUTE_PREFIX}manifest.digest")
    if pinned is not None and str(pinned) != manifest:
        attributes = {INDEX_DIGEST: str(pinned), **attributes}
    return image_of_identity(name, attributes, original_ref)


def compare_witnesses(
    record: BaseRecord | None,
    identities: Mapping[str, Mapping[str, str] | None],
    *,
    allow_dead_mount: bool = False,
) -> tuple[Image, ...]:
    """Return the images that the record and the live mounts agree on, as a manifest has them.

    *identities*: container's name → attributes of its mount by full name, None where the mount is
    dead or gone.  Raises BaseCorrupt, RecordMissing, BaseUnresolved, BaseDrift.
    """
    alive = {name: each for name, each in identities.items() if each and not _is_dead(each)}
    for name, attributes in sorted(alive.items()):
        _check_health(name, attributes)
    if record is None:
        if alive:
            raise RecordMissing(
                f"the base record of {', '.join(sorted(alive))} is missing",
                hint="the mounts state their images, but no record confirms that the sandbox "
                "started "
                "on these",
                details={"containers": sorted(alive)},
            )
        raise BaseUnresolved("base image: there is neither a record nor a live mount")
    recorded = {each.image.name: each for each in record.images}
    if surplus := sorted(identities.keys() - recorded.keys()):
        raise BaseDrift(
            f"base record: it has {', '.join(sorted(recorded))}, but not {', '.join(surplus)}",
            details={"containers": surplus},
        )
    return tuple(
        _agreed(each, alive.get(name), allow_dead_mount=allow_dead_mount)
        for name, each in sorted(recorded.items())
    )


def drift_of(recorded: RecordedImage, attributes: Mapping[str, str]) -> list[str]:
    """Return where a mount differs from the record: "what: got …, expected …" each."""
    image = recorded.image
    platform = image.platform
    expected: dict[str, Any] = {
        "mount.id": recorded.mount_id,
        "manifest.digest": image.manifest_digest,
        "config.digest": image.config_digest,
        "platform": "/".join(
            filter(None, (platform.os, platform.architecture, platform.variant or ""))
        ),
    }
    # A mount made by the manifest's digest knows of no index.
    if INDEX_DIGEST in attributes and image.index_digest is not None:
        expected["index.digest"] = image.index_digest
    faults = []
    for key, wanted in expected.items():
        got = attributes.get(ATTRIBUTE_PREFIX + key)
        if got is None or _plain(key, got) != _plain(key, wanted):
            faults.append(f"{key}: got {got or 'none'}, expected {wanted}")
    resolved = attributes.get(f"{ATTRIBUTE_PREFIX}ref.resolved", "").rpartition("@")[2]
    if resolved != image.manifest_digest:
        faults.append(f"ref.resolved: got {resolved or 'none'}, expected {image.manifest_digest}")
    values = {key.removeprefix(ATTRIBUTE_PREFIX): value for key, value in attributes.items()}
    stated = _layers(image.name, values)
    if stated is not None:
        return faults + _layer_faults(stated, image.layers)
    if "layers.digest" not in values:  # the list itself is covered by the two digests above
        faults.append(f"layers: got none, expected {len(image.layers)}")
    return faults


def _agreed(
    recorded: RecordedImage, attributes: Mapping[str, str] | None, *, allow_dead_mount: bool
) -> Image:
    image = recorded.image
    if attributes is None:
        if not allow_dead_mount:
            raise BaseUnresolved(
                f"{image.name}: the mount of {image.resolved_ref} on"
                f" {recorded.mountpoint} is dead or gone",
                hint="the sandbox may have seen read errors;"
                " --allow-dead-mount relies on the record alone",
                details={"container": image.name, "mountpoint": recorded.mountpoint},
            )
        return _known_by(image, "record")
    if faults := drift_of(recorded, attributes):
        raise BaseDrift(
            f"{image.name}: {faults[0]}",
            hint="this is not the mount that the sandbox was started on",
            details={"container": image.name, "differences": faults},
        )
    return _known_by(image, "xattr+record")


def _known_by(image: Image, source: str) -> Image:
    """Return *image* with its source; what somebody once assumed stays an assumption."""
    return image if image.source == "assumed" else msgspec.structs.replace(image, source=source)


def _is_dead(attributes: Mapping[str, str]) -> bool:
    """Say whether nobody serves the mount, though the kernel still shows what it is of."""
    health = attributes.get(f"{ATTRIBUTE_PREFIX}health", SERVER_ENDED)
    return health.partition(":")[0] == SERVER_ENDED


def is_sound(health: str) -> bool:
    """Say whether a mount of this *health* has met no wrong bytes.

    One whose registry is away, or whose store takes nothing, hands out right bytes or none.
    """
    return health == HEALTHY or health.startswith(TRANSIENT)


def _check_health(name: str, attributes: Mapping[str, str]) -> None:
    health = attributes[f"{ATTRIBUTE_PREFIX}health"]
    if not is_sound(health):
        raise BaseCorrupt(
            f"{name}: health of the mount is {quote(health)}, not {quote(HEALTHY)}",
            hint="the sandbox may have seen read errors",
            details={"container": name, "health": health},
        )


def _plain(key: str, text: str) -> str:
    """Return *text* in its one spelling."""
    if key != "platform":
        return text
    try:
        return str(parse_platform(text))
    except BadPlatform:
        return text


def _layers(name: str, values: Mapping[str, str]) -> tuple[Layer, ...] | None:
    """Return the layers that a mount states; None where the list is too long for it to state."""
    if "layers" not in values:
        return None

    def complain(text: str) -> SnapshotError:
        return _unresolved(name, f"{ATTRIBUTE_PREFIX}layers: {text}")

    document = {"layers": parse_json(values["layers"].encode(errors="replace"), complain)}
    stated = make(_Attributes, document, complain, MEANINGS)
    return tuple(
        Layer(layer.digest, layer.diff_id, layer.media_type, layer.size) for layer in stated.layers
    )


def _layer_faults(got: tuple[Layer, ...], expected: tuple[Layer, ...]) -> list[str]:
    if len(got) != len(expected):
        return [f"layers: got {len(got)}, expected {len(expected)}"]
    return [
        f"layers[{place}]: got {quote(msgspec.to_builtins(one))},"
        f" expected {quote(msgspec.to_builtins(other))}"
        for place, (one, other) in enumerate(zip(got, expected, strict=True))
        if one != other
    ]


def _unresolved(name: str, text: str) -> BaseUnresolved:
    return BaseUnresolved(f"{name}: {text}", details={"container": name})


def _decode(data: bytes, error: type[SnapshotError]) -> BaseRecord:
    def complain(text: str) -> SnapshotError:
        return error(f"base record: {text}")

    document = parse_json(data, complain)
    version = document.get("version") if isinstance(document, dict) else None
    if version != RECORD_VERSION:
        raise complain(f"version: got {quote(version)}, expected {RECORD_VERSION}")
    record = make(BaseRecord, document, complain, MEANINGS)
    names = [each.image.name for each in record.images]
    if len(set(names)) != len(names):
        raise complain(f"images: a name appears more than once: {', '.join(sorted(names))}")
    for place, each in enumerate(record.images):
        for fault in image_faults(each.image, f"images[{place}].image"):
            raise complain(cut(fault))
    return record
