"""The functions that docs/paths/ names are where the pages say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/paths").glob("*.md"))
NAMED = re.compile(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|c))(?::([A-Za-z_.]+))?`")


def names_in(path: Path) -> set[str]:
    """Return the functions, classes and methods that a file defines."""
    text = path.read_text()
    if path.suffix == ".c":
        return set(re.findall(r"^(?:static )?[a-z_ \*0-9]*?\b([a-z_0-9]+)\(", text, re.MULTILINE))
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


def faults_in(text: str) -> list[str]:
    """Return what a page names and is not there."""
    faults = []
    for where, name in NAMED.findall(text):
        path = ROOT / where if where.startswith("native/") else ROOT / "lazyfs" / where
        if not path.is_file():
            faults.append(f"{where}: no such file")
        elif name and name not in names_in(path):
            faults.append(f"{where}: no {name}")
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_step_is_where_the_page_says(page: Path) -> None:
    assert faults_in(page.read_text()) == []


def test_there_is_a_page_for_each_path() -> None:
    assert [page.stem for page in PAGES] == ["mount", "read", "restore", "run"]


def test_a_wrong_step_is_noticed() -> None:
    text = "`cli/start.py:main` `cli/start.py:nothing` `cli/gone.py:main` `native/module_toc.c:x_y`"
    assert len(faults_in(text)) == 3
