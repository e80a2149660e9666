"""Bytes that were stored and do not have their digest any more: kept for whoever looks for a cause.

A few, by the digest that they should have; never served and never read back.
"""

import os
import time

from lazyfs.errors import StoreError
from lazyfs.store.content.content import LayerContent
from lazyfs.store.paths import Store

KEPT = 16
LONGEST = 16 << 20  # bytes of one file that are kept


def put_aside(store: Store, name: str, data: bytes) -> None:
    """Keep *data*, which should have had the digest whose hexadecimal part is *name*.

    What cannot be kept is not: this is for people.
    """
    folder = store.quarantine
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        store.write_file(folder / f"{time.time_ns():020d}-{name}", data[:LONGEST])
        for old in sorted(folder.iterdir())[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, StoreError):
        pass


def put_chunk_aside(store: Store, content: LayerContent, chunk: int) -> None:
    """Keep the stored bytes of a chunk, which should have had its digest."""
    table = content.table
    try:
        size = min(table.size(chunk), LONGEST)
        data = os.pread(content.fd, size, table.device_offset(chunk))
    except OSError:
        return
    put_aside(store, table.digest(chunk).hex(), data)
