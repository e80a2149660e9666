"""What writing a layer has in common, whatever its format.

A layer is written member by member: a header, then a payload that is cut into chunks, each
compressed so that it can be fetched alone and hashed so that it can be verified alone.  Formats
differ in their streams (gzip members, zstd frames), in where one ends, and in how the table of
contents is spelled and where it goes.

The same members and payloads give the same bytes, on every machine and at any time: nothing is
taken from the clock, the environment or the number of processors, and the compression is the
library's at a given level.  Equality holds for one implementation and version of it.

No I/O here: output goes to a callback, payloads come from iterables, and at most one chunk's
worth of what they yield is in memory; the table of contents is, whole (about 400 bytes per entry).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Protocol

import msgspec

from lazyfs.digest import Digest
from lazyfs.formats.tars.arrange import PREFETCH_LANDMARK
from lazyfs.formats.tars.tar import BadTar, TarMember
from lazyfs.formats.tars.tar_header import build_header, padding
from lazyfs.formats.tars.toc_json import Part
from lazyfs.formats.tars.verbatim import Spelling
from lazyfs.formats.tocs.toc import Kind

CHUNK_SIZE = 4 << 20
LANDMARK_CONTENT = b"\x0f"


class Target(Enum):
    """A format that layers can be written in; ``levels`` are those of its compression."""

    ESTARGZ = ("estargz", "eStargz", range(10), 9)
    ZSTD_CHUNKED = ("zstd-chunked", "zstd:chunked", range(1, 20), 6)

    def __init__(self, word: str, text: str, levels: range, level: int) -> None:
        self.word = word
        self.text = text
        self.levels = levels
        self.level = level


class WriterOptions(msgspec.Struct, frozen=True):
    """How to cut and compress; sizes in bytes, ``level`` None is the target's own.

    ``is_toc_external``: the table of contents is not put into the blob.
    """

    chunk_size: int = CHUNK_SIZE
    min_chunk_size: int = 0
    level: int | None = None
    target: Target = Target.ESTARGZ
    is_toc_external: bool = False

    def __post_init__(self) -> None:
        is_estargz = self.target is Target.ESTARGZ
        if (
            self.chunk_size < 1
            or self.min_chunk_size < 0
            or self.compression_level not in self.target.levels
            or not (is_estargz or (not self.min_chunk_size and not self.is_toc_external))
        ):
            levels = self.target.levels
            raise ValueError(
                f"writer options {self} are not valid: sizes are positive, the level is"
                f" {levels[0]} to {levels[-1]}, and only eStargz can have an external TOC or"
                " several chunks in one stream"
            )

    @property
    def compression_level(self) -> int:
        """The level as a number."""
        return self.target.level if self.level is None else self.level


class WrittenLayer(msgspec.Struct, frozen=True):
    """What came out; sizes in bytes, ``diff_id`` is the tar's.

    ``annotations`` are what the layer's descriptor must say for lazy mounting.  Payloads end at
    ``toc_offset`` of the blob.
    """

    digest: Digest
    size: int
    diff_id: Digest
    toc: bytes
    toc_digest: Digest
    toc_offset: int
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)


class Pending(Protocol):
    """What will be compressed bytes."""

    def result(self) -> bytes:
        """Wait for them."""


Submit = Callable[[Callable[[], bytes]], Pending]
"""Has something computed while we go on, in a thread of the caller's."""


class Stream(Protocol):
    """One stream of compressed bytes; ``start`` is its blob offset, ``size`` what went in."""

    start: int
    size: int

    @property
    def compressed_size(self) -> int:
        """How much came out so far."""

    def put(self, data: bytes | memoryview) -> None:
        """Compress more bytes."""

    def end(self) -> None:
        """Write what remains."""


class Blob:
    """Counts and hashes what goes out, and the tar that it decompresses to.

    *tar_algorithm* is that of the diffID.
    """

    def __init__(self, write: Callable[[bytes], object], tar_algorithm: str) -> None:
        self._write = write
        self.size = 0
        self.digest = hashlib.sha256()
        self.tar_size = 0
        self.tar_digest = hashlib.new(tar_algorithm, usedforsecurity=False)

    @property
    def diff_id(self) -> Digest:
        """The tar's digest."""
        return Digest(self.tar_digest.name, self.tar_digest.hexdigest())

    def put(self, data: bytes) -> None:
        """Write compressed bytes, or what lies between them."""
        self.size += len(data)
        self.digest.update(data)
        self._write(data)

    def note_tar(self, data: bytes | memoryview) -> None:
        """Take note of bytes of the tar."""
        self.tar_digest.update(data)
        self.tar_size += len(data)


class LayerWriter(ABC):
    """Writes one layer, member by member, in the order of the calls."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        options: WriterOptions,
        submit: Submit | None = None,
        *,
        tar_algorithm: str = "sha256",
    ) -> None:
        self._options = options
        self._submit = submit
        self._blob = Blob(write, tar_algorithm)
        self._stream = self._open()
        self._padding = b""  # of the last payload, not yet written

    @abstractmethod
    def _open(self) -> Stream:
        """Return a new stream, at the end of the blob."""

    @abstractmethod
    def _list(
        self, member: TarMember, digest: str, parts: list[Part], spelling: Spelling | None
    ) -> None:
        """Put a member into the table of contents."""

    @abstractmethod
    def finish(self, tail: bytes | None = None) -> WrittenLayer:
        """Write the end; *tail* is the tar's where it is to stay as it was."""

    def add(
        self,
        member: TarMember,
        payload: Iterable[bytes] = (),
        spelling: Spelling | None = None,
    ) -> None:
        """Add a member; *payload* must yield exactly its size, or BadTar is raised.

        *spelling* is its header as it stood in the source, for one that must not change.
        """
        self._put(member, payload, spelling=spelling)

    def add_landmark(self, name: bytes = PREFETCH_LANDMARK) -> None:
        """Add a prefetch landmark; what is before it can be told by its offset alone."""
        member = TarMember(name, Kind.REGULAR, size=len(LANDMARK_CONTENT))
        self._put(member, (LANDMARK_CONTENT,), own_stream=True)

    def _put(
        self,
        member: TarMember,
        payload: Iterable[bytes],
        *,
        own_stream: bool = False,
        spelling: Spelling | None = None,
    ) -> None:
        if spelling is None:
            self._put_between(self._padding + build_header(member))
        else:
            self._put_between(spelling.header)
        self._padding = b""
        if member.kind is not Kind.REGULAR:
            self._list(member, "", [], spelling)
            return
        digest = hashlib.sha256()
        parts: list[Part] = []
        chunk_digest, left = hashlib.sha256(), 0  # of the open chunk
        chunk_offset = written = 0
        place = (0, 0)
        for piece in payload:
            view = memoryview(piece)
            digest.update(view)
            while view:
                if not left:
                    left = min(self._options.chunk_size, member.size - written)
                    if not left:
                        raise BadTar(f"{member.path!r} has more than {member.size} bytes")
                    place = self._start_chunk(left, own_stream=own_stream)
                    chunk_digest, chunk_offset = hashlib.sha256(), written
                taken, view = view[:left], view[left:]
                chunk_digest.update(taken)
                self._put_payload(taken)
                written += len(taken)
                left -= len(taken)
                if not left:
                    size = self._options.chunk_size
                    stated = size if written - chunk_offset == size else 0
                    parts.append(Part(*place, chunk_offset, stated, text_of(chunk_digest)))
        if written != member.size:
            raise BadTar(f"{member.path!r}: got {written} bytes, expected {member.size}")
        self._padding = padding(written)
        self._list(member, text_of(digest), parts, spelling)

    def _put_between(self, data: bytes) -> None:
        """Write bytes of the tar that are nobody's payload."""
        self._stream.put(data)

    def _put_payload(self, data: memoryview) -> None:
        self._stream.put(data)

    def _start_chunk(self, size: int, *, own_stream: bool) -> tuple[int, int]:
        """Return where a payload that is written next will be: (blob offset, inner offset)."""
        if own_stream or self._stream.compressed_size >= self._options.min_chunk_size:
            self._next_stream()
        return self._stream.start, self._stream.size

    def _next_stream(self) -> int:
        self._stream.end()
        self._stream = self._open()
        return self._stream.start


def text_of(digest: "hashlib._Hash") -> str:
    """Return a sha256 as tables of contents spell it."""
    return "sha256:" + digest.hexdigest()
