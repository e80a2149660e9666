"""From compressed blob bytes to verified payloads: the hot path of reading.

A range of a blob arrives in pieces of any size and is decoded as it arrives.  The range holds
*streams*: a stream is one gzip member or zstd frame (or several in a row) that starts at a blob
offset some chunk names, and ends where the next one starts.  A stream holds one wanted chunk or
many, with tar headers and padding between them; what nobody wants is skipped, in the blob by
counting, in a stream by decoding no further than the last wanted byte.

Theory of operation.  Rule 1: nothing leaves here that does not have its sha256; a chunk that
fails leaves as an error in its place.  Rule 2: what is wrong with one stream never touches
another, because streams are found by offset alone.  Rule 3: how the input is cut changes nothing,
except how much of a stream is saved that goes bad half-way.  Rule 4: memory is that of the chunk
being assembled, plus constants; a hostile stream cannot make it more.

No I/O and no locks here; zlib, zstd and hashlib release the interpreter lock, so decoders in
several threads run side by side.
"""

from collections.abc import Sequence
from hashlib import sha256

from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.inflate import INFLATE_ERRORS, open_member
from lazyfs.formats.streams.stream import (
    INFLATE_STEP,
    Decoded,
    OpenSpool,
    Piece,
    Points,
    Sink,
    Stream,
    failed,
    open_stream,
)
from lazyfs.formats.streams.unzstd import ZSTD_ERRORS, open_short_frames
from lazyfs.formats.tars.gaps import CATCHING, GAP_STEP, Gaps, GapSink

__all__ = ["Decoded", "Piece", "RangeDecoder", "Sink"]

# A stream up to this long that is cut by the end of the input waits for the rest: decoding it in
# one go is cheaper than in two.
PENDING_SIZE = 64 << 10


class RangeDecoder:
    """Decodes the chunks *pieces* out of a blob's bytes from *start* on.

    *pieces* are sorted by (blob_offset, inner_offset).  Each comes back exactly once, in an order
    of its own, out of ``feed`` or ``finish``.  *open_spool* opens an empty temporary file;
    *points* returns the restart point at a blob offset, for streams of DEFLATE.  *gaps*, if given,
    gets what streams of gzip or zstd have beside the pieces.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        start: int,
        open_spool: OpenSpool | None = None,
        points: Points | None = None,
        gaps: GapSink | None = None,
    ) -> None:
        self._gaps = gaps
        self._pieces = pieces
        self._open_spool = open_spool
        self._points = points
        self._next = 0  # the first piece of the next stream
        self._position = start  # the blob offset of the next byte that is fed
        self._stream: Stream | None = None  # half decoded
        self._pending = bytearray()  # the start of a short stream, not yet decoded
        self._unzstd = open_short_frames(INFLATE_STEP)

    def feed(self, data: bytes | bytearray | memoryview, decoded: Sink) -> None:
        """Take the next bytes of the range; hand what they complete to *decoded*."""
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
                self._refuse(after, "its stream is outside the range that was read", decoded)
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

    def finish(self, decoded: Sink) -> None:
        """Say that nothing follows; hand over what is left, most of it as errors."""
        if self._pending:
            after, _ = self._next_stream()
            self._decode_pending(after, decoded)
        if self._stream is not None:
            self._stream.end(decoded)
            self._stream = None
        self._refuse(len(self._pieces), "the range that was read ends before it", decoded)

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

    def _decode_whole(self, view: memoryview, after: int, decoded: Sink) -> None:
        """Decode a stream that is here from end to end."""
        first = self._next
        self._next = after
        head = self._pieces[first]
        # Most streams are one short chunk.  Whatever does not fit goes the long way.
        need = head.inner_offset + head.size
        if after - first == 1 and head.size > 0 and need <= INFLATE_STEP:
            if self._gaps is not None and head.codec == Codec.GZIP:
                plain = self._decode_with_gaps(view, head, need, self._gaps)
            elif self._gaps is None:
                plain = self._decode_short(view, head.codec, need)[head.inner_offset : need]
            else:
                plain = b""
            if len(plain) == head.size and sha256(plain).digest() == head.digest:
                decoded.append(Decoded(head.key, (plain,), None))
                return
        self._next = first
        stream = self._open_stream(after, 0, decoded)
        self._next = after
        stream.feed(view, decoded)
        stream.end(decoded)

    def _decode_short(self, view: memoryview, codec: int, need: int) -> bytes:
        """Return the first *need* plain bytes of a stream, or anything else if it is not simple."""
        try:
            if codec == Codec.GZIP:
                return open_member().decompress(view, need)
            if codec == Codec.ZSTD:
                return self._unzstd(view, need)
        except (*INFLATE_ERRORS, *ZSTD_ERRORS):
            pass
        return b""

    @staticmethod
    def _decode_with_gaps(view: memoryview, head: Piece, need: int, gaps: GapSink) -> bytes:
        """Return the chunk of a stream that is one member, and hand on what is beside it."""
        inflater = open_member()
        try:
            plain = inflater.decompress(view, need + GAP_STEP)
        except INFLATE_ERRORS:
            return b""
        if not inflater.eof or inflater.unused_data:
            return b""
        parts = [(0, plain[: head.inner_offset])] if head.inner_offset else []
        if len(plain) > need:
            parts.append((need, plain[need:]))
        gaps.append(Gaps(head.blob_offset, parts))
        return plain[head.inner_offset : need]

    def _open_stream(self, after: int, end: int, decoded: Sink) -> Stream:
        pieces = self._pieces[self._next : after]
        if self._gaps is not None and pieces[0].codec in CATCHING:
            stream = CATCHING[pieces[0].codec](pieces, end, decoded, self._open_spool)
            stream.catch(self._gaps, pieces[0].blob_offset)
            return stream
        return open_stream(pieces, end, decoded, self._open_spool, self._points)

    def _decode_pending(self, after: int, decoded: Sink) -> None:
        pending, self._pending = self._pending, bytearray()
        self._decode_whole(memoryview(pending), after, decoded)

    def _resume(self, stream: Stream, view: memoryview, decoded: Sink) -> int:
        """Feed a half decoded stream; return how many bytes were its own."""
        used = min(stream.blob_end - self._position, len(view))
        stream.feed(view[:used], decoded)
        self._position += used
        if stream.is_done or self._position == stream.blob_end:
            stream.end(decoded)
            self._stream = None
        return used

    def _refuse(self, after: int, reason: str, decoded: Sink) -> None:
        for piece in self._pieces[self._next : after]:
            decoded.append(failed(piece, reason))
        self._next = after
