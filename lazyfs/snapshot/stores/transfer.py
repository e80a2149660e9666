"""Copying a snapshot to another store: its files and images first, the manifest's bytes last."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from lazyfs.digest import parse_digest
from lazyfs.documents.errors import BaseUnavailable
from lazyfs.documents.manifest import File, Image
from lazyfs.oci import manifest as oci
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.snapshot.stores.codec import check_stored
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.embedding import layout_key
from lazyfs.snapshot.stores.objects import ObjectMissing
from lazyfs.snapshot.stores.snapshots import Loaded, Snapshots, key_of, missing_file


def copy_snapshot(loaded: Loaded, source: Snapshots, target: Snapshots) -> bool:
    """Copy a snapshot, verified as stored, with its embedded images; say whether it was not there.

    The manifest's bytes stay the same, so pointers and parents fit.  Raises FileCorrupt,
    FileMissing, BaseUnavailable, StoreConflict.
    """
    state = target.state(loaded.id)
    if state is not None and state.is_committed:
        target.commit_raw(loaded.manifest, loaded.data)  # or StoreConflict, where it is another
        return False
    for file in loaded.manifest.files:
        with _local(source, loaded.id, file) as path:
            target.upload(loaded.id, [(file, path)])
    _copy_images(loaded, source, target)
    target.commit_raw(loaded.manifest, loaded.data)
    return True


@contextmanager
def _local(source: Snapshots, snapshot_id: str, file: File) -> Iterator[Path]:
    """Yield where a stored file lies, verified; one from elsewhere is copied here for so long."""
    key = key_of(snapshot_id, file)
    try:
        if isinstance(source.objects, DirectoryStore):
            with source.objects.open(key) as stream:
                check_stored(stream, file, lambda data: None)
                yield _opened(stream)  # not by its name: that may be another file by now
            return
        with tempfile.NamedTemporaryFile(prefix="lazyfs-") as copy:
            with local_errors(Path(copy.name), "write"), source.objects.open(key) as stream:
                check_stored(stream, file, copy.write)
                copy.flush()
            yield Path(copy.name)
    except ObjectMissing as error:
        raise missing_file(snapshot_id, file) from error


def _opened(stream: BinaryIO) -> Path:
    """Return a path of the file that is open, for as long as it is."""
    return Path(f"/proc/self/fd/{stream.fileno()}")


def _copy_images(loaded: Loaded, source: Snapshots, target: Snapshots) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="lazyfs-"))
    try:
        layout = source.embedded(loaded, scratch)
        if layout is None:
            return
        # The copy, or the store itself, in whose folders anything may lie.
        objects = DirectoryStore(layout)
        for image in loaded.manifest.images:
            if image.embedded is True:
                with ExitStack() as stack:
                    _copy_image(loaded, image, objects, target, stack)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_image(
    loaded: Loaded, image: Image, layout: DirectoryStore, target: Snapshots, stack: ExitStack
) -> None:
    digests = (image.config_digest, *(layer.digest for layer in image.layers))
    paths: dict[str, Path | bytes] = {}
    digest = parse_digest(image.manifest_digest)
    text = image.manifest_digest
    try:
        manifest = layout.get(layout_key(digest), oci.DOCUMENT_LIMIT)
        for text in dict.fromkeys(digests):
            stream = stack.enter_context(layout.open(layout_key(parse_digest(text))))
            paths[text] = _opened(stream)
    except ObjectMissing as error:
        raise BaseUnavailable(
            f"image {image.name} of {loaded.id}: blob {text} to copy is missing from the store",
            details={"container": image.name, "missing": [text]},
        ) from error
    target.embed(
        *(loaded.id, manifest, image.manifest_media_type, paths), algorithm=digest.algorithm
    )
