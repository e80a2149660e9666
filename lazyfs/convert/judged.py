"""Whether what is to be converted is what the policies in force trust.

The result is another image, which nobody has signed: signing it is its publisher's to do.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.digest import Digest
from lazyfs.errors import StoreError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.resolve import find_manifest, platform_by
from lazyfs.oci.manifest import Index, decode_manifest
from lazyfs.oci.platforms import Platform
from lazyfs.store.paths import Store

if TYPE_CHECKING:
    from lazyfs.signatures.judge import Judge

log = logging.getLogger(__name__)


async def judged_source(
    judge: "Judge", cache_dir: Path | None, origin: Origin, only: Platform | None
) -> Digest:
    """Return the digest of what is to be converted; raises Untrusted, CannotTell, PolicyFault.

    *only* is the platform that is converted; None means all that an index lists, and then it is the
    index that has to be signed.  The name is resolved once: an answer later might be of another
    image.  The cache in *cache_dir* knows which signatures were seen before; None: there is none.
    """
    named = await origin.source.fetch_manifest(origin.reference.identifier)
    subjects = [named]
    if only is not None and isinstance(decode_manifest(named.data, named.media_type), Index):
        source = origin.source
        _, chosen = await find_manifest(source.fetch_manifest, platform_by(source), named, only)
        if chosen.digest != named.digest:
            subjects.append(chosen)
    await judge.image(_store(cache_dir), origin, subjects, is_image=True)
    return subjects[-1].digest


def _store(cache_dir: Path | None) -> Store | None:
    try:
        return None if cache_dir is None else Store(cache_dir)
    except StoreError as error:
        log.warning("%s; which signatures were seen is not known", error.message)
        return None
