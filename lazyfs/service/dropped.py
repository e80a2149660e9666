"""What turned out to be rotten in the store, told to the mounts that may have shown it.

The kernel keeps what it has read.  So whoever finds that stored bytes are wrong tells every server
of the store, and each has the kernel forget those pages: the next reader gets right bytes.
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.mount.point import load_mountinfo, topmost
from lazyfs.service.processes.control import MAX_QUESTION_SIZE, ServerSilent, ask
from lazyfs.service.record import MountRecord, is_alive, load_records, socket_path

SUCCESSOR_SECONDS = 10.0
"""How long a killed server's successor may take to be there."""

TELL_SECONDS = 60.0
"""How long a server may take: it looks for the files in an index of perhaps 300,000."""

QUESTION = "dropped"
ANSWER = "invalidated"

log = logging.getLogger(__name__)


class Dropped(msgspec.Struct, frozen=True):
    """Chunks that were dropped, by the name of their layer's folder: pairs of a first chunk and the
    one behind the last; None where nothing of the layer could be looked at, and all is doubted."""

    layers: dict[str, list[tuple[int, int]] | None]


def runs_of(chunks: Iterable[int]) -> list[tuple[int, int]]:
    """Return *chunks* as ranges: the first, and the one behind the last."""
    runs: list[tuple[int, int]] = []
    for chunk in sorted(set(chunks)):
        if runs and runs[-1][1] == chunk:
            runs[-1] = (runs[-1][0], chunk + 1)
        else:
            runs.append((chunk, chunk + 1))
    return runs


def tell_mounts(
    runtime: Path, store: Path, dropped: Mapping[str, Iterable[int] | None]
) -> list[str]:
    """Tell every live server of *store* but this process; return the mountpoints not reached.

    *dropped* has the numbers of chunks by the name of their layer's folder, None for all of them;
    servers whose files are no longer those of the store, which nobody can look at, doubt all that
    they have.  Returns when the kernel has forgotten what it had.
    """
    layers: dict[str, Any] = {
        name: None if chunks is None else runs_of(chunks) for name, chunks in dropped.items()
    }
    message = {"type": QUESTION, "layers": layers}
    if len(msgspec.json.encode(message)) > MAX_QUESTION_SIZE // 2:
        message["layers"] = dict.fromkeys(layers)
    unreached = []
    deadline = time.monotonic() + SUCCESSOR_SECONDS
    for record in load_records(runtime):
        is_ours = os.path.realpath(record.cache_dir) == os.path.realpath(store)
        if not is_ours or record.pid == os.getpid():
            continue
        is_there = is_alive(record) or _is_mounted(record)
        if is_there and not _tell(runtime, record, message, deadline):
            unreached.append(record.mountpoint)
    return unreached


def _tell(runtime: Path, record: MountRecord, message: dict[str, Any], deadline: float) -> bool:
    """Tell the server of a mount, or its successor, and return whether it has understood.

    A killed server's successor is waited for until *deadline*: the kernel has the old one's pages.
    """
    path = socket_path(runtime, record.mount_id)
    while True:
        try:
            return ask(path, message, seconds=TELL_SECONDS).get("type") == ANSWER
        except ServerSilent as error:
            if time.monotonic() > deadline or not _is_mounted(record):
                log.warning("%s", error.message)
                return False
        time.sleep(0.05)


def _is_mounted(record: MountRecord) -> bool:
    """Say whether the mount is there; nobody is asked who might have to wait for a server."""
    entry = topmost(load_mountinfo(), os.fsencode(record.mountpoint))
    return entry is not None and entry.device == record.device


def decode_dropped(question: Mapping[str, Any]) -> Dropped | None:
    """Return what a message says, or None."""
    try:
        return msgspec.convert({"layers": question.get("layers")}, Dropped)
    except msgspec.ValidationError:
        return None
