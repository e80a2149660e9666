"""What the mounts of sandboxes say of themselves.

For checkpoints: nothing here can ask a registry, or imports what could.
"""

from pathlib import Path

from lazyfs.documents.errors import BaseUnresolved, DeadMount
from lazyfs.mount.point import DEAD_ERRNOS, real_path
from lazyfs.service.identity import HEALTH, NO_SERVER, NotOurs, read_identity


class MountWitness:
    """Reads identities; *runtime* is the directory of the mounts' records."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime

    def identity(self, directory: Path) -> dict[str, str]:
        """Return the ``user.lazyfs.*`` attributes of the mount on *directory*, by full name.

        Raises BaseUnresolved where no mount of ours is; DeadMount where its server has ended.
        """
        try:
            found = read_identity(self._runtime, real_path(str(directory)))
        except NotOurs as exc:
            raise BaseUnresolved(exc.message) from exc
        except OSError as exc:
            if exc.errno in DEAD_ERRNOS:
                raise _dead(directory) from exc
            raise BaseUnresolved(
                f"cannot read the attributes of the mount {directory}: {exc.strerror}"
            ) from exc
        if found.get(HEALTH) == NO_SERVER:
            raise _dead(directory)
        return found


def _dead(directory: Path) -> DeadMount:
    return DeadMount(
        f"mount {directory} is dead: its server has ended",
        hint="reads from it fail; the images are named in the record of the start",
        details={"directory": str(directory)},
    )
