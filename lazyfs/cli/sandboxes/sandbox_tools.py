"""What commands on sandboxes pass to the procedures that they call."""

from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.cli.options import (
    default_runtime_dir,
    default_state_dir,
)
from lazyfs.cli.output import print_line

if TYPE_CHECKING:
    from lazyfs.snapshot.checkpoint import Tools


def tools_for_checkpoints(cache_dir: Path) -> "Tools":
    """Return what a checkpoint works with; none of it can contact a registry."""
    from lazyfs.sandbox.runtimes.runtimes import Chooser
    from lazyfs.service.mounts import NodeMounts
    from lazyfs.snapshot.checkpoint import Tools, open_store

    return Tools(
        mounts=NodeMounts(default_runtime_dir(), cache_dir),
        choose=Chooser(default_state_dir()),
        objects=open_store,
        say=lambda line: print_line(f"lazyfs: {line}", err=True),
    )
