"""The keeper of a mount: holds what must outlive its server, and starts the next server.

    keeper.py CONNECTION FUSE LIMIT HISTORY MOUNTPOINT COMMAND…

A program of its own that imports nothing of lazyfs and next to nothing of Python, since every
mount has one: it is run with ``-I -S``.  It is born with copies of the server's descriptors (the
FUSE connection with its clones, pins of the layers, what a successor has to know) and leaves them
where they are.  CONNECTION, a seqpacket socket, is its link to the living server:

    keeper → server   its process number, first of all
    server → keeper   SERVING; PLANNED: I shall end, start another; END: unmounted, end too

When the link breaks without END, the server has died.  Unless the connection FUSE is gone with it,
the keeper runs COMMAND with two more arguments, the new link and the history: the number of
successors so far, and when the last ones were started, for the next keeper if there is need of one.
After LIMIT of them in a minute it gives up: it becomes COMMAND with ``give-up`` and MOUNTPOINT,
which unmounts.  Its standard error is the server's log.
"""

import os
import select
import sys
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair

SERVING, PLANNED, END = b"S", b"P", b"E"
MINUTE = 60.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 5.0  # seconds, where a server died before it served
READY_SECONDS = 60.0
KILL = 9  # the module signal would cost as much memory as all of this


def keep(
    link: int, fuse: int, limit: int, history: str, mountpoint: str, command: list[str]
) -> None:
    """Stay until the mount is gone; see the module's description."""
    number, *times = history.split(",")
    starts = [float(when) for when in times]
    count, delay, child = int(number), 0.0, 0
    while True:
        try:
            os.write(link, b"%d" % os.getpid())
        except OSError:
            pass  # dead already: reading says so too
        word, has_served = wait_end(link, child)
        os.close(link)
        reap()
        if word == END or is_gone(fuse):
            return
        if word != PLANNED:
            delay = 0.0 if has_served else min(LONGEST_DELAY, max(FIRST_DELAY, 2 * delay))
            starts = [when for when in starts if when > time.monotonic() - MINUTE]
            if len(starts) >= limit:
                give_up(mountpoint, limit, command)  # does not return
            time.sleep(delay)
            starts.append(time.monotonic())
            say(mountpoint, "the server died; starting another")
        count += 1
        history = ",".join([str(count), *(f"{when:.1f}" for when in starts)])
        link, child = start(command, history)


def wait_end(link: int, child: int) -> tuple[bytes, bool]:
    """Wait until the server at the other end is gone; return its last word, and whether it served.

    END is enough: who says so ends.  A *child* of ours (0: the server is none) that does not serve
    in time is killed: programs wait for it.
    """
    last, has_served = b"", False
    while True:
        if child and not has_served and not select.select([link], [], [], READY_SECONDS)[0]:
            os.kill(child, KILL)
        try:
            word = os.read(link, 16)
        except OSError:
            word = b""
        if not word:
            return last, has_served
        has_served = has_served or word == SERVING
        last = word
        if word == END:
            return last, has_served


def is_gone(fuse: int) -> bool:
    """Say whether the mount has ended.  Looked at now and then only: polling would wake us with
    each request."""
    poller = select.poll()
    poller.register(fuse, 0)
    return bool(poller.poll(0))


def start(command: list[str], history: str) -> tuple[int, int]:
    """Start a server; return the link to it, and its process."""
    ours, theirs = (end.detach() for end in socketpair(AF_UNIX, SOCK_SEQPACKET))
    child = os.fork()
    if child == 0:
        try:
            os.set_inheritable(theirs, True)
            os.execv(command[0], [*command, str(theirs), history])
        finally:
            os._exit(127)
    os.close(theirs)
    return ours, child


def reap() -> None:
    """Collect servers that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def give_up(mountpoint: str, limit: int, command: list[str]) -> None:
    """Let go of the connection, and unmount."""
    say(mountpoint, f"the server died {limit + 1} times in a minute; unmounting")
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execv(command[0], [*command, "give-up", mountpoint])


def say(mountpoint: str, what: str) -> None:
    """Write a line like those of the server's log."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"{when} WARNING lazyfs.service.processes.keeper: {mountpoint}: {what}\n"
    try:
        os.write(2, line.encode("utf-8", "surrogateescape"))
    except OSError:
        pass  # a full disk


if __name__ == "__main__":
    link_, fuse_, limit_ = map(int, sys.argv[1:4])
    keep(link_, fuse_, limit_, sys.argv[4], sys.argv[5], sys.argv[6:])
