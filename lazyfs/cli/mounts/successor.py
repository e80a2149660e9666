"""What a keeper runs: a server that takes over a mount, or the end of a mount given up.

    python -m lazyfs.cli.mounts.successor STATE LINK HISTORY
    python -m lazyfs.cli.mounts.successor STATE give-up MOUNTPOINT

Not for people.  STATE and LINK are descriptors; see service/processes/keeper.py.
"""

import os
import sys

from lazyfs.cli.log import set_up_logging
from lazyfs.printable import printable

GIVE_UP = "give-up"


def main(state: str, word: str, rest: str) -> int:
    """Do what the keeper asks; return the exit code."""
    if word == GIVE_UP:
        return give_up(rest)
    from lazyfs.errors import LazyfsError
    from lazyfs.service.processes.keeping import Legacy
    from lazyfs.service.server import Succession, succeed

    data = os.pread(int(state), os.fstat(int(state)).st_size, 0)
    os.close(int(state))  # the keeper has it
    legacy = Legacy.decode(data)
    settings = legacy.settings
    set_up_logging(settings.verbosity, as_json=settings.is_log_json, is_server=True)
    for descriptor in (int(word), *legacy.connection.descriptors, *legacy.pins):
        os.set_inheritable(descriptor, False)
    try:
        succeed(Succession(legacy, int(word), rest))
    except LazyfsError as error:
        print(f"lazyfs: {printable(error.message)}", file=sys.stderr)
        return 1
    return 0


def give_up(mountpoint: str) -> int:
    """Unmount a mount whose server has died."""
    from lazyfs.cli.options import default_runtime_dir
    from lazyfs.errors import LazyfsError
    from lazyfs.mount.point import State, state_of, unmount
    from lazyfs.service.identity import end_stuck, remove_abandoned

    set_up_logging(0, is_server=True)
    try:
        end_stuck(default_runtime_dir(), mountpoint)
        if remove_abandoned(default_runtime_dir(), mountpoint):
            return 0
        if state_of(mountpoint)[0] is State.DEAD:
            unmount(mountpoint, lazy=True)
    except LazyfsError as error:
        print(f"lazyfs: {printable(error.message)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
