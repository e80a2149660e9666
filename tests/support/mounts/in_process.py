"""The command line in this process: quick, and its mistakes are seen."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from click.testing import CliRunner, Result

from lazyfs.cli.main import cli

Invoke = Callable[..., Result]


@contextmanager
def in_process() -> Iterator[Invoke]:
    """Run ``lazyfs`` with words; anything but our own errors is a failure.  Logging is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def invoke(*words: object) -> Result:
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert "E_BUG" not in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    try:
        yield invoke
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
