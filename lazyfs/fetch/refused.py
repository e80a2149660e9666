"""Chunks that came bad: fetched again, and where they are bad wherever they come from, refused.

Reads of what is refused fail for a while, without a request.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Sized

import trio

from lazyfs.errors import VerificationFailed
from lazyfs.fetch.device import Device
from lazyfs.fetch.origins.origin import REFETCHES
from lazyfs.fetch.plan import Run, plan_runs
from lazyfs.registry.source import Source

log = logging.getLogger(__name__)

REFUSAL_SECONDS = 10.0
"""How long a chunk that was bad everywhere is refused without asking again."""

HINT = (
    "it was fetched more than once: the registry, or something on the way, serves other bytes than"
    " were published"
)
INDEX_HINT = f"{HINT}; or the pinned index is wrong: check with `lazyfs index build --again IMAGE`"


class ChunkCorrupt(VerificationFailed):
    """A chunk does not have its digest, also when it was fetched again."""


async def fetch_again(
    dev: Device,
    run: Run,
    bad: Mapping[int, str],
    transfer: Callable[[Device, Run], Awaitable[dict[int, str]]],
    *,
    source: Source,
    gap: int,
) -> AsyncIterator[tuple[int, str]]:
    """Fetch *bad* chunks of *run* again, from the next endpoint; refuse what all send bad.

    Once at least, and once from each endpoint that has not been blamed for the blob.  Chunks that
    lie together (*gap*) share a request: of a blob that is all wrong, each alone would be a round
    trip, and others wait for this one's slot.  *transfer* returns those that are bad, and why.
    Yields how many were refused together, and what there is to report of them.
    """
    chunks = sorted(bad, key=dev.position)
    dev.doubt_end(chunks[-1])
    for part in plan_runs(dev.table, chunks, gap=gap, purpose=run.purpose):
        part.flights, part.progress = run.flights, run.progress
        part.end = max(part.end, dev.blob_end(part.chunks[-1]))
        left = {chunk: bad[chunk] for chunk in part.chunks}
        first, reason = next(iter(left.items()))
        log.warning(
            "layer %s: chunk %d%s: %s; fetching it again",
            dev.descriptor.digest, first, and_more(left), reason,
        )  # fmt: skip
        source.blame(dev.descriptor, part.start, part.end, reason)
        for _ in range(REFETCHES):
            left = await transfer(dev, part)
            if not left:
                break
            part.chunks = [chunk for chunk in part.chunks if chunk in left]
            part.fit(dev.table)
            part.end = max(part.end, dev.blob_end(part.chunks[-1]))
            reason = left[part.chunks[0]]
            if not source.blame(dev.descriptor, part.start, part.end, reason):
                break
        if left:
            yield len(left), refuse(dev, run, part.chunks, left)


def refuse(dev: Device, run: Run, chunks: Sequence[int], reasons: Mapping[int, str]) -> str:
    """Have reads of *chunks* of *run* fail; return what there is to report, of the first of them.

    They share one error, and one line of the log: there may be very many.
    """
    first = chunks[0]
    digest = f"sha256:{dev.table.digest(first).hex()}"
    error = ChunkCorrupt(
        f"layer {dev.descriptor.digest}: chunk at blob offset {dev.table.blob_offset(first)}"
        f"{and_more(chunks)}: wrong bytes ({reasons[first]}), expected {digest}",
        hint=INDEX_HINT if dev.is_by_index else HINT,
    )
    log.error("%s; %s", error.message, error.hint)
    until = trio.current_time() + REFUSAL_SECONDS
    for chunk in chunks:
        dev.refused[chunk] = (error, until)
        flight = dev.take_down(run, chunk)
        if flight is not None:
            flight.fail(error)
    return f"corrupt {digest}"


def raise_if_refused(dev: Device, chunk: int) -> None:
    """Raise ChunkCorrupt if *chunk* was bad a moment ago."""
    refused = dev.refused.get(chunk)
    if refused is None:
        return
    error, until = refused
    if trio.current_time() < until:
        raise error
    del dev.refused[chunk]


def and_more(chunks: Sized) -> str:
    """Return how many *chunks* there are beside the one that a sentence names."""
    return f" and {len(chunks) - 1} more" if len(chunks) > 1 else ""
