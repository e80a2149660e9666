"""Decode the table of contents of a layer: every rule that it must keep is checked here.

Spec: stargz-snapshotter docs/estargz.md, "TOC".  Where the reference reader is lenient and
nothing legitimate needs it, this one refuses: other versions, gaps and overlaps between chunks,
data after the JSON, chunks that nothing verifies, hardlinks that lead nowhere, entries below
something that is not a directory.
"""

from collections.abc import Mapping, Sequence

from lazyfs.digest import BadDigest, Digest, digest_of, parse_digest, verify_digest
from lazyfs.formats.streams.codec import MAX_RATIO, Codec
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, ENTRY_MEMORY, TWIN_ENTRY_MEMORY, Limits
from lazyfs.formats.tocs.modtime import parse_modtime
from lazyfs.formats.tocs.paths import is_bare_whiteout, normalise_path
from lazyfs.formats.tocs.rawtoc import (
    BadToc,
    RawEntry,
    check_memory,
    check_size,
    decode_raw,
    read_xattrs,
    sha256_bytes,
)
from lazyfs.formats.tocs.scan import can_scan, scan
from lazyfs.formats.tocs.tar_fields import owner
from lazyfs.formats.tocs.toc import (
    NO_PREFETCH_LANDMARK,
    PREFETCH_LANDMARK,
    ZEROS,
    Chunk,
    Kind,
    Toc,
    TocEntry,
)
from lazyfs.formats.tocs.toc_keys import check_toc_keys

IMPLIED_COST = 64  # bytes that an index needs for a directory, beyond its path


KINDS = {
    "reg": Kind.REGULAR,
    "dir": Kind.DIRECTORY,
    "symlink": Kind.SYMLINK,
    "hardlink": Kind.HARDLINK,
    "char": Kind.CHAR,
    "block": Kind.BLOCK,
    "fifo": Kind.FIFO,
}


DEVICES = (Kind.CHAR, Kind.BLOCK)


MAX_MAJOR, MAX_MINOR = 2**12 - 1, 2**20 - 1  # what Linux packs into a device number


NO_DIGEST = bytes(32)


def decode_toc(
    data: bytes,
    *,
    expected: Digest | None,
    blob_size: int,
    codec: Codec = Codec.GZIP,
    vouched: Digest | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Toc:
    """Return the validated TOC that the JSON in *data* spells.

    *expected* is the digest that a verified parent promised, or None to take whatever comes, or
    what the caller has verified by *vouched*, the digest of something that *data* follow from.
    *blob_size* is the number of bytes in which payloads can lie, compressed by *codec*.  Raises
    DigestMismatch or BadToc.
    """
    digest = expected or vouched or digest_of(data)
    if expected is not None:
        verify_digest(data, expected, "TOC")
    check_size(data, limits)
    check_memory(data, limits, ENTRY_MEMORY if can_scan() else TWIN_ENTRY_MEMORY)
    ratio = max(limits.stream_ratio, MAX_RATIO[codec])

    def read() -> tuple[TocEntry, ...]:
        raw_entries = decode_raw(data, limits).entries or ()
        return _Reader(raw_entries, blob_size, codec, ratio, limits).read()

    scanned = scan(data, blob_size, codec, ratio, limits, read)
    if scanned is not None:
        tar_split = _parse_tar_split(scanned.tar_split.decode())
        return Toc(digest, scanned, scanned.prefetch_end, tar_split)
    check_memory(data, limits, TWIN_ENTRY_MEMORY)
    raw = decode_raw(data, limits)
    check_toc_keys(data)
    entries = _Reader(raw.entries or (), blob_size, codec, ratio, limits).read()
    last = {entry.path: number for number, entry in enumerate(entries)}
    _check_parents(entries, last, limits)
    _check_hardlinks(entries, last)
    tar_split = _parse_tar_split(raw.tar_split_digest)
    return Toc(digest, entries, _prefetch_end(entries, last), tar_split)


def _parse_tar_split(text: str) -> Digest | None:
    try:
        return parse_digest(text) if text else None
    except BadDigest as exc:
        raise BadToc(f"TOC: tarSplitDigest: {exc.message}") from exc


class _Reader:
    """The one pass over the raw entries; what is wrong with one of them is a ValueError here."""

    def __init__(
        self,
        raw_entries: Sequence[RawEntry],
        blob_size: int,
        codec: Codec,
        ratio: int,
        limits: Limits,
    ) -> None:
        self._raw_entries = raw_entries
        self._blob_size = blob_size
        self._codec = codec
        self._ratio = ratio
        self._limits = limits
        self._device_size = 0
        self._times: dict[str, tuple[int, int]] = {"": (0, 0)}

    def read(self) -> tuple[TocEntry, ...]:
        raw_entries = self._raw_entries
        count = len(raw_entries)
        entries: list[TocEntry] = []
        number = 0
        try:
            while number < count:
                after = number + 1
                while after < count and raw_entries[after].type == "chunk":
                    after += 1
                entries.append(self._entry(raw_entries[number], raw_entries[number + 1 : after]))
                number = after
        except ValueError as exc:
            name = raw_entries[number].name[:200]
            raise BadToc(f"TOC entry {number} ({name!r}): {exc}") from exc
        return tuple(entries)

    def _entry(self, raw: RawEntry, parts: Sequence[RawEntry]) -> TocEntry:
        kind = KINDS.get(raw.type)
        if kind is None:
            if raw.type == "chunk":  # those that follow an entry came as its parts
                raise ValueError("it is a chunk, but no file comes before it")
            raise ValueError(f"type {raw.type[:60]!r} is not one of {', '.join(KINDS)}")
        path = normalise_path(raw.name_bytes or raw.name.encode(), self._limits)
        if not path and kind is not Kind.DIRECTORY:
            raise ValueError(f"the root is not a directory (type {raw.type})")
        size, digest, link = 0, None, b""
        chunks: tuple[Chunk, ...] = ()
        if kind is Kind.REGULAR:
            size = raw.size
            digest = sha256_bytes(raw.digest) if raw.digest else None
            if size or parts:
                chunks = self._payload(raw, parts, digest)
        elif parts:
            raise ValueError(f"chunks follow it, but it is not a regular file (type {raw.type})")
        elif kind is Kind.SYMLINK or kind is Kind.HARDLINK:
            link = self._link(raw, kind)
        major, minor = _device(raw) if kind in DEVICES else (0, 0)
        seconds, nanoseconds = self._times.get(raw.modtime) or self._time(raw.modtime)
        return TocEntry(
            path,
            kind,
            raw.mode & 0o7777,
            raw.uid if raw.uid >= 0 else owner(raw.uid, "uid"),
            raw.gid if raw.gid >= 0 else owner(raw.gid, "gid"),
            size,
            seconds,
            nanoseconds,
            link,
            major,
            minor,
            read_xattrs(raw.xattrs, self._limits) if raw.xattrs else (),
            digest,
            chunks,
        )

    def _time(self, text: str) -> tuple[int, int]:
        self._times[text] = time = parse_modtime(text)
        return time

    def _link(self, raw: RawEntry, kind: Kind) -> bytes:
        link = raw.link_name_bytes or raw.link_name.encode()
        if kind is Kind.HARDLINK:
            return normalise_path(link, self._limits)
        if not 0 < len(link) <= self._limits.link_size:
            raise ValueError(
                f"got a symlink target of {len(link)} bytes, expected 1 to {self._limits.link_size}"
            )
        if b"\0" in link:
            raise ValueError("its symlink target contains a NUL byte")
        return link

    def _payload(
        self, raw: RawEntry, parts: Sequence[RawEntry], digest: bytes | None
    ) -> tuple[Chunk, ...]:
        """Return the chunks of a regular file: sorted, contiguous, as long as the file."""
        size = raw.size
        if not size:
            raise ValueError("the file is empty, but has chunks")
        block_size = self._limits.block_size
        self._device_size += (size + block_size - 1) // block_size * block_size
        if self._device_size > self._limits.device_size:
            raise ValueError(
                f"the files up to it have more than {self._limits.device_size} bytes, the size of"
                " an EROFS device"
            )
        if not parts and not 0 < raw.chunk_size < size:
            # The whole file is one chunk; chunkSize may be absent, exact, or the producer's
            # setting.  Then, and only then, the file's digest says the same as the chunk's.
            if raw.chunk_digest and digest is not None and raw.chunk_digest != raw.digest:
                raise ValueError(
                    f"got chunkDigest {raw.chunk_digest[:80]!r},"
                    f" expected {raw.digest!r}, the digest of the file"
                )
            return (self._chunk(raw, 0, size, digest),)
        if digest is not None and not any(part.chunk_digest for part in (raw, *parts)):
            return (self._undivided(raw, parts, digest),)
        chunks = []
        position = 0
        # Producers write them in order; the format does not say that they must.
        for part in sorted((raw, *parts), key=_chunk_offset):
            part_size = part.chunk_size or size - position
            if part.chunk_offset != position or not 0 < part_size <= size - position:
                raise ValueError(
                    f"got a chunk at {part.chunk_offset} of {part_size} bytes,"
                    f" expected one at {position} of 1 to {size - position}"
                )
            chunks.append(self._chunk(part, position, part_size, None))
            position += part_size
        if position != size:
            raise ValueError(f"got {position} bytes in chunks, expected {size}")
        return tuple(chunks)

    def _undivided(self, raw: RawEntry, parts: Sequence[RawEntry], digest: bytes) -> Chunk:
        """Return one chunk for a file whose parts have no digests, only the file has one.

        So did crfs write them.  The parts must be members in a row: what else lies between them
        would fail the digest.
        """
        if any(part.inner_offset or part.chunk_type for part in (raw, *parts)):
            raise ValueError("its chunks have no chunkDigest, so they cannot be verified")
        return self._chunk(raw, 0, raw.size, digest)

    def _chunk(self, raw: RawEntry, position: int, size: int, digest: bytes | None) -> Chunk:
        if raw.chunk_type:
            return self._hole(raw, position, size)
        if digest is None:
            if not raw.chunk_digest:
                raise ValueError("a chunk has no chunkDigest, so it cannot be verified")
            digest = sha256_bytes(raw.chunk_digest)
        offset = raw.offset
        if raw.chunk_offset != position:
            raise ValueError(f"got chunkOffset {raw.chunk_offset}, expected {position}")
        if offset >= self._blob_size:
            raise ValueError(f"got offset {offset}, expected less than {self._blob_size}")
        if size > self._limits.chunk_size:
            raise ValueError(
                f"got a chunk of {size} bytes, expected at most {self._limits.chunk_size}"
            )
        end = raw.inner_offset + size
        room = (self._blob_size - offset) * self._ratio
        if end > room or end > self._limits.stream_size:
            raise ValueError(
                f"got a chunk that ends at {end} of its stream, expected at most"
                f" {min(room, self._limits.stream_size)}"
            )
        return Chunk(position, size, offset, raw.inner_offset, digest, self._codec)

    @staticmethod
    def _hole(raw: RawEntry, position: int, size: int) -> Chunk:
        """Return a chunk of zeros; that it is one, the TOC says, which is verified."""
        if raw.chunk_type != ZEROS:
            raise ValueError(f"chunkType {raw.chunk_type[:60]!r} is not {ZEROS!r}")
        if raw.chunk_offset != position:
            raise ValueError(f"got chunkOffset {raw.chunk_offset}, expected {position}")
        return Chunk(position, size, 0, 0, NO_DIGEST, Codec.HOLE)


def _device(raw: RawEntry) -> tuple[int, int]:
    major, minor = raw.dev_major, raw.dev_minor
    if not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
        raise ValueError(f"got device {major}:{minor}, expected at most {MAX_MAJOR}:{MAX_MINOR}")
    return major, minor


def _chunk_offset(raw: RawEntry) -> int:
    return raw.chunk_offset


def _check_parents(entries: Sequence[TocEntry], last: Mapping[bytes, int], limits: Limits) -> None:
    """Refuse entries below something that is not a directory.

    A symlink there would lead out of the tree if followed; whatever else it is, the layer
    contradicts itself.  So does a whiteout of nothing.  Directories that no entry names are legal;
    what they take is bounded.
    """
    sound = {b""}
    implied_size = 0
    for path in last:
        if is_bare_whiteout(path):
            raise BadToc(f"TOC entry {path!r} is a whiteout that names nothing")
        parent = path.rpartition(b"/")[0]
        while parent not in sound:
            number = last.get(parent)
            if number is None:
                implied_size += len(parent) + IMPLIED_COST
            elif entries[number].kind is not Kind.DIRECTORY:
                raise BadToc(
                    f"TOC entry {path!r} lies below {parent!r}, which is not a directory"
                    f" ({entries[number].kind.name.lower()})"
                )
            sound.add(parent)
            parent = parent.rpartition(b"/")[0]
        if implied_size > limits.implied_size:
            raise BadToc(
                f"TOC: directories without entries take more than {limits.implied_size} bytes"
            )


def _check_hardlinks(entries: Sequence[TocEntry], last: Mapping[bytes, int]) -> None:
    """Refuse hardlinks that lead to nothing, in a circle, or to a directory.

    One with a whiteout's name is a whiteout, wherever it leads.
    """
    resolved: set[int] = set()
    for path, number in last.items():
        if entries[number].kind is not Kind.HARDLINK or b".wh." in path:
            continue
        chain: list[int] = []
        while number not in resolved and entries[number].kind is Kind.HARDLINK:
            if len(chain) > len(entries):
                raise BadToc(f"TOC entry {path!r}: its hard links lead in a circle")
            chain.append(number)
            target = last.get(entries[number].link)
            if target is None:
                raise BadToc(
                    f"TOC entry {entries[number].path!r} is a hard link to"
                    f" {entries[number].link!r}, which is not in this layer"
                )
            number = target
        if entries[number].kind is Kind.DIRECTORY:
            raise BadToc(
                f"TOC entry {path!r} is a hard link to a directory, {entries[number].path!r}"
            )
        resolved.update(chain)


def _prefetch_end(entries: Sequence[TocEntry], last: Mapping[bytes, int]) -> int | None:
    """Return what the landmarks advise; "do not" wins over a range."""
    if NO_PREFETCH_LANDMARK in last:
        return 0
    number = last.get(PREFETCH_LANDMARK)
    if number is None or not entries[number].chunks:
        return None
    if entries[number].chunks[0].codec == Codec.HOLE:
        return None
    return entries[number].chunks[0].blob_offset
