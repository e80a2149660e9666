"""What a driver needs of an image: its index, its bytes, and what it may say about them.

No transport, no store and no kernel interface is visible here: a dictionary can play every part.
"""

from collections.abc import Callable, Mapping, Sequence
from mmap import mmap
from typing import Protocol, runtime_checkable

import msgspec

from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.provenance import Provenance

Attribute = bytes | Callable[[], bytes]


class Contents(Protocol):
    """The bytes of the layers, in device space; every byte handed out has been verified."""

    def read_nowait(self, device: int, offset: int, size: int) -> bytes | None:
        """Return *size* bytes of device *device* from *offset*, or None if not all are resident.

        Never blocks on a network, and runs on the event loop: a few microseconds.
        """
        ...

    async def read(self, device: int, offset: int, size: int) -> bytes:
        """Return exactly *size* bytes, fetching what is missing; raises LazyfsError."""
        ...


class LayerNames(Protocol):
    """The names of one layer, as text."""

    @property
    def digest(self) -> str: ...

    @property
    def diff_id(self) -> str: ...


class MountedImage(Protocol):
    """Everything that a driver serves.

    ``layers`` are bottom first; device k of the index is layer k - 1.  ``attributes`` are the
    ``user.lazyfs.*`` names that this mount adds to those on the index's root; a callable is asked
    each time.
    """

    @property
    def index(self) -> ErofsIndex: ...

    @property
    def provenance(self) -> Provenance: ...

    @property
    def contents(self) -> Contents: ...

    @property
    def layers(self) -> Sequence[LayerNames]: ...

    @property
    def attributes(self) -> Mapping[bytes, Attribute]: ...


Mapped = bytes | bytearray | memoryview | mmap


class NativeLayer(msgspec.Struct, frozen=True):
    """Where a driver finds one layer's bytes without asking Python.

    ``states`` has a byte per record of the layer table, changed by others meanwhile; 2 says that
    the record's verified bytes are in the file ``content_fd`` (-1: nothing ever is).
    """

    table: Mapped
    states: Mapped
    content_fd: int


class NativeContents(Contents, Protocol):
    """Contents for a driver that reads what is resident by itself."""

    async def ensure(self, device: int, start: int, end: int) -> object:
        """Make device bytes *start* to *end* resident, unless the store cannot take them.

        Raises LazyfsError.
        """
        ...

    def lost(self, device: int, offset: int, size: int) -> bool:
        """Take note that marked bytes of a device cannot be read, or lie in a hole of its file.

        False: its filesystem makes holes of zeros, and they are to be ignored.
        """
        ...

    def mark(self, device: int) -> int | None:
        """Return the chunk of which ``reached`` wants to know when it is read, or None.

        Changes with ``ensure`` and ``reached`` only.
        """
        ...

    def reached(self, device: int, chunk: int) -> None:
        """Take note that *chunk* is being read; returns at once."""
        ...

    def touched(self, touches: Sequence[tuple[int, int]]) -> bool:
        """Take note of first reads, (device, chunk), in their order; False: no more are wanted."""
        ...


@runtime_checkable
class IndexedImage(MountedImage, Protocol):
    """An image whose index the kernel can mount."""

    @property
    def index_path(self) -> str:
        """Where the index lies; not on tmpfs."""
        ...


@runtime_checkable
class NativeImage(MountedImage, Protocol):
    """An image that the native driver can serve."""

    @property
    def contents(self) -> NativeContents: ...

    def native_layers(self) -> Sequence[NativeLayer]:
        """Return the layers' files, bottom first; they stay until the image is closed."""
        ...
