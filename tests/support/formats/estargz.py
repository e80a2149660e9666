"""The reference layers, and what they must hold according to Python's tarfile."""

import gzip
import io
import json
import lzma
import tarfile
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

from lazyfs.digest import Digest, parse_digest
from lazyfs.formats.decode import Decoded, Piece
from lazyfs.formats.tocs.toc import Chunk, Toc

FIXTURES = Path(__file__).parents[2] / "fixtures"
PRODUCERS = (
    "estargz-go-0.12",
    "estargz-ctr-remote-0.14.3",
    "zstdchunked-go-0.12",
    "zstdchunked-skopeo-1.9.3",
    "zstdchunked-skopeo-1.18.0",
)


@dataclass(frozen=True)
class ReferenceLayer:
    """A layer by an official producer; ``toc_blob`` holds its TOC where the layer does not."""

    name: str
    blob: bytes = field(repr=False)
    annotations: dict[str, str]
    toc_digest: Digest
    toc_blob: bytes | None = field(repr=False, default=None)

    @property
    def is_zstd(self) -> bool:
        """Whether its chunks are zstd frames."""
        return self.name.startswith("zstd")

    @property
    def has_landmarks(self) -> bool:
        """Whether its producer adds landmarks."""
        return "skopeo" not in self.name

    @property
    def tar_split(self) -> bytes | None:
        """Its tar-split document as its producer compressed it, if there is one."""
        path = FIXTURES / f"{self.name}.tar-split.json.zst"
        return path.read_bytes() if path.exists() else None


@cache
def reference_layers() -> tuple[ReferenceLayer, ...]:
    """Return all layers; ``toc_digest`` is of the JSON, as their makers found it."""
    layers = []
    for producer in PRODUCERS:
        for path in sorted((FIXTURES / producer).glob("*.tar.*z*")):
            if ".toclayer." in path.name or ".tar-split." in path.name:
                continue
            stem = path.name.partition(".")[0]
            facts = json.loads((path.parent / f"{stem}.json").read_text())
            toc_path = path.with_name(f"{stem}.toclayer.tar.gz")
            layers.append(
                ReferenceLayer(
                    f"{producer}/{stem}",
                    path.read_bytes(),
                    facts["annotations"],
                    parse_digest(facts["tocDigest"]),
                    toc_path.read_bytes() if toc_path.exists() else None,
                )
            )
    return tuple(layers)


@cache
def source_of(layer_name: str) -> bytes:
    """Return the tar that a reference layer was made of."""
    path = FIXTURES / json.loads((FIXTURES / f"{layer_name}.json").read_text())["source"]
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with opener(path) as stream:
        return stream.read()


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
    """Return a layer's chunks as a decoder wants them, and what each key stands for.

    Of several entries of one name only the last counts.
    """
    last = {entry.path: entry for entry in toc.entries}
    chunks = [(path, chunk) for path, entry in last.items() for chunk in entry.chunks]
    starts = {chunk.blob_offset for entry in toc.entries for chunk in entry.chunks}
    after = dict(pairwise([*sorted(starts), payload_end]))
    pieces = [
        Piece(
            key,
            chunk.blob_offset,
            after[chunk.blob_offset],
            chunk.inner_offset,
            chunk.size,
            chunk.digest,
            chunk.codec,
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
