"""Logging for programs: the libraries below only write records, this decides where they go."""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping

from lazyfs.printable import printable

LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
PRIORITIES = (  # of journald and syslog
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
DEBUG_PRIORITY = 7
SAID_LIMIT = 1000
LOUD_LIBRARIES = ("httpx", "httpcore", "pyfuse3")


class OneLineFormatter(logging.Formatter):
    """One line per message, whatever foreign text is in it; only tracebacks have more."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = printable(record.message)
        return super().formatMessage(record)


class TextFormatter(OneLineFormatter):
    """One line per record; *stamped* ones start with the time, in UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(self, *, stamped: bool) -> None:
        where = "%(levelname)s %(name)s: %(message)s"
        super().__init__(
            f"%(asctime)sZ {where}" if stamped else "lazyfs: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )


class JournalFormatter(OneLineFormatter):
    """A line with the priority prefix that journald understands (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* with its prefix on every line."""
        priority = next(
            (number for level, number in PRIORITIES if record.levelno >= level), DEBUG_PRIORITY
        )
        lines = super().format(record).split("\n")
        return "\n".join(f"<{priority}>{line}" for line in lines)


class JsonFormatter(logging.Formatter):
    """A JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as JSON."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "type": "log",
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


class OnceFilter(logging.Filter):
    """Let a record that is marked with ``once`` through only the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether *record* is to be written."""
        if not getattr(record, "once", False):
            return True
        text = record.getMessage()
        is_new = text not in self._said
        if len(self._said) < SAID_LIMIT:
            self._said.add(text)
        return is_new


def set_up_logging(
    verbosity: int,
    *,
    as_json: bool = False,
    is_server: bool = False,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Send records to standard error; *verbosity* -1 is quiet, 1 informs, 2 debugs.

    A server tells more than a command, unless it is to be quiet, and says when.
    """
    environment = os.environ if environment is None else environment
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(OnceFilter())
    if as_json:
        handler.setFormatter(JsonFormatter())
    elif is_server and _is_journal(environment):
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(TextFormatter(stamped=is_server or verbosity > 1))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    if is_server and verbosity == 0:
        verbosity = 1
    root.setLevel(LEVELS.get(verbosity, logging.DEBUG))
    for name in LOUD_LIBRARIES:  # what is information to them is a detail here
        logging.getLogger(name).setLevel(logging.DEBUG if verbosity > 2 else logging.WARNING)


def _is_journal(environment: Mapping[str, str]) -> bool:
    """Say whether standard error is the journal's stream, as ``$JOURNAL_STREAM`` has it."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return (str(found.st_dev), str(found.st_ino)) == (device, inode)
