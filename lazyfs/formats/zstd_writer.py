"""Write a zstd:chunked layer, in the dialect of containers/storage.

Spec: containers/storage docs/containers-storage-zstd-chunked.md; layout in zstdchunked.py.  Every
chunk is a frame of its own, and so is what the tar has between two payloads.  Behind the tar come
three frames that decoders skip: the table of contents, tar-split, and the footer.  The table is
not part of the tar, so the diffID can be that of the source.

The compression is libzstd's: another version may compress differently, and the digests differ.
"""

import json
import struct
from base64 import b64encode
from collections.abc import Callable

import zstandard

from lazyfs.digest import Digest, digest_of
from lazyfs.formats.layer_writer import Blob, LayerWriter, WriterOptions, WrittenLayer
from lazyfs.formats.streams.crc64 import Crc64
from lazyfs.formats.tars.tar import TarMember
from lazyfs.formats.tars.tar_header import END_OF_ARCHIVE, name_of
from lazyfs.formats.tars.tarsplit import ENTRY, SEGMENT
from lazyfs.formats.tars.toc_json import CompactSpeller, Part
from lazyfs.formats.tars.verbatim import Spelling
from lazyfs.formats.tocs.claims import (
    CHECKSUM,
    CONTAINERS,
    POSITION,
    PREFIXES,
    TAR_SPLIT_CHECKSUM,
    TAR_SPLIT_POSITION,
    TOC_TYPE,
)
from lazyfs.formats.zstdchunked import FRAME_HEADER_SIZE, LONG, MAGICS, SKIPPABLE_MAGIC

MAGIC = next(magic for magic, dialect in MAGICS.items() if dialect == CONTAINERS)


class ZstdWriter(LayerWriter):
    """Writes zstd frames."""

    _stream: "ZstdStream"

    def __init__(
        self,
        write: Callable[[bytes], object],
        options: WriterOptions,
        *,
        tar_algorithm: str = "sha256",
    ) -> None:
        self._toc = CompactSpeller()
        self._tar_split = _TarSplitSpeller()
        self._compressor = zstandard.ZstdCompressor(level=options.compression_level)
        self._crc = Crc64()
        super().__init__(write, options, tar_algorithm=tar_algorithm)

    def _open(self) -> "ZstdStream":
        return ZstdStream(self._blob, self._compressor)

    def _put_between(self, data: bytes) -> None:
        self._next_stream()
        self._stream.expect(len(data))
        self._stream.put(data)
        self._next_stream()
        self._tar_split.add_segment(data)

    def _start_chunk(self, size: int, *, own_stream: bool) -> tuple[int, int]:
        self._next_stream()
        self._stream.expect(size)
        return self._stream.start, 0

    def _put_payload(self, data: memoryview) -> None:
        super()._put_payload(data)
        self._crc.update(data)

    def _list(
        self, member: TarMember, digest: str, parts: list[Part], spelling: Spelling | None
    ) -> None:
        self._next_stream()
        text = None if spelling is None else spelling.text
        name = name_of(member) if text is None else text.name
        self._toc.add(member, digest, parts, self._stream.start, text)
        self._tar_split.add_entry(name, member.size, self._crc.digest() if parts else None)
        self._crc = Crc64()

    def finish(self, tail: bytes | None = None) -> WrittenLayer:
        """Write the end of the tar, the table of contents, tar-split and the footer."""
        self._put_between(self._padding + END_OF_ARCHIVE if tail is None else tail)
        blob = self._blob
        payload_end = blob.size
        split = self._tar_split.document()
        split_frame = self._compressor.compress(split)
        toc = self._toc.document(str(digest_of(split_frame)))
        toc_frame = self._compressor.compress(toc)
        toc_place = self._skipped(toc_frame, toc)
        split_place = self._skipped(split_frame, split)
        size = LONG.size - FRAME_HEADER_SIZE
        blob.put(LONG.pack(SKIPPABLE_MAGIC, size, *toc_place, TOC_TYPE, *split_place, MAGIC))
        prefix = PREFIXES[CONTAINERS]
        return WrittenLayer(
            digest=Digest("sha256", blob.digest.hexdigest()),
            size=blob.size,
            diff_id=blob.diff_id,
            toc=toc,
            toc_digest=digest_of(toc),
            toc_offset=payload_end,
            annotations={
                prefix + CHECKSUM: str(digest_of(toc_frame)),
                prefix + POSITION: ":".join(map(str, (*toc_place, TOC_TYPE))),
                prefix + TAR_SPLIT_POSITION: ":".join(map(str, split_place)),
                prefix + TAR_SPLIT_CHECKSUM: str(digest_of(split_frame)),
            },
        )

    def _skipped(self, frame: bytes, raw: bytes) -> tuple[int, int, int]:
        """Write a frame inside one that decoders skip; return its place."""
        self._blob.put(SKIPPABLE_MAGIC + struct.pack("<I", len(frame)))
        offset = self._blob.size
        self._blob.put(frame)
        return offset, len(frame), len(raw)


class ZstdStream:
    """One zstd frame; nothing is written where nothing was put."""

    def __init__(self, blob: Blob, compressor: zstandard.ZstdCompressor) -> None:
        self._blob = blob
        self._compressor = compressor
        self._frame: zstandard.ZstdCompressionObj | None = None
        self.start = blob.size
        self.size = 0

    @property
    def compressed_size(self) -> int:
        """How much came out so far."""
        return self._blob.size - self.start

    def expect(self, size: int) -> None:
        """Say how much will be put; the frame's header says so too."""
        if size:
            self._frame = self._compressor.compressobj(size=size)

    def put(self, data: bytes | memoryview) -> None:
        """Compress more bytes."""
        if self._frame is None:
            return
        self._blob.note_tar(data)
        self.size += len(data)
        if compressed := self._frame.compress(data):
            self._blob.put(compressed)

    def end(self) -> None:
        """Write what remains."""
        if self._frame is not None:
            self._blob.put(self._frame.flush())


class _TarSplitSpeller:
    """Collects the lines of tar-split."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add_segment(self, data: bytes) -> None:
        if data:
            self._add({"type": SEGMENT, "payload": b64encode(data).decode()})

    def add_entry(self, name: bytes, size: int, crc: bytes | None) -> None:
        """Add an entry by the name that its header has."""
        line: dict[str, object] = {"type": ENTRY}
        try:
            line["name"] = name.decode()
        except UnicodeDecodeError:
            line["name_raw"] = b64encode(name).decode()
        if size:
            line["size"] = size
        line["payload"] = None if crc is None else b64encode(crc).decode()
        self._add(line)

    def _add(self, line: dict[str, object]) -> None:
        line["position"] = len(self._lines)
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        self._lines.append(text.encode() + b"\n")

    def document(self) -> bytes:
        return b"".join(self._lines)
