"""How much of a layer is here and right: it is hashed again, once while nothing changes.

What has rotted is put aside and fetched anew when it is needed.

``checked`` beside the content says which file was hashed, and in which state.  It is believed until
the machine starts again, while the file is the same and unchanged; the changes of a live mount do
not count, which verifies what it writes.  A lock on it lets one look at a time, so that several who
start together hash once, and none is taken for a mount.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from lazyfs.digest import Digest
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.locks import lock_within
from lazyfs.store.content.presence import ABSENT, RESIDENT, UNCLEAN
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store, store_error
from lazyfs.store.quarantine import put_chunk_aside
from lazyfs.store.usage import is_in_use

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
WAIT_SECONDS = 60.0  # for somebody else who hashes the layer
TICK = 50_000_000  # nanoseconds: two changes within the kernel's clock tick have one time


class Survey(msgspec.Struct, frozen=True):
    """What is stored of a layer's content: sizes in bytes, ``rotten`` a number of chunks.

    ``verified_size`` has its digests; nothing else is stored once this is made.  ``hashed_size`` of
    it was hashed for this.
    """

    content_size: int
    verified_size: int
    rotten: int = 0
    hashed_size: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of the content is here."""
        return self.verified_size == self.content_size


class Checked(msgspec.Struct, frozen=True, rename="camel"):
    """A content file in a state in which all that is marked was hashed; ``changed_at`` in ns."""

    boot_id: str
    inode: int
    size: int
    changed_at: int


def survey_layer(store: Store, toc_digest: Digest, *, rehash: bool = False) -> Survey | None:
    """Return what is stored of a layer, all of it right; None where its table is not here.

    Hashes what was not hashed since it changed, all of it with *rehash*, and drops what is wrong.
    May run in a thread, for several layers at once.  Raises StoreError.
    """
    folder = store.layer_path(toc_digest)
    table = load_table(store, toc_digest)
    if table is None:
        return None
    if not (folder / "presence").exists():
        return Survey(table.payload_size, 0)
    with _only_one(folder) as fd:
        # Before the layer is opened: then we use it ourselves.
        is_live = fd >= 0 and is_in_use(folder)
        content = LayerContent(folder, table, counts_as_use=False)
        try:
            started, now = time.time(), _checked(content)
            is_believed = not rehash and _is_unchanged(_load(fd), now, is_live=is_live)
            survey = _survey(store, content, is_believed=is_believed)
            if not is_believed:
                content.note_checked(started)
                _save(fd, now)
            return survey
        finally:
            content.close()


def _survey(store: Store, content: LayerContent, *, is_believed: bool) -> Survey:
    table = content.table
    verified = rotten = hashed = 0
    for chunk in range(table.count):
        was, size = content.states[chunk], table.size(chunk)
        if was == ABSENT:
            continue
        if was == RESIDENT and is_believed:
            verified += size
            continue
        hashed += size
        if _is_right(content, chunk):
            verified += size
            continue
        if was == RESIDENT or content.doubted != UNCLEAN:
            rotten += 1
            put_chunk_aside(store, content, chunk)
        content.forget(chunk)
    return Survey(table.payload_size, verified, rotten, hashed)


def _is_right(content: LayerContent, chunk: int) -> bool:
    try:
        return content.hash_again(chunk)
    except OSError:
        return False


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the lock of those who look; -1 where it cannot be had, and nothing is believed."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(folder / "checked", flags, 0o600)
    except OSError:
        yield -1
        return
    try:
        yield fd if lock_within(fd, WAIT_SECONDS) else -1
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _checked(content: LayerContent) -> Checked:
    """Return the state of a content file as it is before it is hashed."""
    try:
        boot_id = BOOT_ID.read_text().strip()
        status = os.fstat(content.fd)
    except OSError as exc:
        raise store_error(content.folder, exc) from exc
    # What changes in the tick of the last change would not be seen: such a state is never met
    # again.
    is_settled = time.time_ns() - status.st_ctime_ns > TICK
    changed_at = status.st_ctime_ns if is_settled else 0
    return Checked(boot_id, status.st_ino, status.st_size, changed_at)


def _is_unchanged(before: Checked | None, now: Checked, *, is_live: bool) -> bool:
    if before is None:
        return False
    known = (before.boot_id, before.inode, before.size)
    if known != (now.boot_id, now.inode, now.size):
        return False
    return is_live or before.changed_at == now.changed_at != 0


def _load(fd: int) -> Checked | None:
    if fd < 0:
        return None
    try:
        return msgspec.json.decode(os.pread(fd, 4096, 0), type=Checked)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def _save(fd: int, checked: Checked) -> None:
    """Write down what was hashed; where that fails it is hashed again."""
    if fd < 0:
        return
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, msgspec.json.encode(checked), 0)
    except OSError:
        pass
