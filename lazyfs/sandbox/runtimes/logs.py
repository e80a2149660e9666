"""Output of containers and runtimes: files of ``log_dir``, and the reason found in them."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lazyfs.documents.errors import NoSpace, RuntimeFailed
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.errors import LazyfsError
from lazyfs.sandbox.runtimes.log_writer import open_writer
from lazyfs.store.paths import NO_SPACE

LOG_LIMIT = 1 << 16  # bytes of a log that are looked at for a reason
REASON_LIMIT = 600  # characters
REASON_LINES = 3

# How the stacks begin that a Go program writes when it panics.
TRACE_RE = re.compile(r"goroutine \d+ \[|\[signal SIG|\t\S+\.go:\d+")


@contextmanager
def container_output(
    plan: SandboxPlan, container: ContainerPlan, *, is_file: bool = False
) -> Iterator[IO[bytes]]:
    """Open what becomes of what a container says: it is added to its log, which stays bounded.

    With *is_file* the container writes the file itself, without a bound.  A restored one would go
    on at its old offset in a new file; appending ignores offsets.
    """
    make_folder(plan.log_dir)
    path = plan.log_dir / f"{container.name}.log"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise _failed(path, exc) from exc
    if not is_file:
        os.close(descriptor)
        record, limits = writer_record(plan, container), plan.limits
        descriptor = open_writer(path, record, limit=limits.log_size, count=limits.log_files)
    with open(descriptor, "wb", buffering=0) as file:
        yield file


def writer_record(plan: SandboxPlan, container: ContainerPlan) -> Path:
    """Return the file that says who writes a container's log."""
    return plan.state_dir / f"{container.container_id}.log-writer"


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, unless it is there.  Raises RuntimeFailed."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise _failed(path, exc) from exc


def log_size(path: Path) -> int:
    """Return the size of a log, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def last_lines(path: Path, before: int) -> str:
    """Return the reason in what was added to the plain log at *path* since it had size *before*."""
    return shorten_reason(_added(path, before))


def last_message(path: Path, before: int) -> str:
    """Return the last message that was added to a JSON log, shortened; "" if there is none."""
    messages = parse_log(_added(path, before))
    return shorten_reason(messages[-1]) if messages else ""


def parse_log(text: str) -> list[str]:
    """Return the messages of a JSON log: objects with ``msg``, whether or not on lines."""
    decoder = json.JSONDecoder()
    messages: list[str] = []
    position = text.find("{")
    while 0 <= position < len(text):
        entry: Any
        try:
            entry, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position = text.find("{", position + 1)  # the first one may be cut
            continue
        if isinstance(entry, dict) and isinstance(entry.get("msg"), str):
            messages.append(entry["msg"])
        position = text.find("{", position)
    return messages


def shorten_reason(text: str) -> str:
    """Return the last lines of *text* before a trace of Go's, on one line."""
    match = TRACE_RE.search(text)
    if match is not None and text[: match.start()].strip():
        text = text[: match.start()]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = "; ".join(lines[-REASON_LINES:]).rstrip(":;")
    return joined if len(joined) <= REASON_LIMIT else joined[:REASON_LIMIT] + "…"


def _added(path: Path, before: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(before, size - LOG_LIMIT))
            return file.read(LOG_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""


def _failed(path: Path, exc: OSError) -> RuntimeFailed | NoSpace:
    family = NoSpace if exc.errno in NO_SPACE else RuntimeFailed
    return family(f"{path}: {exc.strerror}")


def forget_logs(log_dir: Path, error: BaseException) -> None:
    """Take away a hint that leads to *log_dir*, which is gone."""
    if isinstance(error, LazyfsError) and str(log_dir) in (error.hint or ""):
        error.hint = None
