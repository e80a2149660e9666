"""The content of a layer that the store has no room for."""

from collections.abc import Sequence
from pathlib import Path

from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content import NEVER, LayerContent, NotStored
from lazyfs.store.presence import RESIDENT
from lazyfs.store.rows import Payload


class UnstoredContent(LayerContent):
    """The content of a layer where there is no room for any: nothing ever becomes resident."""

    def __init__(self, folder: Path, table: LayerTable) -> None:
        self.folder = folder
        self.table = table
        self.fd = -1
        self.doubted, self.was_shown, self.holes_tell = "", False, True
        self.states = memoryview(bytearray(max(1, table.count)))
        for chunk in table.holes:
            self.states[chunk] = RESIDENT

    def open_pin(self) -> int:
        """Return -1: there is nothing to keep."""
        return -1

    def read(self, offset: int, size: int) -> bytes:
        """Return zeros: nothing but holes is resident."""
        return bytes(size)

    def check(self, chunk: int) -> bool:
        """Say whether the chunk is zeros, which is all that there is."""
        return chunk in self.table.holes

    def claim(self, first: int, last: int) -> bool:
        """Say yes: what is not stored is not shared."""
        return True

    def release(self, first: int, last: int) -> None:
        """Do nothing."""

    def write(self, chunk: int, data: bytes) -> None:
        """Raise NotStored."""
        raise NotStored(f"content store {self.folder}: no space left")

    def write_all(self, payloads: Sequence[Payload]) -> list[int]:
        """Return all of them."""
        return [chunk for chunk, _ in payloads]

    def copy(self, chunk: int, source_fd: int, source_offset: int) -> None:
        """Raise NotStored."""
        raise NotStored(f"content store {self.folder}: no space left")

    def doubt(self) -> None:
        """Do nothing: nothing is marked."""

    def is_apart(self) -> bool:
        """Say no: there are no files."""
        return False

    def note_checked(self, since: float) -> None:
        """Do nothing: there is nothing to check."""

    @property
    def since(self) -> int:
        """Return a time that never comes: nothing is to be checked."""
        return NEVER

    def close(self) -> None:
        """Do nothing."""
