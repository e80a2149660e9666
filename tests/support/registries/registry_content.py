"""What the fake registry holds: repositories in memory, and OCI layouts on disk.

Layouts are read anew for every request, so that a test can tamper with a file under a running
registry.  What is pushed stays in memory and wins over what lies on disk.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.registries.registry_wire import FilePart

REF_NAME = "org.opencontainers.image.ref.name"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DIGEST_RE = re.compile(r"sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})")


def digest_text(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclass(frozen=True)
class Stored:
    """A manifest: its media type, its bytes, its digest."""

    media_type: str
    data: bytes = field(repr=False)
    digest: str


@dataclass
class Repository:
    """What was pushed to one name."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Stored] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Content:
    """All repositories.

    ``directory`` is an OCI layout, which every repository name then shows, or a directory of
    layouts, each shown under its relative path.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._repositories: dict[str, Repository] = {}

    def blob(self, name: str, digest: str) -> bytes | FilePart | None:
        """Return a blob, or the file that is one."""
        with self._lock:
            repository = self._repositories.get(name)
            if repository is not None and digest in repository.blobs:
                return repository.blobs[digest]
        layout = self._layout(name)
        if layout is None or DIGEST_RE.fullmatch(digest) is None:
            return None
        path = layout / "blobs" / digest.replace(":", "/")
        return FilePart(path, 0, path.stat().st_size) if path.is_file() else None

    def manifest(self, name: str, reference: str) -> Stored | None:
        """Return the manifest that a tag or a digest names."""
        with self._lock:
            repository = self._repositories.get(name, Repository())
            digest = repository.tags.get(reference, reference)
            if digest in repository.manifests:
                return repository.manifests[digest]
        layout = self._layout(name)
        if layout is None:
            return None
        named = self._index(layout)
        digest = named.get(reference, reference)
        if DIGEST_RE.fullmatch(digest) is None:
            return None
        path = layout / "blobs" / digest.replace(":", "/")
        if not path.is_file():
            return None
        data = path.read_bytes()
        return Stored(_media_type(data), data, digest)

    def tags(self, name: str) -> list[str] | None:
        """Return the tags of a repository, or None if there is no such repository."""
        with self._lock:
            repository = self._repositories.get(name)
            found = set(repository.tags) if repository else set()
        layout = self._layout(name)
        if layout is not None:
            found |= set(self._index(layout))
        return sorted(found) if repository or layout else None

    def manifests(self, name: str) -> list[Stored]:
        """Return the manifests that were pushed to a repository, in their order."""
        with self._lock:
            return list(self._repositories.get(name, Repository()).manifests.values())

    def put_blob(self, name: str, data: bytes, digest: str | None = None) -> str:
        """Store a blob, under *digest* if it is to be under a wrong one."""
        digest = digest or digest_text(data)
        with self._lock:
            self._repositories.setdefault(name, Repository()).blobs[digest] = data
        return digest

    def put_manifest(self, name: str, data: bytes, media_type: str, tag: str | None = None) -> str:
        stored = Stored(media_type, data, digest_text(data))
        with self._lock:
            repository = self._repositories.setdefault(name, Repository())
            repository.manifests[stored.digest] = stored
            if tag is not None:
                repository.tags[tag] = stored.digest
        return stored.digest

    def remove_manifest(self, name: str, reference: str) -> bool:
        """Remove a manifest that was pushed, with its tags, or one tag; say whether it was here."""
        with self._lock:
            repository = self._repositories.get(name, Repository())
            if repository.tags.pop(reference, None) is not None:
                return True
            for tag in [tag for tag, digest in repository.tags.items() if digest == reference]:
                del repository.tags[tag]
            return repository.manifests.pop(reference, None) is not None

    def _layout(self, name: str) -> Path | None:
        if self.directory is None:
            return None
        if (self.directory / "oci-layout").is_file():
            return self.directory
        path = self.directory / name
        inside = path.resolve().is_relative_to(self.directory.resolve())
        return path if inside and (path / "oci-layout").is_file() else None

    @staticmethod
    def _index(layout: Path) -> dict[str, str]:
        listed = json.loads((layout / "index.json").read_text())["manifests"]
        named = {}
        for described in listed:
            if name := described.get("annotations", {}).get(REF_NAME):
                # Some tools write a whole reference there: what follows the last colon is the tag.
                named[name.rpartition(":")[2]] = described["digest"]
        if not named and len(listed) == 1:
            named["latest"] = listed[0]["digest"]
        return named


def subject_of(data: bytes) -> str | None:
    """Return the digest of a manifest's subject, None if it has none."""
    try:
        return json.loads(data)["subject"]["digest"]
    except (ValueError, KeyError, TypeError):
        return None


def _media_type(data: bytes) -> str:
    try:
        document = json.loads(data)
    except ValueError:
        return "application/octet-stream"
    if stated := document.get("mediaType"):
        return str(stated)
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST
