"""Layers whose table of contents was changed after it was made, all digests made to fit."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

from lazyfs.digest import digest_of
from tests.support.formats.images import (
    OCI_GZIP,
    Layer,
    char_device,
    directory,
    estargz_layer,
    fifo,
    file,
    hardlink,
    members,
    sha256,
    symlink,
    tar_bytes,
)

TOC_NAME = "stargz.index.json"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
Entries = dict[str, dict[str, Any]]
Bend = Callable[[Entries, list[dict[str, Any]]], None]
"""Changes entries: given by name, and the list of all of them."""


def rich_tar() -> bytes:
    """Return a tar with one of each kind."""
    return tar_bytes(
        [
            directory("bin"),
            file("bin/tool", b"#!/bin/sh\n" * 50, mode=0o755, uid=0, gid=0),
            file("bin/other", b"other bytes of another program\n" * 20, mode=0o755),
            hardlink("bin/alias", "bin/tool", mode=0o755),
            symlink("lib", "usr/lib"),
            file("large", b"".join(b"%07d\n" % number for number in range(2048))),
            file("empty"),
            file("caps", b"x", xattrs={"security.capability": b"\x01\x00\x00\x02" + bytes(16)}),
            char_device("null", 1, 3),
            fifo("pipe"),
            file("etc/.wh.shadow"),
        ]
    )


def bent_estargz(bend: Bend, tar: bytes | None = None) -> Layer:
    """Return an eStargz layer whose TOC says what *bend* made of it."""
    layer = estargz_layer(rich_tar() if tar is None else tar, chunk_size=4096)
    return with_toc(layer, lambda toc: bent(toc, bend))


def bent(toc: dict[str, Any], bend: Bend) -> bytes:
    """Return the JSON of *toc* after *bend*."""
    entries = toc["entries"]
    bend({entry["name"]: entry for entry in reversed(entries)}, entries)
    return json.dumps(toc).encode()


def with_toc(layer: Layer, spell: Callable[[dict[str, Any]], bytes]) -> Layer:
    """Return an eStargz layer with another TOC in place of its own."""
    parts = members(layer.blob)
    at, data = next(part for part in parts if part[1].startswith(TOC_NAME.encode() + b"\0"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        stream = archive.extractfile(TOC_NAME)
        assert stream is not None
        toc = json.load(stream)
    spelled = spell(toc)
    member = tarfile.TarInfo(TOC_NAME)
    member.size = len(spelled)
    end = member.tobuf() + spelled + bytes(-len(spelled) % 512) + bytes(1024)
    blob = layer.blob[:at] + gzip.compress(end, mtime=0) + footer(at)
    tar = b"".join(part for offset, part in parts if offset < at) + end
    return Layer(blob, OCI_GZIP, {TOC_DIGEST: sha256(spelled)}, digest_of(tar))


def footer(toc_offset: int) -> bytes:
    """Return the 51 bytes of eStargz that say where the TOC is."""
    extra = b"SG" + (22).to_bytes(2, "little") + b"%016xSTARGZ" % toc_offset
    head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + len(extra).to_bytes(2, "little")
    return head + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


# Ways in which a TOC can lie, and what is said of each


def _renamed(named: Entries, entries: list[dict[str, Any]]) -> None:
    named["bin/other"]["name"] = "bin/hidden"


def _swapped(named: Entries, entries: list[dict[str, Any]]) -> None:
    """Give one program the bytes, and the size, of another one."""
    for key in ("size", "offset", "digest", "chunkDigest", "chunkSize", "innerOffset"):
        value = named["bin/other"].get(key)
        if value is None:
            named["bin/tool"].pop(key, None)
        else:
            named["bin/tool"][key] = value


def _chunk_order(named: Entries, entries: list[dict[str, Any]]) -> None:
    """Let a file begin with the chunk that is its third."""
    parts = [entry for entry in entries if entry["name"] == "large"]
    for key in ("offset", "chunkDigest"):
        parts[0][key] = parts[2][key]


def _removed(named: Entries, entries: list[dict[str, Any]]) -> None:
    entries.remove(named["etc/.wh.shadow"])


def _added(named: Entries, entries: list[dict[str, Any]]) -> None:
    entries.append({"name": "bin/su", "type": "hardlink", "linkName": "bin/tool", "mode": 0o755})


def _shadowed(named: Entries, entries: list[dict[str, Any]]) -> None:
    """Let a later entry of the same name win."""
    entries.append({**named["bin/other"], "mode": 0o4755})


def _field(name: str, **fields: Any) -> Bend:
    def bend(named: Entries, entries: list[dict[str, Any]]) -> None:
        named[name].update(fields)

    return bend


LIES: dict[str, tuple[Bend, str]] = {
    "a name": (_renamed, "b'bin/other': in the tar, and not in the TOC"),
    "a setuid bit": (_field("bin/tool", mode=0o4755), "mode 0755 in the tar, 4755 in the TOC"),
    "an owner": (_field("bin/tool", uid=1000), "owner 0:0 in the tar, 1000:0 in the TOC"),
    "a group": (_field("bin/tool", gid=42), "owner 0:0 in the tar, 0:42 in the TOC"),
    "a time": (_field("empty", modtime="2020-01-01T00:00:00Z"), "b'empty': time 1700000000"),
    "a second": (_field("empty", modtime="2023-11-14T22:13:21Z"), "b'empty': time 1700000000"),
    "a symlink": (_field("lib", linkName="tmp/lib"), "target b'usr/lib' in the tar, b'tmp/lib'"),
    "a hard link": (_field("bin/alias", linkName="bin/other"), "a hard link to b'bin/tool' in"),
    "a device": (_field("null", devMinor=5), "device 1:3 in the tar, 1:5 in the TOC"),
    "a kind": (_field("null", type="block"), "kind char in the tar, block in the TOC"),
    "an attribute": (_field("caps", xattrs={"security.capability": "AAAA"}), "security.capability"),
    "one attribute less": (_field("caps", xattrs={}), "xattr b'security.capability'"),
    "one attribute more": (_field("empty", xattrs={"user.x": "AAAA"}), "xattr b'user.x' None in"),
    "bytes": (_swapped, "b'bin/tool': size 500 in the tar, 620 in the TOC"),
    "the order of chunks": (_chunk_order, "b'large': bytes 0 to 4096 differ"),
    "a whiteout less": (_removed, "b'etc/.wh.shadow': in the tar, and not in the TOC"),
    "a name more": (_added, "b'bin/su': in the TOC, and not in the tar"),
    "a name twice": (_shadowed, "b'bin/other': mode 0755 in the tar, 4755 in the TOC"),
}
