"""The spans of a plain layer on disk, beside its table: where its stream can be entered.

    magic "LFSSPAN1", the spans as a layer index has them, sha256 of all that precedes

They are needed where content that was here has been evicted, or never was, and only then.
Format: docs/format.md.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lazyfs.digest import Digest
from lazyfs.errors import FormatError
from lazyfs.store.content.presence import is_complete
from lazyfs.store.content.regular import open_regular
from lazyfs.store.paths import Store

if TYPE_CHECKING:
    from lazyfs.formats.streams.spans import Span

MAGIC = b"LFSSPAN1"
CHECKSUM_SIZE = 32
LIMIT = 1 << 30


def save_spans(store: Store, toc_digest: Digest, spans: "Sequence[Span]") -> None:
    """Keep the spans of a layer beside its table."""
    from lazyfs.formats.layer_index import encode_spans  # noqa: PLC0415

    folder = store.layer_path(toc_digest)
    store.make_folder(folder)
    data = MAGIC + encode_spans(spans)
    store.write_file(folder / "spans", data + hashlib.sha256(data).digest())


def load_spans(store: Store, toc_digest: Digest, blob_size: int) -> "tuple[Span, ...] | None":
    """Return the spans of a layer, None where there are none or what is kept is damaged."""
    # Imported here, and above: most mounts look at the checksum only, if at that.
    from lazyfs.formats.layer_index import decode_spans  # noqa: PLC0415

    data = _load(store, toc_digest)
    try:
        return None if data is None else decode_spans(data, blob_size)
    except FormatError:
        return None


def can_be_had(store: Store, toc_digest: Digest) -> bool:
    """Say whether all of a plain layer's content can be had: it is here, or its spans are sound."""
    return is_complete(store.layer_path(toc_digest)) or _load(store, toc_digest) is not None


def _load(store: Store, toc_digest: Digest) -> bytes | None:
    """Return the spans as they were written, None where they are not."""
    try:
        with open_regular(store.layer_path(toc_digest) / "spans") as file:
            whole = file.read(LIMIT)
    except OSError:
        return None
    data, checksum = whole[:-CHECKSUM_SIZE], whole[-CHECKSUM_SIZE:]
    is_whole = data.startswith(MAGIC) and hashlib.sha256(data).digest() == checksum
    return data[len(MAGIC) :] if is_whole else None
