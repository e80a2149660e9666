"""Bytes that were stored and do not have their digest any more: kept for whoever looks for a cause.

A few, by the digest that they should have; never served and never read back.
"""

import time

from lazyfs.errors import StoreError
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
