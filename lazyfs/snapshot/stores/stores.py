"""How users name stores and snapshots: ``/path``, ``file:///path``, ``s3://bucket/prefix``.

A snapshot is ``STORE/ID`` or ``STORE@POINTER``.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from lazyfs.documents.errors import StoreFailed
from lazyfs.errors import UsageError
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import POINTER_RE, WORD_RE, check_key
from lazyfs.snapshot.stores.objects import ObjectStore
from lazyfs.snapshot.stores.s3_store import S3Store

SCHEME_RE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)
BUCKET_RE = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
EXPECTED = "must be /path, file:///path or s3://bucket/prefix"


class BadStore(UsageError):
    """Text that names no store, or no snapshot in one."""

    code = "E_STORE_NAME"


class SnapshotName(msgspec.Struct, frozen=True):
    """A snapshot as the user names it; ``name`` is its id, or a pointer's name after "@"."""

    store: str
    name: str

    def __str__(self) -> str:
        return f"{self.store}{'' if self.name.startswith('@') else '/'}{self.name}"


def parse_snapshot_name(text: str) -> SnapshotName:
    """Return what ``STORE/ID`` or ``STORE@POINTER`` means, or raise BadStore."""
    store, _, last = text.rpartition("/")
    before, at, pointer = last.rpartition("@")
    if at:
        store = f"{store}/{before}" if store or text.startswith("/") else before
        name, is_name = f"@{pointer}", POINTER_RE.fullmatch(pointer) is not None
    else:
        store, name = store or ("/" if text.startswith("/") else ""), last
        is_name = WORD_RE.fullmatch(last) is not None
    if not is_name or not store or store.endswith(":/"):
        raise BadStore(
            f"snapshot: must be STORE/ID or STORE@POINTER, not {_shown(text)}",
            hint="`lazyfs snapshot list STORE` lists the snapshots and pointers of a store",
        )
    return SnapshotName(store, name)


def open_objects(
    url: str, *, s3_endpoint: str | None = None, must_exist: bool = False
) -> ObjectStore:
    """Return the store that *url* names; with *must_exist* its directory has to be there.

    Raises BadStore, and StoreFailed.
    """
    scheme = SCHEME_RE.match(url)
    if scheme is None:
        if not url:
            raise BadStore(f"store: {EXPECTED}, not empty")
        return _directory(Path(url), must_exist=must_exist)
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise BadStore(
            f"store: {EXPECTED}, without user, query and fragment, not {_shown(url)}",
            hint="credentials come from the environment or from the usual AWS files",
        )
    if scheme[1] == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return _directory(Path(unquote(parts.path)), must_exist=must_exist)
    if scheme[1] == "s3":
        return _s3(parts.netloc, parts.path.strip("/"), s3_endpoint, url)
    raise BadStore(f"store: {EXPECTED}, not {_shown(url)}")


def _directory(path: Path, *, must_exist: bool) -> ObjectStore:
    path = Path(os.path.abspath(path))
    if must_exist and not path.is_dir():
        raise StoreFailed(f"store {path} is not a directory")
    return DirectoryStore(path)


def _s3(bucket: str, prefix: str, endpoint: str | None, url: str) -> ObjectStore:
    if BUCKET_RE.fullmatch(bucket) is None:
        raise BadStore(f"store: must be s3://BUCKET/PREFIX, not {_shown(url)}")
    if prefix:
        check_key(prefix)
    return S3Store(bucket, prefix, endpoint=endpoint)


def _shown(text: str) -> str:
    """Return *text* for a message, without what could be a password."""
    return repr(re.sub(r"//[^/]*@", "//…@", text.partition("?")[0])[:200])
