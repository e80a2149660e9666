"""Sparse files in tars: which pieces of a file its payload holds; the rest is zeros.

Spec: GNU tar manual, "Storing Sparse Files": the old GNU format has its map in the header and in
blocks behind it, PAX 0.0 and 0.1 in records, PAX 1.0 in the first blocks of the payload.  What is
wrong is a ValueError here.  No I/O.
"""

from collections.abc import Mapping, Sequence

from lazyfs.formats.tocs.tar_fields import MAX_INTEGER, SPARSE_MAP, integer, number

BLOCK_SIZE = 512
MAX_MAP_SIZE = 1 << 20  # where Go's archive/tar draws the line, too
MAX_ZEROS = 64 << 30  # that are written or hashed for what a map of a few bytes says
PAIR_SIZE = 24
PAIRS_IN_HEADER, PAIRS_IN_BLOCK = 386, 0  # where they begin; four and 21 of them

Pieces = tuple[tuple[int, int], ...]
"""(offset in the file, size) of each piece that is stored, in order, without empty ones."""


class SparseMap:
    """The map of one sparse file, complete or still to come in blocks.

    ``real_size`` is the file's own size.  ``is_in_payload``: the blocks belong to the payload.
    """

    def __init__(self, real_size: int, *, is_in_payload: bool = False) -> None:
        self.real_size = real_size
        self.is_in_payload = is_in_payload
        self.wants_block = is_in_payload
        self._pairs: list[tuple[int, int]] = []
        self._text = bytearray()
        self._map_size = 0

    def take_pairs(self, block: bytes, start: int, count: int) -> None:
        """Take the old format's pairs in a block, and whether another block follows."""
        self._note_size()
        for at in range(start, start + count * PAIR_SIZE, PAIR_SIZE):
            if not block[at]:
                break
            offset = number(block[at : at + 12], "sparse offset")
            self._pairs.append((offset, number(block[at + 12 : at + 24], "sparse size")))
        self.wants_block = bool(block[start + count * PAIR_SIZE])

    def take_record(self, count: int, record: bytes) -> None:
        """Take the map of a PAX record."""
        values = record.split(b",") if record else []
        if count < 0 or len(values) != 2 * count:
            raise ValueError(f"got a sparse map of {len(values)} numbers, expected {2 * count}")
        self._take_numbers(values)

    def take_block(self, block: bytes) -> None:
        """Take the next block."""
        if not self.is_in_payload:
            self.take_pairs(block, PAIRS_IN_BLOCK, 21)
            return
        self._note_size()
        self._text += block
        first, newline, _ = self._text.partition(b"\n")
        if not newline:
            return
        count = integer(bytes(first), "sparse map")
        if count < 0:
            raise ValueError(f"its sparse map has {count} pieces")
        if self._text.count(b"\n") > 2 * count:
            self.wants_block = False
            self._take_numbers(bytes(self._text).split(b"\n", 2 * count + 1)[1:-1])

    def pieces(self, stored_size: int) -> Pieces:
        """Return the pieces of a payload of *stored_size* bytes, which must be all of it."""
        end = total = 0
        pieces: list[tuple[int, int]] = []
        for offset, size in self._pairs:
            if offset < end or size < 0 or offset > self.real_size - size:
                raise ValueError(
                    f"got a piece of a sparse file at {offset} of {size} bytes,"
                    f" expected it within {end} to {self.real_size}"
                )
            if size and pieces and offset == sum(pieces[-1]):
                pieces[-1] = pieces[-1][0], pieces[-1][1] + size
            elif size:
                pieces.append((offset, size))
            end = offset + size
            total += size
        if total != stored_size:
            raise ValueError(f"got {stored_size} bytes of a sparse file, expected {total}")
        return tuple(pieces)

    def _take_numbers(self, values: Sequence[bytes]) -> None:
        numbers = [integer(value, "sparse map") for value in values]
        self._pairs = list(zip(numbers[::2], numbers[1::2], strict=True))

    def _note_size(self) -> None:
        self._map_size += BLOCK_SIZE
        if self._map_size > MAX_MAP_SIZE:
            raise ValueError(f"its sparse map is larger than {MAX_MAP_SIZE} bytes")


def old_map(header: bytes) -> SparseMap:
    """Return the map of a GNU header of type S."""
    found = SparseMap(number(header[483:495], "real size"))
    found.take_pairs(header, PAIRS_IN_HEADER, 4)
    return _checked(found)


def pax_map(records: Mapping[bytes, bytes], size: int) -> SparseMap | None:
    """Return the map that PAX records promise, None where they promise none that is known.

    *size* is the file's where they do not tell.
    """
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    is_old = version in ((b"0", b"0"), (b"0", b"1"))
    if version == (b"", b""):
        is_old = bool(records.get(SPARSE_MAP))
    if not is_old and version != (b"1", b"0"):
        return None
    stated = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
    real_size = integer(stated, "GNU.sparse.realsize") if stated else size
    if not is_old:
        return _checked(SparseMap(real_size, is_in_payload=True))
    found = SparseMap(real_size)
    count = integer(records.get(b"GNU.sparse.numblocks", b""), "GNU.sparse.numblocks")
    found.take_record(count, records.get(SPARSE_MAP, b""))
    return _checked(found)


def _checked(found: SparseMap) -> SparseMap:
    if not 0 <= found.real_size <= MAX_INTEGER:
        raise ValueError(
            f"got a sparse file of {found.real_size} bytes, expected 0 to {MAX_INTEGER}"
        )
    return found
