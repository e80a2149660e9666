"""What ``lazyfs mount`` was asked for: decided by the command line, done here or by the service."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazyfs.registry.access import AccessOptions

DRIVERS = ("auto", "native", "pyfuse3", "erofs")
PREFETCH_MODES = ("none", "landmark", "profile", "all")
START_TIME = 19  # of the fields after the name in /proc/pid/stat
PATHS = ("authfile", "hosts_dir")  # of AccessOptions


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # less to compile
class MountRequest:
    """The arguments of ``lazyfs mount``, as they were given: ``words`` are those after ``-o``.

    ``directory`` and a layout's path may be relative to the working directory.  ``begun`` is when
    the command began, by the monotonic clock, which is that of all processes.
    """

    image: str
    directory: str
    foreground: bool
    cache_dir: Path
    platform: str | None
    access: "AccessOptions"
    words: tuple[str, ...]
    driver: str
    prefetch: str
    cache_size: str
    background_limit: str
    begun: float
    stats: bool
    verbosity: int
    log_json: bool
    verify: str = "toc"
    pinned: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it in JSON's types, but for the environment, which travels by itself."""
        access = {name: value for name, value in asdict(self.access).items() if value is not None}
        del access["environment"]
        for name in PATHS:
            if name in access:
                access[name] = str(access[name])
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"cache_dir": str(self.cache_dir), "access": access}


def process_start() -> float:
    """Return when this process began, in seconds of the monotonic clock."""
    now = time.monotonic()
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[START_TIME])
    except (OSError, IndexError, ValueError):
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)


def request_of(document: dict[str, Any], environment: dict[str, str]) -> MountRequest:
    """Return the request that *document* holds, of somebody with *environment*."""
    from lazyfs.registry.access import AccessOptions

    access = dict(document["access"])
    for name in PATHS:
        if name in access:
            access[name] = Path(access[name])
    if "login" in access:
        access["login"] = tuple(access["login"])
    return MountRequest(
        **document
        | {
            "cache_dir": Path(document["cache_dir"]),
            "access": AccessOptions(**access, environment=environment),
            "words": tuple(document["words"]),
        }
    )
