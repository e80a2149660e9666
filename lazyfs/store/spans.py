"""The spans of a plain layer on disk, beside its table: where its stream can be entered.

    magic "LFSSPAN1", the spans as a layer index has them, sha256 of all that precedes

They are needed where content that was here has been evicted, or never was, and only then.
Format: docs/format.md.
"""

import hashlib
from collections.abc import Sequence

from lazyfs.digest import Digest
from lazyfs.formats.layer_index import BadLayerIndex, decode_spans, encode_spans
from lazyfs.formats.spans import Span
from lazyfs.store.content import HEADER_SIZE, RESIDENT
from lazyfs.store.paths import Store

MAGIC = b"LFSSPAN1"
CHECKSUM_SIZE = 32
LIMIT = 1 << 30


def save_spans(store: Store, toc_digest: Digest, spans: Sequence[Span]) -> None:
    """Keep the spans of a layer beside its table."""
    folder = store.layer_path(toc_digest)
    folder.mkdir(mode=0o700, exist_ok=True)
    data = MAGIC + encode_spans(spans)
    store.write_file(folder / "spans", data + hashlib.sha256(data).digest())


def load_spans(store: Store, toc_digest: Digest, blob_size: int) -> tuple[Span, ...] | None:
    """Return the spans of a layer, None where there are none or what is kept is damaged."""
    try:
        with open(store.layer_path(toc_digest) / "spans", "rb") as file:
            whole = file.read(LIMIT)
        data, checksum = whole[:-CHECKSUM_SIZE], whole[-CHECKSUM_SIZE:]
        if not data.startswith(MAGIC) or hashlib.sha256(data).digest() != checksum:
            return None
        return decode_spans(data[len(MAGIC) :], blob_size)
    except (OSError, BadLayerIndex):
        return None


def can_be_had(store: Store, toc_digest: Digest, blob_size: int) -> bool:
    """Say whether all of a plain layer's content can be had: it is here, or its spans are sound."""
    try:
        states = (store.layer_path(toc_digest) / "presence").read_bytes()[HEADER_SIZE:]
    except OSError:
        states = b""
    is_complete = bool(states) and not states.strip(bytes([RESIDENT]))
    return is_complete or load_spans(store, toc_digest, blob_size) is not None
