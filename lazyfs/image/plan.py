"""Which bytes to ask for: missing chunks to range requests.

Pure: chunk numbers and blob offsets in, ranges out.  A *run* is a set of chunks fetched by one
request; it covers the blob from its first chunk's stream to its last chunk's end.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from lazyfs.image.counts import Purpose
from lazyfs.image.flights import Flight
from lazyfs.rootfs.table import LayerTable

if TYPE_CHECKING:
    from lazyfs.image.early import EarlyRange

SEGMENT_SIZE = 4 << 20
"""Where a run grows beyond this, the next one begins: several requests in parallel fill a link
that one connection does not, and the first bytes arrive no later."""


class Run(msgspec.Struct):
    """One range request: blob bytes ``start`` to ``end`` and the chunks wanted of it.

    ``flights`` are those of its chunks that have not ended, by chunk; ``purpose`` is why.
    ``early`` is the range that was asked for before the image was open, if this is one.
    """

    start: int
    end: int
    chunks: list[int]
    flights: dict[int, Flight] = msgspec.field(default_factory=dict)
    purpose: Purpose = Purpose.DEMAND
    early: "EarlyRange | None" = None

    def fit(self, table: LayerTable) -> None:
        """Ask for no more than the chunks that are left need."""
        self.start = table.blob_offset(self.chunks[0])
        self.end = max(map(table.blob_end, self.chunks))


def plan_runs(
    table: LayerTable,
    chunks: Iterable[int],
    *,
    gap: int,
    purpose: Purpose = Purpose.DEMAND,
    segment: int = SEGMENT_SIZE,
) -> list[Run]:
    """Return the runs that cover *chunks*, which come sorted by blob offset.

    A gap of up to *gap* bytes between two chunks is fetched rather than left out.  A run grows to
    *segment* bytes; chunks of one shared stream stay in one run, whatever its size.
    """
    runs: list[Run] = []
    run: Run | None = None
    for chunk in chunks:
        start, end = table.blob_offset(chunk), table.blob_end(chunk)
        if run is not None and (
            start < run.end or (start - run.end <= gap and end - run.start <= segment)
        ):
            run.chunks.append(chunk)
            run.end = max(run.end, end)
        else:
            run = Run(start, end, [chunk], purpose=purpose)
            runs.append(run)
    return runs
