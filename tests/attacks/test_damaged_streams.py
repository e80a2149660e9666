"""Layers whose digests are right and whose compressed streams are damaged: every command refuses.

What a gzip member or a zstd frame says of its own content is asked of it by every unpacker, so
that a mount must not take what a conversion refuses, nor the other way round.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import zstandard

from lazyfs.convert.spool import unpack_layer
from lazyfs.digest import digest_of
from lazyfs.errors import FormatError
from lazyfs.formats.layer_pass import LayerPass
from lazyfs.formats.streams.unpack import decompress
from tests.support.formats.images import file, tar_bytes

TAR = tar_bytes([file("a", b"x" * 3000), file("b", bytes(range(256)) * 300)])
GZIP = gzip.compress(TAR, mtime=0)
TWO = gzip.compress(TAR[:5000], mtime=0) + gzip.compress(TAR[5000:], mtime=0)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(TAR)
SIZED = zstandard.ZstdCompressor(write_content_size=True).compress(TAR)


def flipped(blob: bytes, at: int) -> bytes:
    damaged = bytearray(blob)
    damaged[at] ^= 1
    return bytes(damaged)


def with_header_crc(blob: bytes, *, is_right: bool) -> bytes:
    header = blob[:3] + b"\x02" + blob[4:10]
    crc = zlib.crc32(header) ^ (not is_right)
    return header + struct.pack("<H", crc & 0xFFFF) + blob[10:]


DAMAGED = {
    "CRC of a gzip member": flipped(GZIP, -8),
    "CRC of the first of two": flipped(TWO, len(gzip.compress(TAR[:5000], mtime=0)) - 7),
    "size of a gzip member": flipped(GZIP, -1),
    "trailer cut": GZIP[:-1],
    "trailer gone": GZIP[:-8],
    "junk behind": GZIP + b"junk",
    "zeros behind": GZIP + bytes(512),
    "CRC of a gzip header": with_header_crc(GZIP, is_right=False),
    "checksum of a zstd frame": flipped(ZSTD, -1),
    "checksum cut": ZSTD[:-1],
    "checksum gone": ZSTD[:-4],
    "junk behind a frame": ZSTD + b"junk",
    "another size of a zstd frame": SIZED[:5] + flipped(SIZED[5:7], 0) + SIZED[7:],
    "frame cut": SIZED[:-1],
}
SOUND = {
    "gzip": GZIP,
    "two members": TWO,
    "a gzip header with a CRC": with_header_crc(GZIP, is_right=True),
    "zstd": ZSTD,
    "no bytes": b"",
}


def mount(blob: bytes, folder: Path) -> bytes:
    passing = LayerPass(lambda offset, data: None)
    try:
        for at in range(0, len(blob), 100):
            passing.feed(blob[at : at + 100])
        assert passing.finish().diff_id
    finally:
        passing.close()
    return b""


def read(blob: bytes, folder: Path) -> bytes:
    return b"".join(decompress(io.BytesIO(blob).read))


def convert(blob: bytes, folder: Path) -> bytes:
    path = folder / "blob"
    path.write_bytes(blob)
    diff_id = digest_of(TAR if blob else b"")
    trio.run(trio.to_thread.run_sync, unpack_layer, path, folder / "tar", diff_id)
    return b""


WAYS = [mount, read, convert]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused(tmp_path: Path, way: Callable[[bytes, Path], bytes], name: str) -> None:
    with pytest.raises(FormatError, match=r"layer: (got|the gzip|the zstd|the CRC|a gzip|b.)"):
        way(DAMAGED[name], tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_passes(
    tmp_path: Path, way: Callable[[bytes, Path], bytes], name: str
) -> None:
    assert way(SOUND[name], tmp_path) in (b"", TAR)


def test_every_way_agrees_wherever_a_bit_is_flipped(tmp_path: Path) -> None:
    for blob in (GZIP, ZSTD):
        for at in range(4, len(blob), max(1, len(blob) // 60)):
            damaged = flipped(blob, at)
            found = []
            for way in (mount, read):
                try:
                    way(damaged, tmp_path)
                    found.append(True)
                except FormatError:
                    found.append(False)
            assert found[0] == found[1], (at, found)
