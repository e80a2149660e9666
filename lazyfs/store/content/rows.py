"""Writing the payloads of neighbouring chunks at once: a call for each costs twice the time.

Between the payloads of two neighbours there is what rounds up the first one to whole pages.  It
belongs to no chunk, and gets zeros, which it has anyway.
"""

import os
from collections.abc import Iterator, Sequence
from operator import itemgetter

from lazyfs.rootfs.table import LayerTable

Part = bytes | bytearray | memoryview
Payload = tuple[int, Sequence[Part]]
"""A chunk's number, and its bytes in pieces."""

PADDING = memoryview(bytes(4096))
IOV_MAX = 1024  # of Linux: buffers for one call
ROW_PARTS = IOV_MAX


def rows_of(table: LayerTable, payloads: Sequence[Payload]) -> Iterator[list[Payload]]:
    """Yield *payloads*, neighbours of the device together, as many as one call takes."""
    row: list[Payload] = []
    count = 0
    for payload in sorted(payloads, key=itemgetter(0)):
        chunk, parts = payload
        count += len(parts) + 1
        if row and (count > ROW_PARTS or not _is_next(table, row[-1][0], chunk)):
            yield row
            row = []
            count = len(parts) + 1
        row.append(payload)
    if row:
        yield row


def write_row(fd: int, table: LayerTable, row: Sequence[Payload]) -> None:
    """Write the payloads of neighbours to their places in the device; raises OSError."""
    start = offset = table.device_offset(row[0][0])
    parts: list[Part] = []
    for chunk, payload in row:
        place = table.device_offset(chunk)
        if place > offset:
            parts.append(PADDING[: place - offset])
        parts += payload
        offset = place + table.size(chunk)
    while parts:
        written = os.pwritev(fd, parts[:IOV_MAX], start)
        start += written
        parts = _without(parts, written)


def _is_next(table: LayerTable, last: int, chunk: int) -> bool:
    """Say whether nothing but padding lies between two chunks."""
    if chunk != last + 1:
        return False
    gap = table.device_offset(chunk) - table.device_offset(last) - table.size(last)
    return 0 <= gap < len(PADDING)


def _without(parts: list[Part], size: int) -> list[Part]:
    """Return *parts* without their first *size* bytes."""
    for number, part in enumerate(parts):
        if size < len(part):
            return [memoryview(part)[size:], *parts[number + 1 :]]
        size -= len(part)
    return []
