"""A chunk whose bytes are wrong wherever they were had from: what is said of it."""

from lazyfs.errors import VerificationFailed
from lazyfs.image.device import Device

HINT = (
    "it was fetched more than once; the registry holds, or something on the way makes, other bytes"
    " than were published"
)
INDEX_HINT = f"{HINT}, or the index that was pinned lies: `lazyfs index build --again IMAGE` tells"


class ChunkCorrupt(VerificationFailed):
    """A chunk does not have its digest, also when it was fetched again."""


def corrupt(dev: Device, chunk: int, reason: str) -> ChunkCorrupt:
    """Return the error for a chunk that is wrong for *reason*."""
    return ChunkCorrupt(
        f"layer {dev.descriptor.digest}: chunk at blob offset {dev.table.blob_offset(chunk)}: got "
        f"bytes that are wrong ({reason}), expected sha256:{dev.table.digest(chunk).hex()}",
        hint=INDEX_HINT if dev.is_by_index else HINT,
    )
