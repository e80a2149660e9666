"""The floors of docs/architecture.md: who may import whom, and where foreign libraries live.

A module imports floors below its own, its own part, and nothing else; found in the source, so that
imports inside functions and under TYPE_CHECKING count too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lazyfs"

# Part (a folder, or a module at the top) → floor.  Every part must be listed.
FLOORS = {
    "errors": 0,
    "digest": 0,
    "printable": 0,
    "environment": 0,
    "json_keys": 0,
    "oci": 1,
    "formats": 1,
    "rootfs": 2,
    "trust": 2,
    "registry": 3,
    "store": 3,
    "mount": 3,
    "interrupts": 3,
    "image": 4,
    "snapshot": 4,
    "service": 5,
    "cli": 6,
    "__main__": 7,
    "__init__": 0,
}
PURE_FLOOR = 2  # up to here: bytes in, values or errors out

# What pure parts may not import: input and output, clocks, the environment, concurrency.
IMPURE = {
    "asyncio", "fcntl", "glob", "http", "logging", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "trio", "urllib",
}  # fmt: skip

# Library → where it may be imported: a part, or one file.
HOMES = {
    "boto3": ["snapshot/s3_store.py"],
    "botocore": ["snapshot/s3_store.py"],
    "click": ["cli"],
    "cryptography": ["trust"],
    "httpx": ["registry/transport.py"],
    "pyfuse3": ["mount"],
    "rich": ["cli"],
    "yaml": ["snapshot/yaml_documents.py"],
}
# Lines of a file: beyond that it is more than one idea.  Tests are lists of cases.
LONGEST = {"lazyfs": 450, "tools": 450, "tests": 750}


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(path: Path) -> str:
    """Return the part that a file of lazyfs belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, relative imports resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # "from lazyfs import digest" names a part, "from lazyfs.digest import Digest" does
                # not need its last word; a name that is too long does no harm below.
                yield f"{base}.{alias.name}"


def check(path: Path) -> Iterator[str]:
    """Yield what is wrong with the imports of one file."""
    part = part_of(path)
    floor = FLOORS[part]
    where = path.relative_to(PACKAGE).as_posix()
    for name in sorted(set(imports_of(path))):
        words = name.split(".")
        if words[0] == "lazyfs":
            target = words[1] if len(words) > 1 and words[1] in FLOORS else "__init__"
            if target != part and FLOORS[target] >= max(floor, 1):
                yield f"{where} (floor {floor}) imports {name} (floor {FLOORS[target]})"
        elif words[0] in HOMES:
            if not any(where == home or where.startswith(f"{home}/") for home in HOMES[words[0]]):
                yield f"{where} imports {words[0]}, whose home is {', '.join(HOMES[words[0]])}"
        elif floor <= PURE_FLOOR and words[0] in IMPURE:
            yield f"{where} (floor {floor}) imports {words[0]}: floors 0 to {PURE_FLOOR} are pure"


def test_every_part_has_a_floor() -> None:
    assert {part_of(path) for path in sources()} <= FLOORS.keys()


@pytest.mark.parametrize("part", sorted({part_of(path) for path in sources()}))
def test_imports_go_down(part: str) -> None:
    wrong = [fault for path in sources() if part_of(path) == part for fault in check(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("where", "line", "fault"),
    [
        (
            "oci/x.py",
            "from lazyfs.formats.toc import Toc",
            "imports lazyfs.formats.toc.Toc (floor 1)",
        ),
        ("oci/x.py", "from lazyfs import formats", "imports lazyfs.formats (floor 1)"),
        ("oci/x.py", "from ..registry import source", "imports lazyfs.registry.source (floor 3)"),
        ("mount/x.py", "def f():\n    import lazyfs.store", "imports lazyfs.store (floor 3)"),
        ("image/x.py", "import httpx", "imports httpx, whose home is registry/transport.py"),
        ("registry/x.py", "import httpx", "imports httpx, whose home is registry/transport.py"),
        ("image/x.py", "from pyfuse3 import errors", "imports pyfuse3, whose home is mount"),
        ("rootfs/x.py", "import os.path", "imports os: floors 0 to 2 are pure"),
        ("rootfs/x.py", "from lazyfs.oci.manifest import Manifest", None),
        ("registry/transport.py", "import httpx", None),
        ("cli/x.py", "from lazyfs.cli.options import y", None),
        ("store/x.py", "from lazyfs import __version__", None),
    ],
)
def test_the_check_itself(
    where: str, line: str, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "lazyfs")
    path = tmp_path / "lazyfs" / where
    path.parent.mkdir(parents=True)
    path.write_text(line)
    found = list(check(path))
    assert bool(found) == (fault is not None)
    assert fault is None or fault in found[0]


@pytest.mark.parametrize(("folder", "longest"), LONGEST.items())
def test_files_hold_one_idea(folder: str, longest: int) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(ROOT / folder)}
    assert {str(path): lines for path, lines in lengths.items() if lines > longest} == {}


def test_the_architecture_page_lists_the_parts() -> None:
    """The map in docs/architecture.md names each part with its floor."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = {}
    for line in page.splitlines():
        cells = [cell.strip(" `/") for cell in line.split("|")]
        if len(cells) > 3 and cells[1].isdigit():
            listed.update(
                dict.fromkeys(cells[2].replace("`", "").replace("/", "").split(), cells[1])
            )
    parts = {part_of(path) for path in sources()} - {"__init__", "__main__"}
    assert {part: listed.get(part) for part in parts} == {part: str(FLOORS[part]) for part in parts}
