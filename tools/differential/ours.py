"""What lazyfs makes of an image: mounted as it is, and converted first.

All of it in this process: a layer passes through the code that a mount or ``lazyfs convert`` runs,
and the merged tree is read from the rootfs index, contents from the layers' devices.  To be called
in a thread of trio's, as the converter is.
"""

import gzip
import hashlib
import stat
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import zstandard

from lazyfs.convert.spool import FORMATS, Unpacked, keep_layer, rewrite_layer, unpack_layer
from lazyfs.digest import Digest
from lazyfs.errors import FormatError
from lazyfs.formats.layer_pass import LayerPass
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.verbatim import CannotKeep
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.formats.writer import Target, WriterOptions, WrittenLayer
from lazyfs.rootfs.erofs_reader import ErofsIndex, Inode
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.layout import device_offsets, device_size
from tools.differential.tree import Node, Tree, digest_of, with_names

CHUNK_SIZE = 1500
"""Small, so that small files have several."""
SPAN_SIZE = 2048
MAX_FILE = 64 << 20
"""Of files that are larger only the size is compared."""

Layer = tuple[Toc, bytearray]
Route = Callable[[bytes, Path], Layer]


def plain(tar: bytes, folder: Path) -> Layer:
    """Mount the tar as it is."""
    return _pass(tar)


def plain_gzip(tar: bytes, folder: Path) -> Layer:
    """Mount it compressed by gzip, which makes spans."""
    return _pass(gzip.compress(tar, 1, mtime=0))


def plain_zstd(tar: bytes, folder: Path) -> Layer:
    """Mount it compressed by zstd."""
    return _pass(zstandard.compress(tar, 1))


def estargz(tar: bytes, folder: Path) -> Layer:
    """Convert it to eStargz."""
    return _convert(tar, folder, Target.ESTARGZ)


def zstd_chunked(tar: bytes, folder: Path) -> Layer:
    """Convert it to zstd:chunked, bit for bit where it can stay."""
    return _convert(tar, folder, Target.ZSTD_CHUNKED)


ROUTES: dict[str, Route] = {
    "plain": plain,
    "plain gzip": plain_gzip,
    "plain zstd": plain_zstd,
    "eStargz": estargz,
    "zstd:chunked": zstd_chunked,
}


def tree_of(layers: Sequence[bytes], route: Route, folder: Path) -> Tree:
    """Return the tree of an image, bottom layer first; *folder* is for temporary files."""
    try:
        made = [route(layer, folder) for layer in layers]
        index = build_index([toc for toc, _ in made], root_xattrs={}, device_tags=[""] * len(made))
    except FormatError as exc:
        return Tree(refusal=exc.message)
    return Tree(_nodes(ErofsIndex(index.image), [device for _, device in made]))


def _pass(blob: bytes) -> Layer:
    device = bytearray()

    def write(offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        if len(device) < end:
            device.extend(bytes(end - len(device)))
        device[offset:end] = data

    passing = LayerPass(write, chunk_size=CHUNK_SIZE, span_size=SPAN_SIZE)
    try:
        passing.feed(blob)
        passed = passing.finish()
    finally:
        passing.close()
    if passed.moves is None:
        return passed.toc, device
    moved = bytearray(_end(passed.toc))
    for move in passed.moves:
        moved[move.target : move.target + move.size] = device[move.source : move.source + move.size]
    return passed.toc, moved


def _convert(tar: bytes, folder: Path, target: Target) -> Layer:
    options = WriterOptions(chunk_size=CHUNK_SIZE, level=1, target=target)
    blob, result = folder / "blob", folder / "result"
    blob.write_bytes(tar)
    diff_id = Digest("sha256", hashlib.sha256(tar).hexdigest())
    unpacked = unpack_layer(blob, folder / "tar", diff_id)
    written = _write(unpacked, diff_id, result, options)
    toc = decode_toc(
        written.toc,
        expected=written.toc_digest,
        blob_size=written.toc_offset,
        codec=FORMATS[target].codec,
    )
    return toc, _decoded(toc, result.read_bytes())


def _write(
    unpacked: Unpacked, diff_id: Digest, result: Path, options: WriterOptions
) -> WrittenLayer:
    if options.target is Target.ZSTD_CHUNKED:
        try:
            return keep_layer(unpacked, diff_id, result, options)
        except CannotKeep:
            pass
    return rewrite_layer(unpacked.tar, arrange(unpacked.members), result, options)


def _end(toc: Toc) -> int:
    """Return the size of a device, but for what is too large to be compared."""
    return min(device_size(toc), MAX_FILE)


def _decoded(toc: Toc, blob: bytes) -> bytearray:
    device = bytearray(_end(toc))
    view = memoryview(blob)
    for entry, start in zip(toc.entries, device_offsets(toc), strict=True):
        for chunk in entry.chunks:
            if chunk.codec == Codec.HOLE or start + chunk.offset + chunk.size > len(device):
                continue
            end = chunk.inner_offset + chunk.size
            # No stream is longer than this; a whole blob for each chunk would take quadratic time.
            data = view[chunk.blob_offset : chunk.blob_offset + 2 * end + 4096]
            if chunk.codec == Codec.ZSTD:
                stream = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            else:
                stream = zlib.decompressobj(31).decompress(data, end)
            piece = stream[chunk.inner_offset : end]
            if hashlib.sha256(piece).digest() != chunk.digest:
                raise AssertionError(f"{entry.path!r}: got another chunk than the TOC says")
            device[start + chunk.offset : start + chunk.offset + chunk.size] = piece
    return device


def _nodes(index: ErofsIndex, devices: Sequence[bytearray]) -> dict[bytes, Node]:
    nodes: dict[bytes, Node] = {}
    nids: dict[bytes, object] = {}
    pending = [(b"", index.root_nid)]
    while pending:
        above, directory = pending.pop()
        for entry in index.entries(directory):
            if entry.name in (b".", b".."):
                continue
            path = above + b"/" + entry.name if above else entry.name
            inode = index.inode(entry.nid)
            nids[path] = entry.nid
            nodes[path] = _node(index, inode, devices)
            if stat.S_ISDIR(inode.mode):
                pending.append((path, entry.nid))
    return with_names(nodes, nids)


def _node(index: ErofsIndex, inode: Inode, devices: Sequence[bytearray]) -> Node:
    is_file = stat.S_ISREG(inode.mode)
    digest, link = "", b""
    if is_file and inode.size <= MAX_FILE:
        extent = index.extent_of(inode)
        data = b""
        if extent is not None:
            data = bytes(devices[extent.device - 1][extent.offset : extent.offset + inode.size])
        digest = digest_of(data.ljust(inode.size, b"\0"))
    elif stat.S_ISLNK(inode.mode):
        link = index.readlink(inode.nid)
    mtime = inode.mtime_seconds, inode.mtime_nanoseconds
    return Node(
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size if is_file else 0,
        mtime=mtime,
        rdev=(inode.rdev_major, inode.rdev_minor),
        link=link,
        digest=digest,
        xattrs=index.xattrs(inode.nid),
        is_implied=stat.S_ISDIR(inode.mode) and mtime == (0, 0),
    )
