"""Files that have hash trees: which part of a file is data, and where its tree lies."""

import os
import secrets
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lazyfs.errors import NotFound, StoreError, UsageError
from lazyfs.interrupts import uninterrupted
from lazyfs.store.content.whole import write_whole
from lazyfs.verity.errors import BadSuperblock, Mismatch
from lazyfs.verity.geometry import Geometry, Parameters, blocks_of, check_block_sizes
from lazyfs.verity.path import PathVerifier
from lazyfs.verity.superblock import SIZE, decode_superblock, encode_superblock, tree_offset
from lazyfs.verity.writer import TreeWriter

PIECE = 1 << 20
SHRANK = "the file shrank while it was read"
SALT_SIZE = 32
OFFSET_LIMIT = 1 << 62
"""Bytes; a tree from there on ends before 2^63, where offsets of files end."""


class Wanted(NamedTuple):
    """What the options say; None where they say nothing.  Sizes and offsets in bytes."""

    data_block_size: int
    hash_block_size: int
    algorithm: str
    salt: bytes | None
    hash_type: int
    data_blocks: int | None
    hash_offset: int
    has_superblock: bool


class Formatted(NamedTuple):
    """A tree that was made: ``padding`` is how many zeros the last data block ends with."""

    root: bytes
    parameters: Parameters
    tree_size: int
    padding: int
    identity: uuid.UUID | None


def format_file(path: Path, tree: Path | None, wanted: Wanted, identity: uuid.UUID) -> Formatted:
    """Make the tree of the file *path*, into *tree*, or into the file itself at the hash offset.

    With neither nothing is written.  What fails or is interrupted leaves nothing behind.  Raises
    UsageError, NotFound, StoreError.
    """
    _check_wanted(wanted)
    with _opened(path) as file:
        size = _size(file)
        count = _count(wanted, size, wanted.data_block_size)
        salt = secrets.token_bytes(SALT_SIZE) if wanted.salt is None else wanted.salt
        parameters = _parameters(wanted, count, salt)
        geometry = Geometry(parameters)
        if blocks_of(size, wanted.data_block_size) < count:
            raise UsageError(f"{path} has {size} bytes: fewer than {count} blocks of data")
        is_inside = tree is None and wanted.hash_offset > 0
        if is_inside:
            _check_inside(path, size, parameters, wanted.hash_offset)
        start = _start(wanted, parameters)
        where = path if is_inside else tree

        def write(target: int | None) -> bytes:
            root = _write_tree(file, min(size, parameters.data_size), parameters, target, start)
            if target is not None:
                os.ftruncate(target, start + geometry.tree_size)
                if wanted.has_superblock:
                    write_whole(target, encode_superblock(parameters, identity), wanted.hash_offset)
                os.fsync(target)
            return root

        try:
            root = (
                write(None)
                if where is None
                else _all_or_nothing(where, write, is_new=not is_inside)
            )
        except OSError as exc:
            raise StoreError(f"the tree of {path} cannot be written: {exc.strerror}") from exc
    return Formatted(
        root=root,
        parameters=parameters,
        tree_size=geometry.tree_size,
        padding=max(0, parameters.data_size - size),
        identity=identity if wanted.has_superblock and where is not None else None,
    )


def _check_wanted(wanted: Wanted) -> None:
    """Raise UsageError for sizes and offsets that nothing can be worked out with."""
    check_block_sizes(wanted.data_block_size, wanted.hash_block_size)
    if wanted.hash_offset > OFFSET_LIMIT:
        raise UsageError(
            f"option --hash-offset: {wanted.hash_offset} is more than {OFFSET_LIMIT} bytes"
        )


def _count(wanted: Wanted, size: int, block_size: int) -> int:
    """Return how many blocks of data there are to be: what the option says, or *size* bytes have.

    At least one: no tree has fewer, and a file without any is told so.
    """
    return wanted.data_blocks or max(1, blocks_of(size, block_size))


def _all_or_nothing(path: Path, write: Callable[[int], bytes], *, is_new: bool) -> bytes:
    """Return what *write* returns for the opened file *path*; undo all where it raises.

    A new file is removed, one that was there gets its size back.  Raises UsageError, StoreError,
    OSError.
    """
    with uninterrupted() as held, _writing(path, is_new=is_new) as target:
        size = _size(target)
        try:
            with held.opened():
                return write(target.fileno())
        except BaseException:
            _undo(path, target, None if is_new else size)
            raise


def _undo(path: Path, target: IO[bytes], size: int | None) -> None:
    """Give the file its *size* back, or remove it where that is None; raises StoreError."""
    try:
        if size is None:
            path.unlink(missing_ok=True)
        elif _size(target) > size:
            os.ftruncate(target.fileno(), size)
    except OSError as exc:
        raise StoreError(
            f"{path} keeps a part of a tree: {exc.strerror}",
            hint="remove it" if size is None else f"truncate -s {size} FILE cuts it off",
        ) from exc


def _check_inside(path: Path, size: int, parameters: Parameters, offset: int) -> None:
    """Raise UsageError if a tree at *offset* of the data's own file would overwrite something."""
    _check_apart(parameters, offset)
    if size > offset:
        raise UsageError(f"{path} goes on behind the hash offset {offset}: nothing is overwritten")


def _check_apart(parameters: Parameters, offset: int) -> None:
    """Raise UsageError if a tree at *offset* of the data's own file would lie in the data."""
    if offset < parameters.data_size:
        raise UsageError(
            f"option --hash-offset: {offset} lies within the data, which ends at "
            f"{parameters.data_size}"
        )


def _write_tree(
    file: IO[bytes], size: int, parameters: Parameters, target: int | None, start: int
) -> bytes:
    """Write the tree over *size* bytes of *file* to *target*, from *start* on; return the root."""

    def put(offset: int, block: bytes) -> None:
        if target is not None:
            write_whole(target, block, start + offset)

    writer = TreeWriter(parameters, put)
    for piece in _pieces(file, size):
        writer.update(piece)
    return writer.finish()


def verify_file(path: Path, tree: Path | None, wanted: Wanted, root: bytes) -> Parameters:
    """Check the file *path*, and its tree if there is one, against *root*.

    How many blocks of data there are is what the options say, or what the file has: never what the
    tree says by itself, for a tree of fewer blocks can have the same root.  Only the last block
    may be short, and counts as padded with zeros.  Raises Mismatch, BadSuperblock, UsageError,
    NotFound, StoreError.
    """
    _check_wanted(wanted)
    is_inside = tree is None and wanted.hash_offset > 0
    with _opened(path) as file:
        size = _size(file)
        if tree is None and not is_inside:
            count = _count(wanted, size, wanted.data_block_size)
            parameters = _parameters(wanted, count, wanted.salt or b"")
            writer = TreeWriter(parameters)
            _check_present(path, size, parameters)
            for piece in _pieces(file, min(size, parameters.data_size)):
                writer.update(piece)
            if writer.finish() != root:
                raise Mismatch(
                    f"{path} does not have this root",
                    hint="--tree says where the tree is: then the block that is wrong is named",
                )
            return parameters
        with _opened(path if tree is None else tree) as hashes:
            read_at = _reader(hashes)
            supposed = wanted.hash_offset if is_inside else size
            parameters = _stored(read_at, wanted, supposed, root)
            start = _start(wanted, parameters)
            if is_inside:
                _check_apart(parameters, wanted.hash_offset)
            _check_present(path, min(size, supposed), parameters)
            _verify_blocks(file, read_at, start, parameters, root, min(size, supposed))
            return parameters


def _check_present(path: Path, size: int, parameters: Parameters) -> None:
    """Raise Mismatch if whole blocks are missing: no padding makes up for them."""
    present = blocks_of(size, parameters.data_block_size)
    if present < parameters.data_blocks:
        raise Mismatch(
            f"{path} is too short: it has {present} of {parameters.data_blocks} blocks of data"
        )


def _reader(file: IO[bytes]) -> Callable[[int, int], bytes]:
    """Return what reads at an offset so many bytes, or fewer at the end of the file."""
    end = _size(file)

    def read_at(offset: int, size: int) -> bytes:
        if offset >= end:
            return b""  # a filesystem may refuse to seek there
        file.seek(offset)
        return file.read(size)

    return read_at


def _stored(
    read_at: Callable[[int, int], bytes], wanted: Wanted, size: int, root: bytes
) -> Parameters:
    """Return the parameters of a stored tree; those of a superblock are compared."""
    if not wanted.has_superblock:
        count = _count(wanted, size, wanted.data_block_size)
        return _parameters(wanted, count, wanted.salt or b"")
    found, _ = decode_superblock(read_at(wanted.hash_offset, SIZE))
    count = _count(wanted, size, found.data_block_size)
    if found.data_blocks != count:
        raise BadSuperblock(
            f"the superblock speaks of {found.data_blocks} blocks of data, and there are {count}"
        )
    if len(root) != found.digest_size:
        raise BadSuperblock(
            f"the superblock says {found.algorithm}, whose digests have {found.digest_size} bytes; "
            f"the root has {len(root)}"
        )
    return found


def _verify_blocks(
    file: IO[bytes],
    read_at: Callable[[int, int], bytes],
    start: int,
    parameters: Parameters,
    root: bytes,
    size: int,
) -> None:
    block_size = parameters.hash_block_size

    def read(number: int) -> bytes:
        return read_at(start + number * block_size, block_size)

    verifier = PathVerifier(parameters, root, read)
    file.seek(0)
    left = min(size, parameters.data_size)
    for number in range(parameters.data_blocks):
        wanted = min(parameters.data_block_size, left)
        block = file.read(wanted)
        if len(block) < wanted:
            raise StoreError(SHRANK)
        left -= wanted
        verifier.verify(number, block.ljust(parameters.data_block_size, b"\0"))


def _parameters(wanted: Wanted, count: int, salt: bytes) -> Parameters:
    return Parameters(
        data_blocks=count,
        data_block_size=wanted.data_block_size,
        hash_block_size=wanted.hash_block_size,
        algorithm=wanted.algorithm,
        salt=salt,
        hash_type=wanted.hash_type,
    )


def _start(wanted: Wanted, parameters: Parameters) -> int:
    """Return where the tree begins: behind the superblock, or at the hash offset."""
    unit = 512 if wanted.has_superblock else parameters.hash_block_size
    if wanted.hash_offset % unit:
        raise UsageError(
            f"option --hash-offset: {wanted.hash_offset} is not a multiple of {unit} bytes"
        )
    if wanted.has_superblock:
        return tree_offset(wanted.hash_offset, parameters.hash_block_size)
    return wanted.hash_offset


def file_pieces(path: Path) -> Iterator[bytes]:
    """Yield the contents of a file; raises NotFound, StoreError."""
    with _opened(path) as file:
        yield from _pieces(file, _size(file))


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    file.seek(0)
    while size > 0:
        data = file.read(min(PIECE, size))
        if not data:
            raise StoreError(SHRANK)
        size -= len(data)
        yield data


def _size(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def _opened(path: Path) -> IO[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(f"{path} does not exist") from exc
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from exc
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(descriptor)
        raise UsageError(f"{path} is neither a file nor a block device")
    return os.fdopen(descriptor, "rb")


def _writing(path: Path, *, is_new: bool) -> IO[bytes]:
    try:
        return open(path, "xb" if is_new else "r+b", buffering=0)
    except FileExistsError as exc:
        raise UsageError(f"{path} exists: nothing is overwritten", hint="remove it first") from exc
    except OSError as exc:
        raise StoreError(f"{path} cannot be written: {exc.strerror}") from exc
