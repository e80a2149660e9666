"""The files that a layer passes through while it is converted, in a temporary directory.

Each step verifies before it goes on: the blob against its descriptor before anything is unpacked,
the tar against the config's diffID before anything is written from it.  Files are read and written
in pieces; memory does not grow with a layer.  What blocks runs in worker threads, which look for
cancellation at every piece.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio

from lazyfs.digest import Digest, DigestMismatch
from lazyfs.errors import FormatError, VerificationFailed
from lazyfs.formats.layers import TAIL_SIZE, Format, LayerToc, find_layer_toc, read_layer_toc
from lazyfs.formats.streams.compression import is_compressed
from lazyfs.formats.streams.limits import DEFAULT_LIMITS
from lazyfs.formats.streams.unpack import decompress
from lazyfs.formats.tars.arrange import Arrangement
from lazyfs.formats.tars.comparison import Comparison
from lazyfs.formats.tars.tar import BadTar, HeaderText, TarMember, TarScanner
from lazyfs.formats.tars.tar_sparse import MAX_ZEROS
from lazyfs.formats.tars.verbatim import CannotKeep, Spelling, check_keepable
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.formats.writer import (
    Target,
    WriterOptions,
    WrittenLayer,
    write_layer,
    write_verbatim,
)
from lazyfs.image.layers.contradiction import trees_differ

PIECE_SIZE = 1 << 20
MAX_TOC_SIZE = DEFAULT_LIMITS.member_size
MAX_BETWEEN_SIZE = 8 << 20  # of what a tar may have between two payloads, to be kept
FORMATS = {Target.ESTARGZ: Format.ESTARGZ, Target.ZSTD_CHUNKED: Format.ZSTD_CONTAINERS}


class Unpacked(msgspec.Struct, frozen=True):
    """The file with a layer's tar, its members, and what their headers say."""

    tar: Path
    members: list[TarMember]
    texts: list[HeaderText]


def unpack_layer(blob: Path, tar: Path, diff_id: Digest) -> Unpacked:
    """Return the layer's tar in the file *tar*, or in *blob* itself.

    Raises DigestMismatch if it is not the tar that *diff_id* names; nothing else that was found
    about it is reported then.
    """
    digest = hashlib.new(diff_id.algorithm, usedforsecurity=False)
    texts: list[HeaderText] = []
    scanner = TarScanner(texts=texts)
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
    return Unpacked(blob if is_plain else tar, members, texts)


def is_written(blob: Path, annotations: Mapping[str, str], format: Format) -> bool:
    """Say whether a blob is of *format*, with the sound table of contents that is promised."""
    found = _promised_toc(blob, annotations)
    return found is not None and found.format is format


def compare_trees(layer: Digest, blob: Path, tar: Path, annotations: Mapping[str, str]) -> None:
    """Raise TreesDiffer where the table of contents in *blob* is promised, and lies about the tar.

    One that lies elsewhere, or that nobody can read, is not looked at: it is not passed on.
    """
    found = _promised_toc(blob, annotations)
    if found is None:
        return
    comparison = Comparison(found.toc)
    with tar.open("rb") as file:
        while piece := file.read(PIECE_SIZE):
            trio.from_thread.check_cancelled()
            comparison.feed(piece)
    differences = comparison.finish()
    if differences is not None:
        raise trees_differ(layer, differences)


def _promised_toc(blob: Path, annotations: Mapping[str, str]) -> LayerToc | None:
    """Return the table of contents in a blob, None where none is promised, or it is not sound."""
    size = blob.stat().st_size
    with blob.open("rb") as file:
        file.seek(max(0, size - TAIL_SIZE))
        try:
            claims = claims_of(annotations)
            place = find_layer_toc(file.read(), size, claims)
            is_promised = claims.checksum if place.zstd else claims.toc_digest
            toc_size = place.end - place.start
            if not is_promised or not 0 < toc_size <= MAX_TOC_SIZE:
                return None
            file.seek(place.start)
            return read_layer_toc(file.read(toc_size), place, claims)
        except (FormatError, VerificationFailed):
            return None


def rewrite_layer(
    tar: Path, arrangement: Arrangement, result: Path, options: WriterOptions
) -> WrittenLayer:
    """Write the layer into the file *result*, members in a normalised form."""
    with tar.open("rb") as source, result.open("wb") as file, _threads() as pool:
        read = partial(_payload, source)
        written = write_layer(arrangement, read, file.write, options, pool.submit)
    return _checked(written, options)


def keep_layer(
    unpacked: Unpacked, diff_id: Digest, result: Path, options: WriterOptions
) -> WrittenLayer:
    """Write the layer into the file *result*, its tar as it is, bit for bit.

    Raises CannotKeep where a table of contents cannot tell that tar.
    """
    check_keepable(unpacked.members, unpacked.texts)
    ends = [0]
    for member, text in zip(unpacked.members, unpacked.texts, strict=True):
        ends.append(text.end + member.size)
    with unpacked.tar.open("rb") as source, result.open("wb") as file, _threads() as pool:

        def spell(number: int) -> Spelling:
            text = unpacked.texts[number]
            header = _between(source, ends[number], text.end, f"header of {text.name!r}")
            return Spelling(header, text)

        end = source.seek(0, os.SEEK_END)
        tail = _between(source, ends[-1], end, "what follows the last file")
        read = partial(_payload, source)
        written = write_verbatim(
            unpacked.members,
            spell,
            tail,
            read,
            file.write,
            options,
            pool.submit,
            tar_algorithm=diff_id.algorithm,
        )
    if written.diff_id != diff_id:
        raise DigestMismatch(f"layer as written: got diffID {written.diff_id}, expected {diff_id}")
    return _checked(written, options)


def _threads() -> ThreadPoolExecutor:
    """Return threads to compress in, started when they are needed."""
    return ThreadPoolExecutor(max(1, os.cpu_count() or 1))


def _between(tar: BinaryIO, start: int, end: int, what: str) -> bytes:
    if end - start > MAX_BETWEEN_SIZE:
        raise CannotKeep(f"{what}: got {end - start} bytes, expected at most {MAX_BETWEEN_SIZE}")
    tar.seek(start)
    return tar.read(end - start)


def _checked(written: WrittenLayer, options: WriterOptions) -> WrittenLayer:
    """Read the table of contents back by the strict rules of a mount.

    So nothing comes out that would be refused later: a path too long, a device number that Linux
    cannot hold.
    """
    decode_toc(
        written.toc,
        expected=written.toc_digest,
        blob_size=written.toc_offset,
        codec=FORMATS[options.target].codec,
    )
    return written


def _payload(tar: BinaryIO, member: TarMember) -> Iterator[bytes]:
    """Yield a file's content: of a sparse one with its zeros."""
    if member.size - member.stored_size > MAX_ZEROS:
        raise BadTar(
            f"{member.path!r}: a sparse file of {member.size} bytes cannot be converted:"
            f" at most {MAX_ZEROS} bytes of zeros are allowed"
        )
    done = 0
    for at, size, offset in member.extents():
        yield from _zeros(offset - done)
        done = offset + size
        tar.seek(at, os.SEEK_SET)
        left = size
        while left:
            trio.from_thread.check_cancelled()
            piece = tar.read(min(left, PIECE_SIZE))
            if not piece:
                return  # the writer counts, and complains
            left -= len(piece)
            yield piece
    yield from _zeros(member.size - done)


def _zeros(size: int) -> Iterator[bytes]:
    while size:
        trio.from_thread.check_cancelled()
        piece = min(size, PIECE_SIZE)
        yield bytes(piece)
        size -= piece
