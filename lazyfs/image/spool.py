"""The files that a layer passes through while it is converted, in a temporary directory.

Each step verifies before it goes on: the blob against its descriptor before anything is unpacked,
the tar against the config's diffID before anything is written from it.  Files are read and written
in pieces; memory does not grow with a layer.  What blocks runs in worker threads, which look for
cancellation at every piece.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import trio

from lazyfs.digest import Digest, DigestMismatch
from lazyfs.errors import FormatError, Unavailable, VerificationFailed
from lazyfs.formats.arrange import Arrangement
from lazyfs.formats.compression import decompress, is_compressed
from lazyfs.formats.estargz import TAIL_SIZE, find_toc, read_toc
from lazyfs.formats.limits import DEFAULT_LIMITS
from lazyfs.formats.tar import TarMember, TarScanner
from lazyfs.formats.toc import decode_toc
from lazyfs.formats.writer import WriterOptions, WrittenLayer, write_layer
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.source import Source

PIECE_SIZE = 1 << 20


async def fetch_layer(source: Source, layer: Descriptor, path: Path) -> None:
    """Fetch a layer's blob into the file *path*, and verify it.

    A transfer that breaks goes on from where it was, as long as it gets anywhere.
    """
    digest = hashlib.new(layer.digest.algorithm, usedforsecurity=False)
    size = 0

    def store(data: bytearray) -> None:
        digest.update(data)
        file.write(data)

    with path.open("wb") as file:
        while size < layer.size:
            start, waiting = size, bytearray()
            try:
                async with source.open_range(layer, start, layer.size) as body:
                    async for piece in body:
                        waiting += piece
                        if len(waiting) >= PIECE_SIZE:
                            await trio.to_thread.run_sync(store, waiting)
                            size += len(waiting)
                            waiting.clear()
            except Unavailable:
                if size + len(waiting) == start:
                    raise
            store(waiting)
            size += len(waiting)
    got = Digest(layer.digest.algorithm, digest.hexdigest())
    if got != layer.digest:
        raise DigestMismatch(f"layer {layer.digest}: got {got} ({size} bytes)")


def unpack_layer(blob: Path, tar: Path, diff_id: Digest) -> tuple[Path, list[TarMember]]:
    """Return the file with the layer's tar, *tar* or *blob* itself, and the tar's members.

    Raises DigestMismatch if it is not the tar that *diff_id* names; nothing else that was found
    about it is reported then.
    """
    digest = hashlib.new(diff_id.algorithm, usedforsecurity=False)
    scanner = TarScanner()
    members: list[TarMember] = []
    error: FormatError | None = None
    with blob.open("rb") as source, tar.open("wb") as unpacked:
        is_plain = not is_compressed(source.read(4))
        source.seek(0)
        for piece in decompress(source.read):
            trio.from_thread.check_cancelled()
            digest.update(piece)
            if not is_plain:
                unpacked.write(piece)
            if error is None:
                try:
                    members += scanner.feed(piece)
                except FormatError as exc:
                    error = exc
    got = Digest(diff_id.algorithm, digest.hexdigest())
    if got != diff_id:
        raise DigestMismatch(f"uncompressed layer: got {got}, expected diffID {diff_id}")
    if error is not None:
        raise error
    scanner.finish()
    return (blob if is_plain else tar), members


def is_estargz(blob: Path, toc_digest: Digest | None) -> bool:
    """Say whether a blob has a sound table of contents with this digest, which None never is."""
    if toc_digest is None:
        return False
    size = blob.stat().st_size
    with blob.open("rb") as file:
        file.seek(max(0, size - TAIL_SIZE))
        try:
            place = find_toc(file.read(), size)
            if place.end - place.start > DEFAULT_LIMITS.member_size:
                return False
            file.seek(place.start)
            read_toc(file.read(place.end - place.start), expected=toc_digest, blob_size=size)
        except (FormatError, VerificationFailed):
            return False
    return True


def rewrite_layer(
    tar: Path, arrangement: Arrangement, result: Path, options: WriterOptions
) -> WrittenLayer:
    """Write the layer as eStargz into the file *result*.

    Its table of contents is read back by the strict rules of a mount, so that nothing comes out
    that would be refused later: a path too long, a device number that Linux cannot hold.
    """
    with tar.open("rb") as source, result.open("wb") as file:

        def read(member: TarMember) -> Iterator[bytes]:
            return _payload(source, member)

        written = write_layer(arrangement, read, file.write, options)
    decode_toc(written.toc, expected=written.toc_digest, blob_size=written.toc_offset)
    return written


def _payload(tar: BinaryIO, member: TarMember) -> Iterator[bytes]:
    tar.seek(member.offset, os.SEEK_SET)
    left = member.size
    while left:
        trio.from_thread.check_cancelled()
        piece = tar.read(min(left, PIECE_SIZE))
        if not piece:
            return  # the writer counts, and complains
        left -= len(piece)
        yield piece
