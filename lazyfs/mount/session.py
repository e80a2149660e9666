"""One mount of driver 1: from the mount system call to its end.

pyfuse3 holds its session in module variables, so that there is one per process; which is how
lazyfs wants it anyway.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import trio

from lazyfs.errors import MountFailed
from lazyfs.mount import point
from lazyfs.mount.connection import Connection, fuse_descriptors
from lazyfs.mount.contents import MountedImage
from lazyfs.mount.forgetting import Page, forget_apart, forget_around
from lazyfs.mount.libfuse import pyfuse3
from lazyfs.mount.options import FILESYSTEM_TYPE
from lazyfs.mount.pyfuse import ImageOperations

log = logging.getLogger(__name__)

# A reader whose chunk is being fetched occupies a task until it is answered: there must be far
# more tasks than readers, or lookups would wait behind a slow registry.
MAX_TASKS = 1000
MAX_BACKGROUND = 512
"""Reads through the page cache that may be under way.  The kernel's own bound is 12: so many that
wait for a registry that is away would keep hits of other files waiting."""
CONNECTIONS = "/sys/fs/fuse/connections"
STDERR = 2
MAX_COMPLAINT = 2000

# What libfuse and fusermount3 say (3.2 to 3.17), and what helps.
HINTS = (
    (
        "user_allow_other",
        "add a line user_allow_other to /etc/fuse.conf, or mount without allow_other",
    ),
    ("failed to open /dev/fuse: Permission denied", "as root: chmod 666 /dev/fuse"),
    ("/dev/fuse: Permission denied", "as root: chmod 666 /dev/fuse"),
    ("/dev/fuse", "modprobe fuse; in a container, pass --device /dev/fuse"),
    ("failed to exec fusermount", "install the package fuse3; only root can mount without it"),
    ("could not determine username", "fusermount3 needs the user to be in /etc/passwd"),
    ("too many FUSE filesystems", "raise mount_max in /etc/fuse.conf"),
    ("not permitted", "a container needs CAP_SYS_ADMIN, or fusermount3 with its suid bit"),
)


class PyfuseSession:
    """A mount of *image* on a directory; use one per process, in this order: mount, serve, close.

    ``serve`` answers requests until the mount is gone.  ``note`` is what a status adds to the name
    of the driver, empty for nothing.  ``has_successor``: another server can adopt the mount when
    this one has died.  *serves_devices*: the files are for a filesystem of the kernel's, and are
    opened past the page cache.
    """

    driver = "pyfuse3"
    has_successor = False

    def __init__(
        self,
        image: MountedImage,
        mountpoint: str,
        *,
        note: str = "",
        serves_devices: bool = False,
    ) -> None:
        self.note = note
        self.mountpoint = point.real_path(mountpoint)
        self.device: str | None = None
        self._first = -1  # libfuse's descriptor of /dev/fuse, once it is mounted
        self._operations = ImageOperations(image, keeps_pages=not serves_devices)

    def mount(self, options: set[str]) -> None:
        """Make the mount with libfuse's *options*; raises MountFailed.

        The kernel's first request waits until ``serve`` runs.
        """
        before = fuse_descriptors()
        with _captured_stderr() as complaint:
            try:
                pyfuse3.init(self._operations, self.mountpoint, options)
            except RuntimeError as error:
                if "fuse_session_new" not in str(error):  # then there is no session to close
                    pyfuse3.close(unmount=False)
                raise _mount_failed(self.mountpoint, complaint()) from error
        descriptors = fuse_descriptors() - before
        if len(descriptors) != 1:
            point.unmount(self.mountpoint, lazy=True)
            pyfuse3.close(unmount=False)
            raise MountFailed(
                f"mount on {self.mountpoint}: libfuse opened {len(descriptors)} descriptors of "
                "/dev/fuse, not one"
            )
        self._first = descriptors.pop()
        entry = self._entry()
        self.device = None if entry is None else entry.device
        self._raise_bound()

    def _raise_bound(self) -> None:
        """Let more reads be under way; libfuse has no word for it, the kernel's control files do.

        Where these are not mounted the bound stays.
        """
        minor = (self.device or "").rpartition(":")[2]
        try:
            with open(f"{CONNECTIONS}/{minor}/max_background", "w") as file:
                file.write(str(MAX_BACKGROUND))
        except OSError as error:
            log.debug("%s: max_background: %s", self.mountpoint, error.strerror)

    def adopt(self, connection: Connection) -> None:
        """Go on with a mount that another server made; raises MountFailed."""
        raise MountFailed(
            f"driver {self.driver} cannot take over a mount of another server; driver native can"
        )

    def connection(self) -> Connection | None:
        """Return what a successor of this server has to be given; None: it can have none.

        libfuse keeps to itself what it agreed on with the kernel.
        """
        return None

    async def serve(self) -> None:
        """Answer requests until the mount is gone."""
        await pyfuse3.main(max_tasks=MAX_TASKS)

    def statistics(self) -> dict[str, int]:
        """Return what the driver counts by itself; nothing where all reads come to Python."""
        return {}

    async def wait_ready(self) -> None:
        """Wait until the kernel has greeted us."""
        await self._operations.initialised.wait()

    async def unmount(self) -> None:
        """Unmount; lazily when it is in use.  In a thread: the kernel may ask us on the way."""
        if not self.is_mounted():
            return
        try:
            await trio.to_thread.run_sync(_unmount, self.mountpoint, False)
        except point.BusyMountpoint:
            log.warning(
                "mount %s is in use; it was detached, and its users get errors from now on",
                self.mountpoint,
            )
            await trio.to_thread.run_sync(_unmount, self.mountpoint, True)

    async def invalidate(self, pages: Sequence[Page]) -> list[Page]:
        """Have the kernel forget pages of files; return those that are spared.

        These are of reads that wait for contents, and will bring right bytes.
        """
        forget = forget_around(self._operations.parked)
        work = partial(forget_apart, self._first, pages, forget)
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    def is_mounted(self) -> bool:
        """Say whether the mount seen at the mountpoint is this one, and not one over it."""
        entry = self._entry()
        return entry is not None and entry.device == self.device

    def close(self) -> None:
        """Let go of the connection; what is still mounted answers ENOTCONN from now on."""
        pyfuse3.close(unmount=False)

    def _entry(self) -> point.MountEntry | None:
        entry = point.topmost(point.load_mountinfo(), os.fsencode(self.mountpoint))
        return entry if entry is not None and entry.filesystem_type == FILESYSTEM_TYPE else None


def _unmount(mountpoint: str, lazy: bool) -> None:
    point.unmount(mountpoint, lazy=lazy)


def _mount_failed(mountpoint: str, complaint: str) -> MountFailed:
    said = complaint or "no reason given"
    hint = next((advice for words, advice in HINTS if words in said), None)
    return MountFailed(f"cannot mount on {mountpoint}: {said!r}", hint=hint)


@contextmanager
def _captured_stderr() -> Iterator["Complaint"]:
    """Catch what C code and the helper it starts write to descriptor 2."""
    # In memory: a full disk must not keep anybody from mounting
    with os.fdopen(os.memfd_create("lazyfs-stderr"), "r+b") as file:
        saved = os.dup(STDERR)
        os.dup2(file.fileno(), STDERR)
        complaint = Complaint(file.fileno())
        try:
            yield complaint
        finally:
            os.dup2(saved, STDERR)
            os.close(saved)
            rest = complaint()
            if rest:
                log.info("libfuse: %s", rest)


class Complaint:
    """What was written to descriptor 2 meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self) -> str:
        data = os.pread(self._descriptor, MAX_COMPLAINT, 0)
        return "; ".join(data.decode("utf-8", "backslashreplace").split("\n")).strip("; ")
