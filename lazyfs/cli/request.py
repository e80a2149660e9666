"""What the command line of ``lazyfs mount`` asks for."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lazyfs.registry.config.access import AccessOptions

DEFAULT_PATIENCE = "10m"
DRIVERS = ("auto", "native", "pyfuse3", "erofs")
PREFETCH_MODES = ("none", "landmark", "profile", "all")


class MountRequest(NamedTuple):
    """The arguments of ``lazyfs mount``, as they were given: ``words`` are those after ``-o``.

    ``directory`` and a layout's path may be relative to the working directory.  ``begun`` is when
    the command began, by the monotonic clock, which is that of all processes.  ``prepared`` is what
    the caller has prepared already, an encoded ``Prepared``.
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
    prepared: bytes | None = None
    patience: str = DEFAULT_PATIENCE
