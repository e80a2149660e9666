"""One compressed stream of a blob being decoded, and the chunks wanted of it.

A stream of gzip is members in a row, one of zstd is frames in a row; what one of them holds has
no meaning here, only where a chunk's bytes lie in what all of them hold.  Memory is that of the
chunk being assembled, plus constants: decoding goes by steps, and no further than the last wanted
byte.  No I/O and no locks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import BinaryIO, NamedTuple, Protocol

from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.inflate import INFLATE_ERRORS, Inflater, open_member
from lazyfs.formats.streams.restart import Restarted, RestartPoint
from lazyfs.formats.streams.unzstd import ZSTD_ERRORS, open_frames

# Plain bytes per step.  Each step lets go of the interpreter's lock and takes it again a few times,
# and threads that decode side by side wait for each other there.
INFLATE_STEP = 1 << 20
# Compressed bytes per step: what is left of them is copied at each step.  Fewer where little is
# wanted still, since what is damaged behind that may be noticed.
WINDOW_SIZE = 512 << 10
WINDOW_MIN = 64 << 10
# Members in one stream: one, plus those that a parallel converter starts at its seams.  Without
# a bound, empty members of 20 bytes would cost a copy of the window each.
MAX_MEMBERS = 256
# The chunk size of nearly every image: what is larger does not go through memory in one piece.
SPOOL_SIZE = 4 << 20

# Parts of a chunk from this size on are kept as they are.
SMALL_PART = 16 << 10

Part = bytes | bytearray | memoryview
OpenSpool = Callable[[], BinaryIO]
Points = Callable[[int], RestartPoint | None]


class Piece(NamedTuple):
    """A wanted chunk: *size* bytes at *inner_offset* of the stream [blob_offset, blob_end).

    ``key`` is the caller's; ``digest`` the chunk's raw sha256.  All chunks of a stream have the
    same ``codec``.
    """

    key: int
    blob_offset: int
    blob_end: int
    inner_offset: int
    size: int
    digest: bytes
    codec: int = Codec.GZIP


class Decoded(NamedTuple):
    """A chunk's verified payload, in ``parts`` or a large one in ``spool``, or why there is none.

    The receiver of a spool closes it.
    """

    key: int
    parts: Sequence[Part] | None
    error: str | None
    spool: BinaryIO | None = None

    @property
    def data(self) -> bytes | None:
        """The parts in one piece."""
        return None if self.parts is None else join(self.parts)


class Sink(Protocol):
    """Takes what is decoded, in the moment it is; a list does."""

    def append(self, item: Decoded, /) -> object:
        """Take one."""
        ...


class Stream(ABC):
    """One stream being decoded, and the chunks wanted of it; its kinds are below."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        blob_end: int,
        decoded: Sink,
        open_spool: OpenSpool | None,
    ) -> None:
        self.blob_end = blob_end
        self._open_spool = open_spool
        self._pieces = _without_overlaps(pieces, decoded)
        self._next = 0
        self._need = max((p.inner_offset + p.size for p in self._pieces), default=0)
        self._produced = 0  # plain bytes so far
        self._parts: list[Part] = []  # the start of a chunk that spans steps,
        self._spool: BinaryIO | None = None  # here if it is a large one
        self._hash = sha256()
        self._open()

    @property
    def is_done(self) -> bool:
        """True when nothing more is wanted of the stream."""
        return self._next == len(self._pieces)

    def feed(self, view: memoryview, decoded: Sink) -> None:
        """Take the next compressed bytes."""
        while view and not self.is_done:
            size = min(max(self._need - self._produced, WINDOW_MIN), WINDOW_SIZE)
            self._decode(view[:size], decoded)
            view = view[size:]

    def end(self, decoded: Sink) -> None:
        """Say that the stream ends here: what is not complete stays so."""
        if self._next < len(self._pieces):
            self._fail(f"its stream ends after {self._produced} bytes", decoded)

    def refuse(self, reason: str, decoded: Sink) -> None:
        """Give up all chunks."""
        self._fail(reason, decoded)

    @abstractmethod
    def _open(self) -> None:
        """Open what decodes."""

    @abstractmethod
    def _decode(self, window: memoryview, decoded: Sink) -> None:
        """Decode up to WINDOW_SIZE compressed bytes, and carve what comes out."""

    def _carve(self, plain: bytes, decoded: Sink) -> None:
        """Cut the wanted chunks out of the stream's next plain bytes."""
        base = self._produced
        top = base + len(plain)
        self._produced = top
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            end = piece.inner_offset + piece.size
            if piece.inner_offset >= top:
                return
            if piece.inner_offset >= base and end <= top:
                data = plain[piece.inner_offset - base : end - base]
                self._complete((data,), sha256(data).digest(), decoded)
                continue
            part = memoryview(plain)[max(piece.inner_offset - base, 0) : min(end, top) - base]
            if piece.inner_offset >= base:
                self._hash = sha256()
                if self._open_spool is not None and piece.size > SPOOL_SIZE:
                    self._spool = self._open_spool()
            self._hash.update(part)
            if self._spool is None:
                self._keep(part)
            else:
                self._spool.write(part)
            if end > top:
                return
            payload = self._parts if self._spool is None else self._spool
            self._parts, self._spool = [], None
            self._complete(payload, self._hash.digest(), decoded)

    def _keep(self, part: memoryview) -> None:
        """Add to the chunk being assembled; without a copy, unless a part may be one of many."""
        last = self._parts[-1] if self._parts else None
        if len(part) >= SMALL_PART:
            self._parts.append(part)
        elif isinstance(last, bytearray) and len(last) < INFLATE_STEP:
            last += part
        else:
            self._parts.append(bytearray(part))

    def _complete(self, payload: Sequence[Part] | BinaryIO, digest: bytes, decoded: Sink) -> None:
        """Hand out the next chunk, and those that name the same bytes."""
        at = self._pieces[self._next].inner_offset
        is_taken = False
        while self._next < len(self._pieces) and self._pieces[self._next].inner_offset == at:
            piece = self._pieces[self._next]
            self._next += 1
            if piece.digest != digest:
                decoded.append(failed(piece, f"got sha256:{digest.hex()}"))
            elif isinstance(payload, Sequence):
                decoded.append(Decoded(piece.key, payload, None))
            else:  # each receiver closes its own
                spool = self._copy(payload) if is_taken else payload
                decoded.append(Decoded(piece.key, None, None, spool))
                is_taken = True
        if not is_taken and not isinstance(payload, Sequence):
            payload.close()

    def _copy(self, spool: BinaryIO) -> BinaryIO:
        """Return another spool with the same bytes."""
        assert self._open_spool is not None  # it has opened this one
        copy = self._open_spool()
        spool.seek(0)
        while data := spool.read(INFLATE_STEP):
            copy.write(data)
        return copy

    def close(self) -> None:
        """Drop the chunk being assembled."""
        self._parts = []
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _fail(self, reason: str, decoded: Sink) -> None:
        """Give up the stream: every chunk that is not complete is bad."""
        for piece in self._pieces[self._next :]:
            decoded.append(failed(piece, reason))
        self._next = len(self._pieces)
        self.close()


class GzipStream(Stream):
    """A stream of gzip members."""

    def _open(self) -> None:
        self._inflater: Inflater = open_member()
        self._members = 1

    def _decode(self, window: memoryview, decoded: Sink) -> None:
        rest: memoryview | bytes = window
        while not self.is_done:
            limit = min(self._need - self._produced, INFLATE_STEP)
            try:
                plain = self._inflater.decompress(rest, limit)
            except INFLATE_ERRORS as exc:
                self._fail(
                    f"the gzip data are damaged after {self._produced} bytes: {exc}", decoded
                )
                return
            if plain:
                self._carve(plain, decoded)
            if self._inflater.eof:
                rest = self._inflater.unused_data
                if self._members == MAX_MEMBERS:
                    self._fail(f"its stream has more than {MAX_MEMBERS} gzip members", decoded)
                    return
                self._members += 1
                self._inflater = open_member()
            else:
                rest = self._inflater.unconsumed_tail
                if rest and not plain:
                    self._fail(f"the gzip data stall after {self._produced} bytes", decoded)
                    return
            # With all input taken, a full step may have left more inside the inflater.
            if not rest and len(plain) < limit:
                return


class DeflateStream(GzipStream):
    """A stream of gzip from a restart point on."""

    def begin(self, point: RestartPoint) -> None:
        """Say where it begins."""
        self._inflater = Restarted(point)


class ZstdStream(Stream):
    """A stream of zstd frames."""

    def _open(self) -> None:
        self._push = open_frames(self._take)
        self._decoded: Sink = []

    def _decode(self, window: memoryview, decoded: Sink) -> None:
        self._decoded = decoded  # for the time of the call
        try:
            self._push(window)
        except _Done:
            pass
        except ZSTD_ERRORS as exc:
            self._fail(f"the zstd data are damaged after {self._produced} bytes: {exc}", decoded)

    def _take(self, plain: bytes) -> None:
        self._carve(plain, self._decoded)
        if self.is_done:
            raise _Done


class RawStream(Stream):
    """A stream that is not compressed."""

    def _open(self) -> None:
        """Do nothing: there is nothing to decode."""

    def _decode(self, window: memoryview, decoded: Sink) -> None:
        self._carve(bytes(window), decoded)


class _Done(Exception):
    """Nothing more is wanted of a stream."""


STREAMS: dict[int, type[Stream]] = {
    Codec.GZIP: GzipStream,
    Codec.ZSTD: ZstdStream,
    Codec.RAW: RawStream,
    Codec.DEFLATE: DeflateStream,
}


def open_stream(
    pieces: Sequence[Piece],
    blob_end: int,
    decoded: Sink,
    open_spool: OpenSpool | None,
    points: Points | None = None,
) -> Stream:
    """Return a decoder for the stream that holds *pieces* and ends at *blob_end*.

    *points* returns the restart point at a blob offset, None where there is none.  Pieces that
    cannot be had of the stream go to *decoded* at once.
    """
    head = pieces[0]
    stream = STREAMS[head.codec](pieces, blob_end, decoded, open_spool)
    if isinstance(stream, DeflateStream):
        point = None if points is None else points(head.blob_offset)
        if point is None:
            stream.refuse("there is no restart point for it", decoded)
        else:
            stream.begin(point)
    return stream


def _without_overlaps(pieces: Sequence[Piece], decoded: Sink) -> Sequence[Piece]:
    """Return the pieces that can be cut out in one pass.

    Chunks that name exactly the same bytes can.  Chunks that overlap otherwise cannot without
    keeping plain bytes for ever, and no producer makes them: the later one is refused.
    """
    if len(pieces) == 1 and pieces[0].size > 0:
        return pieces
    kept: list[Piece] = []
    for piece in pieces:
        last = kept[-1] if kept else None
        if piece.size <= 0 or piece.inner_offset < 0:
            decoded.append(failed(piece, "it has no bytes"))
        elif (
            last is None
            or piece.inner_offset >= last.inner_offset + last.size
            or (piece.inner_offset, piece.size) == (last.inner_offset, last.size)
        ):
            kept.append(piece)
        else:
            decoded.append(failed(piece, f"it overlaps the chunk at {last.inner_offset}"))
    return kept


def failed(piece: Piece, reason: str) -> Decoded:
    """Return what stands in the place of a chunk that could not be had."""
    inner = f"+{piece.inner_offset}" if piece.inner_offset else ""
    return Decoded(
        piece.key,
        None,
        f"chunk at {piece.blob_offset}{inner}: {reason},"
        f" expected {piece.size} bytes with sha256:{piece.digest.hex()}",
    )


def join(parts: Sequence[Part]) -> bytes:
    """Return *parts* in one piece, without a copy if they are."""
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    return b"".join(parts)
