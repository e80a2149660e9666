"""An OCI image layout on disk, as a source and a destination of images.

Spec: OCI image-spec, image-layout.md.  Paths are built from digests, whose grammar has no slash
and no dot, so nothing in a layout's documents can lead outside it.  Files are read and written in
threads; everything is read anew each time, since others may write to the layout meanwhile.
"""

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

import trio

from lazyfs.digest import Digest, digest_of, parse_digest, verify_digest
from lazyfs.errors import NotFound, Unavailable
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCUMENT_LIMIT
from lazyfs.registry.answers.referrers import Referrers
from lazyfs.registry.config.errors import SizeMismatch, TooLarge
from lazyfs.registry.config.files import check_inside, open_regular, read_regular
from lazyfs.registry.documents import receive_document
from lazyfs.registry.layout_files import (
    INDEX,
    REF_NAME,
    VERSION_FILE,
    BadLayout,
    LayoutUnwritable,
    Listed,
    check_version,
    copy_verified,
    create_layout,
    decode_index,
    name_in_index,
    write_atomically,
)
from lazyfs.registry.layout_referrers import MANIFEST_LIMIT, referrers_in
from lazyfs.registry.source import Document, EndpointState, SourceStatistics

PIECE_SIZE = 1 << 20
INDEX_LIMIT = 16 << 20


class NoLayout(NotFound):
    """The directory is no image layout."""


class NotInLayout(NotFound):
    """The layout has no such tag, manifest or blob."""


class LayoutUnreadable(Unavailable):
    """A file of the layout cannot be read."""


class ImageLayout:
    """The layout in the directory *path*; with *create* it is made by the first push."""

    kind = "layout"

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.repository = f"oci:{path}"
        self.statistics = SourceStatistics()
        self._path = Path(path)
        self._may_create = create
        self._is_checked = False
        self._writing = trio.Lock()

    # Source

    async def fetch_manifest(self, reference: str | Digest) -> Document:
        """Return the manifest or index named by a tag or a digest, its bytes verified.

        An empty tag means the only image there is.
        """
        return await trio.to_thread.run_sync(self._load_manifest, reference)

    def _load_manifest(self, reference: str | Digest) -> Document:
        self._check()
        media_type: str | None = None
        digest = reference
        if not isinstance(digest, Digest):
            listed = self._find(digest)
            digest, media_type = parse_digest(listed.digest), listed.media_type
        data = self._read(digest, DOCUMENT_LIMIT)
        self.statistics.received_size += len(data)
        return receive_document(data, media_type, digest, f"manifest in {self.repository}")

    async def fetch_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a whole small blob of at most *limit* bytes, size and digest verified."""
        if descriptor.size > limit:
            raise TooLarge(
                f"blob {descriptor.digest}: got {descriptor.size} bytes, expected at most {limit}"
            )
        data = await trio.to_thread.run_sync(self._read, descriptor.digest, limit)
        if len(data) != descriptor.size:
            raise SizeMismatch(
                f"blob {descriptor.digest}: got {len(data)} bytes, expected {descriptor.size}"
            )
        verify_digest(data, descriptor.digest, f"blob in {self.repository}")
        self.statistics.received_size += len(data)
        return data

    async def fetch_referrers(self, subject: Digest, artifact_type: str | None = None) -> Referrers:
        """Return the manifests listed in ``index.json`` that refer to *subject*."""

        def look() -> Referrers:
            self._check()
            listed = decode_index(self._index(), str(self._path / INDEX))
            return referrers_in(listed, self._read_verified, subject, artifact_type)

        return await trio.to_thread.run_sync(look)

    def _read_verified(self, digest: Digest) -> bytes:
        data = self._read(digest, MANIFEST_LIMIT)
        verify_digest(data, digest, f"manifest in {self.repository}")
        return data

    def open_range(self, descriptor: Descriptor, start: int, end: int) -> "FileStream":
        """Open bytes *start* to *end* (exclusive) of a blob as a stream of pieces."""
        if not 0 <= start <= end <= descriptor.size:
            raise ValueError(f"range {start}-{end} of a blob of {descriptor.size} bytes")
        return FileStream(self, descriptor, start, end)

    # Destination

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there already, in its right size."""

        def look() -> bool:
            try:
                found = os.stat(self.blob_path(descriptor.digest))
            except OSError:
                return False
            return stat.S_ISREG(found.st_mode) and found.st_size == descriptor.size

        return await trio.to_thread.run_sync(look)

    def blame(self, descriptor: Descriptor, start: int, end: int, reason: str) -> bool:
        """Learn that bytes of a blob are wrong; there is nowhere else to look."""
        return False

    async def connect(self, count: int) -> None:
        """Do nothing: there is nobody to connect to."""

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return nothing: a directory has no endpoints."""
        return ()

    def once(self) -> "ImageLayout":
        """Return itself: nothing is tried twice."""
        return self

    async def reconnect(self) -> None:
        """Do nothing: there are no connections."""

    async def push_blob(
        self, descriptor: Descriptor, content: bytes | Path, *, mount_from: Sequence[str] = ()
    ) -> None:
        """Store a blob whose size and digest the descriptor states; both are checked."""

        def store() -> None:
            self._check(is_writing=True)
            path = self._place_of(descriptor.digest)
            copy_verified(content, path, descriptor.digest, descriptor.size)

        await trio.to_thread.run_sync(store)

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under a tag or by digest only; return its digest.

        Without a tag it is only reachable by digest: it is not listed in ``index.json``, where it
        would become another image of the layout.
        """
        digest = digest_of(data)

        def store() -> None:
            self._check(is_writing=True)
            write_atomically(self._place_of(digest), data)
            if tag is not None:
                added = Listed(media_type, str(digest), len(data), {REF_NAME: tag})
                path = self._path / INDEX
                write_atomically(path, name_in_index(self._index(), str(path), added, tag))

        async with self._writing:
            await trio.to_thread.run_sync(store)
        return digest

    async def aclose(self) -> None:
        """Nothing is held open."""

    # Files; all of this runs in threads.

    def blob_path(self, digest: Digest) -> Path:
        """Return where the layout keeps a blob."""
        return self._path / "blobs" / digest.algorithm / digest.hex

    def _place_of(self, digest: Digest) -> Path:
        """Return where a blob is to be written."""
        path = self.blob_path(digest)
        try:
            check_inside(path.parent, self._path)
        except OSError as error:
            raise LayoutUnwritable(f"cannot create {path}: {error.strerror}") from error
        return path

    def open_blob(self, digest: Digest) -> int:
        """Return a file descriptor of a blob."""
        path = self.blob_path(digest)
        try:
            file = open_regular(path, self._path)
        except (FileNotFoundError, NotADirectoryError) as error:
            self.statistics.errors += 1
            raise NotInLayout(f"{self.repository} has no blob {digest}") from error
        except OSError as error:
            self.statistics.errors += 1
            raise LayoutUnreadable(f"cannot read blob {path}: {error.strerror}") from error
        self.statistics.requests += 1
        return file

    def _read(self, digest: Digest, limit: int) -> bytes:
        self._check()
        file = self.open_blob(digest)
        with os.fdopen(file, "rb") as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(f"blob {digest} is larger than {limit} bytes")
        return data

    def _check(self, *, is_writing: bool = False) -> None:
        """Make sure, once, that the directory is a layout of a version that we know."""
        if self._is_checked:
            return
        if is_writing and self._may_create:
            create_layout(self._path)
        try:
            data = read_regular(self._path / VERSION_FILE, 4096, self._path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoLayout(
                f"{self.repository} is not an OCI image layout: it has no file {VERSION_FILE}"
            ) from error
        except OSError as error:
            raise LayoutUnreadable(
                f"cannot read {self._path / VERSION_FILE}: {error.strerror}"
            ) from error
        check_version(data, self.repository)
        self._is_checked = True

    def _index(self) -> bytes:
        path = self._path / INDEX
        try:
            data = read_regular(path, INDEX_LIMIT + 1, self._path)
        except OSError as error:
            raise LayoutUnreadable(f"cannot read index {path}: {error.strerror}") from error
        if len(data) > INDEX_LIMIT:
            raise BadLayout(f"{path} is larger than {INDEX_LIMIT} bytes")
        return data

    def _find(self, tag: str) -> Listed:
        """Return what *tag* names in ``index.json``; an empty tag, the only image there."""
        listed = decode_index(self._index(), str(self._path / INDEX))
        if tag:
            for entry in listed:
                if entry.is_named(tag):
                    return entry
        elif len({entry.digest for entry in listed}) == 1:
            return listed[0]
        names = sorted(filter(None, (entry.name for entry in listed)))
        have = f"{len(listed)} {'image' if len(listed) == 1 else 'images'}"
        have += f" ({', '.join(names[:10])})" if names else ""
        raise NotInLayout(
            f"{self.repository} has no tag {tag}; it has {have}"
            if tag
            else f"{self.repository} has {have}, and the reference does not say which",
            hint=None if tag else "name one of them: oci:DIR:TAG or oci:DIR@DIGEST",
        )


class FileStream(AbstractAsyncContextManager["FileStream"], AsyncIterator[bytes]):
    """Bytes *start* to *end* of a blob's file; opened on entering."""

    def __init__(self, layout: ImageLayout, descriptor: Descriptor, start: int, end: int) -> None:
        self._layout = layout
        self._descriptor = descriptor
        self._position = start
        self._end = end
        self._file: int | None = None

    async def __aenter__(self) -> "FileStream":
        # Directly: opening a local file takes less than a thread would.
        file = self._layout.open_blob(self._descriptor.digest)
        size = os.fstat(file).st_size
        if size != self._descriptor.size:
            os.close(file)
            self._layout.statistics.errors += 1
            raise SizeMismatch(
                f"blob {self._descriptor.digest}: got {size} bytes, "
                f"expected {self._descriptor.size}"
            )
        self._file = file
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def __anext__(self) -> bytes:
        if self._file is None or self._position >= self._end:
            raise StopAsyncIteration
        # A piece is read without a thread: from the page cache it takes less than the hop, and a
        # local disk is not what makes a mount wait.
        await trio.lowlevel.checkpoint()
        size = min(PIECE_SIZE, self._end - self._position)
        try:
            data = os.pread(self._file, size, self._position)
        except OSError as error:
            self._layout.statistics.errors += 1
            raise LayoutUnreadable(
                f"cannot read blob {self._descriptor.digest}: {error.strerror}"
            ) from error
        if not data:
            self._layout.statistics.errors += 1
            raise LayoutUnreadable(
                f"blob {self._descriptor.digest}: the file shrank while it was read"
            )
        self._position += len(data)
        self._layout.statistics.received_size += len(data)
        return data
