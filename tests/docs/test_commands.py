"""The commands' reference pages are what ``--help`` prints."""

import re
import subprocess
import sys
from pathlib import Path

from lazyfs.cli.main import COMMANDS
from tools.reference import FOLDER, pages, stale, write

ROOT = Path(__file__).parents[2]


def test_the_pages_are_what_the_program_says() -> None:
    """In a process of its own: what other tests have set is not in a page."""
    words = [sys.executable, "-m", "tools.reference", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + "run `make reference`"


def test_every_command_has_a_page() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == set(pages())


def test_a_page_that_differs_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "mount.md").write_text("something else")
    (tmp_path / "gone.md").write_text("of a command that is no more")
    (tmp_path / "run.md").unlink()
    assert stale(tmp_path) == ["gone.md", "mount.md", "run.md"]
    write(tmp_path)
    assert stale(tmp_path) == []


def test_the_readme_names_every_command() -> None:
    """Each stands in a row of its table, and nothing stands there that is no command."""
    rows = re.findall(
        r"^\| [^|]+ \| ((?:`\w+`(?:, )?)+) \|$", (ROOT / "README.md").read_text(), re.M
    )
    named = sorted(name for row in rows for name in re.findall(r"`(\w+)`", row))
    assert named == sorted(COMMANDS)
