"""The command line in this process, with a cache of its own."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts.in_process import in_process


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def run(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run ``lazyfs`` with words; anything but our own errors counts as a failure."""
    monkeypatch.setenv("LAZYFS_CACHE_DIR", str(cache_dir))
    monkeypatch.delenv("NO_COLOR", raising=False)
    with in_process() as invoke:

        def done(*words: object) -> Done:
            result = invoke(*words)
            return Done(result.exit_code, result.stdout_bytes, result.stderr)

        yield done
