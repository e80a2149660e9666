"""What a sandbox needs of the cache: kept there until it is removed, whatever its state.

A sandbox that has stopped needs it for its snapshot, wherever that is.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from lazyfs.errors import StoreError
from lazyfs.store.paths import Store, open_store
from lazyfs.store.pins import remove_pin, save_pin


def pin_images(
    folder: Path, cache_dir: str, manifests: Iterable[str], say: Callable[[str], None]
) -> None:
    """Keep images in the cache for the sandbox in *folder*; where there is no room, only say so.

    Nothing to do where there is no *cache_dir*.
    """
    if not cache_dir:
        return
    try:
        save_pin(Store(Path(cache_dir)), folder, manifests)
    except StoreError as error:
        say(f"{folder.name}: its images are not protected in the cache: {error.message}")


def unpin_images(folder: Path, cache_dir: str) -> None:
    """Let go of the images of a sandbox that was removed; what fails counts for nothing then."""
    if not cache_dir:
        return
    try:
        store = open_store(Path(cache_dir))
        if store is not None:
            remove_pin(store, folder)
    except StoreError:
        pass
