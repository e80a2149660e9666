"""An index of plain layers that is signed as the policy wants images to be: it needs no pin.

This is how many machines come to trust an index: whoever may sign images of a repository may sign
indexes beside them.
"""

import logging
from collections.abc import Sequence

import trio

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.indexes import ARTIFACT_TYPE
from lazyfs.oci.descriptor import Descriptor
from lazyfs.signatures.judge import Judge
from lazyfs.store.passes import load_pass
from lazyfs.store.paths import Store
from lazyfs.trust.options import TRUSTED

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Indexes of one image that are judged."""


async def signed_index(
    judge: Judge, store: Store, origin: Origin, image: Digest, layers: Sequence[Descriptor]
) -> Digest | None:
    """Return the digest of an index of *image* that the policy trusts, None if there is none.

    None as well where nothing is asked for, or a pass here has been over all of *layers*.  What
    goes wrong is no trouble: layers can be had without an index.
    """
    if all(load_pass(store, layer.digest) is not None for layer in layers):
        return None
    if origin.is_offline and origin.kind == "registry":
        return None
    try:
        listed = await origin.source.fetch_referrers(image, ARTIFACT_TYPE)
    except LazyfsError as error:
        log.info("indexes of %s: %s", image, error.message)
        return None
    for entry in sorted(listed.found, key=lambda each: str(each.digest))[:ATTEMPTS]:
        try:
            document = await origin.source.fetch_manifest(entry.digest)
            record = await judge.image(store, origin, [document], is_image=False)
        except LazyfsError as error:
            log.info("index %s: %s", entry.digest, error.message)
            continue
        if record.verdict == TRUSTED:
            return entry.digest
        await trio.lowlevel.checkpoint()
    return None
