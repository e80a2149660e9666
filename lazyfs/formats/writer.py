"""Write an eStargz layer.

Spec: stargz-snapshotter docs/estargz.md.  The blob is a row of gzip members that together inflate
to a tar; a new member starts at every payload and at every chunk of it, so that each can be
fetched alone.  The header of a file is at the end of the member before its payload.  The last
two members hold the table of contents, as a tar entry, and the footer.

With ``min_chunk_size`` a new member starts only after so many compressed bytes; small files then
share one, and their entries carry an ``innerOffset``.

The same members and payloads give the same bytes, on every machine and at any time: nothing is
taken from the clock or the environment, gzip headers are fixed (time 0, flags 0, system 255), and
the compression is zlib's at a given level.  Equality holds for one implementation of zlib:
another (zlib-ng, or a future version) may compress differently, and the digests differ then.

No I/O here: output goes to a callback, payloads come from iterables, and at most one chunk's
worth of what they yield is in memory; the table of contents is, whole (about 400 bytes per entry).
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lazyfs.digest import Digest, digest_of
from lazyfs.formats.arrange import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, Arrangement
from lazyfs.formats.footer import build_footer
from lazyfs.formats.tar import BadTar, TarMember
from lazyfs.formats.tar_header import END_OF_ARCHIVE, build_header, padding
from lazyfs.formats.toc import Kind
from lazyfs.formats.toc_json import Part, TocSpeller

CHUNK_SIZE = 4 << 20
LEVEL = 9
LANDMARK_CONTENT = b"\x0f"

GZIP_HEADER = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"

TOC_DIGEST_ANNOTATION = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE_ANNOTATION = "io.containers.estargz.uncompressed-size"


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """How to cut and compress; sizes in bytes, ``level`` is zlib's, 0 to 9."""

    chunk_size: int = CHUNK_SIZE
    min_chunk_size: int = 0
    level: int = LEVEL

    def __post_init__(self) -> None:
        if self.chunk_size < 1 or self.min_chunk_size < 0 or not 0 <= self.level <= 9:
            raise ValueError(f"writer options: got {self}, expected sizes and a level of 0 to 9")


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """What came out; sizes in bytes, ``uncompressed_size`` and ``diff_id`` are of the tar.

    ``toc_offset`` is where the TOC's member starts in the blob, and payloads end.
    """

    digest: Digest
    size: int
    diff_id: Digest
    uncompressed_size: int
    toc: bytes
    toc_digest: Digest
    toc_offset: int

    @property
    def annotations(self) -> dict[str, str]:
        """Return what the layer's descriptor must say for lazy mounting."""
        return {
            TOC_DIGEST_ANNOTATION: str(self.toc_digest),
            UNCOMPRESSED_SIZE_ANNOTATION: str(self.uncompressed_size),
        }


def write_layer(
    arrangement: Arrangement,
    read: Callable[[TarMember], Iterable[bytes]],
    write: Callable[[bytes], object],
    options: WriterOptions | None = None,
) -> WrittenLayer:
    """Write the layer; *read* returns the payload of a member that has one, in pieces."""
    writer = LayerWriter(write, options or WriterOptions())
    if not arrangement.prioritized:
        writer.add_landmark(NO_PREFETCH_LANDMARK)
    for position, member in enumerate(arrangement.members):
        writer.add(member, read(member) if member.size else ())
        if position + 1 == arrangement.prioritized:
            writer.add_landmark(PREFETCH_LANDMARK)
    return writer.finish()


class LayerWriter:
    """Writes one layer, member by member, in the order of the calls."""

    def __init__(self, write: Callable[[bytes], object], options: WriterOptions) -> None:
        self._options = options
        self._blob = _Blob(write)
        self._stream = _Stream(self._blob, options.level)
        self._toc = TocSpeller()

    def add(self, member: TarMember, payload: Iterable[bytes] = ()) -> None:
        """Add a member; *payload* must yield exactly its size, or BadTar is raised."""
        self._put(member, payload, own_stream=False)

    def add_landmark(self, name: bytes) -> None:
        """Add a prefetch landmark; what is before it can be told by its offset alone."""
        member = TarMember(name, Kind.REGULAR, size=len(LANDMARK_CONTENT))
        self._put(member, (LANDMARK_CONTENT,), own_stream=True)

    def finish(self) -> WrittenLayer:
        """Write the table of contents and the footer."""
        toc = self._toc.document()
        toc_offset = self._next_stream()
        self._stream.put(build_header(TarMember(TOC_NAME, Kind.REGULAR, size=len(toc))))
        self._stream.put(toc)
        self._stream.put(padding(len(toc)) + END_OF_ARCHIVE)
        self._stream.end()
        self._blob.put(build_footer(toc_offset))
        return WrittenLayer(
            digest=Digest("sha256", self._blob.digest.hexdigest()),
            size=self._blob.size,
            diff_id=Digest("sha256", self._blob.tar_digest.hexdigest()),
            uncompressed_size=self._blob.tar_size,
            toc=toc,
            toc_digest=digest_of(toc),
            toc_offset=toc_offset,
        )

    def _put(self, member: TarMember, payload: Iterable[bytes], *, own_stream: bool) -> None:
        self._stream.put(build_header(member))
        if member.kind is not Kind.REGULAR:
            self._toc.add(member, "", ())
            return
        digest = hashlib.sha256()
        parts: list[Part] = []
        chunk_digest, left = hashlib.sha256(), 0  # of the open chunk
        written = 0
        place = (0, 0)
        for piece in payload:
            view = memoryview(piece)
            digest.update(view)
            while view:
                if not left:
                    left = min(self._options.chunk_size, member.size - written)
                    if not left:
                        raise BadTar(f"{member.path!r}: got more than {member.size} bytes")
                    place = self._start_chunk(own_stream)
                    chunk_digest, chunk_offset = hashlib.sha256(), written
                taken, view = view[:left], view[left:]
                chunk_digest.update(taken)
                self._stream.put(taken)
                written += len(taken)
                left -= len(taken)
                if not left:
                    size = self._options.chunk_size
                    stated = size if written - chunk_offset == size else 0
                    parts.append(Part(*place, chunk_offset, stated, _text(chunk_digest)))
        if written != member.size:
            raise BadTar(f"{member.path!r}: got {written} bytes, expected {member.size}")
        self._stream.put(padding(written))
        self._toc.add(member, _text(digest), parts)

    def _start_chunk(self, own_stream: bool) -> tuple[int, int]:
        """Return where a payload that is written next will be: (blob offset, inner offset)."""
        if own_stream or self._stream.compressed_size >= self._options.min_chunk_size:
            self._next_stream()
        return self._stream.start, self._stream.size

    def _next_stream(self) -> int:
        self._stream.end()
        self._stream = _Stream(self._blob, self._options.level)
        return self._stream.start


class _Blob:
    """Counts and hashes what goes out, and the tar that it inflates to."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.size = 0
        self.digest = hashlib.sha256()
        self.tar_size = 0
        self.tar_digest = hashlib.sha256()

    def put(self, data: bytes) -> None:
        self.size += len(data)
        self.digest.update(data)
        self._write(data)


class _Stream:
    """One gzip member.  ``size`` counts what went in, ``compressed_size`` what came out so far.

    The header is written here and not by zlib, which would put the machine's system in it.
    """

    def __init__(self, blob: _Blob, level: int) -> None:
        self._blob = blob
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY)
        self._crc = 0
        self.start = blob.size
        self.size = 0
        blob.put(GZIP_HEADER)

    @property
    def compressed_size(self) -> int:
        return self._blob.size - self.start

    def put(self, data: bytes | memoryview) -> None:
        self._blob.tar_digest.update(data)
        self._blob.tar_size += len(data)
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)
        compressed = self._deflate.compress(data)
        if compressed:
            self._blob.put(compressed)

    def end(self) -> None:
        trailer = struct.pack("<II", self._crc, self.size & 0xFFFFFFFF)
        self._blob.put(self._deflate.flush() + trailer)


def _text(digest: "hashlib._Hash") -> str:
    return "sha256:" + digest.hexdigest()
