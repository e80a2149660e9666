"""Telling why a request failed, without telling it a thousand times a second.

A reader sees "Input/output error" and nothing else, so that the log is where the reason must be:
file, layer, range and cause.  A broken chunk is asked for again and again by everything that
reads its file; per cause a few records are written, then one count per period.
"""

import logging
import time
from collections.abc import Callable

import msgspec

from lazyfs.errors import LazyfsError
from lazyfs.mount.contents import MountedImage
from lazyfs.rootfs.erofs_reader import ErofsIndex

log = logging.getLogger(__name__)

BURST = 5  # records of one cause in a period
PERIOD_SECONDS = 30.0
MAX_CAUSES = 256  # remembered; more kinds of trouble than that start afresh


class _Cause(msgspec.Struct):
    since: float
    count: int = 0


class Throttle:
    """Says of each fault whether to write it down; *clock* counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._causes: dict[object, _Cause] = {}

    def admit(self, cause: object) -> tuple[bool, int]:
        """Return whether to log a fault of *cause*, and how many were held back before it."""
        now = self._clock()
        known = self._causes.get(cause)
        held_back = 0
        if known is None or now - known.since >= PERIOD_SECONDS:
            if known is not None:
                held_back = max(0, known.count - BURST)
            if len(self._causes) >= MAX_CAUSES:
                self._causes.clear()
            known = self._causes[cause] = _Cause(now)
        known.count += 1
        return known.count <= BURST, held_back


def path_of(index: ErofsIndex, wanted: int) -> bytes | None:
    """Return a path of inode *wanted* in *index*, or None; looks at every directory until found.

    An index has no way back from an inode to its names: this is for messages only.
    """
    waiting = [(index.root_nid, b"")]
    seen = {index.root_nid}
    while waiting:
        directory, path = waiting.pop()
        if directory == wanted:
            return path or b"."
        for entry in index.entries(directory):
            if entry.name in (b".", b".."):
                continue
            here = path + b"/" + entry.name if path else entry.name
            if entry.nid == wanted:
                return here
            if entry.nid not in seen and index.inode(entry.nid).mode & 0o170000 == 0o040000:
                seen.add(entry.nid)
                waiting.append((entry.nid, here))
    return None


class FaultLog:
    """Writes down why requests on one mount failed."""

    def __init__(self, image: MountedImage, throttle: Throttle | None = None) -> None:
        self._image = image
        self._throttle = throttle or Throttle()

    def of_read(self, nid: int, offset: int, size: int, error: Exception) -> None:
        """Write down that bytes of a file could not be read.

        Slow (it looks for the file's name): call it in a thread.
        """
        extent = None
        path = None
        try:
            extent = self._image.index.extent(nid)
        except LazyfsError:
            pass
        cause = (type(error), str(error))
        admitted, held_back = self._throttle.admit(cause)
        if not admitted:
            return
        try:
            path = path_of(self._image.index, nid)
        except LazyfsError:
            pass
        layer = "unknown"
        if extent is not None and 0 < extent.device <= len(self._image.layers):
            layer = self._image.layers[extent.device - 1].digest
        self._write(
            f"read of {_shown(path, nid)}, bytes {offset} to {offset + size}, layer {layer}",
            error,
            held_back,
        )

    def of_request(self, request: str, nid: int, error: Exception) -> None:
        """Write down that *request* about inode *nid* failed."""
        admitted, held_back = self._throttle.admit((request, type(error), str(error)))
        if admitted:
            self._write(f"{request} of inode {nid}", error, held_back)

    def _write(self, what: str, error: Exception, held_back: int) -> None:
        more = f" ({held_back} more like it were not logged)" if held_back else ""
        if isinstance(error, LazyfsError):
            log.error("%s: %s%s", what, error, more)
        else:
            log.error("%s: a bug in lazyfs%s", what, more, exc_info=error)


def _shown(path: bytes | None, nid: int) -> str:
    return f"inode {nid}" if path is None else repr(path.decode("utf-8", "backslashreplace"))
