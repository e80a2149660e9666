"""How much memory an image may take while it is prepared: one bound for all of its layers.

What a layer may claim (``formats/streams/limits.py``) holds for each of a thousand layers, so the
sum needs a bound of its own.  It is kept by estimates from sizes, before memory is taken: whoever
is refused learns what it would have taken, and how to allow it.
"""

import re
from collections.abc import Mapping
from threading import Lock

from msgspec.structs import replace

from lazyfs.errors import FormatError, UsageError
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, ENTRY_MEMORY, TWIN_ENTRY_MEMORY, Limits
from lazyfs.formats.tocs.rawtoc import TocTooLarge
from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc import Toc

VARIABLE = "LAZYFS_PREPARE_MEMORY"
DEFAULT_MIB = 256
"""What reading 335,000 files of usual TOCs takes, or 150,000 where Python has to read them."""

PASS_FACTOR = 4
MEMBER_MEMORY = 1840
"""Bytes that a member of a plain layer takes during a full pass.  Most images have no lazy layer,
and what a pass takes is given back at its end: so it may take PASS_FACTOR times as much."""

MEMORY_RE = re.compile(r"[1-9][0-9]{0,6}")


class ImageTooLarge(FormatError):
    """Preparing the image would take more memory than it may."""

    code = "E_IMAGE_TOO_LARGE"


class Budget:
    """The memory that is left for the TOCs of one image, and for passes over its plain layers.

    Threads may count members.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._mib = memory_of(environment)
        self._left = self._mib << 20
        self._members_left = PASS_FACTOR * self._left // MEMBER_MEMORY
        self._lock = Lock()

    @property
    def limits(self) -> Limits:
        """The bounds for the next TOC."""
        return replace(DEFAULT_LIMITS, memory=max(0, self._left))

    def spend(self, toc: Toc, size: int) -> None:
        """Note that *toc* of *size* bytes of JSON is held."""
        is_scanned = isinstance(toc.entries, ScannedEntries)
        chunks = 0 if is_scanned else sum(len(entry.chunks) for entry in toc.entries)
        count = max(len(toc.entries), chunks)
        self._left -= size + count * (ENTRY_MEMORY if is_scanned else TWIN_ENTRY_MEMORY)

    def take_members(self, count: int) -> None:
        """Count members of plain layers; raises ImageTooLarge."""
        with self._lock:
            self._members_left -= count
            is_over = self._members_left < 0
        if is_over:
            limit = PASS_FACTOR * (self._mib << 20) // MEMBER_MEMORY
            raise ImageTooLarge(
                f"image: its plain layers have more than {limit} files in total, "
                f"which take more than {PASS_FACTOR * self._mib} MiB of memory to read",
                hint=self._hint,
            )

    def refusal(self, exc: TocTooLarge) -> ImageTooLarge:
        """Return what to say of an image whose next TOC is too large."""
        return ImageTooLarge(
            f"{exc.message}; preparing an image may take {self._mib} MiB", hint=self._hint
        )

    @property
    def _hint(self) -> str:
        return f"set {VARIABLE}={4 * self._mib} to allow {4 * self._mib} MiB"


def memory_of(environment: Mapping[str, str]) -> int:
    """Return how many MiB an image may take; raises UsageError."""
    text = environment.get(VARIABLE) or str(DEFAULT_MIB)
    if MEMORY_RE.fullmatch(text) is None:
        raise UsageError(f"{VARIABLE}: {text[:40]!r} is not a number of MiB")
    return int(text)
