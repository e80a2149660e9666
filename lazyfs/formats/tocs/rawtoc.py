"""The JSON of a TOC, decoded into typed records; no rule that spans two fields is checked here.

Spec: stargz-snapshotter docs/estargz.md, "TOC entries"; types and ranges are those of
tar numbers, Linux owners and devices, sha256 digests.  Unknown keys are
ignored, wrong types and ranges are refused.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.streams.limits import Limits, toc_memory

TOC_VERSION = 1

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Tars have negative owners too: the kernel takes 32 bits of them (tar_fields.py).
Owner = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**32 - 1)]
# Whatever stands in a tar's header: only of devices it is a device number.
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Xattrs = tuple[tuple[bytes, bytes], ...]


class BadToc(FormatError):
    """A TOC that breaks a rule of its format, or claims more than the limits allow."""

    code = "E_BAD_TOC"


class TocTooLarge(BadToc):
    """A TOC that takes more memory than it may."""

    code = "E_TOC_TOO_LARGE"


class RawEntry(msgspec.Struct, gc=False, rename="camel"):
    """An entry as a producer spells it; absent numbers are 0, absent texts empty.

    ``name_bytes`` and ``link_name_bytes`` carry names that are not UTF-8 and so cannot stand in
    JSON; only our writer sets them, and they are the name where they are present.
    """

    name: str
    type: str
    size: Size = 0
    modtime: str = ""
    link_name: str = ""
    mode: Size = 0
    uid: Owner = 0
    gid: Owner = 0
    offset: Size = 0
    inner_offset: Size = 0
    dev_major: Number = 0
    dev_minor: Number = 0
    xattrs: dict[str, bytes] = {}
    digest: str = ""
    chunk_offset: Size = 0
    chunk_size: Size = 0
    chunk_digest: str = ""
    chunk_type: str = ""
    name_bytes: bytes = b""
    link_name_bytes: bytes = b""


class RawToc(msgspec.Struct, rename="camel"):
    """A TOC as a producer spells it; Go spells an empty list null."""

    version: int
    entries: list[RawEntry] | None = None
    tar_split_digest: str = ""


class _Sketch(msgspec.Struct):
    """The same, one level less decoded; tells which entry is the bad one."""

    entries: list[msgspec.Raw] = []


_DECODER = msgspec.json.Decoder(RawToc)


def check_size(data: bytes, limits: Limits) -> None:
    """Raise BadToc for more JSON, or more entries in it, than *limits* allow."""
    if len(data) > limits.toc_size:
        raise BadToc(f"TOC: got {len(data)} bytes, expected at most {limits.toc_size}")
    # Before decoding: an entry takes ten times the memory of the shortest text of one.  A brace
    # opens an entry, its xattrs, or stands in a name.
    most = 2 * limits.entries + 1024
    if len(data) > most and data.count(b"{") > most:
        raise BadToc(f"TOC: more than {limits.entries} entries")


def check_memory(data: bytes, limits: Limits, per_entry: int) -> None:
    """Raise TocTooLarge where reading *data* would take more memory than *limits* allow.

    Told from sizes, before anything is made of them; *per_entry* is one of the constants of
    ``limits.py``.
    """
    if limits.memory is None or 3 * len(data) + len(data) // 20 * per_entry <= limits.memory:
        return  # also if it were nothing but the shortest of entries
    need = toc_memory(len(data), data.count(b"{"), per_entry)
    if need > limits.memory:
        raise TocTooLarge(
            f"TOC: reading {len(data)} bytes of JSON takes {need >> 20} MiB of memory, but only "
            f"{limits.memory >> 20} MiB are left for it"
        )


def decode_raw(data: bytes, limits: Limits) -> RawToc:
    """Return the TOC in *data*, or raise BadToc."""
    check_size(data, limits)
    try:
        toc = _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise BadToc(_culprit(data) or f"TOC: {data[:60]!r}… is not a valid TOC: {exc}") from exc
    except RecursionError as exc:
        raise BadToc("TOC: its JSON is nested too deeply") from exc
    if toc.version != TOC_VERSION:
        raise BadToc(f"TOC: got version {toc.version}, expected {TOC_VERSION}")
    count = len(toc.entries or ())
    if count > limits.entries:
        raise BadToc(f"TOC: got {count} entries, expected at most {limits.entries}")
    return toc


def read_xattrs(raw: Mapping[str, bytes], limits: Limits) -> Xattrs:
    """Return extended attributes sorted by name, or raise ValueError."""
    xattrs = sorted((name.encode(), value) for name, value in raw.items())
    for name, value in xattrs:
        if not 0 < len(name) <= limits.xattr_name_size or b"\0" in name:
            raise ValueError(
                f"xattr name {name[:300]!r} is not valid: 1 to {limits.xattr_name_size} bytes"
                " without NUL"
            )
        if len(value) > limits.xattr_value_size:
            raise ValueError(
                f"got {len(value)} bytes in xattr {name!r},"
                f" expected at most {limits.xattr_value_size}"
            )
    list_size = sum(len(name) + 1 for name, _ in xattrs)
    if list_size > limits.xattr_list_size:
        raise ValueError(
            f"got {list_size} bytes of xattr names, expected at most {limits.xattr_list_size}"
        )
    return tuple(xattrs)


def sha256_bytes(text: str) -> bytes:
    """Return the 32 bytes of a ``sha256:…`` digest, or raise ValueError.

    Does what parse_digest does at a tenth of its cost; a TOC holds two per file.
    """
    digits = text[7:]
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    # fromhex takes capitals and blanks; writing it out again does not.
    if len(raw) != 32 or raw.hex() != digits or not text.startswith("sha256:"):
        raise ValueError(f"{text[:100]!r} is not a digest of sha256: and 64 lower-case hex digits")
    return raw


def _culprit(data: bytes) -> str | None:
    """Say which entry does not decode, and why; None when it is not an entry's fault."""
    try:
        sketch = msgspec.json.decode(data, type=_Sketch)
        for number, raw in enumerate(sketch.entries):
            try:
                msgspec.json.decode(raw, type=RawEntry)
            except (msgspec.MsgspecError, ValueError) as exc:
                reason = str(exc)
                start = bytes(raw)[:60]
                return f"TOC entry {number} ({start!r}…): {reason[:1].lower()}{reason[1:]}"
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    return None
