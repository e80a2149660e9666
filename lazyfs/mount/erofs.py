"""Driver 3: the kernel mounts the rootfs index; we serve the layers' bytes, as files.

    mountpoint   the kernel's EROFS of the index: names, attributes, its own page cache
        │ device=
    files        a private FUSE mount with a file per layer (devices.py), served by driver 2 or 1;
                 or, for a layer that is complete, the store's content file itself

The files are opened past the page cache (direct I/O), or the kernel would read ahead in the layers,
which is fetching what nobody asked for.

The private mount is taken off the tree as soon as EROFS has opened its files.  Those keep it alive,
exactly as long as the EROFS mount lives, wherever it is used: there is no second mount to unmount
and no order to keep, also after a crash.

The server must never touch the mount that it serves: it would wait for itself.
"""

import os
from collections.abc import Sequence

import trio
from msgspec.structs import replace

from lazyfs.errors import MountFailed
from lazyfs.mount import point
from lazyfs.mount.connection import Connection
from lazyfs.mount.contents import IndexedImage, NativeImage
from lazyfs.mount.devices import NativeDevicesImage, devices_of
from lazyfs.mount.forgetting import Page
from lazyfs.mount.kernel import attributes_of, check_erofs, mount_erofs
from lazyfs.mount.options import EROFS
from lazyfs.mount.session import PyfuseSession

try:
    from lazyfs.mount.native import NativeSession
except ImportError:  # it was installed without a compiler
    NativeSession = None  # type: ignore[assignment,misc]

RESIDENT = 2
LOOK_SECONDS = 0.25


class ErofsSession(PyfuseSession):
    """A mount of *image* by the kernel; the same life as that of a PyfuseSession.

    *folder*, which is made and removed, is where the private mount is for a moment.  *is_native*:
    the C threads serve it.
    """

    driver = "erofs"

    def __init__(
        self,
        image: IndexedImage,
        mountpoint: str,
        folder: str,
        *,
        is_native: bool,
        threads: int | None = None,
    ) -> None:
        # Not PyfuseSession's: what it makes is for a mount of the whole image
        self.note = ""
        self.mountpoint = point.real_path(mountpoint)
        self.device: str | None = None
        self._image = image
        self._folder = folder
        self._flags: tuple[str, ...] = ()
        self._ready = trio.Event()
        self._is_native = is_native
        self._threads = threads
        self._is_adopted = False
        self._files = self._complete_files()
        self._inner: PyfuseSession | None = None
        if all(self._files):
            self.note = "all layers are complete: the kernel reads them by itself"
        else:
            self._inner = self._make_inner()

    def _make_inner(self) -> PyfuseSession:
        devices = devices_of(self._image)
        inner: PyfuseSession
        if self._is_native and isinstance(devices, NativeDevicesImage):
            inner = NativeSession(devices, self._folder, threads=self._threads, serves_devices=True)
        else:
            inner = PyfuseSession(devices, self._folder, serves_devices=True)
        self.has_successor = inner.has_successor
        self.note = f"driver {inner.driver} serves the layers"
        return inner

    def _complete_files(self) -> list[str]:
        """Return for each device the file that has all of it, or an empty string."""
        if not isinstance(self._image, NativeImage):
            return ["" for _ in self._image.index.devices]
        files = []
        for layer, device in zip(
            self._image.native_layers(), self._image.index.devices, strict=True
        ):
            states = bytes(layer.states)
            is_complete = layer.content_fd >= 0 and (
                not device.size or states.count(RESIDENT) == len(states)
            )
            files.append(f"/proc/self/fd/{layer.content_fd}" if is_complete else "")
        return files

    def mount(self, options: set[str]) -> None:
        """Make ready to mount with libfuse's *options*; raises MountFailed.

        The rest needs somebody who serves the files, and happens in ``serve``.
        """
        check_erofs(os.uname().release)
        if "allow_root" in options or "auto_unmount" in options:
            raise MountFailed(
                "driver erofs does not support allow_root and auto_unmount",
                hint="a mount by the kernel is open to every user and outlives its server",
            )
        if "allow_other" not in options:
            raise MountFailed(
                "driver erofs: every local user can read the mount, as its files' modes allow",
                hint="allow it with -o allow_other; the other drivers keep other users out",
            )
        self._flags = tuple(options)
        if self._inner is not None:
            os.mkdir(self._folder, 0o700)
            try:
                self._inner.mount({"ro", "default_permissions", "subtype=lazyfs", "fsname=devices"})
            except MountFailed:
                os.rmdir(self._folder)
                raise

    def adopt(self, connection: Connection) -> None:
        """Go on with the files that another server served; the kernel's mount has not changed."""
        self._inner = self._inner or self._make_inner()
        self._inner.adopt(connection)
        self.device = connection.device
        self._is_adopted = True

    def connection(self) -> Connection | None:
        """Return what a successor has to be given: the connection of the files."""
        found = None if self._inner is None else self._inner.connection()
        return None if found is None else replace(found, device=self.device)

    async def serve(self) -> None:
        """Mount, and answer the kernel until the mount is gone."""
        if self._is_adopted and self._inner is not None:
            self._ready.set()
            await self._inner.serve()
            return
        async with trio.open_nursery() as nursery:
            if self._inner is not None:
                nursery.start_soon(self._serve_files, self._inner, nursery.cancel_scope)
                await self._inner.wait_ready()
            await trio.to_thread.run_sync(self._mount)
            entry = self._entry()
            self.device = None if entry is None else entry.device
            self._ready.set()
            if self._inner is None:
                # Nothing of it comes to us: there is no event to wait for
                while self.is_mounted():  # noqa: ASYNC110
                    await trio.sleep(LOOK_SECONDS)

    async def _serve_files(self, inner: PyfuseSession, everything: trio.CancelScope) -> None:
        await inner.serve()
        everything.cancel()

    def _mount(self) -> None:
        files = [
            file or f"{self._folder}/{number}" for number, file in enumerate(self._files, start=1)
        ]
        try:
            mount_erofs(self._image.index_path, files, self.mountpoint, attributes_of(self._flags))
        finally:
            self._hide()

    def _hide(self) -> None:
        """Take the private mount off the tree; it lives on while its files are open."""
        if self._inner is not None and os.path.isdir(os.path.dirname(self._folder)):
            if self._inner.is_mounted():
                point.unmount(self._folder, lazy=True)
            try:
                os.rmdir(self._folder)
            except FileNotFoundError:
                pass

    async def invalidate(self, pages: Sequence[Page]) -> list[Page]:
        """Do nothing: the layers' files are read past the cache, and EROFS cannot be told."""
        return []

    async def wait_ready(self) -> None:
        """Wait until the mount is there."""
        await self._ready.wait()

    def close(self) -> None:
        """Let go of the connection; bytes that are not in the kernel's memory cannot be had now."""
        if self._inner is not None:
            self._hide()
            self._inner.close()

    def statistics(self) -> dict[str, int]:
        """Return the counts of who serves the files."""
        return {} if self._inner is None else self._inner.statistics()

    def _entry(self) -> point.MountEntry | None:
        entry = point.topmost(point.load_mountinfo(), os.fsencode(self.mountpoint))
        return entry if entry is not None and entry.filesystem_type == EROFS else None
