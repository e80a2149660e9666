"""A made image whose devices are files with presence maps, as the native driver wants them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from lazyfs.mount.contents import NativeLayer
from lazyfs.rootfs.table import LayerTable, build_table
from tests.support.mounts.mounted import MadeContents, MadeImage

ABSENT, RESIDENT = 0, 2


@dataclass
class NativeMadeContents(MadeContents):
    """MadeContents that also keeps presence maps: cold or broken devices have nothing resident.

    When ``is_full``, nothing becomes resident.  ``touches`` has the first reads in order,
    ``marks`` what read-ahead wants to know of, ``reached`` what it was told.
    """

    tables: dict[int, LayerTable] = field(default_factory=dict)
    states: dict[int, bytearray] = field(default_factory=dict)
    is_full: bool = False
    touches: list[tuple[int, int]] = field(default_factory=list)
    marks: dict[int, int] = field(default_factory=dict)
    reached_marks: list[tuple[int, int]] = field(default_factory=list)

    def chill(self, device: int) -> None:
        super().chill(device)
        self._set(device, ABSENT)

    def warm(self) -> None:
        super().warm()
        self.is_full = False
        for device in self.states:
            self._set(device, RESIDENT)

    def break_(self, device: int, error: Exception) -> None:
        super().break_(device, error)
        self._set(device, ABSENT)

    def mend(self) -> None:
        super().mend()
        self.warm()

    def _set(self, device: int, state: int) -> None:
        states = self.states[device]
        states[:] = bytes([state]) * len(states)

    async def ensure(self, device: int, start: int, end: int) -> object:
        await self.read(device, start, end - start)
        if not self.is_full:
            for chunk in self.tables[device].covering(start, end):
                self.states[device][chunk] = RESIDENT
        return None

    def lost(self, device: int, offset: int, size: int) -> bool:
        self._set(device, ABSENT)
        return True

    def mark(self, device: int) -> int | None:
        return self.marks.get(device)

    def reached(self, device: int, chunk: int) -> None:
        self.marks.pop(device, None)
        self.reached_marks.append((device, chunk))

    def touched(self, touches: Sequence[tuple[int, int]]) -> bool:
        self.touches.extend(touches)
        return True


class NativeMadeImage(MadeImage):
    """A MadeImage that the native driver can serve too."""

    def __init__(self, *layers, **options) -> None:
        super().__init__(*layers, **options)
        devices = self.contents.devices
        tables = {
            number: LayerTable(build_table(toc, 1 << 30))
            for number, toc in enumerate(self.tocs, start=1)
        }
        self.contents = NativeMadeContents(
            devices,
            tables=tables,
            states={number: bytearray(max(1, table.count)) for number, table in tables.items()},
        )
        self.contents.warm()
        self.files = {number: os.memfd_create(f"device{number}") for number in devices}
        for number, data in devices.items():
            assert os.pwrite(self.files[number], data, 0) == len(data)

    def native_layers(self) -> list[NativeLayer]:
        return [
            NativeLayer(
                self.contents.tables[number].buffer,
                self.contents.states[number],
                self.files[number],
            )
            for number in sorted(self.files)
        ]
