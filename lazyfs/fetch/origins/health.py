"""How a mount fares, in one line: its extended attribute ``health``, and that of a status.

    corrupt sha256:…             bytes were wrong wherever they were had from: for good
    contradiction sha256:…       a layer's tar and its TOC show other files (one_tree.py): for good
    unavailable since TIME       the registry is away, and readers wait: while that is so
    unstored since TIME: REASON  what is fetched cannot be kept: while that is so
    ok                           none of these

Contract: docs/reference/xattrs.md.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lazyfs.fetch.origins.outage import Outage

log = logging.getLogger(__name__)

OK = "ok"
QUIET_SECONDS = 60.0
"""A disk that is nearly full takes one chunk and refuses the next: that is said so often."""


class Unstored:
    """Whether the store takes what is fetched; ``since`` is from when on it does not, or None."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.since: str | None = None
        self.reason = ""
        self._clock = clock
        self._said = float("-inf")
        self._is_said = False

    def refused(self, folder: Path, reason: str) -> None:
        """Learn that the store in *folder* did not take bytes that had been verified."""
        self.reason = reason
        if self.since is None:
            self.since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            if self._clock() >= self._said + QUIET_SECONDS:
                self._said = self._clock()
                self._is_said = True
                log.warning(
                    "%s: %s: what is fetched is served without being stored", folder, reason
                )

    def taken(self) -> None:
        """Learn that the store took bytes."""
        if self.since is not None:
            self.since = None
            if self._is_said:
                self._is_said = False
                log.warning("what is fetched is stored again")


class Health:
    """What is worst of all that is wrong."""

    def __init__(self) -> None:
        self.outage: Outage | None = None
        self.unstored = Unstored()
        self._error = ""

    def report(self, text: str) -> None:
        """Note a content error; only the first one counts."""
        self._error = self._error or text

    @property
    def text(self) -> str:
        """The line."""
        if self._error:
            return self._error
        if self.outage is not None and self.outage.since is not None:
            return f"unavailable since {self.outage.since}"
        if self.unstored.since is not None:
            return f"unstored since {self.unstored.since}: {self.unstored.reason}"
        return OK
