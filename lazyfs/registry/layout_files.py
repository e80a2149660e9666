"""The files of an OCI image layout: the documents in them, and writing them atomically.

Spec: OCI image-spec, image-layout.md ("oci-layout file", "index.json file").
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path

import msgspec

from lazyfs.digest import BadDigest, Digest, DigestMismatch, parse_digest
from lazyfs.documents.durable import sync_path
from lazyfs.errors import FormatError, StoreError
from lazyfs.json_keys import check_keys
from lazyfs.oci.manifest import DOCKER_MANIFEST, DOCUMENT_KEYS, OCI_INDEX, OCI_MANIFEST
from lazyfs.printable import printable
from lazyfs.registry.config.errors import SizeMismatch

VERSION_FILE = "oci-layout"
VERSION_DOCUMENT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX = "index.json"
EMPTY_INDEX = f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}'.encode()
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_LIMIT = 10_000
COPY_SIZE = 1 << 20


class BadLayout(FormatError):
    """The layout's own documents do not follow their format."""


class LayoutUnwritable(StoreError):
    """The layout cannot be written."""


class Listed(msgspec.Struct, rename="camel"):
    """One image that a layout lists."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None

    @property
    def name(self) -> str | None:
        """The tag, or whatever reference the writer's tool put there."""
        return (self.annotations or {}).get(REF_NAME)

    @property
    def is_manifest(self) -> bool:
        """Whether it is said to be one image or artifact, and not an index."""
        return self.media_type in (OCI_MANIFEST, DOCKER_MANIFEST)

    def is_named(self, tag: str) -> bool:
        """Say whether *tag* means this image.

        Some tools write a whole reference instead of a tag; then the tag at its end counts.
        """
        name = self.name
        if name is None:
            return False
        return name == tag or (":" in name and "@" not in name and name.endswith(f":{tag}"))


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int
    manifests: list[Listed]


class _Version(msgspec.Struct, rename="camel"):
    image_layout_version: str


def check_version(data: bytes, what: str) -> None:
    """Raise BadLayout unless *data*, of the file ``oci-layout``, is of a version we know."""
    try:
        version = msgspec.json.decode(data, type=_Version).image_layout_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLayout(
            f"{what}: {VERSION_FILE} is not valid: {printable(str(error), 100)}"
        ) from None
    if version.partition(".")[0] != "1":
        raise BadLayout(f"{what}: got layout version {printable(version, 40)!r}, expected 1.0.0")


def decode_index(data: bytes, what: str) -> list[Listed]:
    """Return the images that ``index.json`` lists."""
    try:
        index = msgspec.json.decode(data, type=_Index)
        check_keys(data, DOCUMENT_KEYS)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadLayout(f"{what} is not a valid index: {printable(str(error), 150)}") from None
    if len(index.manifests) > IMAGE_LIMIT:
        raise BadLayout(
            f"{what}: got {len(index.manifests)} images, expected at most {IMAGE_LIMIT}"
        )
    for listed in index.manifests:
        try:
            parse_digest(listed.digest)
        except BadDigest as error:
            raise BadLayout(f"{what}: {error.message}") from error
    return index.manifests


def name_in_index(data: bytes, what: str, added: Listed, tag: str) -> bytes:
    """Return ``index.json`` with *added* as what *tag* names; all else stays as it was."""
    kept = [not listed.is_named(tag) for listed in decode_index(data, what)]
    document = msgspec.json.decode(data)
    document["manifests"] = [*compress(document["manifests"], kept), added]
    return msgspec.json.encode(document)


def create_layout(path: Path) -> None:
    """Make the directory a layout, if it is none yet."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / INDEX).exists():
            write_atomically(path / INDEX, EMPTY_INDEX)
        if not (path / VERSION_FILE).exists():
            write_atomically(path / VERSION_FILE, VERSION_DOCUMENT)
    except OSError as error:
        raise LayoutUnwritable(f"cannot create {path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace *path*: whoever reads it sees the old bytes or the new ones, which are on the disk
    when this returns."""
    _replace(path, [data])


def copy_verified(content: bytes | Path, path: Path, digest: Digest, size: int) -> None:
    """Put *content* at *path* if it has *digest* and *size*; nothing is left there otherwise."""
    hashed = hashlib.new(digest.algorithm, usedforsecurity=False)
    copied = 0

    def pieces() -> Iterator[bytes]:
        nonlocal copied
        for data in _pieces(content):
            hashed.update(data)
            copied += len(data)
            yield data
        if copied != size:
            raise SizeMismatch(f"blob {digest}: got {copied} bytes, expected {size}")
        if hashed.hexdigest() != digest.hex:
            got = f"{digest.algorithm}:{hashed.hexdigest()}"
            raise DigestMismatch(f"blob: got {got}, expected {digest} ({size} bytes)")

    _replace(path, pieces())


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, on the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_path(folder.parent)


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while data := stream.read(COPY_SIZE):
            yield data


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    temporary: str | None = None
    try:
        _make_folder(path.parent)
        file, temporary = tempfile.mkstemp(prefix=".lazyfs-", dir=path.parent)
        with os.fdopen(file, "wb") as stream:
            for data in pieces:
                stream.write(data)
            os.fchmod(stream.fileno(), 0o644)
            # Before it has its name: a blob is taken for whole by its size, and an index that a
            # loss of power has emptied would lose every image of the layout.
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
        sync_path(path.parent)
    except OSError as error:
        raise LayoutUnwritable(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
