"""How long readers and commands wait for a registry is the same wherever it is said."""

import re
from pathlib import Path

import pytest

from lazyfs.cli.options import DEFAULT_PATIENCE
from lazyfs.registry.retry import RetryPolicy

ROOT = Path(__file__).parents[2]
PAGES = (
    *("docs/reference/mount.md", "docs/reference/registries.md", "docs/howto/registries.md"),
    *("docs/adr/0028-readers-wait-for-the-registry.md", "lazyfs/cli/options.py"),
)


@pytest.mark.parametrize("page", PAGES)
def test_how_long_commands_try(page: str) -> None:
    text = " ".join((ROOT / page).read_text().replace('"', " ").split())
    policy = RetryPolicy()
    begun = re.findall(r"more than ([0-9]+) s after the first failure", text)
    assert begun == [f"{policy.patience_seconds:g}"], page
    assert re.search(rf"(tries|after|\||bound,) {policy.tries} (tries|times|at)\b", text), page
    assert "within a minute if" not in text
    assert "two minutes" not in text


def test_how_long_readers_wait() -> None:
    assert f"default `{DEFAULT_PATIENCE}`" in (ROOT / PAGES[0]).read_text()
    assert DEFAULT_PATIENCE == "10m", "which is 10 minutes in docs/howto/registries.md"
