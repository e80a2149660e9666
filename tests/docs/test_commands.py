"""The commands' reference pages are what ``--help`` prints."""

from pathlib import Path

from tools.reference import FOLDER, pages, stale, write


def test_the_pages_are_what_the_program_says() -> None:
    assert stale() == [], "run `make reference`"


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
