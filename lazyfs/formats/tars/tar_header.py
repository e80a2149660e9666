"""Build tar headers: the same bytes for the same member, on every machine.

Spec: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header".

A ustar block, preceded by a PAX header when the block cannot say everything: names that are long
or not ASCII, numbers that do not fit, times before 1970 or with a fraction, extended attributes.
Records are sorted.  A short name that is not UTF-8 stands in the ustar block as it is, where
every reader takes it as bytes; a long one needs a PAX record, and then ``hdrcharset=BINARY``
announces it.
"""

from lazyfs.formats.tars.tar import BLOCK_SIZE, BadTar, TarMember
from lazyfs.formats.tocs.tar_fields import XATTR_PREFIX
from lazyfs.formats.tocs.toc import Kind

NAME_SIZE = 100
OWNER_SIZE = 31  # one less than the field: some readers want the NUL
MAX_OCTAL_7 = 0o7777777
MAX_OCTAL_11 = 0o77777777777

TYPE_FLAGS = {
    Kind.REGULAR: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
PAX_NAME = b"././@PaxHeader"
END_OF_ARCHIVE = bytes(2 * BLOCK_SIZE)


def name_of(member: TarMember) -> bytes:
    """Return the name as a tar spells it: directories end in a slash, the root is ``./``."""
    if member.kind is not Kind.DIRECTORY:
        return member.path
    return member.path + b"/" if member.path else b"./"


def build_header(member: TarMember) -> bytes:
    """Return the header blocks of *member*; raise BadTar for what a tar cannot express."""
    records: dict[bytes, bytes] = {}
    name = _spell(records, b"path", name_of(member), NAME_SIZE)
    link = _spell(records, b"linkpath", member.link, NAME_SIZE)
    user = _spell(records, b"uname", member.user_name, OWNER_SIZE)
    group = _spell(records, b"gname", member.group_name, OWNER_SIZE)
    uid = _count(records, b"uid", member.uid, MAX_OCTAL_7)
    gid = _count(records, b"gid", member.gid, MAX_OCTAL_7)
    size = _count(records, b"size", member.size, MAX_OCTAL_11)
    for xattr, value in member.xattrs:
        if not xattr or b"=" in xattr or b"\0" in xattr:
            raise BadTar(f"{member.path!r}: the name of xattr {xattr!r} contains = or NUL")
        records[XATTR_PREFIX + xattr] = value
    seconds = member.mtime_seconds
    if member.mtime_nanoseconds or not 0 <= seconds <= MAX_OCTAL_11:
        records[b"mtime"] = _time(seconds, member.mtime_nanoseconds)
        seconds = min(max(seconds, 0), MAX_OCTAL_11)
    if max(member.dev_major, member.dev_minor) > MAX_OCTAL_7:
        raise BadTar(f"{member.path!r}: a device number is larger than {MAX_OCTAL_7}")
    block = _block(
        name=name,
        mode=member.mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime=seconds,
        type_flag=TYPE_FLAGS[member.kind],
        link=link,
        user=user,
        group=group,
        device=(member.dev_major, member.dev_minor),
    )
    return _pax(records) + block if records else block


def padding(size: int) -> bytes:
    """Return the zeros that follow a payload of *size* bytes."""
    return bytes(-size % BLOCK_SIZE)


def _spell(records: dict[bytes, bytes], key: bytes, text: bytes, room: int) -> bytes:
    """Return what the ustar field holds of *text*, leaving the whole in a record if need be."""
    if b"\0" in text:
        raise BadTar(f"{key.decode()}: {text[:100]!r} contains a NUL byte")
    utf8 = _is_utf8(text)
    if len(text) <= room and (text.isascii() or not utf8):
        return text
    records[key] = text
    if not utf8:
        records[b"hdrcharset"] = b"BINARY"
    return text[:room]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _count(records: dict[bytes, bytes], key: bytes, value: int, maximum: int) -> int:
    if value <= maximum:
        return value
    records[key] = b"%d" % value
    return 0


def _time(seconds: int, nanoseconds: int) -> bytes:
    sign = b""
    if seconds < 0 and nanoseconds:
        sign, seconds, nanoseconds = b"-", -seconds - 1, 10**9 - nanoseconds
    text = sign + b"%d" % seconds
    return text + b".%09d" % nanoseconds if nanoseconds else text


def _pax(records: dict[bytes, bytes]) -> bytes:
    # The character set must be known before the names that are in it.
    ordered = sorted(records.items(), key=lambda record: (record[0] != b"hdrcharset", record))
    content = b"".join(_record(key, value) for key, value in ordered)
    block = _block(name=PAX_NAME, mode=0o644, size=len(content), type_flag=b"x")
    return block + content + padding(len(content))


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # blank, equals sign, newline
    length = rest + len(str(rest))
    length = rest + len(str(length))  # counting its own digits may add one
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    *,
    name: bytes,
    mode: int,
    size: int,
    type_flag: bytes,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    user: bytes = b"",
    group: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    fields = [
        name.ljust(100, b"\0"),
        b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime),
        b" " * 8,  # the checksum counts as blanks in its own sum
        type_flag,
        link.ljust(100, b"\0"),
        b"ustar\x0000",
        user.ljust(32, b"\0"),
        group.ljust(32, b"\0"),
        b"%07o\0%07o\0" % device,
    ]
    block = b"".join(fields).ljust(BLOCK_SIZE, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
