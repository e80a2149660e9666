"""What sandboxes need of the store: their images and layers stay while the sandboxes are there.

``pins/<name>`` is JSON: a sandbox's folder, and the manifests of its images.  It is written before
the images are mounted, and counts as long as that folder is there, so that a sandbox that was
removed by other means holds nothing.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, parse_digest
from lazyfs.documents.durable import put_file
from lazyfs.errors import FormatError
from lazyfs.store.content.regular import open_regular
from lazyfs.store.images import load_record
from lazyfs.store.paths import Store, store_error

FILE_LIMIT = 1 << 20
PIN_VERSION = 1


class Pin(msgspec.Struct, frozen=True, rename="camel"):
    """The sandbox in the folder ``holder``, and the digests of the manifests that it needs."""

    holder: str
    manifests: tuple[str, ...]
    version: int = PIN_VERSION

    @property
    def sandbox_id(self) -> str:
        """What the sandbox is called."""
        return os.path.basename(self.holder)

    @property
    def is_stale(self) -> bool:
        """Whether the sandbox is gone."""
        return not os.path.isdir(self.holder)


def save_pin(store: Store, holder: Path, manifests: Iterable[str]) -> None:
    """Keep what the sandbox in the folder *holder* needs, in place of what it needed before.

    On the disk when this returns.  Raises StoreError.
    """
    path, temporary = _path(store, holder), store.temporary()
    pin = Pin(str(holder), tuple(sorted(set(manifests))))
    try:
        store.pins.mkdir(mode=0o700, exist_ok=True)
        put_file(path, msgspec.json.encode(pin), temporary, mode=0o666)
    except OSError as exc:
        raise store_error(path, exc) from exc


def remove_pin(store: Store, holder: Path) -> None:
    """Let go of what a sandbox needed; nothing to do where nothing is kept.  Raises StoreError."""
    path = _path(store, holder)
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise store_error(path, exc) from exc


def pinned_images(store: Store) -> dict[str, list[str]]:
    """Return the ids of the sandboxes that need an image, by manifest digest."""
    found: dict[str, list[str]] = {}
    for _, pin in _pins(store):
        if pin is not None and not pin.is_stale:
            for manifest in pin.manifests:
                found.setdefault(manifest, []).append(pin.sandbox_id)
    return {manifest: sorted(ids) for manifest, ids in found.items()}


def pinned_layers(store: Store) -> dict[str, list[str]]:
    """Return the ids of the sandboxes that need a layer, by TOC digest."""
    found: dict[str, set[str]] = {}
    for manifest, ids in pinned_images(store).items():
        try:
            record = load_record(store.image_path(parse_digest(manifest)))
        except FormatError:
            continue
        for layer in () if record is None else record.layers:
            found.setdefault(layer.toc_digest, set()).update(ids)
    return {toc: sorted(ids) for toc, ids in found.items()}


def holders_of_layer(store: Store, toc_digest: Digest) -> list[str]:
    """Return the ids of the sandboxes that need one layer."""
    return pinned_layers(store).get(str(toc_digest), [])


def stale_pins(store: Store) -> list[Path]:
    """Return the files of sandboxes that are gone, and those that cannot be read."""
    return [path for path, pin in _pins(store) if pin is None or pin.is_stale]


def _pins(store: Store) -> Iterator[tuple[Path, Pin | None]]:
    for path in sorted(store.pins.glob("*")):
        try:
            with open_regular(path) as file:
                pin = msgspec.json.decode(file.read(FILE_LIMIT), type=Pin)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            yield path, None
            continue
        yield path, pin if pin.version == PIN_VERSION else None


def _path(store: Store, holder: Path) -> Path:
    """Sandboxes of several state directories may share an id, and the store."""
    name = hashlib.sha256(os.fsencode(holder)).hexdigest()[:16]
    return store.pins / f"{holder.name}-{name}"
