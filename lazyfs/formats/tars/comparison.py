"""Whether the tar of a layer and its table of contents describe the same tree.

A layer with a TOC says everything twice: readers that unpack take the tar's headers, lazy ones the
TOC.  Digests vouch for both and not for their being the same, so that one image may be two.
``Comparison`` takes the tar as it passes, plays it through as an unpacker would (play.py), and
compares what is there in the end with what the TOC shows: names, kinds, modes, owners, times,
links, devices, extended attributes, sizes, and by the TOC's chunk digests every byte.  Of a sparse
file these are its zeros, too, which the tar leaves out.

What honest producers make differently is no difference: the TOC's own member and the landmarks,
which are no files; times that a TOC rounds or cuts to seconds; names that are not UTF-8, which JSON
spoils; which of several hard links comes first; spellings of names; names of owners.

Memory is that of the TOC and of the tar's headers; payloads pass through.  No I/O here.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tars.arrange import RESERVED, arrange
from lazyfs.formats.tars.tar import BadTar, TarMember, TarScanner
from lazyfs.formats.tars.tar_sparse import MAX_ZEROS
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry

SHOWN = 10
"""How many differences are listed; the others are only counted."""

ESCAPED_RE = re.compile("[\udc80-\udcff]")
HALF_SECOND = 500_000_000
KEPT_SIZE = 8 << 20
"""Bytes of a chunk that are kept to be handed out; larger ones are only hashed."""

ZEROS = bytes(64 << 10)

OnChunk = Callable[[int, Chunk, list[bytes]], object]
"""Given chunks that have their digests: the entry's number, the chunk, and its bytes in parts."""


class Disagreement(msgspec.Struct, frozen=True):
    """The first differences in words, and how many there are in all."""

    shown: tuple[str, ...]
    count: int

    def __str__(self) -> str:
        more = self.count - len(self.shown)
        return "; ".join((*self.shown, *([f"and {more} more"] if more else [])))


class Comparison:
    """Compares a tar that arrives in pieces with *toc*; ``finish`` tells.

    *on_chunk* gets what the TOC has of the tar's bytes.
    """

    def __init__(
        self, toc: Toc, *, on_chunk: OnChunk | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._tree = _Tree(toc)
        self._on_chunk = on_chunk
        self._scanner = TarScanner(limits)
        self._members: list[TarMember] = []
        self._position = 0
        self._files: deque[TarMember] = deque()  # whose payload is not complete
        self._payload: _Payload | None = None
        self._zeros = 0  # hashed, and not in the tar
        self._hashed: dict[int, int] = {}  # a payload's offset → the entry that has its bytes
        self._wrong: dict[int, Chunk] = {}  # or the first chunk that is another

    def feed(self, plain: bytes) -> None:
        """Take the next bytes of the tar; raises BadTar."""
        for member in self._scanner.feed(plain):
            self._members.append(member)
            if member.kind is Kind.REGULAR and member.size:
                self._files.append(member)
        start, self._position = self._position, self._position + len(plain)
        view = memoryview(plain)
        while self._files and self._files[0].offset <= self._position:
            file = self._files[0]
            at = max(start, file.offset)
            end = min(self._position, file.offset + file.stored_size)
            if at < end or not file.stored_size:  # the latter: nothing but zeros
                self._take(file, view[at - start : end - start])
            if end < file.offset + file.stored_size:
                return
            self._files.popleft()

    def finish(self) -> Disagreement | None:
        """Say that the tar is complete; return where the TOC says otherwise, None for nowhere.

        Raises BadTar for a tar that was cut short.
        """
        self._scanner.finish()
        return first_of(self._differences())

    def _take(self, file: TarMember, data: memoryview) -> None:
        """Take bytes of a file's payload, and compare what they complete."""
        if self._payload is None:
            number = self._tree.find_file(file.path)
            entry = None if number is None else self._tree.entries[number]
            if number is None or entry is None or entry.size != file.size:
                number, entry = -1, None
            self._payload = _Payload(number, entry, file, self._hash_zeros, self._on_chunk)
        payload = self._payload
        payload.feed(data)
        if payload.done == file.size:
            self._payload = None
            if payload.wrong is not None:
                self._wrong[file.offset] = payload.wrong
            else:
                self._hashed[file.offset] = payload.number

    def _hash_zeros(self, size: int) -> None:
        """Take note of zeros that have to be hashed; a few bytes of a map can ask for very many."""
        self._zeros += size
        if self._zeros > MAX_ZEROS:
            raise BadTar(
                f"tar: got more than {MAX_ZEROS} bytes of zeros in sparse files that the TOC has"
                " as bytes, expected less"
            )

    def _differences(self) -> Iterator[str]:
        tree = self._tree
        members = [member for member in self._members if not _is_reserved(member.path, member.kind)]
        try:
            there = {member.path: member for member in arrange(members).members}
        except FormatError as exc:
            yield f"the tar cannot be unpacked: {exc.message}"
            return
        names = {spelled: path for path in there for spelled in _spoilt(path)}
        met: set[int] = set()
        for path, member in there.items():
            number = tree.find(path)
            if number is None or number in met:
                yield f"{path!r}: in the tar, and not in the TOC"
                continue
            met.add(number)
            yield from self._compare(member, number, there, names)
        for path, number in tree.last.items():
            if number not in met and not _is_reserved(path, tree.entries[number].kind):
                yield f"{path!r}: in the TOC, and not in the tar"

    def _compare(
        self,
        member: TarMember,
        number: int,
        there: Mapping[bytes, TarMember],
        names: Mapping[bytes, bytes],
    ) -> Iterator[str]:
        tree = self._tree
        entry = tree.entries[number]
        path = member.path
        if Kind.HARDLINK in (member.kind, entry.kind):
            if not self._is_one_file(member, number, there, names):
                yield (
                    f"{path!r}: {_link_words(member.kind, member.link)} in the tar,"
                    f" {_link_words(entry.kind, entry.link)} in the TOC"
                )
                return
            if member.kind is not entry.kind:  # another one of the names comes first
                member = there[member.link] if member.kind is Kind.HARDLINK else member
                found = tree.find_file(path)
                assert found is not None
                number, entry = found, tree.entries[found]
        difference = compare_fields(path, member, entry)
        if difference is not None:
            yield difference
            return
        if member.kind is Kind.REGULAR and member.size:
            yield from self._compare_bytes(path, member, number)

    def _compare_bytes(self, path: bytes, member: TarMember, number: int) -> Iterator[str]:
        wrong = self._wrong.get(member.offset)
        if wrong is not None:
            yield (
                f"{path!r}: bytes {wrong.offset} to {wrong.offset + wrong.size} differ between the"
                " tar and the TOC"
            )
        elif self._hashed.get(member.offset) != number:
            yield f"{path!r}: the TOC gives it the bytes of another file"

    def _is_one_file(
        self,
        member: TarMember,
        number: int,
        there: Mapping[bytes, TarMember],
        names: Mapping[bytes, bytes],
    ) -> bool:
        """Say whether tar and TOC link a name to the same others: each to the other's file."""
        in_tar = member.link if member.kind is Kind.HARDLINK else member.path
        file = self._tree.file_of(number)
        in_toc = self._tree.entries[file].path
        other = there.get(in_toc) or there.get(names.get(in_toc, in_toc))
        if other is None:
            return False
        theirs = other.link if other.kind is Kind.HARDLINK else other.path
        return theirs == in_tar and self._tree.find_file(in_tar) == file


class _Payload:
    """A payload that passes, hashed by the chunks that the TOC cuts it into."""

    def __init__(
        self,
        number: int,
        entry: TocEntry | None,
        file: TarMember,
        on_zeros: Callable[[int], None],
        on_chunk: OnChunk | None,
    ) -> None:
        self.number = number
        self.done = 0
        self.wrong: Chunk | None = None
        self._size = file.size
        self._stored = deque(((0, file.size),) if file.pieces is None else file.pieces)
        self._chunks = deque(() if entry is None else entry.chunks)
        self._on_zeros = on_zeros
        self._on_chunk = on_chunk
        self._hash = hashlib.sha256()
        self._parts: list[bytes] = []

    def feed(self, data: memoryview) -> None:
        """Take bytes as the tar has them; zeros that it leaves out are put between them."""
        while data:
            offset, size = self._stored[0]
            self._take_zeros(max(offset - self.done, 0))
            part = data[: offset + size - self.done]
            data = data[len(part) :]
            self._take(part)
            if self.done == offset + size:
                self._stored.popleft()
        if not self._stored:
            self._take_zeros(self._size - self.done)

    def _take_zeros(self, size: int) -> None:
        """Take zeros; those that the TOC calls a hole, or has nothing of, cost nothing."""
        while size > 0 and self._chunks:
            chunk = self._chunks[0]
            end = chunk.offset + chunk.size
            count = min(size, end - self.done)
            size -= count
            if chunk.codec == Codec.HOLE or self.wrong is not None:
                self.done += count
                if self.done == end:
                    self._complete(self._chunks.popleft())
                continue
            self._on_zeros(count)
            while count > 0:
                part = ZEROS[:count]
                count -= len(part)
                self._take(memoryview(part))
        self.done += size

    def _take(self, data: memoryview) -> None:
        while data and self._chunks:
            chunk = self._chunks[0]
            end = chunk.offset + chunk.size
            part = data[: end - self.done]
            self._hash_part(chunk, part)
            self.done += len(part)
            data = data[len(part) :]
            if self.done == end:
                self._complete(self._chunks.popleft())
        self.done += len(data)

    def _hash_part(self, chunk: Chunk, part: memoryview) -> None:
        if self.wrong is not None:
            return
        if chunk.codec == Codec.HOLE:
            if bytes(part).count(0) != len(part):
                self.wrong = chunk
            return
        self._hash.update(part)
        if self._on_chunk is not None and chunk.size <= KEPT_SIZE:
            self._parts.append(bytes(part))

    def _complete(self, chunk: Chunk) -> None:
        digest, self._hash = self._hash.digest(), hashlib.sha256()
        parts, self._parts = self._parts, []
        if self.wrong is not None or chunk.codec == Codec.HOLE:
            return
        if digest != chunk.digest:
            self.wrong = chunk
        elif self._on_chunk is not None and parts:
            self._on_chunk(self.number, chunk, parts)


class _Tree:
    """What a TOC shows: of equal names the last one, hard links followed to their files."""

    def __init__(self, toc: Toc) -> None:
        self.entries = tuple(toc.entries)
        self.last = {entry.path: number for number, entry in enumerate(self.entries)}
        self._files: dict[int, int] = {}  # hard link → what it leads to

    def find(self, path: bytes) -> int | None:
        """Return the entry of a name of the tar; of one that is not UTF-8, as JSON spoils it."""
        number = self.last.get(path)
        if number is None:
            number = next((self.last[each] for each in _spoilt(path) if each in self.last), None)
        return number

    def file_of(self, number: int) -> int:
        """Return the entry that a hard link leads to, or the entry itself."""
        chain: list[int] = []
        while number not in self._files and self.entries[number].kind is Kind.HARDLINK:
            chain.append(number)
            number = self.last[self.entries[number].link]  # decode_toc has seen that there is one
        number = self._files.get(number, number)
        self._files.update(dict.fromkeys(chain, number))
        return number

    def find_file(self, path: bytes) -> int | None:
        """Return the entry with the payload that a name of the tar has in the TOC."""
        number = self.find(path)
        return None if number is None else self.file_of(number)


def _spoilt(name: bytes) -> tuple[bytes, ...]:
    """Return what JSON leaves of a name that is not UTF-8: U+FFFD for each bad byte, or sequence.

    Go writes the one, Python the other.
    """
    try:
        name.decode()
    except UnicodeDecodeError:
        single = ESCAPED_RE.sub("\ufffd", name.decode("utf-8", "surrogateescape"))
        return single.encode(), name.decode("utf-8", "replace").encode()
    return ()


def _is_reserved(path: bytes, kind: Kind) -> bool:
    return path in RESERVED and kind is Kind.REGULAR


def _link_words(kind: Kind, link: bytes) -> str:
    return f"a hard link to {link!r}" if kind is Kind.HARDLINK else kind.name.lower()


def first_of(differences: Iterable[str]) -> Disagreement | None:
    """Return the first of *differences* and their number, None where there are none."""
    shown: list[str] = []
    count = 0
    for difference in differences:
        count += 1
        if len(shown) < SHOWN:
            shown.append(difference)
    return Disagreement(tuple(shown), count) if count else None


def compare_fields(path: bytes, member: TarMember | TocEntry, entry: TocEntry) -> str | None:
    """Return in what a tar's member and a TOC's entry differ first, None for nothing.

    Not compared are bytes, and what hard links lead to.
    """
    for what, in_tar, in_toc in _fields(member, entry):
        if in_tar != in_toc:
            return f"{path!r}: {what} {in_tar} in the tar, {in_toc} in the TOC"
    return None


def _fields(member: TarMember | TocEntry, entry: TocEntry) -> Iterator[tuple[str, object, object]]:
    """Yield what can differ: what it is, and both values, equal where they mean the same."""
    yield "kind", member.kind.name.lower(), entry.kind.name.lower()
    yield "mode", f"{member.mode:04o}", f"{entry.mode:04o}"
    yield "owner", f"{member.uid}:{member.gid}", f"{entry.uid}:{entry.gid}"
    yield "size", member.size, entry.size
    time, stated = _time(member), (entry.mtime_seconds, entry.mtime_nanoseconds)
    yield "time", _seconds(time), _seconds(time if _is_same_time(time, stated) else stated)
    if member.kind is Kind.SYMLINK:
        is_spoilt = entry.link in _spoilt(member.link)
        yield "target", member.link, member.link if is_spoilt else entry.link
    yield (
        "device",
        f"{member.dev_major}:{member.dev_minor}",
        f"{entry.dev_major}:{entry.dev_minor}",
    )
    xattrs, theirs = dict(member.xattrs), dict(entry.xattrs)
    # A PAX record without a value takes another one back: some producers leave such ones out.
    xattrs = {name: value for name, value in xattrs.items() if value or name in theirs}
    for name in sorted(xattrs.keys() | theirs.keys()):
        yield f"xattr {name!r}", xattrs.get(name), theirs.get(name)


def _time(member: TarMember | TocEntry) -> tuple[int, int]:
    return member.mtime_seconds, member.mtime_nanoseconds


def _is_same_time(time: tuple[int, int], stated: tuple[int, int]) -> bool:
    """Say whether a TOC states *time* to its own precision: exactly, or cut or rounded."""
    if stated == time:
        return True
    seconds, nanoseconds = time
    if stated[1]:
        return False
    return stated[0] in (seconds, seconds + (nanoseconds >= HALF_SECOND))


def _seconds(time: tuple[int, int]) -> str:
    return f"{time[0]}.{time[1]:09}".rstrip("0").rstrip(".")
