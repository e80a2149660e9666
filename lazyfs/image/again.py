"""An image whose files in the store are gone, or damaged, after it was prepared: had again.

Somebody removed the cache's directory, or the disk lost it.  The rootfs index is a pure function of
the manifest and the TOCs, so one that is built again has the same numbers of inodes, which is what
the kernel of a live mount knows; where it comes out differently nothing is served.
"""

import logging
import shutil
from pathlib import Path

import trio
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.errors import LazyfsError, StoreError
from lazyfs.fetch.origins.outage import is_away
from lazyfs.image.layers.plain import PlainOptions, believed_of
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.registry.source import AccessOptions
from lazyfs.store.images import load_image
from lazyfs.store.paths import open_store
from lazyfs.trust.options import OFF, TrustOptions

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0


class OtherImage(StoreError):
    """What was prepared again is not what is mounted."""


def is_here(prepared: Prepared) -> bool:
    """Say whether the store still has what was prepared."""
    try:
        store = open_store(Path(prepared.store_dir))
        if store is None:
            return False
        digest = parse_digest(prepared.image.manifest_digest)
        stored = load_image(store, digest)
    except StoreError:
        return False
    return stored is not None and all(
        (store.layer_path(parse_digest(layer.toc_digest)) / "table").exists()
        for layer in prepared.image.layers
    )


async def prepare_again(
    prepared: Prepared, access: AccessOptions, *, cache_dir: Path, patience: float
) -> Prepared:
    """Prepare an image once more, to the same bytes, in the cache directory *cache_dir*.

    With *patience* it waits for a registry that is away, however long.  Raises OtherImage, or what
    keeps it from being had.
    """
    log.warning(
        "store %s: got no sound files of %s any more; preparing it again",
        *(prepared.store_dir, prepared.resolved),
    )
    is_by_blob = any(layer.verified_by == "blob" for layer in prepared.image.layers)
    request = Request(
        prepared.resolved,
        prepared.image.platform,
        cache_dir,
        replace(access, trust=TrustOptions(policy=OFF)),  # the verdict on what is mounted stands
        "blob" if is_by_blob else "toc",
        PlainOptions(believed=believed_of(prepared.image.layers)),
    )
    while True:
        try:
            again = await prepare(request)
            break
        except LazyfsError as error:
            if not patience or not is_away(error):
                raise
            log.warning("%s; trying again", error.message)
            await trio.sleep(PAUSE_SECONDS)
    for name in ("manifest_digest", "index_digest", "provenance_digest"):
        got, expected = getattr(again.image, name), getattr(prepared.image, name)
        if got != expected:
            if again.is_volatile:
                shutil.rmtree(again.store_dir, ignore_errors=True)  # nobody will open it
            raise OtherImage(f"{prepared.resolved}: {name}: got {got}, expected {expected}")
    return replace(
        prepared,
        image=again.image,
        store_dir=again.store_dir,
        is_volatile=again.is_volatile,
        trouble=again.trouble,
    )
