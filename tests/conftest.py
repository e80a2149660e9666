"""Fixtures that every test may use."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis.internal.observability  # noqa: F401 - its plugin does, too late: see below
import pytest

# The tests start lazyfs a thousand times: compiled once, each start takes half the time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Whatever a test makes stays in the two young generations until the test has ended: see below.
gc.set_threshold(5000, 1_000_000, 1_000_000)


@pytest.fixture
def anyio_backend() -> str:
    """Asynchronous tests run under trio, as lazyfs does."""
    return "trio"


def pytest_collection_finish() -> None:
    """Set aside what collecting the tests made: each later collection is ten times as fast.

    Hypothesis must be there by then: it looks for who refers to trio's random numbers, and finds
    nobody among what is set aside.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Collect after each test, so that a ResourceWarning lands in the test that caused it."""
    yield
    gc.collect(1)


@pytest.fixture(scope="module", autouse=True)
def collect_all_garbage() -> Iterator[None]:
    """Collect what fixtures of a module made, too; looking at it after each test is slow."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of reference layers by official producers."""
    return Path(__file__).parent / "fixtures"
