"""Removing and emptying what nothing uses, and no sandbox needs.

Whoever has the exclusive lock of a layer may change anything below its folder.  Pins are looked at
under that lock: who pins an image opens its layers afterwards, and finds what is left of them.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lazyfs.digest import Digest
from lazyfs.errors import StoreError
from lazyfs.store.content.presence import HEADER_SIZE, write_marks
from lazyfs.store.names import remove_names
from lazyfs.store.paths import Store, store_error
from lazyfs.store.pins import holders_of_layer, pinned_images
from lazyfs.store.signatures import unneeded_signatures
from lazyfs.store.upkeep.documents import config_of, documents_of
from lazyfs.store.usage import BLOCK, images_in, tree_size


class LayerInUse(StoreError):
    """A live mount, or a command that runs, uses the layer."""


class Pinned(LayerInUse):
    """A sandbox needs the image, or the layer."""

    code = "E_PINNED"


def remove_layer(store: Store, toc_digest: Digest, *, is_useless: bool = False) -> int:
    """Remove a layer and all of its content; return the bytes given back; raises LayerInUse.

    Also one that a sandbox needs if it *is_useless*: damaged, so that it must be fetched anew.
    """
    folder = store.layer_path(toc_digest)
    size = tree_size(folder)
    try:
        with _alone(folder):
            if not is_useless:
                _check_layer_pins(store, toc_digest)
            # All at once, and the marks first: they must not outlive their content.
            gone = store.temporary()
            folder.rename(gone)
            (gone / "presence").unlink()
            shutil.rmtree(gone, ignore_errors=True)
    except FileNotFoundError:
        if not is_useless:
            _check_layer_pins(store, toc_digest)
        shutil.rmtree(folder, ignore_errors=True)  # it never had a presence map
    except OSError as exc:
        raise store_error(folder, exc) from exc
    return size


def empty_layer(store: Store, toc_digest: Digest) -> int:
    """Give the disk back what a layer's content occupies; return the bytes; raises LayerInUse.

    Its TOC and table stay: a mount is as fast as before, and fetches contents again.
    """
    folder = store.layer_path(toc_digest)
    try:
        with _alone(folder) as presence:
            _check_layer_pins(store, toc_digest)
            before = tree_size(folder)
            # Marks first: a crash in between must not leave a mark without its bytes.
            size = os.fstat(presence).st_size
            if size > HEADER_SIZE:
                times = os.fstat(presence).st_atime_ns, os.fstat(presence).st_mtime_ns
                write_marks(presence, bytes(size - HEADER_SIZE))
                os.fdatasync(presence)
                os.utime(presence, ns=times)  # being emptied is no use
            # Another file from now on, not an emptied one: a mount by the kernel, whose server was
            # killed, may read the old one without our locks, and must not see zeros.
            (folder / "content").unlink()
            return before - tree_size(folder)
    except FileNotFoundError:
        return 0
    except OSError as exc:
        raise store_error(folder, exc) from exc


def remove_image(store: Store, manifest_digest: Digest) -> int:
    """Remove an image's index, the documents that no other image needs, its profile and names.

    Signatures of it go too.  Its layers stay, which other images may share.  Mounts keep what they
    have mapped.  Returns the bytes given back; raises Pinned.
    """
    holders = pinned_images(store).get(str(manifest_digest))
    if holders:
        raise pinned(f"image {manifest_digest}", holders)
    folder = store.image_path(manifest_digest)
    config = config_of(store, manifest_digest)
    kept = [each for each in images_in(store) if each.manifest_digest != str(manifest_digest)]
    size = tree_size(folder)
    store.discard(folder)
    size += remove_files(documents_of(store, manifest_digest, config, kept))
    remove_names(store, manifest_digest)
    size += remove_files(unneeded_signatures(store))
    return size + remove_files([store.profile_path(manifest_digest)])


def pinned(what: str, holders: Sequence[str]) -> Pinned:
    """Return the error that says which sandboxes need *what*."""
    more = "" if len(holders) == 1 else f" and {len(holders) - 1} more"
    return Pinned(
        f"{what} is needed by sandbox {holders[0]}{more}",
        hint=f"`lazyfs delete {holders[0]}` releases what that sandbox needs",
    )


def _check_layer_pins(store: Store, toc_digest: Digest) -> None:
    holders = holders_of_layer(store, toc_digest)
    if holders:
        raise pinned(f"layer {toc_digest}", holders)


def remove_files(paths: list[Path]) -> int:
    """Remove files; return the bytes given back."""
    size = 0
    for path in paths:
        try:
            occupied = path.lstat().st_blocks * BLOCK
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise store_error(path, exc) from exc
        size += occupied
    return size


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the exclusive lock of a layer; raises LayerInUse, FileNotFoundError."""
    fd = os.open(folder / "presence", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LayerInUse(
                f"layer {folder.name} is in use",
                hint="`lazyfs status` shows what is mounted",
            ) from exc
        yield fd
    finally:
        os.close(fd)
