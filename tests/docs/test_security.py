"""docs/security.md names tests and targets that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:tests/[\w/]*)?(?:test_\w+\.py)?)`", PAGE)) - {""}
    assert len(named) > 20
    missing = [
        name
        for name in named
        if not (ROOT / (name if name.startswith("tests/") else f"tests/attacks/{name}")).exists()
    ]
    assert missing == []


def test_every_target_that_the_page_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
