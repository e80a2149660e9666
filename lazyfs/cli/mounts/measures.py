"""A server's counters, for people.  Pure: a status in JSON's types in, lines out."""

from collections.abc import Mapping
from typing import Any

from lazyfs.cli.quantities import size_text

PURPOSES = {
    "demand": "for readers",
    "ahead": "read ahead",
    "profile": "from the profile",
    "program": "for starting programs",
    "background": "in the background",
}


def summary_lines(status: Mapping[str, Any]) -> list[str]:
    """Return how much was fetched, and how much of it was read."""
    fetch, reads = status["fetch"], status["reads"]
    purposes = [purpose for purpose in PURPOSES if purpose in fetch]  # an older server has fewer
    fetched = ", ".join(
        f"{size_text(fetch[purpose]['size'])} {words}"
        for purpose, words in PURPOSES.items()
        if purpose in fetch and fetch[purpose]["requests"]
    )
    copied = f"; {size_text(fetch['copiedSize'])} copied" if fetch["copiedSize"] else ""
    content = sum(fetch[purpose]["contentSize"] for purpose in purposes)
    used = sum(fetch[purpose]["usedSize"] for purpose in purposes)
    lines = []
    if status["readySeconds"] is not None:
        lines.append(f"ready      {seconds_text(status['readySeconds'])} after the command")
    return [
        *lines,
        f"fetched    {fetched or 'nothing'}{copied}",
        f"read       {size_text(used)} of the {size_text(content)} fetched (uncompressed)",
        f"reads      {reads['hits']} hits, {reads['misses']} misses",
    ]


def detail_lines(status: Mapping[str, Any]) -> list[str]:
    """Return how long readers waited, how fast the link is, and what was fetched for what."""
    fetch, reads, link = status["fetch"], status["reads"], status["link"]
    round_trip, bandwidth = link["roundTripSeconds"], link["bandwidth"]
    lines = [
        f"readers    {waits_text(reads['waits'])}",
        f"queue      {waits_text(reads['slotWaits'])}",
        f"link       round trip {'-' if round_trip is None else seconds_text(round_trip)}, "
        f"{'-' if bandwidth is None else size_text(bandwidth)}/s",
    ]
    for purpose in PURPOSES:
        if purpose not in fetch:
            continue
        traffic = fetch[purpose]
        lines.append(
            f"{purpose:10} {traffic['requests']} requests, {size_text(traffic['size'])}; "
            f"{size_text(traffic['contentSize'])} of content, "
            f"{size_text(traffic['usedSize'])} of it read"
        )
    limit = status["backgroundLimit"]
    lines.append(
        f"limits     cache {_known(status['cacheSize'])}, "
        f"background {'as fast as it goes' if limit is None else f'{size_text(limit)}/s'}"
    )
    lines.append(
        f"faults     {fetch['corruptChunks']} corrupt chunks, {fetch['failedRequests']} failed "
        f"requests, {fetch['unstoredChunks']} chunks not stored"
    )
    return lines


def _known(size: int | None) -> str:
    return "unknown" if size is None else size_text(size)


def waits_text(waits: Mapping[str, Any]) -> str:
    """Return a histogram's essence."""
    if not waits["count"]:
        return "no waits"
    return (
        f"{waits['count']} waits, median {seconds_text(waits['medianSeconds'])}, 95% within "
        f"{seconds_text(waits['p95Seconds'])}, longest {seconds_text(waits['longestSeconds'])}"
    )


def seconds_text(seconds: float) -> str:
    """Return a time for a person: ``12.8 ms``, ``3.20 s``."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
