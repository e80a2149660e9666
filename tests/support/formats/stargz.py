"""Legacy stargz layers (crfs), written by hand: no tool that makes them is left.

Spec: google/crfs.  Chunks have no digests, only whole files do; the TOC's member carries a comment
in its header; the footer has no subfield.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping

from lazyfs.digest import digest_of
from tests.support.formats.images import OCI_GZIP, Layer, sha256

MTIME = 1_700_000_000


def stargz_layer(
    files: Mapping[str, bytes], *, chunk_size: int = 4 << 20, mode: int = 0o644
) -> Layer:
    """Return a layer of regular files in chunks of *chunk_size*; *mode* is what the TOC says."""
    blob, tar = bytearray(), bytearray()
    entries = []
    pending = b""
    for name, data in files.items():
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(data), MTIME
        _add(blob, tar, pending + member.tobuf())
        entry = {"name": name, "type": "reg", "size": len(data), "mode": mode, "NumLink": 1}
        entry |= {"modtime": "2023-11-14T22:13:20Z", "digest": sha256(data)}
        for offset in range(0, len(data), chunk_size):
            piece = data[offset : offset + chunk_size]
            entry["offset"] = len(blob)
            if len(data) > chunk_size:
                entry |= {"chunkOffset": offset, "chunkSize": len(piece)}
            _add(blob, tar, piece)
            entries.append(entry)
            entry = {"name": name, "type": "chunk"}
        if not data:
            entries.append(entry)
        pending = bytes(-len(data) % 512)
    if pending:
        _add(blob, tar, pending)
    toc_offset = len(blob)
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    index = tarfile.TarInfo("stargz.index.json")
    index.size = len(toc)
    _add(blob, tar, index.tobuf() + toc + bytes(-len(toc) % 512) + bytes(1024))
    blob += footer(toc_offset)
    return Layer(bytes(blob), OCI_GZIP, {}, digest_of(bytes(tar)))


def footer(toc_offset: int) -> bytes:
    """Return the 47 bytes that locate a TOC."""
    extra = b"%016xSTARGZ" % toc_offset
    head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + len(extra).to_bytes(2, "little")
    return head + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def _add(blob: bytearray, tar: bytearray, data: bytes) -> None:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as member:
        member.write(data)
    blob += stream.getvalue()
    tar += data
