"""A checkpoint's files on their way to the store and back: zstd, and two digests of each.

Files are cut into frames of 16 MiB, which threads compress and decompress side by side; any zstd
program reads the result.  Both digests are made in the one pass.  Coming back, nothing is written
beyond the recorded size, and memory is bounded whatever the bytes say.
"""

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO

import zstandard

from lazyfs.documents.errors import FileCorrupt
from lazyfs.documents.manifest import File
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.threads import Threads
from lazyfs.snapshot.stores.sparse import copy_sparse, segments, write_sparse
from lazyfs.snapshot.stores.zstd_frames import (
    LARGEST_WINDOW,
    BadFrame,
    checksum_of,
    read_block,
    read_frame,
    read_header,
)

FRAME_SIZE = 16 << 20
LARGEST_FRAME = 64 << 20  # longer ones of other writers are decompressed in pieces, not at once
PIECE_SIZE = 1 << 20
LEVEL = 1  # a sandbox waits: level 3 takes half as long again for some percent
WORKERS = max(1, min(4, os.cpu_count() or 1))
SUFFIX = ".zstd"
SAVING = 0.03  # "auto": what must be saved for compression to be worth it
SAMPLES = 16
SAMPLE_SIZE = 256 << 10
ZEROS = bytes(FRAME_SIZE)

Write = Callable[[bytes], object]


def store_file(source: Path, target_dir: Path, *, mode: str) -> File:
    """Put *source* into *target_dir* as it will be stored, synced; return what it is.

    *mode*: "zstd" compresses, "none" does not, "auto" does where that saves 3 % or more.  What is
    not compressed is linked, where it can be, and not copied.  Raises StoreFailed, NoSpace.
    """
    with local_errors(source, "store"), open(source, "rb") as stream:
        file = stream.fileno()
        size = os.fstat(file).st_size
        is_worth_it = mode == "zstd" or (mode == "auto" and _saves(file, size))
        if is_worth_it:
            target = target_dir / f"{source.name}{SUFFIX}"
            stored = _compress(file, size, source.name, target)
            if mode == "zstd" or stored.stored_size <= size * (1 - SAVING):
                return stored
            target.unlink()
            digest = stored.raw_digest
        else:
            digest = _digest_of(file, size)
        _put_raw(source, file, target_dir / source.name)
        return File(source.name, source.name, "none", size, digest, size, digest)


def restore_file(stream: BinaryIO, file: File, target: Path) -> None:
    """Write what *stream* has of *file* to the new file *target*; runs of zeros become holes.

    Raises FileCorrupt, with nothing left, where sizes or digests are not the recorded ones;
    NoSpace, StoreFailed.
    """
    with local_errors(target, "write"):
        output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        position = 0

        def write(data: bytes) -> None:
            nonlocal position
            write_sparse(output, data, position)
            position += len(data)

        try:
            decode_file(stream, file, write)
            os.ftruncate(output, file.raw_size)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(output)


def decode_file(stream: BinaryIO, file: File, write: Write) -> None:
    """Give the raw bytes of *file*, in order, to *write*; raise FileCorrupt as soon as one is off.

    All that is given is within the recorded size, but only verified once this returns.
    """
    source = _Source(stream, file)
    with Threads(1) as hashing:
        sink = _Sink(file, write, hashing)
        _decode(source, sink, file)
        source.finish()
        sink.finish()


def check_stored(stream: BinaryIO, file: File, write: Write) -> None:
    """Give the stored bytes of *file*, as they are, to *write*; raise FileCorrupt if one is off."""
    source = _Source(stream, file)
    while data := source.read(PIECE_SIZE):
        write(data)
    source.finish()


# Compressing


def _compress(file: int, size: int, name: str, target: Path) -> File:
    raw, stored = hashlib.sha256(), hashlib.sha256()
    stored_size = frames = 0
    is_done = False
    try:
        with open(target, "xb") as output, Threads(WORKERS) as pool:
            for data in _compressed(file, size, raw.update, pool):
                output.write(data)
                stored.update(data)
                stored_size += len(data)
                frames += 1
            output.flush()
            os.fsync(output.fileno())
        is_done = True
    finally:
        if not is_done:
            target.unlink(missing_ok=True)
    raw_digest, stored_digest = f"sha256:{raw.hexdigest()}", f"sha256:{stored.hexdigest()}"
    return File(
        name, target.name, "zstd", size, raw_digest, stored_size, stored_digest, frames=frames
    )


def _compressed(
    file: int,
    size: int,
    hash_raw: Callable[[bytes | bytearray | memoryview], None],
    pool: Threads,
) -> Iterator[bytes]:
    """Yield the frames of a file in order; at least one, so that it is a zstd file."""
    waiting: deque[Future[bytes]] = deque()
    holes: dict[int, Future[bytes]] = {}  # by size: two at most
    for start in range(0, max(size, 1), FRAME_SIZE):
        end = min(start + FRAME_SIZE, size)
        data = _read_frame(file, start, end)
        if data is None:
            length = end - start
            if length not in holes:
                holes[length] = pool.submit(_compress_frame, ZEROS[:length])
            waiting.append(holes[length])
            hash_raw(memoryview(ZEROS)[:length])
        else:
            waiting.append(pool.submit(_compress_frame, data))
            hash_raw(data)
        if len(waiting) > WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _compress_frame(data: bytes | bytearray) -> bytes:
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    return compressor.compress(data)


def _read_frame(file: int, start: int, end: int) -> bytearray | None:
    """Return the bytes from *start* to *end*, None where all of that is a hole."""
    data: bytearray | None = None
    for first, last in segments(file, start, end):
        if data is None:
            data = bytearray(end - start)
        view = memoryview(data)
        while first < last:
            count = os.preadv(file, [view[first - start : last - start]], first)
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            first += count
    return data


def _saves(file: int, size: int) -> bool:
    """Say whether samples, evenly spread, let one expect that compressing saves enough."""
    step = max(size // SAMPLES, 1)
    raw = packed = 0
    for start in range(0, size, max(step, SAMPLE_SIZE)):
        data = os.pread(file, SAMPLE_SIZE, start)
        raw += len(data)
        packed += len(_compress_frame(data))
    return packed <= raw * (1 - SAVING)


def _digest_of(file: int, size: int) -> str:
    hashed = hashlib.sha256()
    for start in range(0, size, FRAME_SIZE):
        end = min(start + FRAME_SIZE, size)
        data = _read_frame(file, start, end)
        hashed.update(memoryview(ZEROS)[: end - start] if data is None else data)
    return f"sha256:{hashed.hexdigest()}"


def _put_raw(source: Path, file: int, target: Path) -> None:
    if target.exists() and target.samefile(source):
        os.fsync(file)
        return
    try:
        os.link(source, target, follow_symlinks=False)
        os.fsync(file)
        return
    except FileExistsError:
        raise
    except OSError:
        pass  # another filesystem, or one without links
    with open(target, "xb") as output:
        copy_sparse(file, output.fileno())
        os.fsync(output.fileno())


# Decompressing


def _decode(source: "_Source", sink: "_Sink", file: File) -> None:
    if file.compression == "none":
        while data := source.read(PIECE_SIZE):
            sink.put(data)
        return
    try:
        _decompress(source, sink)
    except (BadFrame, zstandard.ZstdError) as error:
        source.drain()  # that it is not what was stored says more than where it broke
        raise FileCorrupt(
            f"file {file.name} is not valid: {error}",
            details={"file": file.name},
        ) from error


class _Source:
    """The stored bytes: counted and hashed as they are read, never more than recorded."""

    def __init__(self, stream: BinaryIO, file: File) -> None:
        self._stream = stream
        self._file = file
        self._hash = hashlib.sha256()
        self._left = file.stored_size
        self._ahead = b""
        self._used = 0

    def read(self, size: int) -> bytes:
        """Return *size* bytes, fewer only at the end."""
        if len(self._ahead) - self._used < size:
            pieces = [self._ahead[self._used :]]
            have = len(pieces[0])
            while have < size and (data := self._fetch(max(size - have, PIECE_SIZE))):
                pieces.append(data)
                have += len(data)
            self._ahead, self._used = b"".join(pieces), 0
        found = self._ahead[self._used : self._used + size]
        self._used += len(found)
        return found

    def drain(self) -> None:
        """Read to the end, and raise FileCorrupt if the stored digest is another."""
        while self._fetch(PIECE_SIZE):
            pass
        self.finish()

    def finish(self) -> None:
        """Raise FileCorrupt unless all was read that was recorded, and no more is there."""
        digest = self.end()
        if digest != self._file.stored_digest:
            raise _corrupt(self._file, f"stored {digest}", self._file.stored_digest)

    def end(self) -> str:
        """Return the digest; FileCorrupt unless the recorded number of bytes was read, and is."""
        file = self._file
        got = file.stored_size - self._left
        if self._left == 0 and self._stream.read(1):
            raise _corrupt(file, f"over {got} stored bytes", f"{file.stored_size}")
        if self._left:
            raise _corrupt(file, f"{got} stored bytes", f"{file.stored_size}")
        return f"sha256:{self._hash.hexdigest()}"

    def _fetch(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left)) if self._left else b""
        self._hash.update(data)
        self._left -= len(data)
        return data


class _Sink:
    """The raw bytes: counted and hashed as they are written, never more than recorded.

    Each piece is hashed in the thread of *hashing* while it is written and the next one comes.
    """

    def __init__(self, file: File, write: Write, hashing: Threads) -> None:
        self._file = file
        self._write = write
        self._hash = hashlib.sha256()
        self._hashing = hashing
        self._hashed: Future[None] | None = None
        self._size = 0
        self._expected = 0

    def put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._file.raw_size:
            raise self._too_long()
        if self._hashed is not None:
            self._hashed.result()
        self._hashed = self._hashing.submit(self._hash.update, data)
        self._write(data)

    def expect(self, size: int) -> None:
        """Raise FileCorrupt if *size* bytes more would be too many."""
        self._expected += size
        if self._expected > self._file.raw_size:
            raise self._too_long()

    def finish(self) -> None:
        """Raise FileCorrupt unless all that was recorded was written."""
        file = self._file
        if self._size != file.raw_size:
            raise _corrupt(file, f"{self._size} raw bytes", f"{file.raw_size}")
        if self._hashed is not None:
            self._hashed.result()
        digest = f"sha256:{self._hash.hexdigest()}"
        if digest != file.raw_digest:
            raise _corrupt(file, f"raw {digest}", file.raw_digest)

    def _too_long(self) -> FileCorrupt:
        return _corrupt(self._file, "more raw bytes", f"{self._file.raw_size}")


def _decompress(source: _Source, sink: _Sink) -> None:
    waiting: deque[Future[bytes]] = deque()
    pool = Threads(WORKERS)
    try:
        while (header := read_header(source.read)) is not None:
            size = header.content_size
            if size is not None:
                sink.expect(size)
            if size is not None and size <= LARGEST_FRAME:
                frame = read_frame(source.read, header, size + size // 64 + (64 << 10))
                waiting.append(pool.submit(_decompress_frame, frame, size))
                if len(waiting) > WORKERS:
                    sink.put(waiting.popleft().result())
                continue
            if header.window_size > LARGEST_WINDOW:
                raise BadFrame(
                    f"zstd: a window of {header.window_size} bytes is over the limit of "
                    f"{LARGEST_WINDOW}"
                )
            while waiting:
                sink.put(waiting.popleft().result())
            decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
            member = decompressor.decompressobj()
            sink.put(member.decompress(header.data))
            is_last = False
            while not is_last:  # a block gives 128 KiB at most
                block, is_last = read_block(source.read)
                piece = member.decompress(block)
                if size is None:
                    sink.expect(len(piece))
                sink.put(piece)
            if checksum := checksum_of(source.read, header):
                sink.put(member.decompress(checksum))
            if not member.eof:
                raise BadFrame("zstd: a frame does not end with its last block")
        while waiting:
            sink.put(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _decompress_frame(frame: bytes, size: int) -> bytes:
    data = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompress(frame)
    if len(data) != size:
        raise BadFrame(f"zstd: got {len(data)} bytes of a frame, expected {size}")
    return data


def _corrupt(file: File, got: str, expected: str) -> FileCorrupt:
    return FileCorrupt(
        f"file {file.name}: got {got}, expected {expected}",
        hint="the snapshot is damaged in its store; restore a different one",
        details={"file": file.name, "object": file.object, "got": got, "expected": expected},
    )
