"""One pass over a plain layer: from its compressed bytes to contents, a TOC and spans.

The blob arrives piece by piece.  Its tar is unpacked into the layer's device, payload by payload,
while it is hashed three ways: the blob, the uncompressed layer, and every chunk.  A chunk ends
where a file does, after ``chunk_size`` bytes, or where a span begins (spans.py): so each chunk
can be had later from one span, and the TOC that the pass leaves says where.

The TOC is that of a set of names, a tar is a sequence of actions.  Where they differ (a name that
occurs twice, say), payloads were written at other places than the TOC gives them: ``moves`` tells.
No I/O here: payloads go to a callback.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from lazyfs.digest import Digest, digest_of
from lazyfs.formats.streams.codec import MAX_RATIO, Codec
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.streams.spans import HEAD_SIZE, SPAN_SIZE, PlainStream, Span, open_stream
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.tar import BadTar, TarMember, TarScanner
from lazyfs.formats.tars.toc_json import Part, TocSpeller, hole
from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.formats.tocs.toc_reader import decode_toc

CHUNK_SIZE = 4 << 20


class Move(msgspec.Struct, frozen=True):
    """A payload, or a piece of one, that lies elsewhere than the TOC's layout has it.

    All in bytes of the device.
    """

    source: int
    target: int
    size: int


class PassedLayer(msgspec.Struct, frozen=True):
    """What a pass leaves; sizes in bytes.

    ``moves`` are all payloads if any is not where it should be, and None otherwise.
    """

    blob_digest: Digest
    blob_size: int
    diff_id: Digest
    plain_size: int
    toc: Toc
    toc_json: bytes
    codec: Codec
    spans: tuple[Span, ...]
    moves: tuple[Move, ...] | None


class _Extent(NamedTuple):
    """A stretch of a file's payload: in the tar, of this size, in the file, whose device place."""

    tar_offset: int
    size: int
    offset: int
    base: int
    member: TarMember


class LayerPass:
    """Takes a plain layer; *write* gets the payloads, each with its offset in the device.

    The algorithms are those of the digests that blob and uncompressed layer are to have.
    *take_members* is told of members as they come, and may raise.

    Raises BadCompression and BadTar.  Nothing that it hands out is verified before ``finish``
    has returned and its caller has compared the digests.
    """

    def __init__(
        self,
        write: Callable[[int, bytes | memoryview], object],
        *,
        blob_algorithm: str = "sha256",
        plain_algorithm: str = "sha256",
        chunk_size: int = CHUNK_SIZE,
        span_size: int = SPAN_SIZE,
        limits: Limits = DEFAULT_LIMITS,
        take_members: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._write = write
        self._take_members = take_members
        self._algorithms = blob_algorithm, plain_algorithm
        self._chunk_size = chunk_size
        self._span_size = span_size
        self._limits = limits
        self._head = b""
        self._stream: PlainStream | None = None
        self._spans: list[Span] = []
        self._span = Span(0, 0, Codec.RAW)
        self._blob_hash = hashlib.new(blob_algorithm, usedforsecurity=False)
        self._blob_size = 0
        self._plain_hash = hashlib.new(plain_algorithm, usedforsecurity=False)
        self._position = 0  # in the uncompressed layer
        self._scanner = TarScanner(limits)
        self._members: list[TarMember] = []
        self._files: deque[_Extent] = deque()  # those that are not complete
        self._bases: dict[int, int] = {}  # payload's offset in the tar → in the device
        self._parts: dict[int, list[Part]] = {}
        self._device_size = 0
        self._chunk_start = 0  # offset in the file
        self._chunk_hash = hashlib.sha256()
        self._place = (0, 0)
        self._file: _Extent | None = None  # of the open chunk
        self._done = 0  # where it ends so far, in the file

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the blob."""
        self.skip(data)
        if self._stream is None:
            self._head += data
            if len(self._head) < HEAD_SIZE:
                return
            data, self._head = self._head, b""
            self._stream = open_stream(data, self._span_size)
        for item in self._stream.feed(data):
            if isinstance(item, Span):
                self._begin_span(item)
            else:
                self._take(item)

    def skip(self, data: bytes) -> None:
        """Take more bytes of the blob after ``feed`` has failed: for its digest alone."""
        self._blob_hash.update(data)
        self._blob_size += len(data)

    @property
    def member_count(self) -> int:
        """How many members there were so far."""
        return len(self._members)

    @property
    def blob_digest(self) -> Digest:
        """The digest of what was taken so far."""
        return Digest(self._algorithms[0], self._blob_hash.hexdigest())

    def finish(self) -> PassedLayer:
        """Say that the blob is complete; return what was found."""
        if self._stream is None:
            if self._head:
                raise BadTar(f"layer: {len(self._head)} bytes are too few for a tar")
            self._stream = open_stream(b"", self._span_size)  # a tar of nothing is one
        self._stream.finish()
        self.close()
        self._scanner.finish()
        if self._files:
            raise BadTar(f"layer: the tar ends within {self._files[0].member.path!r}")
        arrangement = arrange(self._members)
        speller = TocSpeller()
        for member in arrangement.members:
            parts = self._parts.get(member.offset, []) if member.size else []
            if member.pieces is not None:
                parts = with_holes(parts, member.size)
            speller.add(member, _digest_of(member, parts), parts)
        document = speller.document()
        codec = self._stream.codec
        windows = self._stream.windows
        spans = tuple(
            span._replace(window=windows.get(span.blob_offset, b"")) for span in self._spans
        )
        toc = decode_toc(
            document,
            expected=None,
            blob_size=self._blob_size,
            codec=codec,
            limits=limits_of(codec, self._limits),
        )
        return PassedLayer(
            blob_digest=self.blob_digest,
            blob_size=self._blob_size,
            diff_id=Digest(self._algorithms[1], self._plain_hash.hexdigest()),
            plain_size=self._position,
            toc=placed(toc, spans),
            toc_json=document,
            codec=codec,
            spans=spans,
            moves=self._moves(arrangement.members),
        )

    def close(self) -> None:
        """Give back what libraries hold.  Idempotent."""
        if self._stream is not None:
            self._stream.close()

    def _begin_span(self, span: Span) -> None:
        if self._spans and span.blob_offset <= self._spans[-1].blob_offset:
            return  # a block without bytes of its own
        self._end_chunk(is_last=False)
        self._spans.append(span)
        self._span = span

    def _take(self, plain: bytes) -> None:
        """Take the next bytes of the tar."""
        self._plain_hash.update(plain)
        for member in self._scanner.feed(plain):
            self._take_members(1)
            self._members.append(member)
            if member.kind is Kind.REGULAR and member.size:
                self._place_file(member)
        start, self._position = self._position, self._position + len(plain)
        view = memoryview(plain)
        while self._files and self._files[0].tar_offset < self._position:
            file = self._files[0]
            at = max(start, file.tar_offset)
            done = at - file.tar_offset  # bytes of the extent
            end = min(self._position - file.tar_offset, file.size)
            self._take_payload(file, done, view[at - start : end + file.tar_offset - start])
            if end < file.size:
                return
            self._files.popleft()

    def _place_file(self, member: TarMember) -> None:
        """Give a file its place in the device; note where its payload lies in the tar."""
        block = self._limits.block_size
        base = self._bases[member.offset] = self._device_size
        self._device_size += -(-member.size // block) * block
        if self._device_size > self._limits.device_size:
            raise BadTar(
                f"layer: its files have more than {self._limits.device_size} bytes, the size of"
                " an EROFS device"
            )
        self._parts[member.offset] = []
        for tar_offset, size, offset in member.extents():
            self._files.append(_Extent(tar_offset, size, offset, base, member))

    def _take_payload(self, file: "_Extent", done: int, payload: memoryview) -> None:
        if not done:
            self._begin_chunk(file, file.offset)
        done += file.offset
        end = file.offset + file.size
        while payload:
            if self._chunk_start < 0:
                self._begin_chunk(file, done)
            taken = payload[: self._chunk_start + self._chunk_size - done]
            self._chunk_hash.update(taken)
            self._write(file.base + done, taken)
            done += len(taken)
            payload = payload[len(taken) :]
            if done == end or done - self._chunk_start == self._chunk_size:
                self._file, self._done = file, done
                self._end_chunk(is_last=done == file.member.size)
        self._file, self._done = file, done

    def _begin_chunk(self, file: "_Extent", done: int) -> None:
        plain_offset = file.tar_offset + done - file.offset
        self._chunk_start = done
        self._chunk_hash = hashlib.sha256()
        if self._stream is not None and self._stream.codec is Codec.RAW:
            self._place = (plain_offset, 0)
        else:
            self._place = (self._span.blob_offset, plain_offset - self._span.plain_offset)

    def _end_chunk(self, *, is_last: bool) -> None:
        """End the open chunk, if there is one with bytes."""
        if not self._files or self._chunk_start < 0:
            return
        file = self._files[0]
        if self._file is not file or self._done <= self._chunk_start:
            return
        size = self._done - self._chunk_start
        is_whole = is_last and not self._chunk_start
        digest = "sha256:" + self._chunk_hash.hexdigest()
        self._parts[file.member.offset].append(
            Part(*self._place, self._chunk_start, 0 if is_whole else size, digest)
        )
        self._chunk_start = -1

    def _moves(self, members: tuple[TarMember, ...]) -> tuple[Move, ...] | None:
        """Return where each payload goes, if any is elsewhere."""
        block = self._limits.block_size
        moves = []
        target = 0
        for member in members:
            if member.kind is Kind.REGULAR and member.size:
                base = self._bases[member.offset]
                moves += [
                    Move(base + offset, target + offset, size)
                    for _, size, offset in member.extents()
                ]
                target += -(-member.size // block) * block
        if target == self._device_size and all(move.source == move.target for move in moves):
            return None
        return tuple(moves)


def with_holes(parts: Sequence[Part], size: int) -> list[Part]:
    """Return *parts* of a file of *size* bytes with holes where there are none."""
    whole: list[Part] = []
    at = 0
    for part in parts:
        if part.offset > at:
            whole.append(hole(at, part.offset - at))
        whole.append(part)
        at = part.offset + (part.stated_size or size - part.offset)
    if at < size:
        whole.append(hole(at, size - at))
    return whole


def codec_of(spans: Sequence[Span]) -> Codec:
    """Return what the compression of a layer is that has these spans; a plain tar has none."""
    if not spans:
        return Codec.RAW
    return Codec.ZSTD if spans[0].codec is Codec.ZSTD else Codec.GZIP


def placed(toc: Toc, spans: Sequence[Span]) -> Toc:
    """Return *toc* with what each chunk's stream begins with, as *spans* have it."""
    inside = {span.blob_offset for span in spans if span.codec is Codec.DEFLATE}
    if not inside:
        return toc

    def place(chunk: Chunk) -> Chunk:
        if chunk.blob_offset not in inside or chunk.codec is Codec.HOLE:
            return chunk
        return msgspec.structs.replace(chunk, codec=Codec.DEFLATE)

    def entries() -> Sequence[TocEntry]:
        return tuple(
            msgspec.structs.replace(entry, chunks=tuple(place(chunk) for chunk in entry.chunks))
            if entry.chunks
            else entry
            for entry in toc.entries
        )

    if isinstance(toc.entries, ScannedEntries):
        native, xattrs = toc.entries.native, toc.entries.xattrs
        scanned = ScannedEntries(native, xattrs, entries, inside)
        return msgspec.structs.replace(toc, entries=scanned)
    return msgspec.structs.replace(toc, entries=entries())


def limits_of(codec: Codec, limits: Limits = DEFAULT_LIMITS) -> Limits:
    """Return *limits* with what a stream of *codec* can expand to."""
    return replace(limits, stream_ratio=MAX_RATIO[codec])


def _digest_of(member: TarMember, parts: list[Part]) -> str:
    """Return the digest of the whole file where it is known: of one chunk, or of none."""
    if member.kind is not Kind.REGULAR:
        return ""
    if not member.size:
        return str(digest_of(b""))
    return parts[0].digest if len(parts) == 1 else ""  # a hole has none
