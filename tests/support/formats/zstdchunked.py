"""zstd:chunked layers written by hand, for tests that need a particular one.

Only json, tarfile and zstandard: nothing goes through lazyfs' own readers.
"""

import base64
import json
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zstandard

from lazyfs.digest import digest_of
from tests.support.formats.images import OCI_ZSTD, Layer, sha256

Part = bytes | int
"""A chunk of a file: its bytes, or so many zeros that the TOC calls a hole."""

MAGICS = {"stargz": b"GnUlInUx", "containers": b"GNUlInUx"}
PREFIXES = {
    "stargz": "io.containers.zstd-chunked.",
    "containers": "io.github.containers.zstd-chunked.",
}
MTIME = 1_700_000_000


def frame(data: bytes, level: int = 3) -> bytes:
    """Return one zstd frame, which does not say how much it holds, as real ones do not."""
    compressor = zstandard.ZstdCompressor(level=level).compressobj()
    return compressor.compress(data) + compressor.flush()


def skippable(data: bytes) -> bytes:
    """Return *data* as a frame that decoders skip."""
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data


def plain(part: Part) -> bytes:
    """Return the bytes of a part."""
    return bytes(part) if isinstance(part, int) else part


def zstd_layer(
    files: Mapping[str, Sequence[Part]],
    *,
    dialect: str = "containers",
    bend: Callable[[dict[str, Any]], None] = lambda toc: None,
    bend_footer: Callable[[list[int]], None] = lambda numbers: None,
    toc_frame: bytes | None = None,
    tar_split: bytes | None = None,
    with_toc_digest: bool = False,
) -> Layer:
    """Return a layer of regular files, each a list of chunks.

    *bend* may change the TOC before it is written, and *bend_footer* the footer's numbers; the
    annotations follow both.  *toc_frame* and *tar_split* take the place of the right ones.
    """
    blob = bytearray()
    tar = bytearray()
    entries: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    pending = b""
    for name, parts in files.items():
        data = b"".join(map(plain, parts))
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = len(data), MTIME, 0o644
        header = pending + member.tobuf(tarfile.PAX_FORMAT)
        blob += frame(header)
        tar += header + data
        lines.append({"type": 2, "payload": base64.b64encode(header).decode()})
        lines.append({"type": 1, "name": name, "size": len(data), "payload": None})
        entries += _entries(name, parts, data, blob)
        pending = bytes(-len(data) % 512)
    end = pending + bytes(1024)
    blob += frame(end)
    tar += end
    lines.append({"type": 2, "payload": base64.b64encode(end).decode()})
    for position, line in enumerate(lines):
        line["position"] = position
    split = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if tar_split is None:
        tar_split = frame(split)
    toc: dict[str, Any] = {"version": 1, "entries": entries}
    if dialect == "containers":
        toc["tarSplitDigest"] = sha256(tar_split)
    bend(toc)
    spelled = json.dumps(toc).encode()
    toc_frame = frame(spelled) if toc_frame is None else toc_frame
    numbers = [len(blob) + 8, len(toc_frame), len(spelled), 1]
    blob += skippable(toc_frame)
    if dialect == "containers":
        numbers += [len(blob) + 8, len(tar_split), len(split)]
        blob += skippable(tar_split)
    bend_footer(numbers)
    form = f"<{len(numbers)}Q"
    blob += skippable(struct.pack(form, *numbers) + MAGICS[dialect])
    prefix = PREFIXES[dialect]
    annotations = {
        f"{prefix}manifest-checksum": sha256(toc_frame),
        f"{prefix}manifest-position": ":".join(map(str, numbers[:4])),
    }
    if dialect == "containers":
        annotations[f"{prefix}tarsplit-position"] = ":".join(map(str, numbers[4:]))
    if with_toc_digest:
        annotations["containerd.io/snapshot/stargz/toc.digest"] = sha256(spelled)
    return Layer(bytes(blob), OCI_ZSTD, annotations, digest_of(bytes(tar)))


def _entries(
    name: str, parts: Sequence[Part], data: bytes, blob: bytearray
) -> list[dict[str, Any]]:
    """Write a file's chunks to *blob*, and return what a TOC says of them."""
    found = []
    offset = 0
    for part in parts:
        piece = plain(part)
        entry = {
            "type": "chunk",
            "name": name,
            "offset": len(blob),
            "chunkOffset": offset,
            "chunkSize": len(piece),
            "chunkDigest": sha256(piece),
        }
        if isinstance(part, int):
            entry["chunkType"] = "zeros"
        blob += frame(piece)  # the producers write what a hole stands for too
        offset += len(piece)
        found.append(entry)
    first = found[0] if found else {"name": name}
    first |= {"type": "reg", "mode": 0o644, "size": len(data), "modtime": "2023-11-14T22:13:20Z"}
    if data:
        first |= {"digest": sha256(data), "endOffset": len(blob)}
    if len(found) == 1 and "chunkType" not in first:
        for key in ("chunkOffset", "chunkSize", "chunkDigest"):
            del first[key]
    return found or [first]


def contents(files: Mapping[str, Sequence[Part]]) -> dict[str, bytes]:
    """Return what the files hold."""
    return {name: b"".join(map(plain, parts)) for name, parts in files.items()}
