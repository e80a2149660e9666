"""The rooms of docs/architecture.md: who may import whom, and where foreign libraries live.

A module imports rooms on floors below its own, its own room, and nothing else; found in the source,
so that imports inside functions and under TYPE_CHECKING count too.  Inside a room no modules import
each other in a circle.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lazyfs"

# Room (a folder, or a module at the top) → floor.  Every room must be listed.
FLOORS = {
    "__init__": 0,
    "digest": 0,
    "environment": 0,
    "errors": 0,
    "json_keys": 0,
    "printable": 0,
    "formats.streams": 1,
    "oci": 1,
    "formats.tocs": 2,
    "trust": 2,
    "trust.notation": 3,
    "formats.tars": 3,
    "formats": 4,
    "registry.config": 5,
    "rootfs": 5,
    "documents": 6,
    "interrupts": 6,
    "registry.answers": 6,
    "trust.files": 8,
    "verity": 6,
    "mount": 7,
    "registry": 7,
    "store.content": 7,
    "trust.sigstore": 7,
    "store": 8,
    "fetch.origins": 9,
    "sandbox.specs": 9,
    "store.upkeep": 9,
    "fetch": 10,
    "signatures": 10,
    "sandbox.runtimes": 10,
    "fetch.ahead": 11,
    "image.layers": 11,
    "image": 12,
    "sandbox": 12,
    "convert": 13,
    "snapshot.stores": 13,
    "snapshot": 14,
    "service.processes": 15,
    "engines": 16,
    "service": 16,
    "cli": 17,
    "cli.cache": 18,
    "cli.mounts": 18,
    "cli.images": 19,
    "cli.sandboxes": 20,
    "cli.snapshots": 21,
    "__main__": 99,
}
# Bytes in, values or errors out: no input and output, no clock, no environment.
PURE = {
    "digest",
    "errors",
    "formats",
    "formats.streams",
    "formats.tars",
    "formats.tocs",
    "json_keys",
    "oci",
    "printable",
    "rootfs",
    "trust",
    "trust.notation",
    "trust.sigstore",
    "verity",
}

# What pure rooms may not import.
IMPURE = {
    "asyncio", "fcntl", "glob", "http", "logging", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "trio", "urllib",
}  # fmt: skip

# Library → where it may be imported: a room with those below it, or one file.
HOMES = {
    "boto3": ["snapshot/stores/s3_store.py"],
    "botocore": ["snapshot/stores/s3_store.py"],
    "click": ["cli"],
    "cryptography": ["trust"],
    "httpx": ["registry/transport.py"],
    "pyfuse3": ["mount"],
    "rich": ["cli"],
    "yaml": ["documents/yaml_documents.py"],
}
# Lines of a file: beyond that it is more than one idea.  Tests are lists of cases.
LONGEST = {"lazyfs": 450, "tools": 450, "tests": 750}
# Lines of a function's statements, its docstring not counted: beyond that nobody reads it aloud.
LONGEST_FUNCTION = 60
# Files of a folder: beyond that nobody finds anything.  `__init__.py` is not counted.
MOST = {"lazyfs": 20, "tools": 24, "tests": 24, "native": 40}


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    """Return the dotted name of a module below the package, of its ``__init__`` the folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(name: str, rooms: Mapping[str, int] | None = None) -> str:
    """Return the room that a dotted name belongs to: the longest that it begins with."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        room = ".".join(words[:count])
        if room in (FLOORS if rooms is None else rooms):
            return room
    return "__init__"


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
                # "from lazyfs import digest" names a room, "from lazyfs.digest import Digest" does
                # not need its last word; a name that is too long does no harm below.
                yield f"{base}.{alias.name}"


def check(path: Path) -> Iterator[str]:
    """Yield what is wrong with the imports of one file."""
    where = path.relative_to(PACKAGE).as_posix()
    room = room_of(name_of(path))
    floor = FLOORS[room]
    for name in sorted(set(imports_of(path))):
        words = name.split(".")
        if words[0] == "lazyfs":
            target = room_of(".".join(words[1:]))
            if target != room and FLOORS[target] >= max(floor, 1):
                yield f"{where} (floor {floor}) imports {name} (floor {FLOORS[target]})"
        elif words[0] in HOMES:
            if not any(where == home or where.startswith(f"{home}/") for home in HOMES[words[0]]):
                yield f"{where} imports {words[0]}, whose home is {', '.join(HOMES[words[0]])}"
        elif room in PURE and words[0] in IMPURE:
            yield f"{where} imports {words[0]}: {room} is pure"


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other (Tarjan, iterative enough for us)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in sorted(arrows.get(name, ())):
            if target not in number:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], number[target])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in arrows:
        if name not in number:
            visit(name)
    return found


def arrows_of(paths: list[Path]) -> dict[str, set[str]]:
    """Return module → modules of the package that it imports."""
    names = {name_of(path) for path in paths}
    arrows: dict[str, set[str]] = {}
    for path in paths:
        targets = set()
        for imported in imports_of(path):
            words = imported.split(".")[1:]
            for count in (len(words), len(words) - 1):
                candidate = ".".join(words[:count])
                if imported.startswith("lazyfs.") and candidate in names:
                    targets.add(candidate)
                    break
        arrows[name_of(path)] = targets - {name_of(path)}
    return arrows


def test_every_room_has_a_floor() -> None:
    assert {room_of(name_of(path)) for path in sources()} <= FLOORS.keys()
    folders = {name_of(path) for path in sources() if path.name == "__init__.py"} - {"__init__"}
    assert folders <= FLOORS.keys()


def test_every_room_says_what_it_is_for() -> None:
    for path in sources():
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert text.endswith("."), path


@pytest.mark.parametrize("room", sorted({room_of(name_of(path)) for path in sources()}))
def test_imports_go_down(room: str) -> None:
    paths = [path for path in sources() if room_of(name_of(path)) == room]
    wrong = [fault for path in paths for fault in check(path)]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    assert circles(arrows_of(sources())) == []


@pytest.mark.parametrize(
    ("where", "line", "fault"),
    [
        (
            "oci/x.py",
            "from lazyfs.formats.tocs.toc import Toc",
            "imports lazyfs.formats.tocs.toc.Toc (floor 2)",
        ),
        ("oci/x.py", "from lazyfs import formats", "imports lazyfs.formats (floor 4)"),
        ("oci/x.py", "from ..registry import source", "imports lazyfs.registry.source (floor 7)"),
        ("mount/x.py", "def f():\n    import lazyfs.fetch", "imports lazyfs.fetch (floor 10)"),
        (
            "sandbox/runtimes/x.py",
            "from lazyfs.sandbox.run import run",
            "imports lazyfs.sandbox.run.run (floor 12)",
        ),
        ("image/x.py", "import httpx", "imports httpx, whose home is registry/transport.py"),
        ("registry/x.py", "import httpx", "imports httpx, whose home is registry/transport.py"),
        ("image/x.py", "from pyfuse3 import errors", "imports pyfuse3, whose home is mount"),
        ("rootfs/x.py", "import os.path", "imports os: rootfs is pure"),
        ("formats/tars/x.py", "import time", "imports time: formats.tars is pure"),
        ("rootfs/x.py", "from lazyfs.oci.manifest import Manifest", None),
        ("registry/transport.py", "import httpx", None),
        ("cli/x.py", "from lazyfs.cli.options import y", None),
        ("cli/mounts/x.py", "from lazyfs.cli.options import y", None),
        ("sandbox/x.py", "from lazyfs.sandbox.runtimes.runsc import y", None),
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


def test_a_file_in_a_wrong_room_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file is right in its own room, and wrong in one on a lower floor."""
    source = (PACKAGE / "fetch/transfer.py").read_text()
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "lazyfs")
    for room, is_right in (("fetch", True), ("store", False), ("rootfs", False)):
        path = tmp_path / "lazyfs" / room / "transfer.py"
        path.parent.mkdir(parents=True)
        path.write_text(source)
        assert (list(check(path)) == []) == is_right, room


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "back",
    [
        "from lazyfs.store.upkeep.b import b",
        "from .upkeep import b",
        "from lazyfs.store.upkeep import b as c",
        "import lazyfs.store.upkeep.b",
        "def f():\n    from lazyfs.store.upkeep.b import b",
        "def f():\n    import lazyfs.store.upkeep.b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .upkeep.b import b",
        "from lazyfs.store import c",
    ],
)
def test_circles_are_found_in_files(
    back: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a room and one below it, at the top of a file, in a function, for types only."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "lazyfs")
    files = {
        "store/a.py": back,
        "store/c.py": "import lazyfs.store.upkeep.b",
        "store/upkeep/b.py": "from lazyfs.store.a import a",
    }
    for where, text in files.items():
        path = tmp_path / "lazyfs" / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (found,) = circles(arrows_of([tmp_path / "lazyfs" / where for where in files]))
    assert {"store.a", "store.upkeep.b"} <= set(found)


@pytest.mark.parametrize(("folder", "longest"), LONGEST.items())
def test_files_hold_one_idea(folder: str, longest: int) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(ROOT / folder)}
    assert {str(path): lines for path, lines in lengths.items() if lines > longest} == {}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines the statements of a function take, without its docstring."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if has_docstring else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_functions(path: Path) -> Iterator[str]:
    """Yield the functions of a file that are longer than a screen."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = lines_of(node)
            if lines > LONGEST_FUNCTION:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("folder", LONGEST)
def test_functions_fit_on_a_screen(folder: str) -> None:
    found = [each for path in sources(ROOT / folder) for each in long_functions(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("lines", "is_long"), [(60, False), (61, True)])
def test_long_functions_are_found(lines: int, is_long: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    body = "        pass\n" * lines
    path.write_text(f'class A:\n    async def f(self) -> None:\n        """Do."""\n{body}')
    assert bool(list(long_functions(path))) == is_long


@pytest.mark.parametrize(("top", "most"), MOST.items())
def test_folders_hold_few_files(top: str, most: int) -> None:
    crowded = {}
    for folder in [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]:
        names = [
            path.name
            for path in folder.iterdir()
            if path.suffix in {".py", ".c", ".h"} and path.name != "__init__.py"
        ]
        if len(names) > most:
            crowded[folder.relative_to(ROOT).as_posix()] = len(names)
    assert crowded == {}


def test_the_architecture_page_lists_the_rooms() -> None:
    """The map in docs/architecture.md names each room with its floor."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].isdigit():
            for word in cells[2].replace("`", "").split():
                listed[word.strip("/").replace("/", ".")] = int(cells[1])
    rooms = {room_of(name_of(path)) for path in sources()} - {"__init__", "__main__"}
    assert {room: listed.get(room) for room in rooms} == {room: FLOORS[room] for room in rooms}
