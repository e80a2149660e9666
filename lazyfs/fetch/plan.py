"""Which bytes to ask for: missing chunks to range requests.

Pure: chunk numbers and blob offsets in, ranges out.  A *run* is a set of chunks fetched by one
request; it covers the blob from its first chunk's stream to its last chunk's end.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.origins.flights import Flight, Progress
from lazyfs.rootfs.table import LayerTable

if TYPE_CHECKING:
    from lazyfs.fetch.origins.early import EarlyRange

SEGMENT_SIZE = 4 << 20
"""Where a run grows beyond this, the next one begins: several requests in parallel fill a link
that one connection does not, and the first bytes arrive no later."""

BEFORE_SIZE = 64 << 10
"""What comes in front of more than this has a request of its own where a reader waits for the rest:
two requests side by side let it go on earlier than one."""


class Run(msgspec.Struct):
    """One range request: blob bytes ``start`` to ``end`` and the chunks wanted of it.

    ``flights`` are those of its chunks that have not ended, by chunk; ``purpose`` is why.
    ``early`` is the range that was asked for before the image was open, if this is one; ``due`` the
    blob offset up to which a reader waits for it; ``progress`` how far the request is.
    """

    start: int
    end: int
    chunks: list[int]
    flights: dict[int, Flight] = msgspec.field(default_factory=dict)
    purpose: Purpose = Purpose.DEMAND
    early: "EarlyRange | None" = None
    due: int = 0
    progress: Progress = msgspec.field(default_factory=Progress)

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
    due: Sequence[int] = (),
) -> list[Run]:
    """Return the runs that cover *chunks*, which come sorted by blob offset.

    A gap of up to *gap* bytes between two chunks is fetched rather than left out.  A run grows to
    *segment* bytes; chunks of one shared stream stay in one run, whatever its size.  What a reader
    waits for, *due*, does not come behind more than BEFORE_SIZE bytes.
    """
    first = table.blob_offset(due[0]) if due else -1
    last = table.blob_end(due[-1]) if due else 0
    runs: list[Run] = []
    run: Run | None = None
    for chunk in chunks:
        start, end = table.blob_offset(chunk), table.blob_end(chunk)
        if run is not None and (
            start < run.end
            or (
                start - run.end <= gap
                and end - run.start <= segment
                and (start != first or start - run.start <= BEFORE_SIZE)
            )
        ):
            run.chunks.append(chunk)
            run.end = max(run.end, end)
        else:
            run = Run(start, end, [chunk], purpose=purpose, due=last)
            runs.append(run)
    return runs
