"""Snapshots for tests: small, real, and as many as wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lazyfs.digest import digest_of
from lazyfs.documents import manifest as documents
from lazyfs.documents.errors import StoreFailed
from lazyfs.documents.manifest_json import encode_manifest
from lazyfs.snapshot.stores.codec import store_file
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.objects import ObjectStore
from lazyfs.snapshot.stores.snapshots import Snapshots

ID = "20261120T194511Z-5b1c09ef"
LATER_ID = "20261121T080000Z-00000002"
CONTENTS = {
    "checkpoint.img": b"what was running" * 5000,
    "pages.img": bytes(100_000) + b"a page" * 3000 + bytes(50_000),
    "pages_meta.img": bytes(range(256)) * 3,
}


@dataclass(frozen=True)
class Draft:
    """A snapshot on this disk: its manifest, and where the files to be stored lie."""

    manifest: documents.Manifest
    files: tuple[tuple[documents.File, Path], ...]

    @property
    def id(self) -> str:
        return self.manifest.snapshot.id

    @property
    def data(self) -> bytes:
        return encode_manifest(self.manifest)

    @property
    def digest(self) -> str:
        return str(digest_of(self.data))


def image(name: str = "counter", **changes: object) -> documents.Image:
    """Return an image that was tagged; its digests are made up."""
    digest = str(digest_of(name.encode()))
    plain = documents.Image(
        name=name,
        original_ref=f"{name}:latest",
        resolved_ref=f"docker.io/library/{name}@{digest}",
        pinned=False,
        platform=documents.Platform("linux", "amd64"),
        index_digest=None,
        manifest_digest=digest,
        manifest_media_type="application/vnd.oci.image.manifest.v1+json",
        config_digest=str(digest_of(b"config")),
        layers=(),
        resolved_at="2026-11-20T19:40:02Z",
        source="xattr+record",
    )
    return msgspec.structs.replace(plain, **changes)


def draft(
    folder: Path,
    snapshot_id: str = ID,
    contents: Mapping[str, bytes] = CONTENTS,
    *,
    mode: str = "zstd",
    images: tuple[documents.Image, ...] = (),
) -> Draft:
    """Make a snapshot's files below *folder*, stored form included."""
    raw, stored = folder / f"{snapshot_id}-raw", folder / f"{snapshot_id}-stored"
    raw.mkdir(parents=True)
    stored.mkdir()
    files = []
    for name, data in sorted(contents.items()):
        (raw / name).write_bytes(data)
        files.append(store_file(raw / name, stored, mode=mode))
    found = images or (image(),)
    manifest = documents.Manifest(
        version=1,
        kind=documents.KIND,
        snapshot=documents.Snapshot(
            id=snapshot_id,
            created_at="2026-11-20T19:45:11Z",
            scope="full",
            role="instance",
            generation=1,
            parent=None,
            sandbox_id="counter-1",
        ),
        images=found,
        runtime=documents.Runtime(
            class_="gvisor",
            arch="amd64",
            version="release-20260601.0",
            platform="systrap",
            overlay="root:memory",
            containers=tuple(
                documents.Container(each.name, str(digest_of(b"spec")), number == 0)
                for number, each in enumerate(found)
            ),
        ),
        files=tuple(files),
    )
    return Draft(manifest, tuple((file, stored / file.object) for file in files))


def store(objects: ObjectStore, made: Draft, *, is_committed: bool = True) -> Draft:
    """Put a snapshot into a store; without its manifest where *is_committed* is not set."""
    snapshots = Snapshots(objects)
    snapshots.upload(made.id, made.files)
    if is_committed:
        assert snapshots.commit(made.manifest) == made.digest
    return made


class FaultyStore(DirectoryStore):
    """A directory whose operations fail as told; it logs what it is asked to write."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes: list[str] = []
        self.fail_put: set[str] = set()  # last words of keys
        self.lose_answer = 0  # of so many puts of a manifest or pointer, after the deed

    def put_file(self, key: str, path: Path) -> None:
        if key.rpartition("/")[2] in self.fail_put:
            raise StoreFailed(f"store: {key}: told to fail")
        super().put_file(key, path)
        self.writes.append(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        is_stored = super().put_if_absent(key, data)
        self.writes.append(key)
        self._lose(key)
        return is_stored

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        is_stored = super().replace(key, data, expected)
        if self.lose_answer:
            self.lose_answer -= 1
            return False  # as one who tries again is told
        return is_stored

    def _lose(self, key: str) -> None:
        if self.lose_answer:
            self.lose_answer -= 1
            raise StoreFailed(f"store: {key}: the answer was lost")
