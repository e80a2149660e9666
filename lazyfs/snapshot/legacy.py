"""Snapshots without a manifest: restored with the images that the user names.

A lost manifest cannot be told from one that was never written, so nothing here happens unless the
user asks for it.  Such images are marked "assumed", in this generation and in all that follow.
"""

import hashlib
import re
import time
from collections.abc import Mapping
from typing import BinaryIO, cast

import msgspec
import zstandard

from lazyfs.documents.errors import FileCorrupt, ManifestMissing, TemplateInvalid
from lazyfs.documents.manifest import (
    FILE_NAME,
    KIND,
    OBJECT_NAME,
    VERSION,
    File,
    Image,
    Manifest,
    Runtime,
    Snapshot,
)
from lazyfs.documents.template import PAUSE, Container, Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.errors import UsageError
from lazyfs.oci.platforms import Platform
from lazyfs.oci.reference import BadReference, parse_reference
from lazyfs.sandbox.bases import Bases
from lazyfs.snapshot.extensions import TEMPLATE
from lazyfs.snapshot.gates import CLASSES, FULL
from lazyfs.snapshot.stores.codec import SUFFIX
from lazyfs.snapshot.stores.keys import folder_of
from lazyfs.snapshot.stores.snapshots import Loaded, Snapshots

FOREIGN_MANIFEST = "manifest.json"  # what agent-substrate writes
PIECE_SIZE = 1 << 20
WINDOW = 1 << 27  # bytes that a decompressor may need
RAW_LIMIT = 256 << 30  # bytes of one file, decompressed: a few KiB can become as much as is wanted


class NotPinned(UsageError):
    """An image is to be assumed that is not named by digest."""


def assume(
    snapshots: Snapshots,
    snapshot_id: str,
    references: Mapping[str, str],
    bases: Bases,
    host: Platform,
    *,
    template: Template | None,
) -> Loaded:
    """Return a snapshot whose manifest is made up of its files and of pinned *references*.

    All files are read once to know their digests: what a restore verifies is then at least that
    they do not change.  Raises NotPinned, ManifestMissing where there are no files.
    """
    check_pinned(references)
    if template is None:
        template = _template_of(references)
    files = survey(snapshots, snapshot_id)
    found = bases.resolve(references, platform=None, pull="missing")
    manifest = Manifest(
        version=VERSION,
        kind=KIND,
        snapshot=Snapshot(
            id=snapshot_id,
            created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            scope=FULL,
            role="instance",
            generation=1,
            parent=None,
            sandbox_id=snapshot_id,
        ),
        images=tuple(_assumed(found[name].image) for name in sorted(references)),
        runtime=Runtime(class_=CLASSES["runsc"], arch=host.architecture),
        files=files,
        extensions={TEMPLATE: template.to_document()},
    )
    return Loaded(snapshot_id, manifest, "", b"")


def check_pinned(references: Mapping[str, str]) -> None:
    """Raise NotPinned for the first reference without a digest."""
    for name, text in references.items():
        try:
            is_pinned = parse_reference(text).digest is not None
        except BadReference as exc:
            raise TemplateInvalid(f"container {name}: {exc.message}") from exc
        if not is_pinned:
            raise NotPinned(
                f"container {name}: must be REPOSITORY@sha256:…, not {text}",
                hint="a tag may have moved since; only a digest says which image the snapshot "
                "was made on",
            )


def survey(snapshots: Snapshots, snapshot_id: str) -> tuple[File, ...]:
    """Return the files of a snapshot without a manifest, by reading all of them."""
    folder = folder_of(snapshot_id)
    names = [stored.key.removeprefix(folder) for stored in snapshots.objects.list(folder)]
    names = [name for name in names if "/" not in name and name != FOREIGN_MANIFEST]
    if not names:
        raise ManifestMissing(f"snapshot {snapshot_id} has no files")
    return tuple(_survey_file(snapshots, folder, name) for name in sorted(names))


def _survey_file(snapshots: Snapshots, folder: str, name: str) -> File:
    is_packed = name.endswith(SUFFIX)
    # They become files here, and words of the manifests that follow.
    if not re.match(OBJECT_NAME, name) or not re.match(FILE_NAME, name.removesuffix(SUFFIX)):
        raise FileCorrupt(f"file {name[:100]!r}: a snapshot's file cannot have this name")
    stored, raw = _Count(), _Count()
    with snapshots.objects.open(folder + name) as stream:
        if is_packed:
            _unpack(stream, name, stored, raw)
        else:
            while data := stream.read(PIECE_SIZE):
                stored.add(data)
                _check_size(name, stored)
            raw = stored
    return File(
        name=name.removesuffix(SUFFIX),
        object=name,
        compression="zstd" if is_packed else "none",
        raw_size=raw.size,
        raw_digest=raw.digest,
        stored_size=stored.size,
        stored_digest=stored.digest,
    )


class _Count:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Counted:
    """A stream whose bytes are counted as they are read."""

    def __init__(self, stream: BinaryIO, name: str, count: _Count) -> None:
        self._stream = stream
        self._name = name
        self._count = count

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(PIECE_SIZE if size < 0 else size)
        self._count.add(data)
        _check_size(self._name, self._count)
        return data


def _unpack(stream: BinaryIO, name: str, stored: _Count, raw: _Count) -> None:
    """Decompress piece by piece: a piece of what is stored may become any number of bytes."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    source = _Counted(stream, name, stored)
    try:
        with decompressor.stream_reader(
            cast(BinaryIO, source), read_across_frames=True, closefd=False
        ) as member:
            while data := member.read(PIECE_SIZE):
                raw.add(data)
                _check_size(name, raw)
    except zstandard.ZstdError as exc:
        raise FileCorrupt(f"file {name} is not valid zstd: {exc}") from exc


def _check_size(name: str, count: _Count) -> None:
    if count.size > RAW_LIMIT:
        raise FileCorrupt(f"file {name} is larger than {RAW_LIMIT} bytes")


def _template_of(references: Mapping[str, str]) -> Template:
    """Return the template of containers that run what their images say."""
    pause = references.get(PAUSE)
    containers = tuple(
        Container(name=name, image=text)
        for name, text in sorted(references.items())
        if name != PAUSE
    )
    template = Template(name="assumed", containers=containers, pause_image=pause)
    return template_of_document(template.to_document(), what="--assume-image")


def _assumed(image: Image) -> Image:
    return msgspec.structs.replace(image, source="assumed")
