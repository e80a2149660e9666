"""What names meant the last time: a reference and a platform to the manifest of an image.

So that people can name what is on this machine as they mounted it, with nothing asked of anybody.
Whoever mounts a tag asks its registry all the same: these records say what was, not what is.

A record is a small file of its own, so that processes that note the same name at the same time need
no lock: the later one counts.
"""

import hashlib
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError
from lazyfs.store.content.regular import open_regular, read_regular
from lazyfs.store.paths import Store, store_error

FILE_LIMIT = 1 << 16


class NameRecord(msgspec.Struct, frozen=True):
    """A name as ``docker.io/library/python:3.12`` or ``oci:/srv/images:tag``, and what it meant.

    ``index_digest`` is that of the index which had the manifest for ``platform``, if one did.
    """

    name: str
    platform: str
    manifest_digest: str
    index_digest: str | None = None


def save_name(store: Store, record: NameRecord) -> None:
    """Keep what a name means; StoreError when the store cannot.

    A name that is not UTF-8, which only a folder's can be, is not kept.
    """
    try:
        data = msgspec.json.encode(record)
    except UnicodeEncodeError:
        return
    path = store.names / hashlib.sha256(f"{record.name}\n{record.platform}".encode()).hexdigest()
    try:
        store.names.mkdir(mode=0o700, exist_ok=True)
        if path.is_file() and read_regular(path) == data:
            return
    except OSError as exc:
        raise store_error(path, exc) from exc
    store.write_file(path, data)


def load_names(store: Store) -> list[NameRecord]:
    """Return what is known, sorted by name; what cannot be read is left out."""
    records = (_load(path) for path in store.names.glob("*"))
    found = [record for record in records if record is not None]
    return sorted(found, key=lambda record: (record.name, record.platform))


def names_of(store: Store) -> dict[str, list[str]]:
    """Return the names of each image, by manifest digest."""
    names: dict[str, list[str]] = {}
    for record in load_names(store):
        names.setdefault(record.manifest_digest, []).append(record.name)
    return names


def remove_names(store: Store, manifest_digest: Digest) -> None:
    """Forget the names that meant an image."""
    for path in store.names.glob("*"):
        record = _load(path)
        if record is not None and record.manifest_digest == str(manifest_digest):
            path.unlink(missing_ok=True)


def _load(path: Path) -> NameRecord | None:
    try:
        with open_regular(path) as file:
            record = msgspec.json.decode(file.read(FILE_LIMIT), type=NameRecord)
        parse_digest(record.manifest_digest)
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.MsgspecError, FormatError):
        return None
    return record
