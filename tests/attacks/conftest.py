"""The command line in this process, as the tests of its commands have it."""

from tests.cli.conftest import cache_dir, run

__all__ = ["cache_dir", "run"]
