"""What turned out to be rotten in the store, told to the mounts that may have shown it.

The kernel keeps what it has read.  So whoever finds that stored bytes are wrong tells every server
of the store, and each has the kernel forget those pages: the next reader gets right bytes.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.service.processes.control import MAX_QUESTION_SIZE, ServerSilent, ask
from lazyfs.service.record import is_alive, load_records, socket_path

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
    for record in load_records(runtime):
        is_other = record.pid != os.getpid() and is_alive(record)
        if not is_other or os.path.realpath(record.cache_dir) != os.path.realpath(store):
            continue
        try:
            path = socket_path(runtime, record.mount_id)
            answer = ask(path, message, seconds=TELL_SECONDS)
        except ServerSilent as error:
            log.warning("%s", error.message)
            answer = {}
        if answer.get("type") != ANSWER:
            unreached.append(record.mountpoint)
    return unreached


def decode_dropped(question: Mapping[str, Any]) -> Dropped | None:
    """Return what a message says, or None."""
    try:
        return msgspec.convert({"layers": question.get("layers")}, Dropped)
    except msgspec.ValidationError:
        return None
