"""TOCs spelled by hand, for tests that need a particular one."""

import hashlib
import json
from typing import Any

BLOB_SIZE = 1 << 20


def sha(data: bytes) -> str:
    """Return the digest of *data* as a TOC spells it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


EMPTY = sha(b"")


def raw_entry(name: str, kind: str = "dir", **fields: Any) -> dict[str, Any]:
    """Return an entry in JSON's types."""
    return {"name": name, "type": kind, "mode": 0o755, **fields}


def raw_file(name: str, size: int = 10, offset: int = 100, **fields: Any) -> dict[str, Any]:
    """Return a regular file of one chunk; its digests are of nothing in particular."""
    digest = sha(name.encode())
    entry = {"size": size, "offset": offset, "digest": digest, "chunkDigest": digest, **fields}
    return raw_entry(name, "reg", **{key: v for key, v in entry.items() if v is not None})


def raw_chunk(offset: int, size: int, blob_offset: int, **fields: Any) -> dict[str, Any]:
    """Return a further chunk of the file before it."""
    return {
        "name": "whatever",
        "type": "chunk",
        "offset": blob_offset,
        "chunkOffset": offset,
        "chunkSize": size,
        "chunkDigest": sha(b"%d" % offset),
        **fields,
    }


def spelled(*entries: dict[str, Any], version: Any = 1, **fields: Any) -> bytes:
    """Return the JSON of a TOC."""
    return json.dumps({"version": version, "entries": entries, **fields}).encode()
