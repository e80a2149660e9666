"""From compressed blob bytes to verified payloads: the hot path of reading.

A range of a blob arrives in pieces of any size and is decoded as it arrives.  The range holds
*streams*: a stream is one gzip member (or several in a row) that starts at a blob offset some
chunk names, and ends where the next one starts.  A stream holds one wanted chunk or many, with
tar headers and padding between them; what nobody wants is skipped, in the blob by counting, in a
stream by inflating no further than the last wanted byte.

Theory of operation.  Rule 1: nothing leaves here that does not have its sha256; a chunk that
fails leaves as an error in its place.  Rule 2: what is wrong with one stream never touches
another, because streams are found by offset alone.  Rule 3: how the input is cut changes nothing,
except how much of a stream is saved that goes bad half-way.  Rule 4: memory is that of the chunk
being assembled, plus constants; a hostile stream cannot make it more.

No I/O and no locks here; zlib and hashlib release the interpreter lock, so decoders in several
threads run side by side.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from io import BytesIO
from typing import BinaryIO, NamedTuple

from lazyfs.formats.inflate import INFLATE_ERRORS, open_member

# Plain bytes per step: large enough to amortise the call, small enough to stay in the processor's
# cache between inflating and hashing.
INFLATE_STEP = 256 << 10
# Compressed bytes per step: what is left of them is copied at each step.
WINDOW_SIZE = 64 << 10
# A stream up to this long that is cut by the end of the input waits for the rest: decoding it in
# one go is cheaper than in two.
PENDING_SIZE = 64 << 10
# Members in one stream: one, plus those that a parallel converter starts at its seams.  Without
# a bound, empty members of 20 bytes would cost a copy of the window each.
MAX_MEMBERS = 256
# The chunk size of nearly every image: what is larger does not go through memory in one piece.
SPOOL_SIZE = 4 << 20


class Piece(NamedTuple):
    """A wanted chunk: *size* bytes at *inner_offset* of the stream [blob_offset, blob_end).

    ``key`` is the caller's; ``digest`` the chunk's raw sha256.
    """

    key: int
    blob_offset: int
    blob_end: int
    inner_offset: int
    size: int
    digest: bytes


class Decoded(NamedTuple):
    """A chunk's verified payload, in ``data`` or a large one in ``spool``, or why there is none.

    The receiver of a spool closes it.
    """

    key: int
    data: bytes | None
    error: str | None
    spool: BinaryIO | None = None


class RangeDecoder:
    """Decodes the chunks *pieces* out of a blob's bytes from *start* on.

    *pieces* are sorted by (blob_offset, inner_offset).  Each comes back exactly once, in an order
    of its own, from ``feed`` or from ``finish``.  *open_spool* opens an empty temporary file.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        start: int,
        open_spool: Callable[[], BinaryIO] | None = None,
    ) -> None:
        self._pieces = pieces
        self._open_spool = open_spool
        self._next = 0  # the first piece of the next stream
        self._position = start  # the blob offset of the next byte that is fed
        self._stream: _Stream | None = None  # half decoded
        self._pending = bytearray()  # the start of a short stream, not yet decoded

    def feed(self, data: bytes | bytearray | memoryview) -> list[Decoded]:
        """Take the next bytes of the range; return what they complete."""
        decoded: list[Decoded] = []
        view = memoryview(data)
        size = len(view)
        at = 0
        while at < size:
            if self._stream is not None:
                at += self._resume(self._stream, view[at:], decoded)
                continue
            if self._next == len(self._pieces):
                break
            after, end = self._next_stream()
            head = self._pieces[self._next]
            offset = head.blob_offset
            if self._pending:
                used = min(end - self._position, size - at)
                self._pending += view[at : at + used]
                at += used
                self._position += used
                if self._position == end:
                    self._decode_pending(after, decoded)
                continue
            if offset > self._position:
                skipped = min(offset - self._position, size - at)
                at += skipped
                self._position += skipped
                continue
            if offset < self._position or end <= offset:
                self._refuse(after, "got a stream outside the range that was read", decoded)
                continue
            rest = size - at
            length = end - offset
            if length <= rest:
                self._decode_whole(view[at : at + length], after, decoded)
                at += length
                self._position = end
            elif length <= PENDING_SIZE:
                self._pending += view[at:]
                at = size
                self._position += rest
            else:
                self._stream = self._open_stream(after, end, decoded)
                self._next = after
        return decoded

    def finish(self) -> list[Decoded]:
        """Say that nothing follows; return what is left, most of it as errors."""
        decoded: list[Decoded] = []
        if self._pending:
            after, _ = self._next_stream()
            self._decode_pending(after, decoded)
        if self._stream is not None:
            self._stream.end(decoded)
            self._stream = None
        self._refuse(len(self._pieces), "got a range that ended before the chunk", decoded)
        return decoded

    def close(self) -> None:
        """Drop what is half decoded; nothing may be fed afterwards.  Idempotent."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _next_stream(self) -> tuple[int, int]:
        """Return the piece after the next stream's last one, and that stream's end in the blob."""
        pieces = self._pieces
        first = self._next
        head = pieces[first]
        after = first + 1
        count = len(pieces)
        while after < count and pieces[after].blob_offset == head.blob_offset:
            after += 1
        end = head.blob_end
        if after < count and pieces[after].blob_offset < end:
            end = pieces[after].blob_offset
        return after, end

    def _decode_whole(self, view: memoryview, after: int, decoded: list[Decoded]) -> None:
        """Decode a stream that is here from end to end."""
        first = self._next
        self._next = after
        head = self._pieces[first]
        # Most streams are one short chunk.  Whatever does not fit goes the long way.
        need = head.inner_offset + head.size
        if after - first == 1 and head.size > 0 and need <= INFLATE_STEP:
            try:
                plain = open_member().decompress(view, need)
            except INFLATE_ERRORS:
                plain = b""
            if head.inner_offset:
                plain = plain[head.inner_offset :]
            if len(plain) == head.size and sha256(plain).digest() == head.digest:
                decoded.append(Decoded(head.key, plain, None))
                return
        self._next = first
        stream = self._open_stream(after, 0, decoded)
        self._next = after
        stream.feed(view, decoded)
        stream.end(decoded)

    def _open_stream(self, after: int, end: int, decoded: list[Decoded]) -> "_Stream":
        return _Stream(self._pieces[self._next : after], end, decoded, self._open_spool)

    def _decode_pending(self, after: int, decoded: list[Decoded]) -> None:
        pending, self._pending = self._pending, bytearray()
        self._decode_whole(memoryview(pending), after, decoded)

    def _resume(self, stream: "_Stream", view: memoryview, decoded: list[Decoded]) -> int:
        """Feed a half decoded stream; return how many bytes were its own."""
        used = min(stream.blob_end - self._position, len(view))
        stream.feed(view[:used], decoded)
        self._position += used
        if stream.is_done or self._position == stream.blob_end:
            stream.end(decoded)
            self._stream = None
        return used

    def _refuse(self, after: int, reason: str, decoded: list[Decoded]) -> None:
        for piece in self._pieces[self._next : after]:
            decoded.append(_failed(piece, reason))
        self._next = after


class _Stream:
    """One stream being inflated, and the chunks wanted of it."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        blob_end: int,
        decoded: list[Decoded],
        open_spool: Callable[[], BinaryIO] | None,
    ) -> None:
        self.blob_end = blob_end
        self._open_spool = open_spool
        self._pieces = _without_overlaps(pieces, decoded)
        self._next = 0
        self._need = max((p.inner_offset + p.size for p in self._pieces), default=0)
        self._inflater = open_member()
        self._members = 1
        self._produced = 0  # plain bytes so far
        self._partial: BinaryIO | None = None  # the start of a chunk that spans steps
        self._hash = sha256()

    @property
    def is_done(self) -> bool:
        """True when nothing more is wanted of the stream."""
        return self._next == len(self._pieces)

    def feed(self, view: memoryview, decoded: list[Decoded]) -> None:
        """Take the next compressed bytes."""
        for at in range(0, len(view), WINDOW_SIZE):
            if self.is_done:
                return
            self._inflate(view[at : at + WINDOW_SIZE], decoded)

    def end(self, decoded: list[Decoded]) -> None:
        """Say that the stream ends here: what is not complete stays so."""
        if not self.is_done:
            self._fail(f"got a stream of {self._produced} bytes", decoded)

    def _inflate(self, window: memoryview, decoded: list[Decoded]) -> None:
        rest: memoryview | bytes = window
        while not self.is_done:
            limit = min(self._need - self._produced, INFLATE_STEP)
            try:
                plain = self._inflater.decompress(rest, limit)
            except INFLATE_ERRORS as exc:
                self._fail(f"got bad gzip data after {self._produced} bytes ({exc})", decoded)
                return
            if plain:
                self._carve(plain, decoded)
            if self._inflater.eof:
                rest = self._inflater.unused_data
                if self._members == MAX_MEMBERS:
                    self._fail(f"got more than {MAX_MEMBERS} gzip members", decoded)
                    return
                self._members += 1
                self._inflater = open_member()
            else:
                rest = self._inflater.unconsumed_tail
                if rest and not plain:
                    self._fail(f"got gzip data that stall after {self._produced} bytes", decoded)
                    return
            # With all input taken, a full step may have left more inside the inflater.
            if not rest and len(plain) < limit:
                return

    def _carve(self, plain: bytes, decoded: list[Decoded]) -> None:
        """Cut the wanted chunks out of the stream's next plain bytes."""
        base = self._produced
        top = base + len(plain)
        self._produced = top
        while not self.is_done:
            piece = self._pieces[self._next]
            end = piece.inner_offset + piece.size
            if piece.inner_offset >= top:
                return
            if piece.inner_offset >= base and end <= top:
                data = plain[piece.inner_offset - base : end - base]
                self._complete(data, sha256(data).digest(), decoded)
                continue
            part = plain[max(piece.inner_offset - base, 0) : min(end, top) - base]
            if self._partial is None:
                self._partial = self._open_partial(piece.size)
                self._hash = sha256()
            self._partial.write(part)
            self._hash.update(part)
            if end > top:
                return
            assembled, self._partial = self._partial, None
            payload = assembled.getvalue() if isinstance(assembled, BytesIO) else assembled
            self._complete(payload, self._hash.digest(), decoded)

    def _open_partial(self, size: int) -> BinaryIO:
        if self._open_spool is not None and size > SPOOL_SIZE:
            return self._open_spool()
        return BytesIO()

    def _copy(self, spool: BinaryIO) -> BinaryIO:
        """Return another spool with the same bytes."""
        copy = self._open_partial(SPOOL_SIZE + 1)
        spool.seek(0)
        while data := spool.read(INFLATE_STEP):
            copy.write(data)
        return copy

    def _complete(self, payload: bytes | BinaryIO, digest: bytes, decoded: list[Decoded]) -> None:
        """Hand out the next chunk, and those that name the same bytes."""
        at = self._pieces[self._next].inner_offset
        is_taken = False
        while self._next < len(self._pieces) and self._pieces[self._next].inner_offset == at:
            piece = self._pieces[self._next]
            self._next += 1
            if piece.digest != digest:
                decoded.append(_failed(piece, f"got sha256:{digest.hex()}"))
            elif isinstance(payload, bytes):
                decoded.append(Decoded(piece.key, payload, None))
            else:  # each receiver closes its own
                spool = self._copy(payload) if is_taken else payload
                decoded.append(Decoded(piece.key, None, None, spool))
                is_taken = True
        if not is_taken and not isinstance(payload, bytes):
            payload.close()

    def close(self) -> None:
        """Drop the chunk being assembled."""
        if self._partial is not None:
            self._partial.close()
            self._partial = None

    def _fail(self, reason: str, decoded: list[Decoded]) -> None:
        """Give up the stream: every chunk that is not complete is bad."""
        for piece in self._pieces[self._next :]:
            decoded.append(_failed(piece, reason))
        self._next = len(self._pieces)
        self.close()


def _without_overlaps(pieces: Sequence[Piece], decoded: list[Decoded]) -> Sequence[Piece]:
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
            decoded.append(_failed(piece, "got a chunk without bytes"))
        elif (
            last is None
            or piece.inner_offset >= last.inner_offset + last.size
            or (piece.inner_offset, piece.size) == (last.inner_offset, last.size)
        ):
            kept.append(piece)
        else:
            decoded.append(_failed(piece, f"got a chunk that overlaps one at {last.inner_offset}"))
    return kept


def _failed(piece: Piece, reason: str) -> Decoded:
    inner = f"+{piece.inner_offset}" if piece.inner_offset else ""
    return Decoded(
        piece.key,
        None,
        f"chunk at {piece.blob_offset}{inner}: {reason},"
        f" expected {piece.size} bytes with sha256:{piece.digest.hex()}",
    )
