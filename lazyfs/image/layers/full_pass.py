"""Fetch a plain layer whole: one pass that verifies it while it fills the content store.

A plain layer says nothing of where its files lie, so there is no other way the first time.  The
blob's digest and the diffID are known only at the end: until then everything is in a folder that
nobody reads.  What the pass finds is kept, and the next mount on this machine needs none.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import trio

from lazyfs.digest import Digest, DigestMismatch
from lazyfs.errors import FormatError, LazyfsError
from lazyfs.fetch.origins.whole import WrongBlob, take_blob, until_right
from lazyfs.formats.layer_pass import LayerPass, PassedLayer
from lazyfs.formats.layers import PLAIN
from lazyfs.formats.streams.compression import NotALayer
from lazyfs.formats.tocs.toc import Toc
from lazyfs.image.layers.budget import ImageTooLarge
from lazyfs.image.layers.plain import Progress
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.source import Source
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.layers import save_layer
from lazyfs.store.passes import RULES, PassRecord, adopt_content, copy_content, save_pass
from lazyfs.store.paths import NO_SPACE, Store, store_error
from lazyfs.store.scratch import open_scratch
from lazyfs.store.spans import save_spans

log = logging.getLogger(__name__)

TakeMembers = Callable[[int], None]

"""Compressed bytes handed to a worker at once."""

_pins: list[int] = []
"""Layers that this process has filled, kept in use until it ends: who mounts them has opened them
by then, and believes what is marked as resident without hashing it again."""


async def pass_layer(
    store: Store,
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    *,
    progress: Progress = lambda size: None,
    is_stored: bool = True,
    take_members: TakeMembers = lambda count: None,
) -> Toc:
    """Fetch *layer*, verify it, keep it, and return its TOC.

    A blob that is not what the manifest says is fetched once more at least, and once from each
    endpoint.  Raises DigestMismatch for one, and for an uncompressed layer that is not what the
    config says, FormatError, and what the source raises.  *is_stored* is false where there is no
    room for contents.
    """

    async def attempt() -> Toc:
        try:
            return await _pass_once(
                store, source, layer, diff_id, progress, take_members, is_stored=is_stored
            )
        except WrongBlob:
            progress(-layer.size)
            raise

    return await until_right(source, layer, attempt)


async def _pass_once(
    store: Store,
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    progress: Progress,
    take_members: TakeMembers,
    *,
    is_stored: bool,
) -> Toc:
    with open_scratch(store) as folder:
        try:
            with (folder / "content").open("w+b", buffering=0) as file:
                target = _Target(file, is_full=not is_stored)
                passing = LayerPass(
                    target.write,
                    blob_algorithm=layer.digest.algorithm,
                    plain_algorithm=diff_id.algorithm,
                    take_members=take_members,
                )
                passed = await _run(source, layer, diff_id, passing, progress, take_members)
                path = await trio.to_thread.run_sync(target.arrange, passed, folder)
            if path is None and is_stored:
                log.warning(
                    "layer %s: no space left in %s; its files are fetched when they are read",
                    *(layer.digest, store.root),
                )
            await trio.to_thread.run_sync(_keep, store, layer, passed, path)
        except OSError as exc:
            raise store_error(folder, exc) from exc
    return passed.toc


class _Target:
    """The file that a layer's payloads go to, until there is no room for them.

    What is there then is given back: the rest of the pass has its use without it.
    """

    def __init__(self, file: BinaryIO, *, is_full: bool) -> None:
        self._file = file
        self._is_full = is_full

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Take a payload; OSError for other trouble than a full disk."""
        if self._is_full:
            return
        try:
            _write(self._file, offset, data)
        except OSError as exc:
            self._give_up(exc)

    def arrange(self, passed: PassedLayer, folder: Path) -> Path | None:
        """Return the file with all payloads where they belong, None where it had no room."""
        if passed.moves is not None and not self._is_full:
            try:
                _move(passed, self._file, folder / "moved")
                return folder / "moved"
            except OSError as exc:
                (folder / "moved").unlink(missing_ok=True)
                self._give_up(exc)
        return None if self._is_full else folder / "content"

    def _give_up(self, exc: OSError) -> None:
        if exc.errno not in NO_SPACE:
            raise exc
        self._is_full = True
        os.ftruncate(self._file.fileno(), 0)


async def _run(
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    passing: LayerPass,
    progress: Progress,
    take_members: TakeMembers,
) -> PassedLayer:
    taker = _Taker(passing)
    try:
        await _feed(source, layer, taker.take, progress)
        if passing.blob_digest != layer.digest:
            take_members(-passing.member_count)
            raise WrongBlob(f"layer {layer.digest}: got {passing.blob_digest}")
        if taker.problem is not None:
            raise taker.problem
        passed = await trio.to_thread.run_sync(passing.finish)
    except FormatError as exc:
        message = exc.message.removeprefix("layer: ")
        raise type(exc)(f"layer {layer.digest}: {message}", hint=exc.hint) from exc
    finally:
        passing.close()
    if passed.diff_id != diff_id:
        raise DigestMismatch(
            f"layer {layer.digest}: got {passed.diff_id} uncompressed, expected diffID {diff_id}"
        )
    return passed


class _Taker:
    """Feeds a pass; where it fails, the digest of the rest tells whether the blob is to blame.

    Where members were too many for the image, nothing is gained by reading on.
    """

    def __init__(self, passing: LayerPass) -> None:
        self._passing = passing
        self.problem: FormatError | None = None

    def take(self, data: bytes) -> None:
        """Take the next bytes; raises what no digest is needed for."""
        if self.problem is not None:
            self._passing.skip(data)
            return
        try:
            self._passing.feed(data)
        except (NotALayer, ImageTooLarge):
            raise
        except FormatError as exc:
            self.problem = exc


async def _feed(
    source: Source, layer: Descriptor, take: Callable[[bytes], None], progress: Progress
) -> None:
    """Have a thread take the whole blob, piece by piece."""

    async def take_piece(piece: bytes) -> None:
        await trio.to_thread.run_sync(take, piece)
        progress(len(piece))

    await take_blob(source, layer, take_piece)


def _write(file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        offset += written
        view = view[written:]


def _move(passed: PassedLayer, source: BinaryIO, path: Path) -> None:
    with open(path, "xb", buffering=0) as target:
        for move in passed.moves or ():
            done = 0
            while done < move.size:
                copied = os.copy_file_range(
                    source.fileno(),
                    target.fileno(),
                    move.size - done,
                    move.source + done,
                    move.target + done,
                )
                if not copied:
                    raise OSError("the content of a layer ended while it was copied")
                done += copied


def _keep(store: Store, layer: Descriptor, passed: PassedLayer, content: Path | None) -> None:
    toc = passed.toc
    table = build_table(toc, layer.size, PLAIN[passed.codec])
    save_layer(store, toc.digest, passed.toc_json, table)
    save_spans(store, toc.digest, passed.spans)
    if content is not None:
        folder = store.layer_path(toc.digest)
        opened = LayerTable(table)
        pin = adopt_content(folder, opened, content)
        _pins.append(pin if pin >= 0 else copy_content(folder, opened, content))
    save_pass(store, record_of(passed))


def record_of(passed: PassedLayer) -> PassRecord:
    """Return what is kept of a pass that was made here."""
    return PassRecord(
        blob_digest=str(passed.blob_digest),
        blob_size=passed.blob_size,
        diff_id=str(passed.diff_id),
        plain_size=passed.plain_size,
        toc_digest=str(passed.toc.digest),
        rules=RULES,
    )


async def pass_layers(
    store: Store,
    source: Source,
    layers: Sequence[tuple[Descriptor, Digest]],
    *,
    progress: Progress = lambda size: None,
    is_stored: bool = True,
    take_members: TakeMembers = lambda count: None,
) -> list[Toc]:
    """Fetch several layers, a few at a time; the first failure stops the others.

    *take_members* is told of members as they come, and may refuse the image.
    """
    tocs: dict[int, Toc] = {}
    failures: list[LazyfsError] = []
    limiter = trio.CapacityLimiter(max(3, os.cpu_count() or 1))

    async def run(number: int) -> None:
        layer, diff_id = layers[number]
        async with limiter:
            try:
                tocs[number] = await pass_layer(
                    store,
                    source,
                    layer,
                    diff_id,
                    progress=progress,
                    is_stored=is_stored,
                    take_members=take_members,
                )
                return
            except LazyfsError as exc:
                failures.append(exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(len(layers)):
            nursery.start_soon(run, number)
    if failures:
        raise failures[0]
    return [tocs[number] for number in range(len(layers))]
