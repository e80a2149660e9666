"""Write an eStargz layer; ``write_layer`` writes one of any target.

Spec: stargz-snapshotter docs/estargz.md.  The blob is a row of gzip members that together inflate
to a tar; a new member starts at every payload and at every chunk of it, so that each can be
fetched alone.  The header of a file is at the end of the member before its payload.  The last
two members hold the table of contents, as a tar entry, and the footer.

With ``min_chunk_size`` a new member starts only after so many compressed bytes; small files then
share one, and their entries carry an ``innerOffset``.

With an external table of contents (docs/external-toc.md) the blob is the tar's own bytes and a
footer that says so; ``build_toc_blob`` makes what goes into the other image.

Gzip headers are fixed (time 0, flags 0, system 255).  The compression is zlib's: another
implementation (zlib-ng, or a future version) may compress differently, and the digests differ.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from msgspec.structs import replace

from lazyfs.digest import Digest, digest_of
from lazyfs.formats.footer import EXTERNAL_TOC, build_footer
from lazyfs.formats.layer_writer import (
    CHUNK_SIZE,
    Blob,
    LayerWriter,
    Pending,
    Submit,
    Target,
    WriterOptions,
    WrittenLayer,
)
from lazyfs.formats.tars.arrange import NO_PREFETCH_LANDMARK, TOC_NAME, Arrangement
from lazyfs.formats.tars.tar import TarMember
from lazyfs.formats.tars.tar_header import END_OF_ARCHIVE, build_header, padding
from lazyfs.formats.tars.toc_json import Part, TocSpeller
from lazyfs.formats.tars.verbatim import Spelling
from lazyfs.formats.tocs.toc import Kind
from lazyfs.formats.zstd_writer import ZstdWriter

__all__ = ["CHUNK_SIZE", "Target", "WriterOptions", "WrittenLayer", "write_layer"]

GZIP_HEADER = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"

TOC_DIGEST_ANNOTATION = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE_ANNOTATION = "io.containers.estargz.uncompressed-size"

MAX_PENDING = 8  # members in memory, a chunk each

Read = Callable[[TarMember], Iterable[bytes]]


def write_layer(
    arrangement: Arrangement,
    read: Read,
    write: Callable[[bytes], object],
    options: WriterOptions | None = None,
    submit: Submit | None = None,
) -> WrittenLayer:
    """Write the layer; *read* returns the payload of a member that has one, in pieces.

    With *submit*, members of eStargz are compressed side by side; the bytes are the same.
    """
    writer = _open_writer(write, options or WriterOptions(), submit)
    # Whoever reads zstd:chunked takes no landmark for no advice; in a rootfs it would be a file.
    if not arrangement.prioritized and isinstance(writer, EstargzWriter):
        writer.add_landmark(NO_PREFETCH_LANDMARK)
    for position, member in enumerate(arrangement.members):
        writer.add(member, read(member) if member.size else ())
        if position + 1 == arrangement.prioritized:
            writer.add_landmark()
    return writer.finish()


def write_verbatim(
    members: Sequence[TarMember],
    spell: Callable[[int], Spelling],
    tail: bytes,
    read: Read,
    write: Callable[[bytes], object],
    options: WriterOptions,
    submit: Submit | None = None,
    *,
    tar_algorithm: str = "sha256",
) -> WrittenLayer:
    """Write a layer whose tar stays as it is; *members* must have passed check_keepable.

    *spell* returns the header of the member of that number; *tail* follows the last payload.
    *tar_algorithm* is that of the diffID.
    """
    writer = _open_writer(write, options, submit, tar_algorithm)
    for number, member in enumerate(members):
        writer.add(member, read(member) if member.size else (), spell(number))
    return writer.finish(tail)


def build_toc_blob(toc: bytes, level: int) -> bytes:
    """Return a table of contents as its own gzip member, of a tar of one file."""
    pieces: list[bytes] = []
    stream = GzipStream(Blob(pieces.append, "sha256"), level)
    _put_toc(stream, toc)
    stream.end()
    return b"".join(pieces)


def _open_writer(
    write: Callable[[bytes], object],
    options: WriterOptions,
    submit: Submit | None,
    tar_algorithm: str = "sha256",
) -> LayerWriter:
    if options.target is Target.ZSTD_CHUNKED:
        return ZstdWriter(write, options, tar_algorithm=tar_algorithm)
    # Where members are filled up to a size, each has to be compressed before the next begins.
    submit = None if options.min_chunk_size else submit
    return EstargzWriter(write, options, submit, tar_algorithm=tar_algorithm)


class EstargzWriter(LayerWriter):
    """Writes gzip members."""

    _stream: "GzipStream | PendingStream"

    def __init__(
        self,
        write: Callable[[bytes], object],
        options: WriterOptions,
        submit: Submit | None = None,
        *,
        tar_algorithm: str = "sha256",
    ) -> None:
        self._toc = TocSpeller()
        self._pending: deque[PendingStream] = deque()
        self._starts: list[int] = []  # of the streams that are written
        self._unlisted: deque[tuple[TarMember, str, list[Part]]] = deque()
        super().__init__(write, options, submit, tar_algorithm=tar_algorithm)

    def _open(self) -> "GzipStream | PendingStream":
        level = self._options.compression_level
        if self._submit is None:
            return GzipStream(self._blob, level)
        return PendingStream(self._blob, level, len(self._starts) + len(self._pending))

    def _next_stream(self) -> int:
        if isinstance(self._stream, GzipStream):
            return super()._next_stream()
        self._begin(self._stream)
        self._settle(MAX_PENDING)
        self._stream = self._open()
        return self._stream.start

    def _end_streams(self) -> None:
        if isinstance(self._stream, GzipStream):
            self._stream.end()
        else:
            self._begin(self._stream)
            self._settle(0)

    def _begin(self, stream: "PendingStream") -> None:
        assert self._submit is not None
        stream.submit(self._submit)
        self._pending.append(stream)

    def _settle(self, left: int) -> None:
        """Write streams that are complete until only *left* are pending; list what lies there."""
        while len(self._pending) > left:
            self._starts.append(self._blob.size)
            self._pending.popleft().end()
        while self._unlisted:
            member, digest, parts = self._unlisted[0]
            if parts and parts[-1].blob_offset >= len(self._starts):
                break
            self._unlisted.popleft()
            placed = [replace(part, blob_offset=self._starts[part.blob_offset]) for part in parts]
            self._toc.add(member, digest, placed)

    def _list(
        self, member: TarMember, digest: str, parts: list[Part], spelling: Spelling | None
    ) -> None:
        if self._submit is None:
            self._toc.add(member, digest, parts)
        else:
            self._unlisted.append((member, digest, parts))

    def finish(self, tail: bytes | None = None) -> WrittenLayer:
        """Write the table of contents, unless it goes elsewhere, and the footer."""
        if self._options.is_toc_external:
            self._put_between(self._padding + END_OF_ARCHIVE if tail is None else tail)
        elif tail is not None:
            raise ValueError("tail: only a layer with an external TOC takes one")
        else:
            self._put_between(self._padding)
        self._end_streams()
        toc = self._toc.document()
        toc_offset = self._blob.size
        if self._options.is_toc_external:
            self._blob.put(EXTERNAL_TOC)
        else:
            stream = GzipStream(self._blob, self._options.compression_level)
            _put_toc(stream, toc)
            stream.end()
            self._blob.put(build_footer(toc_offset))
        toc_digest = digest_of(toc)
        return WrittenLayer(
            digest=Digest("sha256", self._blob.digest.hexdigest()),
            size=self._blob.size,
            diff_id=self._blob.diff_id,
            toc=toc,
            toc_digest=toc_digest,
            toc_offset=toc_offset,
            annotations={
                TOC_DIGEST_ANNOTATION: str(toc_digest),
                UNCOMPRESSED_SIZE_ANNOTATION: str(self._blob.tar_size),
            },
        )


class GzipStream:
    """One gzip member.

    The header is written here and not by zlib, which would put the machine's system in it.
    """

    def __init__(self, blob: Blob, level: int) -> None:
        self._blob = blob
        self._deflate = _open_deflate(level)
        self._crc = 0
        self.start = blob.size
        self.size = 0
        blob.put(GZIP_HEADER)

    @property
    def compressed_size(self) -> int:
        """How much came out so far."""
        return self._blob.size - self.start

    def put(self, data: bytes | memoryview) -> None:
        """Compress more bytes."""
        self._blob.note_tar(data)
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)
        compressed = self._deflate.compress(data)
        if compressed:
            self._blob.put(compressed)

    def end(self) -> None:
        """Write what remains, and the member's trailer."""
        self._blob.put(self._deflate.flush() + _trailer(self._crc, self.size))


class PendingStream:
    """A gzip member that is compressed in a thread; until then ``start`` is its number."""

    def __init__(self, blob: Blob, level: int, number: int) -> None:
        self._blob = blob
        self._level = level
        self._pieces: list[bytes] = []
        self._result: Pending | None = None
        self.start = number
        self.size = 0
        self.compressed_size = 0

    def put(self, data: bytes | memoryview) -> None:
        """Keep more bytes."""
        self._blob.note_tar(data)
        self._pieces.append(bytes(data))
        self.size += len(data)

    def submit(self, submit: Submit) -> None:
        """Have it compressed."""
        pieces, self._pieces = self._pieces, []
        self._result = submit(partial(_compress, pieces, self._level))

    def end(self) -> None:
        """Write it."""
        assert self._result is not None
        self._blob.put(self._result.result())


def _compress(pieces: Sequence[bytes], level: int) -> bytes:
    """Return the gzip member of *pieces*."""
    deflate = _open_deflate(level)
    data = b"".join(pieces)
    trailer = _trailer(zlib.crc32(data), len(data))
    return GZIP_HEADER + deflate.compress(data) + deflate.flush() + trailer


def _open_deflate(level: int) -> "zlib._Compress":
    return zlib.compressobj(level, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY)


def _trailer(crc: int, size: int) -> bytes:
    return struct.pack("<II", crc, size & 0xFFFFFFFF)


def _put_toc(stream: GzipStream, toc: bytes) -> None:
    stream.put(build_header(TarMember(TOC_NAME, Kind.REGULAR, size=len(toc))))
    stream.put(toc)
    stream.put(padding(len(toc)) + END_OF_ARCHIVE)
