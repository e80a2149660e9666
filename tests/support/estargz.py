"""The reference layers, and what they must hold according to Python's tarfile."""

import gzip
import io
import json
import lzma
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lazyfs.digest import Digest, parse_digest
from lazyfs.formats.decode import Decoded, Piece
from lazyfs.formats.toc import Chunk, Toc

FIXTURES = Path(__file__).parent.parent / "fixtures"
PRODUCERS = ("estargz-go-0.12", "estargz-ctr-remote-0.14.3")


@dataclass(frozen=True)
class ReferenceLayer:
    """A layer by an official producer."""

    name: str
    blob: bytes = field(repr=False)
    annotations: dict[str, str]

    @property
    def toc_digest(self) -> Digest:
        """What the producer says the TOC's digest is."""
        return parse_digest(self.annotations["containerd.io/snapshot/stargz/toc.digest"])

    @property
    def has_external_toc(self) -> bool:
        """Whether the TOC is in another image."""
        return "exttoc" in self.name


@cache
def reference_layers() -> tuple[ReferenceLayer, ...]:
    """Return all eStargz layers, including those with an external TOC."""
    layers = []
    for producer in PRODUCERS:
        for path in sorted((FIXTURES / producer).glob("*.tar.gz")):
            if path.name.endswith(".toclayer.tar.gz"):
                continue
            stem = path.name.removesuffix(".tar.gz")
            facts = json.loads((path.parent / f"{stem}.json").read_text())
            name = f"{producer}/{stem}"
            layers.append(ReferenceLayer(name, path.read_bytes(), facts["annotations"]))
    return tuple(layers)


@cache
def source_of(layer_name: str) -> bytes:
    """Return the tar that a reference layer was made of."""
    for entry in json.loads((FIXTURES / "index.json").read_text()):
        if entry["kind"] == "estargz" and entry["name"] == layer_name.rpartition("/")[2]:
            path = FIXTURES / entry["source"]
            opener = lzma.open if path.suffix == ".xz" else gzip.open
            with opener(path) as stream:
                return stream.read()
    raise LookupError(layer_name)


def members_of(tar: bytes) -> dict[bytes, tarfile.TarInfo]:
    """Return a tar's members by normalised path, the last of each name."""
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        return {encoded(member.name): member for member in archive}


def contents_of(tar: bytes) -> dict[bytes, bytes]:
    """Return the payloads of a tar's regular files by path."""
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        for member in archive:
            if member.isreg():
                stream = archive.extractfile(member)
                assert stream is not None
                contents[encoded(member.name)] = stream.read()
    return contents


def encoded(name: str) -> bytes:
    """Return a tarfile name as bytes, in the TOC's form."""
    return name.encode("utf-8", "surrogateescape").strip(b"/").removeprefix(b"./")


def lossy(name: bytes) -> bytes:
    """Return a name as it survives JSON: U+FFFD for each byte that is not UTF-8."""
    return name.decode("utf-8", "replace").encode()


def xattrs_of(member: tarfile.TarInfo) -> tuple[tuple[bytes, bytes], ...]:
    """Return a member's PAX xattrs as a TOC has them."""
    prefix = "SCHILY.xattr."
    return tuple(
        sorted(
            (key.removeprefix(prefix).encode(), value.encode("utf-8", "surrogateescape"))
            for key, value in member.pax_headers.items()
            if key.startswith(prefix)
        )
    )


def pieces_of(toc: Toc, payload_end: int) -> tuple[list[Piece], list[tuple[bytes, Chunk]]]:
    """Return all chunks of a layer as a decoder wants them, and what each key stands for."""
    chunks = [(entry.path, chunk) for entry in toc.entries for chunk in entry.chunks]
    ends = sorted({chunk.blob_offset for _, chunk in chunks})
    after = dict(zip(ends, [*ends[1:], payload_end], strict=True))
    pieces = [
        Piece(
            key,
            chunk.blob_offset,
            after[chunk.blob_offset],
            chunk.inner_offset,
            chunk.size,
            chunk.digest,
        )
        for key, (_, chunk) in enumerate(chunks)
    ]
    pieces.sort(key=lambda piece: (piece.blob_offset, piece.inner_offset))
    return pieces, chunks


def files_of(decoded: list[Decoded], chunks: list[tuple[bytes, Chunk]]) -> dict[bytes, bytes]:
    """Return whole files, put together from decoded chunks."""
    files: dict[bytes, bytearray] = {}
    for item in sorted(decoded, key=lambda item: (chunks[item.key][0], chunks[item.key][1].offset)):
        path, chunk = chunks[item.key]
        assert item.data is not None, item.error
        assert len(files.setdefault(path, bytearray())) == chunk.offset
        files[path] += item.data
    return {path: bytes(data) for path, data in files.items()}
