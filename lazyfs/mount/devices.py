"""The layers' devices as files: what the kernel's EROFS reads.

An image of its own, with the bytes of the image that it belongs to: file k is device k, all of it.
Its index is made here; so every driver that can serve an image can serve its devices too.
"""

from collections.abc import Sequence

from lazyfs.digest import digest_of
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.mount.contents import MountedImage, NativeContents, NativeImage, NativeLayer
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.provenance import Provenance


class DevicesImage:
    """The devices of *image*, named 1, 2, …; only root may look at them."""

    def __init__(self, image: MountedImage) -> None:
        sizes = [device.size for device in image.index.devices]
        built = build_index(
            [_toc(number, size) for number, size in enumerate(sizes, start=1)],
            root_xattrs={},
            device_tags=["" for _ in sizes],
        )
        self.index = ErofsIndex(built.image)
        self.provenance = Provenance(built.provenance)
        self.contents = image.contents
        self.layers = image.layers
        self.attributes: dict[bytes, bytes] = {}


class NativeDevicesImage(DevicesImage):
    """The same, for the native driver."""

    contents: NativeContents

    def __init__(self, image: NativeImage) -> None:
        super().__init__(image)
        self._image = image

    def native_layers(self) -> Sequence[NativeLayer]:
        """Return the layers' files, bottom first."""
        return self._image.native_layers()


def devices_of(image: MountedImage) -> DevicesImage:
    """Return the devices of *image*, as natively as can be."""
    return NativeDevicesImage(image) if isinstance(image, NativeImage) else DevicesImage(image)


def _toc(number: int, size: int) -> Toc:
    chunks = (Chunk(0, size, 0, 0, bytes(32)),) if size else ()
    entry = TocEntry(
        path=b"%d" % number, kind=Kind.REGULAR, mode=0o400, uid=0, gid=0, size=size, chunks=chunks
    )
    return Toc(digest_of(b"%d %d" % (number, size)), (entry,))
