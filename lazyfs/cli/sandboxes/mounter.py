"""What commands that run sandboxes use to mount images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.mounts.serve import NEEDED, do_handed_over
from lazyfs.cli.options import default_runtime_dir
from lazyfs.cli.request import DEFAULT_PATIENCE
from lazyfs.service.bases import ImageBases
from lazyfs.service.processes.forks import Maker
from lazyfs.service.processes.mount_command import MountCommand

if TYPE_CHECKING:
    from lazyfs.registry.config.access import AccessOptions


def bases_for_sandboxes(
    cache_dir: Path,
    access: "AccessOptions",
    words: tuple[str, ...] = (),
    *,
    patience: str = DEFAULT_PATIENCE,
    rehash: bool = False,
) -> ImageBases:
    """Return what finds and mounts images; *words* are options of ``lazyfs mount``.

    *patience* is another one, and *rehash* as for ``ImageBases``.
    """
    mount = mounter(cache_dir, access, ("--patience", patience, *words))
    return ImageBases(cache_dir, default_runtime_dir(), access, mount, rehash=rehash)


def mounter(cache_dir: Path, access: "AccessOptions", words: tuple[str, ...] = ()) -> MountCommand:
    """Return what mounts images."""
    uses_service = click.BOOL.convert(os.environ.get("LAZYFS_SERVICE") or True, None, None)
    folder = default_runtime_dir() if uses_service else None
    return MountCommand(cache_dir, access, words, Maker(do_handed_over, NEEDED, folder))
