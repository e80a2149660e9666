"""A FUSE connection that outlives its server.

A connection lives as long as somebody holds its open file descriptions of /dev/fuse.  Each has its
own list of the requests that were read from it and not answered; when the last holder of one goes,
those requests end with ECONNABORTED, and with the last one of all the connection ends.  So whoever
holds all of them can hand the connection to a new server, which has the kernel hand out again what
the old one had taken (FUSE_NOTIFY_RESEND, Linux 6.9; include/uapi/linux/fuse.h, 7.40).
"""

import fcntl
import logging
import os
import struct

import msgspec

FUSE_DEVICE = "/dev/fuse"
FUSE_DEVICE_NUMBER = os.makedev(10, 229)
FUSE_DEV_IOC_CLONE = 0x8004E500
HAS_RESEND = 1 << 39  # of INIT's flags
RESEND = struct.pack("=IiQ", 16, 7, 0)  # an out-header with a code and without a request

log = logging.getLogger(__name__)


class Connection(msgspec.Struct, frozen=True):
    """A connection that has been greeted, as one server leaves it to the next.

    ``descriptors`` are of /dev/fuse, the connection's first one and its clones; ``device`` is
    "major:minor" of the mount; ``minor`` and ``flags`` are what the greeting agreed on.
    """

    descriptors: tuple[int, ...]
    device: str | None
    minor: int
    flags: int

    @property
    def can_resend(self) -> bool:
        """Say whether requests that a dead server had taken can be had again."""
        return bool(self.flags & HAS_RESEND)

    def resend(self) -> None:
        """Have the kernel hand out again what was taken and not answered."""
        if not self.can_resend:
            return
        try:
            os.write(self.descriptors[0], RESEND)
        except OSError as error:
            log.debug("resending: %s", error)  # unmounted meanwhile: whoever reads sees it too


def with_clones(descriptor: int, count: int) -> list[int]:
    """Return *descriptor* and clones of its connection, *count* in all.

    Where cloning needs a permission that we do not have, the first is all there is.
    """
    descriptors = [descriptor]
    try:
        while len(descriptors) < count:
            clone = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(clone, FUSE_DEV_IOC_CLONE, struct.pack("=I", descriptor))
            except OSError:
                os.close(clone)
                raise
            descriptors.append(clone)
    except OSError as error:
        log.debug("clone of the connection: %s", error)
    return descriptors


def renewed(connection: Connection) -> Connection:
    """Return *connection* on as many new descriptors, the old ones closed.

    For kernels that cannot resend: once nobody holds a description any more, the requests that
    were read from it end with ECONNABORTED; their readers would wait for ever otherwise.
    """
    old = connection.descriptors
    _, *new = with_clones(old[0], len(old) + 1)
    if not new:
        log.warning("no permission to clone the connection: readers of the old server keep waiting")
        return connection
    for descriptor in old:
        os.close(descriptor)
    return Connection(tuple(new), connection.device, connection.minor, connection.flags)


def fuse_descriptors() -> set[int]:
    """Return this process's descriptors of /dev/fuse, however that is named here."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.fstat(int(name)).st_rdev == FUSE_DEVICE_NUMBER:
                found.add(int(name))
        except OSError:
            pass  # the one that listed the directory
    return found
