"""What was fetched, and what of it was used."""

from collections.abc import Iterable, Sequence

from lazyfs.fetch.counts import FetchStatistics, Purpose
from lazyfs.fetch.device import Device


def fetch_document(statistics: FetchStatistics, devices: Sequence[Device]) -> dict[str, object]:
    """Return what was fetched, and what of it was used, in JSON's types."""
    used = used_sizes(devices)
    purposes = {
        purpose.name.lower(): {
            "requests": traffic.requests,
            "size": traffic.size,
            "contentSize": traffic.content_size,
            "usedSize": used[purpose],
        }
        for purpose, traffic in statistics.traffic.items()
    }
    return {
        **purposes,
        "copiedSize": statistics.copied_size,
        "corruptChunks": statistics.corrupt_chunks,
        "failedRequests": statistics.failed_requests,
        "unstoredChunks": statistics.unstored_chunks,
    }


def used_sizes(devices: Iterable[Device]) -> dict[Purpose, int]:
    """Return how much of the content that was fetched has been read, by why it was fetched.

    Looks at each chunk: milliseconds for a large image.
    """
    sizes = dict.fromkeys((0, *Purpose), 0)
    for device in devices:
        size = device.table.size
        for chunk, (purpose, is_used) in enumerate(zip(device.fetched, device.used, strict=True)):
            if is_used and purpose:
                sizes[purpose] += size(chunk)
    return {purpose: sizes[purpose] for purpose in Purpose}
