"""Files on their way to the store and back; hostile bytes on the way back."""

import hashlib
import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import hypothesis
import msgspec
import pytest
import zstandard
from hypothesis import strategies as st

from lazyfs.documents.errors import FileCorrupt, NoSpace, StoreFailed
from lazyfs.documents.manifest import File
from lazyfs.snapshot.stores import codec
from lazyfs.snapshot.stores.codec import check_stored, decode_file, restore_file, store_file
from lazyfs.snapshot.stores.zstd_frames import BadFrame, read_frame, read_header

SECONDS = 60
FRAME = 1 << 16  # what tests cut files into


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "FRAME_SIZE", FRAME)


def described(stored: bytes, raw: bytes, **changes: object) -> File:
    """Return the manifest's words for *stored*, which is *raw* compressed."""
    plain = File(
        name="file",
        object="file.zstd",
        compression="zstd",
        raw_size=len(raw),
        raw_digest=f"sha256:{hashlib.sha256(raw).hexdigest()}",
        stored_size=len(stored),
        stored_digest=f"sha256:{hashlib.sha256(stored).hexdigest()}",
    )
    return msgspec.structs.replace(plain, **changes)


def decoded(stored: bytes, file: File) -> bytes:
    pieces: list[bytes] = []
    decode_file(io.BytesIO(stored), file, pieces.append)
    return b"".join(pieces)


def texts(size: int) -> bytes:
    return (b"some text that repeats, %d; " * (size // 20 + 1))[:size]


def there_and_back(folder: Path, data: bytes, mode: str) -> File:
    """Store and restore a file, and compare."""
    source = folder / "source"
    source.write_bytes(data)
    (folder / "stored").mkdir()
    file = store_file(source, folder / "stored", mode=mode)
    stored = folder / "stored" / file.object
    assert file.name == "source"
    assert file.raw_size == len(data)
    assert file.stored_size == stored.stat().st_size
    with open(stored, "rb") as stream:
        check_stored(stream, file, lambda piece: None)
    with open(stored, "rb") as stream:
        restore_file(stream, file, folder / "back")
    assert (folder / "back").read_bytes() == data
    return file


@pytest.mark.parametrize("mode", ["zstd", "auto", "none"])
@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME + 17])
def test_there_and_back(tmp_path, small_frames, mode, size):
    file = there_and_back(tmp_path, texts(size), mode)
    is_packed = mode == "zstd" or (mode == "auto" and size > 1)
    assert file.compression == ("zstd" if is_packed else "none")
    assert file.object == ("source.zstd" if is_packed else "source")
    if is_packed:
        assert file.frames == max(1, -(-size // FRAME))
    else:
        assert file.stored_digest == file.raw_digest


@pytest.mark.parametrize(("mode", "compression"), [("zstd", "zstd"), ("auto", "none")])
def test_what_cannot_be_compressed(tmp_path, small_frames, mode, compression):
    file = there_and_back(tmp_path, random.Random(1).randbytes(300_000), mode)
    assert file.compression == compression
    assert sorted(path.name for path in (tmp_path / "stored").iterdir()) == [file.object]


def test_samples_that_promised_too_much(tmp_path, monkeypatch):
    """What looked as if it could be compressed, and could not, is stored as it is."""
    data = random.Random(2).randbytes(1 << 20)
    monkeypatch.setattr(codec, "_saves", lambda file, size: True)
    file = there_and_back(tmp_path, data, "auto")
    assert file.compression == "none"
    assert sorted(path.name for path in (tmp_path / "stored").iterdir()) == ["source"]


def test_any_zstd_reads_it(tmp_path, small_frames):
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("zstd is not installed")
    source = tmp_path / "source"
    source.write_bytes(texts(300_000))
    file = store_file(source, tmp_path, mode="zstd")
    command = [program, "-dc", tmp_path / file.object]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
    assert done.stdout == source.read_bytes()


@pytest.mark.parametrize("options", [("-3",), ("-19", "--long=27"), ("-3", "--no-check")])
def test_what_zstd_wrote_is_read(tmp_path, monkeypatch, options):
    """One long frame, as others write it: decompressed in pieces."""
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("zstd is not installed")
    monkeypatch.setattr(codec, "LARGEST_FRAME", 100_000)
    data = texts(400_000) + random.Random(3).randbytes(200_000) + bytes(300_000)
    (tmp_path / "source").write_bytes(data)
    command = [program, "-q", *options, tmp_path / "source"]
    subprocess.run(command, timeout=SECONDS, check=True)
    stored = (tmp_path / "source.zst").read_bytes()
    assert decoded(stored, described(stored, data)) == data
    piped = [program, "-qc", *options]
    unsized = subprocess.run(piped, input=data, capture_output=True, timeout=SECONDS, check=True)
    assert decoded(unsized.stdout, described(unsized.stdout, data)) == data


def test_holes_come_back_as_holes(tmp_path, small_frames):
    source = tmp_path / "source"
    with open(source, "wb") as stream:
        stream.seek(10 * FRAME)
        stream.write(b"in the middle")
        stream.seek(30 * FRAME)
        stream.write(b"at the end")
        stream.truncate(40 * FRAME + 5)
    (tmp_path / "stored").mkdir()
    for mode in ("zstd", "none"):
        file = store_file(source, tmp_path / "stored", mode=mode)
        with open(tmp_path / "stored" / file.object, "rb") as stream:
            restore_file(stream, file, tmp_path / mode)
        assert (tmp_path / mode).read_bytes() == source.read_bytes()
        assert (tmp_path / mode).stat().st_blocks * 512 <= 3 * 4096
    assert file.stored_size == 40 * FRAME + 5


def test_a_filesystem_that_knows_no_holes(tmp_path, small_frames, monkeypatch):
    def lseek(file: int, position: int, how: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", lseek)
    there_and_back(tmp_path, bytes(3 * FRAME) + b"x" + bytes(FRAME), "zstd")


def test_raw_files_are_linked_not_copied(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"data")
    (tmp_path / "stored").mkdir()
    store_file(source, tmp_path / "stored", mode="none")
    assert (tmp_path / "stored/source").samefile(source)
    assert store_file(source, tmp_path, mode="none").object == "source"  # where it lies already


def test_a_full_disk(tmp_path, monkeypatch):
    def fsync(file: int) -> None:
        raise OSError(28, "No space left on device")

    source = tmp_path / "source"
    source.write_bytes(texts(1000))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(NoSpace):
        store_file(source, tmp_path, mode="zstd")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(StoreFailed):
        store_file(tmp_path / "missing", tmp_path, mode="zstd")


# Hostile

RAW = texts(3 * FRAME + 100)


def packed(raw: bytes = RAW, size: int = FRAME) -> bytes:
    compressor = zstandard.ZstdCompressor()
    return b"".join(
        compressor.compress(raw[start : start + size]) for start in range(0, len(raw), size)
    )


def refused(stored: bytes, file: File, folder: Path) -> str:
    """Restore what must be refused; nothing may be left, nor written beyond the raw size."""
    with pytest.raises(FileCorrupt) as caught:
        restore_file(io.BytesIO(stored), file, folder / "back")
    assert not (folder / "back").exists()
    written = 0

    def write(data: bytes) -> None:
        nonlocal written
        written += len(data)

    with pytest.raises(FileCorrupt):
        decode_file(io.BytesIO(stored), file, write)
    assert written <= file.raw_size
    return caught.value.message


def test_a_flipped_byte(tmp_path):
    """Scenario 39: wherever it is."""
    good = packed()
    file = described(good, RAW)
    for position in (0, 3, 7, 50, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1
        assert "expected" in refused(bytes(bad), file, tmp_path)
    raw = msgspec.structs.replace(described(RAW, RAW), compression="none", object="file")
    assert decoded(RAW, raw) == RAW
    refused(RAW[:100] + b"?" + RAW[101:], raw, tmp_path)


@pytest.mark.parametrize("cut", [1, 4, 5, 100, len(packed()) - 1])
def test_a_file_cut_short(tmp_path, cut):
    """Scenario 40."""
    good = packed()
    message = refused(good[:-cut], described(good, RAW), tmp_path)
    assert f"got {len(good) - cut} stored bytes, expected {len(good)}" in message
    shorter = good[:-cut]  # and a manifest that says so
    refused(shorter, described(shorter, RAW), tmp_path)


def test_trailing_bytes(tmp_path):
    good = packed()
    assert "expected" in refused(good + b"x", described(good, RAW), tmp_path)
    for tail in (b"x", b"more", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18\xff\xff\xff\x7f"):
        longer = good + tail
        refused(longer, described(longer, RAW), tmp_path)


def test_skippable_frames_are_skipped():
    good = b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc" + packed() + b"\x50\x2a\x4d\x18\x00\x00\x00\x00"
    assert decoded(good, described(good, RAW)) == RAW


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("limit", [0, 1, 100_000])
def test_a_bomb(tmp_path, is_sized, limit):
    """Scenario 41: whether or not it says what it holds."""
    compressor = zstandard.ZstdCompressor(write_content_size=is_sized)
    bomb = compressor.compress(bytes(50 << 20))
    file = described(bomb, bytes(limit))
    assert f"expected {limit}" in refused(bomb, file, tmp_path)


def test_a_frame_that_lies_about_its_size(tmp_path):
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
    assert frame[4] >> 6 == 1  # two bytes of size
    frame[5:7] = (2000 - 256).to_bytes(2, "little")
    refused(bytes(frame), described(bytes(frame), bytes(2000)), tmp_path)
    frame[5:7] = (400 - 256).to_bytes(2, "little")
    refused(bytes(frame), described(bytes(frame), bytes(400)), tmp_path)


def test_a_window_that_is_too_large(tmp_path):
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3])  # 2 GiB, no size
    frame = header + b"\x01\x00\x00"
    assert "window" in refused(frame, described(frame, b""), tmp_path)


def test_a_frame_of_endless_empty_blocks(tmp_path):
    """Blocks of nothing must not pile up in memory."""
    header = b"\x28\xb5\x2f\xfd\x20\x01"  # one byte of content
    frame = header + b"\x00\x00\x00" * 100_000 + b"\x09\x00\x00x"
    assert "frame is longer than" in refused(frame, described(frame, b"x"), tmp_path)


def test_a_dictionary_and_reserved_bits(tmp_path):
    for frame in (b"\x28\xb5\x2f\xfd\x21\x07\x00", b"\x28\xb5\x2f\xfd\x28\x00\x01\x00\x00"):
        refused(frame, described(frame, b""), tmp_path)


def test_memory_is_bounded(tmp_path):
    """A frame that is longer than what is decompressed at once goes through in pieces."""
    compressor = zstandard.ZstdCompressor(write_content_size=True)
    stored = compressor.compress(bytes(codec.LARGEST_FRAME + 1))
    sizes: list[int] = []
    file = described(stored, bytes(codec.LARGEST_FRAME + 1))
    decode_file(io.BytesIO(stored), file, lambda data: sizes.append(len(data)))
    assert max(sizes) <= 1 << 20
    assert sum(sizes) == codec.LARGEST_FRAME + 1


@hypothesis.given(data=st.binary(max_size=400))
@hypothesis.settings(deadline=None)
def test_random_bytes(data):
    """Bytes of any kind: our own errors, or a frame."""
    file = described(data, b"something else")
    with pytest.raises(FileCorrupt):
        decoded(data, file)
    for start in (b"", b"\x28\xb5\x2f\xfd"):
        stream = io.BytesIO(start + data)
        try:
            header = read_header(stream.read)
            if header is not None:
                assert len(read_frame(stream.read, header, 1000)) <= 1000
        except BadFrame:
            pass


@hypothesis.given(
    position=st.integers(0, len(packed()) - 1), value=st.integers(0, 255), cut=st.integers(0, 50)
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_damage_that_the_manifest_does_not_know_of(position, value, cut):
    """With a stored digest that fits the damage, the raw one still tells."""
    bad = bytearray(packed())
    bad[position] = value
    bad = bad[: len(bad) - cut]
    file = described(bytes(bad), RAW)
    try:
        assert decoded(bytes(bad), file) == RAW
    except FileCorrupt:
        pass


@hypothesis.given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.integers(0, 20_000).map(bytes),
            st.integers(0, 9000).map(texts),
        ),
        max_size=8,
    ),
    mode=st.sampled_from(["zstd", "auto", "none"]),
)
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_file_comes_back(tmp_path, monkeypatch, pieces, mode):
    monkeypatch.setattr(codec, "FRAME_SIZE", 4096)
    folder = tmp_path / "each"
    folder.mkdir()
    try:
        there_and_back(folder, b"".join(pieces), mode)
    finally:
        shutil.rmtree(folder)


@hypothesis.given(
    size=st.integers(0, 300_000), step=st.integers(500, 70_000), is_sized=st.booleans()
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_frames_are_found_as_the_library_reads_them(size, step, is_sized):
    raw = texts(size)
    compressor = zstandard.ZstdCompressor(write_content_size=is_sized, write_checksum=step % 2 == 0)
    stored = b"".join(
        compressor.compress(raw[start : start + step]) for start in range(0, size, step)
    )
    assert decoded(stored, described(stored, raw)) == raw
