"""Log files of containers' output, of bounded size.

A container writes into a pipe.  A shell beside it copies that into the log, and begins another
file when one is full: it looks at nothing in between and takes 1 MB of memory.  A disk that is
full loses output, and stops nobody.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.sandbox.runtimes.programs import reap, start_time, wait_gone

LAG_SECONDS = 5.0
# Arguments: the log, bytes of each file, number of files.  dd copies what each read gives, at
# once; it ends after so many reads or bytes, or at the end of the pipe: nothing is added then.
WRITER = r"""
log=$1 limit=$2 count=$3
trap '' HUP INT TERM PIPE
umask 077
while :; do
    size=$(stat -c %s "$log" 2>/dev/null || echo 0)
    if [ "$size" -ge "$limit" ]; then
        number=$((count - 1))
        if [ "$number" -le 0 ]; then : >"$log"; fi
        while [ "$number" -gt 0 ]; do
            before=$((number - 1))
            if [ "$before" -eq 0 ]; then mv -f "$log" "$log.1"
            elif [ -e "$log.$before" ]; then mv -f "$log.$before" "$log.$number"; fi
            number=$before
        done
        size=0
    fi
    if dd bs=4096 iflag=count_bytes count=$((limit - size)) of="$log" oflag=append \
        conv=notrunc status=none 2>/dev/null
    then
        if [ "$(stat -c %s "$log" 2>/dev/null || echo 0)" -le "$size" ]; then exit 0; fi
    else
        dropped=$(dd bs=65536 iflag=count_bytes count=1048576 status=none 2>/dev/null | wc -c)
        if [ "$dropped" -eq 0 ]; then exit 0; fi
    fi
done
"""


class _Writer(msgspec.Struct):
    pid: int
    start: int


def open_writer(log: Path, record: Path, *, limit: int, count: int) -> int:
    """Start what writes *log*; return a descriptor for what is to be in it.

    *limit* is of each of *count* files.  *record* says which process it is.  Raises RuntimeFailed.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    words = ["sh", "-c", WRITER, "lazyfs-log", str(log), str(limit), str(count)]
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    try:
        pid = os.posix_spawnp(
            words[0],
            words,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0), *null],
            setsid=True,
        )
    except OSError as exc:
        os.close(writing)
        raise RuntimeFailed(f"cannot start {words[0]}: {exc.strerror}") from exc
    finally:
        os.close(reading)
    with suppress(OSError):
        record.write_bytes(msgspec.json.encode(_Writer(pid, start_time(pid) or 0)))
    return writing


def wait_written(record: Path) -> None:
    """Wait until all is in the log, once the last who could say something has ended."""
    try:
        writer = msgspec.json.decode(record.read_bytes(), type=_Writer)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    deadline = time.monotonic() + LAG_SECONDS
    while start_time(writer.pid) == writer.start and time.monotonic() < deadline:
        wait_gone([writer.pid], max(0.0, deadline - time.monotonic()))
    reap(writer.pid)
