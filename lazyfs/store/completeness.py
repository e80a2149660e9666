"""How much of a layer is here and right: every stored chunk is hashed again.

What has rotted is put aside and fetched anew when it is needed.
"""

import os
from dataclasses import dataclass

from lazyfs.digest import Digest
from lazyfs.store.content import ABSENT, RESIDENT, LayerContent
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store
from lazyfs.store.quarantine import put_aside


@dataclass(frozen=True, slots=True)
class Survey:
    """What is stored of a layer's content: sizes in bytes, ``rotten`` a number of chunks.

    ``verified_size`` has its digests; nothing else is stored once this is made.
    """

    content_size: int
    verified_size: int
    rotten: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of the content is here."""
        return self.verified_size == self.content_size


def survey_layer(store: Store, toc_digest: Digest) -> Survey | None:
    """Hash what is stored of a layer, drop what is not right; None where its table is not here.

    May run in a thread, for several layers at once.  Raises StoreError.
    """
    folder = store.layer_path(toc_digest)
    table = load_table(store, toc_digest)
    if table is None:
        return None
    if not (folder / "presence").exists():
        return Survey(table.payload_size, 0)
    content = LayerContent(folder, table, counts_as_use=False)
    verified = rotten = 0
    try:
        for chunk in range(table.count):
            was = content.states[chunk]
            if was == ABSENT:
                continue
            if _is_right(content, chunk):
                content.confirm(chunk)
                verified += table.size(chunk)
                continue
            content.forget(chunk)
            if was == RESIDENT:
                rotten += 1
                _put_aside(store, content, chunk)
    finally:
        content.close()
    return Survey(table.payload_size, verified, rotten)


def _is_right(content: LayerContent, chunk: int) -> bool:
    try:
        return content.check(chunk)
    except OSError:
        return False


def _put_aside(store: Store, content: LayerContent, chunk: int) -> None:
    table = content.table
    try:
        data = os.pread(content.fd, table.size(chunk), table.device_offset(chunk))
    except OSError:
        return
    put_aside(store, table.digest(chunk).hex(), data)
