"""Small layers as TOCs, and what a rootfs index says of its tree, for tests."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.digest import Digest
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.erofs_writer import BuiltIndex, build_index
from tests.support.formats.images import source_tar

MTIME = 1_700_000_000


def toc_of(*entries: TocEntry, seed: int = 0) -> Toc:
    """Return a TOC of *entries*; TOCs of other *seed*s have other digests."""
    return Toc(Digest("sha256", hashlib.sha256(b"toc %d" % seed).hexdigest()), entries)


def regular(path: bytes, data: bytes = b"", *, mode: int = 0o644, **more: object) -> TocEntry:
    """Return a regular file that holds *data*, in one chunk."""
    digest = hashlib.sha256(data).digest()
    chunks = (Chunk(0, len(data), 0, 0, digest),) if data else ()
    return TocEntry(
        path, Kind.REGULAR, mode, more.pop("uid", 0), more.pop("gid", 0), size=len(data),
        digest=digest, chunks=chunks, **{"mtime_seconds": MTIME, **more},
    )  # fmt: skip


def directory(path: bytes, *, mode: int = 0o755, **more: object) -> TocEntry:
    return TocEntry(
        path, Kind.DIRECTORY, mode, more.pop("uid", 0), more.pop("gid", 0),
        **{"mtime_seconds": MTIME, **more},
    )  # fmt: skip


def symlink(path: bytes, link: bytes, **more: object) -> TocEntry:
    return TocEntry(path, Kind.SYMLINK, 0o777, 0, 0, link=link, **more)


def hardlink(path: bytes, link: bytes) -> TocEntry:
    return TocEntry(path, Kind.HARDLINK, 0o644, 0, 0, link=link)


def device(path: bytes, kind: Kind, major: int, minor: int) -> TocEntry:
    return TocEntry(path, kind, 0o600, 0, 0, dev_major=major, dev_minor=minor)


def index_of(
    *tocs: Toc, root_xattrs: Mapping[bytes, bytes] | None = None
) -> tuple[ErofsIndex, BuiltIndex]:
    """Build the index of *tocs*, bottom layer first, and open it."""
    built = build_index(
        tocs, root_xattrs=root_xattrs or {}, device_tags=[toc.digest.hex for toc in tocs]
    )
    return ErofsIndex(built.image), built


@dataclass(frozen=True)
class Facts:
    """What a name of a tree is; ``names`` are all the names of its inode."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int  # 0 for directories: their size is the encoding's own affair
    mtime: tuple[int, int]
    rdev: tuple[int, int]
    link: bytes
    names: frozenset[bytes]
    xattrs: Mapping[bytes, bytes] = field(compare=True)


def paths_of(index: ErofsIndex) -> Iterator[tuple[bytes, int]]:
    """Yield (path, nid) of every name, the root first; check "." and ".." on the way."""
    yield b"", index.root_nid
    pending = [(b"", index.root_nid, index.root_nid)]
    while pending:
        path, nid, parent = pending.pop()
        names = []
        for entry in index.entries(nid):
            names.append(entry.name)
            if entry.name in (b".", b".."):
                assert entry.nid == (nid if entry.name == b"." else parent)
                continue
            assert index.inode(entry.nid).kind == entry.kind
            assert index.lookup(nid, entry.name) == entry.nid
            below = path + b"/" + entry.name if path else entry.name
            yield below, entry.nid
            if entry.kind == Kind.DIRECTORY:
                pending.append((below, entry.nid, nid))
        assert names == sorted(set(names))


def facts_of(index: ErofsIndex) -> dict[bytes, Facts]:
    """Return what the index says of every path."""
    nids = dict(paths_of(index))
    names: dict[int, set[bytes]] = {}
    for path, nid in nids.items():
        names.setdefault(nid, set()).add(path)
    facts = {}
    for path, nid in nids.items():
        inode = index.inode(nid)
        facts[path] = Facts(
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            nlink=inode.nlink,
            size=0 if stat.S_ISDIR(inode.mode) else inode.size,
            mtime=(inode.mtime_seconds, inode.mtime_nanoseconds),
            rdev=(inode.rdev_major, inode.rdev_minor),
            link=index.readlink(nid) if stat.S_ISLNK(inode.mode) else b"",
            names=frozenset(names[nid]),
            xattrs=index.xattrs(nid),
        )
    return facts


def listing(*tocs: Toc) -> list[bytes]:
    """Return the sorted paths of the merged layers, without the root."""
    index, _ = index_of(*tocs)
    return sorted(path for path, _ in paths_of(index) if path)


def fixture_layer(fixtures: Path, name: str, source: str) -> tuple[Toc, dict[bytes, bytes]]:
    """A layer by the reference producer, with the payloads that its source tar has."""
    described = json.loads((fixtures / "estargz-go-0.12" / f"{name}.json").read_text())
    raw = (fixtures / "estargz-go-0.12" / f"{name}.toc.json").read_bytes()
    toc = decode_toc(
        raw,
        expected=Digest("sha256", described["tocDigest"].partition(":")[2]),
        blob_size=described["size"],
    )
    payloads = {
        b".no.prefetch.landmark": b"\x0f",
        b".prefetch.landmark": b"\x0f",
    }
    with tarfile.open(fileobj=io.BytesIO(source_tar(source))) as tar:
        for member in tar:
            # The TOC says names in UTF-8 only: the producer puts U+FFFD for what is not.
            path = os.fsencode(os.path.normpath("/" + member.name).lstrip("/"))
            path = path.decode(errors="replace").encode()
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                payloads[path] = file.read()
    return toc, payloads
