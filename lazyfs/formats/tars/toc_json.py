"""Spell a table of contents as JSON, the way the reference producers do.

Spec: stargz-snapshotter docs/estargz.md, "TOC": one tab per level, fields in a fixed order, those
that are zero or empty left out.  containers/storage writes no blanks, no names of owners, where a
payload ends, and chunks only where a file has several.

Two deliberate differences, both within what every known reader accepts.  ``modtime`` is always
written, also for the epoch (readers take a missing one for the year 1), and it has a fraction
where the source has one, so that a lazy mount shows the times that unpacking gives.  A name that
is not UTF-8 gets a second field, ``nameBytes`` or ``linkNameBytes``, with its bytes in base64:
JSON cannot carry them, and the replacement characters in ``name`` do not tell such names apart.
"""

import json
from base64 import b64encode
from collections.abc import Sequence

import msgspec

from lazyfs.formats.tars.tar import BadTar, HeaderText, TarMember
from lazyfs.formats.tars.tar_header import name_of
from lazyfs.formats.tocs.toc import ZEROS, Kind

TYPES = {
    Kind.REGULAR: "reg",
    Kind.DIRECTORY: "dir",
    Kind.CHAR: "char",
    Kind.BLOCK: "block",
    Kind.FIFO: "fifo",
    Kind.SYMLINK: "symlink",
    Kind.HARDLINK: "hardlink",
}
HEAD = b'{\n\t"version": 1,\n\t"entries": ['
TAIL = b"\n\t]\n}"


class Part(msgspec.Struct, frozen=True):
    """One chunk of a file as written: sizes and offsets in bytes, ``digest`` in text form.

    ``stated_size`` is the value of ``chunkSize``: 0 for a last part that is shorter than a chunk.
    One without a digest is a hole: zeros that the blob does not hold.
    """

    blob_offset: int
    inner_offset: int
    offset: int
    stated_size: int
    digest: str


def hole(offset: int, size: int) -> Part:
    """Return the part of a file that is zeros."""
    return Part(0, 0, offset, size, "")


class TocSpeller:
    """Collects entries and returns the document; one object per layer."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []
        self._user_names: dict[int, str] = {}
        self._group_names: dict[int, str] = {}

    def add(self, member: TarMember, digest: str, parts: Sequence[Part]) -> None:
        """Add a member; *digest* is of a regular file's payload, empty for everything else."""
        name, first = name_of(member), parts[0] if parts else None
        fields = _said_by_header(member, name, member.link) | {
            "userName": _news(self._user_names, member.uid, _text(member.user_name)),
            "groupName": _news(self._group_names, member.gid, _text(member.group_name)),
            "offset": first.blob_offset if first else 0,
            "innerOffset": first.inner_offset if first else 0,
            "devMajor": member.dev_major,
            "devMinor": member.dev_minor,
            "xattrs": _xattrs(member),
            "digest": digest,
            "chunkSize": first.stated_size if first else 0,
            "chunkDigest": first.digest if first else "",
            "chunkType": _chunk_type(first),
        }
        self._entries.append(_entry(fields))
        for part in parts[1:]:
            self._entries.append(
                _entry(
                    {
                        **_named(name),
                        "type": "chunk",
                        "offset": part.blob_offset,
                        "innerOffset": part.inner_offset,
                        "chunkOffset": part.offset,
                        "chunkSize": part.stated_size,
                        "chunkDigest": part.digest,
                        "chunkType": _chunk_type(part),
                    }
                )
            )

    def document(self) -> bytes:
        """Return the JSON with all entries so far."""
        return HEAD + b",".join(self._entries) + TAIL


class CompactSpeller:
    """The same for containers/storage, whose readers compare it with the headers in tar-split."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []

    def add(
        self,
        member: TarMember,
        digest: str,
        parts: Sequence[Part],
        end: int,
        text: HeaderText | None = None,
    ) -> None:
        """Add a member whose payload ends at the blob offset *end*.

        *text* is what its header says in words of its own, None for one that build_header made.
        """
        name = name_of(member) if text is None else text.name
        fields = _said_by_header(member, name, member.link if text is None else text.link)
        if text is not None:
            fields["mode"] = text.mode
            for key, time in (("accesstime", text.access_time), ("changetime", text.change_time)):
                fields[key] = build_modtime(*time) if time is not None else ""
        fields |= {
            "devMajor": member.dev_major,
            "devMinor": member.dev_minor,
            "xattrs": _xattrs(member),
            "digest": digest if parts else "",
        }
        ends = [*(part.offset for part in parts[1:]), member.size]
        chunks: list[dict[str, object]] = [
            {
                "offset": part.blob_offset,
                "chunkSize": chunk_end - part.offset,
                "chunkOffset": part.offset,
                "chunkDigest": part.digest,
            }
            for part, chunk_end in zip(parts, ends, strict=bool(parts))
        ]
        if len(chunks) == 1:
            chunks = [{"offset": parts[0].blob_offset}]
        if chunks:
            fields |= {"endOffset": end, **chunks[0]}
        self._entries.append(_compact(fields))
        for chunk in chunks[1:]:
            self._entries.append(_compact({"type": "chunk", **_named(name), **chunk}))

    def document(self, tar_split_digest: str) -> bytes:
        """Return the JSON with all entries so far."""
        tail = json.dumps(tar_split_digest).encode()
        entries = b",".join(self._entries)
        return b'{"version":1,"entries":[' + entries + b'],"tarSplitDigest":' + tail + b"}"


def _chunk_type(part: Part | None) -> str:
    return ZEROS if part is not None and not part.digest else ""


def _said_by_header(member: TarMember, name: bytes, link: bytes) -> dict[str, object]:
    return {
        **_named(name),
        "type": TYPES[member.kind],
        "size": member.size,
        "modtime": build_modtime(member.mtime_seconds, member.mtime_nanoseconds),
        "linkName": _text(link),
        "linkNameBytes": _spare(link),
        "mode": member.mode,
        "uid": member.uid,
        "gid": member.gid,
    }


def _named(name: bytes) -> dict[str, object]:
    return {"name": _text(name), "nameBytes": _spare(name)}


def _compact(fields: dict[str, object]) -> bytes:
    said = {key: value for key, value in fields.items() if value or key in ("name", "type")}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


def build_modtime(seconds: int, nanoseconds: int = 0) -> str:
    """Return RFC 3339 in UTC, with as many digits of a fraction as needed.

    Years outside 1 to 9999, which no standard allows and tars contain, get more digits or a sign.
    """
    days, rest = divmod(seconds, 86400)
    year, month, day = _date(days)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    sign = "-" if year < 0 else ""
    return f"{sign}{abs(year):04}-{month:02}-{day:02}T{clock}{fraction}Z"


def _date(days: int) -> tuple[int, int, int]:
    """Return (year, month, day) of a day counted from 1970-01-01, proleptic Gregorian.

    Years are counted from March here, so that a leap day is the last day of its year; 146097 days
    are 400 years.
    """
    era, day_of_era = divmod(days + 719468, 146097)
    leap_days = day_of_era // 1460 - day_of_era // 36524 + day_of_era // 146096
    year_of_era = (day_of_era - leap_days) // 365
    day = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day + 2) // 153  # 0 is March
    day_of_month = day - (153 * month + 2) // 5 + 1
    is_next_year = month >= 10
    year = era * 400 + year_of_era + is_next_year
    return year, month - 9 if is_next_year else month + 3, day_of_month


def _entry(fields: dict[str, object]) -> bytes:
    lines = [
        f'\n\t\t\t"{key}": {_value(value)}'
        for key, value in fields.items()
        if value or key in ("name", "type")
    ]
    return ("\n\t\t{" + ",".join(lines) + "\n\t\t}").encode()


def _value(value: object) -> str:
    if isinstance(value, dict):
        lines = [f"\n\t\t\t\t{_value(key)}: {_value(item)}" for key, item in value.items()]
        return "{" + ",".join(lines) + "\n\t\t\t}"
    return json.dumps(value, ensure_ascii=False)


def _xattrs(member: TarMember) -> dict[str, str]:
    spelled: dict[str, str] = {}
    for name, value in sorted(member.xattrs):
        try:
            spelled[name.decode()] = b64encode(value).decode()
        except UnicodeDecodeError as exc:
            raise BadTar(f"{member.path!r}: the name of xattr {name!r} is not UTF-8") from exc
    return spelled


def _news(known: dict[int, str], number: int, name: str) -> str:
    """Return *name* if it is not the one last written for this number, else nothing."""
    if not name or known.get(number) == name:
        return ""
    known[number] = name
    return name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _spare(raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return b64encode(raw).decode()
    return ""
