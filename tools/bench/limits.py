"""What limits a figure that misses its bar: computed from what the same run measured.

Seconds of a lazy mount go to the interpreter, to round trips that somebody waited for, to bytes on
the link, to the server's processor time, and to the work itself on files that are there.  They
overlap where they can, so they do not add up; the largest is what to look at.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.bench.samples import Samples
from tools.mounted import ROOT, Mounted

IMPORTS = (
    "import lazyfs.cli.main, lazyfs.cli.mounts.mounting, lazyfs.image.prepare, "
    "lazyfs.registry.client"
)
WANTED = ("demand", "ahead", "profile", "program")
MOUNT_ROUND_TRIPS = 4  # connect, manifest, the layers' TOCs, what is fetched first
SECONDS = 60


@dataclass(frozen=True)
class Link:
    """A link's round-trip time in seconds, and its bytes a second (0: unlimited)."""

    round_trip: float = 0.0
    rate: float = 0.0


def interpreter_seconds() -> float:
    """Return what starting Python takes with all that a mount imports; the median of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, cwd=ROOT, timeout=SECONDS)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def note(samples: Samples, name: str, mounted: Mounted) -> None:
    """Add to *samples* what the server of *mounted* did until now for the work *name*.

    ``fetched``: content that came, other than by background fill, for each byte of the chunks that
    were read of it.
    """
    status = mounted.status()
    # Requests that a reader had to begin itself: what is on its way already costs less.
    samples.add(f"asked: {name}", status["fetch"]["demand"]["requests"])
    samples.add(f"processor: {name}", processor_seconds(mounted.pid))
    traffic = [status["fetch"][purpose] for purpose in WANTED]
    used = sum(each["usedSize"] for each in traffic)
    if used:
        samples.add(f"fetched: {name}", sum(each["contentSize"] for each in traffic) / used)


def explain(row: str, lazy: Samples, pulled: Sequence[Samples], link: Link) -> str:
    """Return a line on where the seconds of *row* ("mount + WORK[, kind]") went.

    *pulled* are the other sides: what the work takes on files that are there is theirs.
    """
    name = row.removeprefix("mount + ")
    parts: list[tuple[str, float]] = []
    is_served = "serve" in name
    if not is_served and lazy.has("interpreter"):
        parts.append(("interpreter and imports", lazy.median("interpreter")))
    if link.round_trip:
        asked = f"asked: {name}"
        trips = MOUNT_ROUND_TRIPS + (lazy.median(asked) if lazy.has(asked) else 0)
        parts.append((f"{trips:.0f} round trips", trips * link.round_trip))
    sent = f"sent: {name}"
    if link.rate and lazy.has(sent):
        size = lazy.median(sent)
        parts.append((f"{size / 1e6:.2f} MB on the link", size / link.rate))
    if lazy.has(f"processor: {name}"):
        parts.append(("the server's processor time", lazy.median(f"processor: {name}")))
    work = f"pull + {name.partition(',')[0]}"
    own = [each.median(work) - each.median("pull + unpack") for each in pulled if each.has(work)]
    if own:
        parts.append(("the work on files that are there", max(0.0, min(own))))
    parts.sort(key=lambda part: -part[1])
    listed = ", ".join(f"{words} {seconds:.2f}" for words, seconds in parts)
    return f"{row}: of {lazy.median(row):.2f} s: {listed or 'nothing was measured'}"
