"""Which driver serves a mount."""

import os

from lazyfs.errors import MountFailed
from lazyfs.mount.contents import IndexedImage, MountedImage, NativeImage
from lazyfs.mount.erofs import ErofsSession
from lazyfs.mount.session import PyfuseSession

try:
    from lazyfs.mount.native import NativeSession
except ImportError as error:  # it was installed without a compiler
    NativeSession = None  # type: ignore[assignment,misc]
    _REASON = str(error)
else:
    _REASON = ""

PURE = "LAZYFS_PURE"  # for tests: do as if the native module were missing


def open_session(
    driver: str,
    image: MountedImage,
    mountpoint: str,
    *,
    threads: int | None = None,
    max_read: int | None = None,
    folder: str = "",
    is_for_root: bool = False,
) -> PyfuseSession:
    """Return a session of *driver*: "native", "pyfuse3", "erofs", or "auto" for one of the first.

    *threads* and *max_read* (in bytes) are for the native one; None leaves them to it.  *folder*, a
    path where nothing is, is for erofs.  *is_for_root*: the option allow_root was given, which the
    kernel does not know and only libfuse's loop keeps to.  Raises MountFailed where the driver that
    was asked for is missing.
    """
    if driver == "pyfuse3":
        return PyfuseSession(image, mountpoint)
    reason = _REASON or ("turned off by LAZYFS_PURE" if os.environ.get(PURE) else "")
    if driver == "erofs":
        if not isinstance(image, IndexedImage):
            raise MountFailed("driver erofs: the image has no rootfs index on disk")
        return ErofsSession(image, mountpoint, folder, is_native=not reason, threads=threads)
    if driver == "auto" and is_for_root and not reason:
        reason = "it does not support allow_root"
    if not reason and isinstance(image, NativeImage):
        return NativeSession(image, mountpoint, threads=threads, max_read=max_read)
    reason = reason or "it cannot serve this image"
    if driver == "native":
        raise MountFailed(
            f"driver native is not available: {reason}",
            hint="install lazyfs again with a C compiler, or mount with --driver pyfuse3",
        )
    return PyfuseSession(image, mountpoint, note=f"no native driver: {reason}")
