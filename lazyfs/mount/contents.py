"""What a driver needs of an image: its index, its bytes, and what it may say about them.

No transport, no store and no kernel interface is visible here: a dictionary can play every part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

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
