"""Hashing again everything that the store holds: disks rot, and not all of them say so.

What is checked: documents, rootfs indexes and provenance tables, TOCs, layer tables (that they
follow from their TOC), and every chunk that is marked.  What cannot be checked is named, with the
reason.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, digest_of, parse_digest
from lazyfs.errors import FormatError, StoreError
from lazyfs.formats.layer_pass import placed
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, UNCLEAN
from lazyfs.store.content.regular import read_regular
from lazyfs.store.images import load_record
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.paths import Store, digest_named
from lazyfs.store.spans import load_spans
from lazyfs.store.upkeep.documents import documents_in
from lazyfs.store.upkeep.removal import LayerInUse, remove_files, remove_layer

Progress = Callable[[int], None]


class Fault(msgspec.Struct, frozen=True):
    """Something that is rotten, or that could not be checked.

    ``path`` is relative to the store.  ``kind`` is document, index, provenance, toc, table, chunk
    or content; a chunk has its number in the layer table.  ``is_dropped``: it is fetched anew when
    it is needed.
    """

    kind: str
    path: str
    reason: str
    chunk: int | None = None
    is_dropped: bool = False


class Check(msgspec.Struct):
    """What was checked, in numbers and bytes of content, and what was found.

    ``lost_chunks`` had been marked before an unclean stop, and did not get to the disk: they were
    not believed in any case.
    """

    documents: int = 0
    images: int = 0
    layers: int = 0
    chunks: int = 0
    content_size: int = 0
    lost_chunks: int = 0
    rotten: list[Fault] = msgspec.field(default_factory=list)
    skipped: list[Fault] = msgspec.field(default_factory=list)


def check_store(
    store: Store, *, repair: bool, progress: Progress, found: Check | None = None
) -> Check:
    """Hash all of *store*; *progress* is told bytes of content as they pass.

    With *repair* what is rotten is dropped, so that it is fetched anew when it is needed.  *found*
    is added to, if it is given, and returned: it has what was found also where this is broken off.
    """
    return _Checker(store, repair=repair, progress=progress, found=found or Check()).run()


class _Checker:
    def __init__(self, store: Store, *, repair: bool, progress: Progress, found: Check) -> None:
        self._store = store
        self._repair = repair
        self._progress = progress
        self._found = found

    def run(self) -> Check:
        for path, digest in documents_in(self._store):
            self._check_document(path, digest)
        for folder in sorted(self._store.images.iterdir()):
            self._check_image(folder)
        for folder in sorted(self._store.layers.iterdir()):
            self._check_layer(folder)
        return self._found

    def _rotten(
        self, kind: str, path: Path, reason: str, chunk: int | None = None, *, dropped: bool
    ) -> None:
        relative = str(path.relative_to(self._store.root))
        self._found.rotten.append(Fault(kind, relative, reason, chunk, dropped))

    def _skip(self, kind: str, path: Path, reason: str) -> None:
        relative = str(path.relative_to(self._store.root))
        self._found.skipped.append(Fault(kind, relative, reason))

    def _check_document(self, path: Path, digest: Digest) -> None:
        self._found.documents += 1
        reason = _why_wrong(path, digest)
        if reason is not None:
            if self._repair:
                remove_files([path])
            self._rotten("document", path, reason, dropped=self._repair)

    def _check_image(self, folder: Path) -> None:
        record = load_record(folder)
        if record is None:
            self._skip("index", folder, "it has no record of this version")
            return
        self._found.images += 1
        for kind, name, expected in (
            ("index", "index.erofs", record.index_digest),
            ("provenance", "provenance", record.provenance_digest),
        ):
            reason = _why_wrong(folder / name, parse_digest(expected))
            if reason is not None:
                if self._repair:
                    self._store.discard(folder)  # both are made again, from the TOCs
                self._rotten(kind, folder / name, reason, dropped=self._repair)
                return

    def _check_layer(self, folder: Path) -> None:
        try:
            digest = digest_named(folder.name)
        except FormatError as error:
            self._skip("content", folder, error.message)
            return
        self._found.layers += 1
        toc = load_toc(self._store, digest)
        table = load_table(self._store, digest)
        if toc is None and (folder / "toc.zst").exists():
            if self._repair:
                remove_files([folder / "toc.zst"])
            self._rotten(
                "toc",
                folder / "toc.zst",
                f"its bytes do not have the digest {digest}",
                dropped=self._repair,
            )
        if table is None and not (folder / "presence").exists():
            if (folder / "table").exists():
                self._drop_table(folder, "its bytes are not those that were written")
            return  # no content was ever stored
        reason: str | None = "it cannot be read"
        if table is not None:
            reason = _why_other(self._store, table, toc, digest)
        if table is None or reason is not None:
            self._drop_table(folder, str(reason))
            self._drop_content(folder, digest)
        elif (folder / "presence").exists():
            self._check_content(folder, table)

    def _drop_table(self, folder: Path, reason: str) -> None:
        if self._repair:
            remove_files([folder / "table"])
        self._rotten("table", folder / "table", reason, dropped=self._repair)

    def _drop_content(self, folder: Path, digest: Digest) -> None:
        """Chunks cannot be told apart without a table: all of the content goes."""
        reason = "its table, which is needed to check it, is missing or damaged"
        is_dropped = False
        if self._repair:
            try:
                remove_layer(self._store, digest, is_useless=True)
                is_dropped = True
            except LayerInUse as error:
                reason += f"; {error.message}"
        self._rotten("content", folder / "content", reason, dropped=is_dropped)

    def _check_content(self, folder: Path, table: LayerTable) -> None:
        try:
            content = LayerContent(folder, table, counts_as_use=False)
        except StoreError as error:
            self._skip("content", folder / "content", error.message)
            return
        started = time.time()
        try:
            for chunk in range(table.count):
                if content.states[chunk] != ABSENT:
                    self._check_chunk(content, chunk)
            content.note_checked(started)
        finally:
            content.close()

    def _check_chunk(self, content: LayerContent, chunk: int) -> None:
        found = self._found
        size = content.table.size(chunk)
        found.chunks += 1
        found.content_size += size
        is_hole = chunk in content.table.holes
        expected = "zeros" if is_hole else f"sha256:{content.table.digest(chunk).hex()}"
        reason = f"wrong bytes, expected {expected}"
        was_lost = content.doubted == UNCLEAN and content.states[chunk] == DOUBTFUL
        try:
            is_right = content.hash_again(chunk)
        except OSError as error:
            is_right, reason = False, f"cannot be read: {error.strerror}"
        if not is_right and was_lost:
            found.lost_chunks += 1
            content.forget(chunk)
        elif not is_right:
            # What is known to be wrong is not served any more, also where nothing is dropped.
            if self._repair:
                content.forget(chunk)
            else:
                content.suspect(chunk, chunk)
            self._rotten("chunk", content.folder / "content", reason, chunk, dropped=self._repair)
        self._progress(size)


def _why_wrong(path: Path, expected: Digest) -> str | None:
    """Return why a file is not what *expected* is the digest of, or None."""
    try:
        got = digest_of(read_regular(path), expected.algorithm)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if got == expected else f"got {got}, expected {expected}"


def _why_other(store: Store, table: LayerTable, toc: bytes | None, digest: Digest) -> str | None:
    """Return why a layer table does not follow from the TOC, or None."""
    if toc is None:
        return None  # reported already; the table has a digest of its own
    try:
        end, layer_format = table.payload_end, table.format
        decoded = decode_toc(
            toc, expected=None, vouched=digest, blob_size=end, codec=layer_format.codec
        )
        decoded = placed(decoded, load_spans(store, digest, end) or ())
        if build_table(decoded, end, layer_format) == table.buffer:
            return None
    except FormatError as error:
        return error.message
    return "its chunks are not those of its TOC"
