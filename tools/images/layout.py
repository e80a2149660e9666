"""Write images as OCI layouts: reproducible tar.gz layers, streamed, of any size."""

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tools.images.tree import Tree

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "2023-11-14T22:13:20Z"
GZIP_LEVEL = 6  # what docker and buildah write


class HashingWriter(io.RawIOBase):
    """Pass bytes on to *sink*, keeping their SHA-256 and their number."""

    def __init__(self, sink: "IO[bytes] | gzip.GzipFile") -> None:
        self.sink = sink
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        self.sha256.update(data)
        self.size += len(data)
        self.sink.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256.hexdigest()}"


def write_image(path: Path, layers: Sequence[Tree], *, tag: str, cmd: Sequence[str]) -> None:
    """Write *layers*, bottom first, as image *tag* into the layout at *path*."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    described, diff_ids = [], []
    for tree in layers:
        diff_id, digest, size = _write_layer(blobs, tree)
        described.append({"mediaType": LAYER, "digest": digest, "size": size})
        diff_ids.append(diff_id)
    machine = platform.machine()
    config = {
        "created": CREATED,
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
        "os": "linux",
        "config": {"Cmd": list(cmd), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": CREATED, "created_by": "make_image"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put_json(blobs, CONFIG, config),
        "layers": described,
    }
    named = {**_put_json(blobs, MANIFEST, manifest), "annotations": {REF_NAME: tag}}
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index = path / "index.json"
    others = json.loads(index.read_text())["manifests"] if index.exists() else []
    kept = [m for m in others if m.get("annotations", {}).get(REF_NAME) != tag]
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, named]}
    index.write_text(json.dumps(document))


def read_tagged(path: Path, tag: str) -> dict[str, Any]:
    """Return the manifest that *tag* names in the layout at *path*; KeyError if there is none."""
    document: dict[str, Any] = json.loads(tagged_bytes(path, tag))
    return document


def tagged_bytes(path: Path, tag: str) -> bytes:
    """Return the same manifest as it is stored."""
    for entry in json.loads((path / "index.json").read_text())["manifests"]:
        if entry.get("annotations", {}).get(REF_NAME) == tag:
            return blob_path(path, entry["digest"]).read_bytes()
    raise KeyError(tag)


def blob_path(path: Path, digest: str) -> Path:
    """Return where the layout at *path* keeps the blob *digest*."""
    return path / "blobs" / digest.replace(":", "/")


def _write_layer(blobs: Path, tree: Tree) -> tuple[str, str, int]:
    """Write one layer; return diffID, digest and size of the blob."""
    with tempfile.NamedTemporaryFile(dir=blobs, delete=False) as target:
        try:
            outer = HashingWriter(target)
            # No name and no time in the gzip header: same tree, same bytes.
            with gzip.GzipFile("", "wb", GZIP_LEVEL, outer, mtime=0) as packed:
                inner = HashingWriter(packed)
                _write_tar(inner, tree)
            os.chmod(target.name, 0o644)
            os.rename(target.name, blobs / outer.digest.removeprefix("sha256:"))
        except BaseException:
            os.unlink(target.name)
            raise
    return inner.digest, outer.digest, outer.size


def _write_tar(sink: HashingWriter, tree: Tree) -> None:
    # Hard links come after what they point at: files first in each directory would not do.
    order = sorted(tree, key=lambda path: (tree[path].kind == tarfile.LNKTYPE, path))
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in order:
            node = tree[path]
            info = node.tar_info(path)
            if node.pieces:
                tar.addfile(info, _Pieces(node.pieces()))
            else:
                tar.addfile(info, io.BytesIO(node.data))


class _Pieces(io.RawIOBase):
    """The stream that tarfile reads a made-up file from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces
        self.rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self.rest) < size:
            piece = next(self.pieces, b"")
            if not piece:
                break
            self.rest += piece
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


def _put_json(blobs: Path, media_type: str, document: Mapping[str, Any]) -> dict[str, Any]:
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
