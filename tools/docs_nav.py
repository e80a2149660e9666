"""A hook of mkdocs: an entry of the navigation that ends in ``/`` becomes that folder's pages."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Expand the folders in the navigation, in the order of their names; ``index.md`` first."""
    config["nav"] = [expand(entry, Path(config["docs_dir"])) for entry in config["nav"]]
    return config


def expand(entry: Any, docs: Path) -> Any:
    """Return an entry of the navigation with its folders replaced by lists of pages."""
    if isinstance(entry, dict):
        return {title: expand(value, docs) for title, value in entry.items()}
    if isinstance(entry, list):
        return [expand(value, docs) for value in entry]
    if entry.endswith("/"):
        names = sorted((path.name for path in (docs / entry).glob("*.md")), key=is_later)
        return [f"{entry}{name}" for name in names]
    return entry


def is_later(name: str) -> tuple[bool, str]:
    """Return a key that sorts ``index.md`` before all others."""
    return name != "index.md", name
