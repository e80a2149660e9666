"""What a blob has between payloads: the tar's headers and padding, caught while chunks are decoded.

Behind a chunk its stream has padding, and the headers of the files that follow.  Nobody who reads
files wants these bytes, but they have been fetched, and inflating them costs almost nothing.  With
them the layer's tar can be rebuilt from the store, and compared with its table of contents without
another download.  They are verified only once that tar has its diffID.
"""

from typing import NamedTuple, Protocol

from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.stream import GzipStream, Piece, Sink, Stream, ZstdStream

GAP_STEP = 64 << 10
"""So many bytes behind its only chunk a short stream is decoded in one go: some files' headers."""

MAX_GAPS = 4 << 20
"""Bytes that are kept of one stream; beyond that it is no stream of headers."""


class Gaps(NamedTuple):
    """What the stream at *blob_offset* has beside its chunks: (inner offset, bytes), in order."""

    blob_offset: int
    parts: list[tuple[int, bytes]]


class GapSink(Protocol):
    """Takes the gaps of streams that were decoded to their end; a list does."""

    def append(self, item: Gaps, /) -> object:
        """Take those of one stream."""
        ...


class _Catching(Stream):
    """Catches what lies between the wanted chunks, up to the stream's end."""

    gaps: GapSink

    def catch(self, gaps: GapSink, blob_offset: int) -> None:
        """Say where gaps go, before anything is fed."""
        self.gaps = gaps
        self._blob_offset = blob_offset
        self._caught: list[tuple[int, bytearray]] | None = []
        self._caught_size = 0
        self._ahead = 0  # the first piece that is not behind
        self._need = 1 << 62  # all of it

    @property
    def is_done(self) -> bool:
        """True when the stream has ended, or is not worth more."""
        return self._caught is None and self._next == len(self._pieces)

    def _carve(self, plain: bytes, decoded: Sink) -> None:
        if self._caught is not None:
            self._catch(plain)
        super()._carve(plain, decoded)

    def _catch(self, plain: bytes) -> None:
        base = at = self._produced
        top = base + len(plain)
        pieces = self._pieces
        while at < top:
            while self._ahead < len(pieces) and _end(pieces[self._ahead]) <= at:
                self._ahead += 1
            piece = pieces[self._ahead] if self._ahead < len(pieces) else None
            if piece is not None and piece.inner_offset <= at:
                at = min(_end(piece), top)
                continue
            stop = top if piece is None else min(top, piece.inner_offset)
            self._keep_gap(at, plain[at - base : stop - base])
            if self._caught is None:
                return
            at = stop

    def _keep_gap(self, at: int, data: bytes) -> None:
        assert self._caught is not None
        self._caught_size += len(data)
        if self._caught_size > MAX_GAPS:
            self._caught = None
        elif self._caught and self._caught[-1][0] + len(self._caught[-1][1]) == at:
            self._caught[-1][1].extend(data)
        else:
            self._caught.append((at, bytearray(data)))

    def end(self, decoded: Sink) -> None:
        """Say that the stream ends here."""
        caught, self._caught = self._caught, None
        if caught is not None and self._next == len(self._pieces):
            parts = [(at, bytes(data)) for at, data in caught]
            self.gaps.append(Gaps(self._blob_offset, parts))
        super().end(decoded)

    def _fail(self, reason: str, decoded: Sink) -> None:
        self._caught = None
        super()._fail(reason, decoded)


class CatchingGzip(_Catching, GzipStream):
    """The same of gzip members."""


class CatchingZstd(_Catching, ZstdStream):
    """The same of zstd frames."""


CATCHING: dict[int, type[CatchingGzip] | type[CatchingZstd]] = {
    Codec.GZIP: CatchingGzip,
    Codec.ZSTD: CatchingZstd,
}


def _end(piece: Piece) -> int:
    return piece.inner_offset + piece.size
