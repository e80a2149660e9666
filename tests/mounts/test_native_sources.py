"""The native module is built from all of its sources, whoever builds it; and they are in floors."""

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lazyfs
from tests.support.c_sources import arrows_of, circle_in, code_of, functions_in

ROOT = Path(__file__).parent.parent.parent
NATIVE = ROOT / "native"
RECORDER = ROOT / "tests/crash/recorder"
MODULE = {
    f"native/{name}.c" for name in ("module_image", "module_init", "module_server", "module_toc")
}
INCLUDES = [NATIVE / "include", NATIVE / "src", NATIVE / "tests"]
LONGEST = 450


def sources_in(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*.[ch]")}


CORE = sources_in(NATIVE / "include", NATIVE / "src")
FUZZED = {path.stem.removeprefix("fuzz_") for path in NATIVE.glob("fuzz/fuzz_*.c")}
# Each program with all that is linked into it.
PROGRAMS = {
    "module": CORE | set(NATIVE.glob("*.[ch]")),
    "tests": CORE | sources_in(NATIVE / "tests"),
    "recorder": sources_in(RECORDER),
    **{
        f"fuzz_{target}": CORE
        | sources_in(NATIVE / "tests", NATIVE / "fuzz" / target)
        | {NATIVE / "fuzz" / name for name in (f"fuzz_{target}.c", "fuzz.h", "main.c")}
        for target in FUZZED
    },
}


def test_the_package_names_every_source():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (module,) = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    names = {str(path.relative_to(ROOT)) for path in PROGRAMS["module"]}
    headers = {name for name in names if name.endswith(".h")}
    assert set(module["sources"]) == names - headers
    assert set(module["depends"]) == headers
    assert module["include-dirs"] == ["native/include", "native/src"]
    assert module["optional"]


def test_the_core_knows_no_python():
    def who_includes(name: str) -> set[str]:
        return {str(path.relative_to(ROOT)) for path in CORE if name in path.read_text()}

    assert who_includes("Python.h") | who_includes('"module') == set()
    assert {str(path.relative_to(ROOT)) for path in NATIVE.glob("*.c")} == MODULE


def test_both_sides_name_the_interface():
    digest = hashlib.sha256((ROOT / "lazyfs/_native.pyi").read_bytes()).hexdigest()[:16]
    assert digest == lazyfs.CORE_INTERFACE
    (defined,) = re.findall('LFS_INTERFACE "(.*)"', (ROOT / "native/module.h").read_text())
    assert defined == digest


def test_a_core_of_other_sources_is_not_used():
    code = (
        "import lazyfs; lazyfs.CORE_INTERFACE = 'another'\n"
        "from lazyfs.formats.tocs import scan\n"
        "from lazyfs.mount.drivers import NativeSession\n"
        "from lazyfs.cli.mounts.doctor import _native\n"
        "print(scan.scan_toc, NativeSession, _native().found)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("None None it was compiled for another release"), done.stderr


def floors() -> dict[str, int]:
    """Return the floor of each file in the table of native/README.md."""
    found: dict[str, int] = {}
    for line in (NATIVE / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            for name in re.findall(r"`(\w+)`", " ".join(cells[1:])):
                assert name not in found, name
                found[name] = int(cells[0])
    return found


def test_every_file_of_the_module_has_a_floor():
    files = PROGRAMS["module"] - sources_in(NATIVE / "include")
    assert sorted({path.stem for path in files}) == sorted(floors())


def climbs(arrows: dict[str, set[str]], floor: dict[str, int]) -> list[str]:
    """Return the arrows that do not go down; what has no floor is below all."""
    return [
        f"{source} → {target}"
        for source, targets in sorted(arrows.items())
        for target in sorted(targets)
        if floor.get(Path(target).name, -1) >= floor.get(Path(source).name, 99)
    ]


def test_calls_and_includes_of_the_module_go_down():
    headers = {path.stem for path in sources_in(NATIVE / "include")}
    arrows = arrows_of(PROGRAMS["module"], NATIVE, INCLUDES)
    inside = {name: targets for name, targets in arrows.items() if Path(name).name not in headers}
    assert len(inside) == len(floors())
    assert climbs(inside, floors()) == []
    for name in headers:
        assert {Path(each).name for each in arrows[f"include/{name}"]} <= headers


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_no_files_need_each_other(program: str):
    base = RECORDER if program == "recorder" else NATIVE
    arrows = arrows_of(PROGRAMS[program], base, INCLUDES)
    assert sum(len(targets) for targets in arrows.values()) > len(arrows)
    assert circle_in(arrows) == []


def test_files_hold_one_idea():
    files = sources_in(NATIVE, ROOT / "tests")
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST} == {}


def test_headers_have_guards_of_their_own():
    for files in PROGRAMS.values():
        headers = [path for path in files if path.suffix == ".h"]
        guards = [re.findall(r"#ifndef (LAZYFS_\w+_H)\n", path.read_text()) for path in headers]
        assert all(len(each) == 1 for each in guards)
        assert len({each[0] for each in guards}) == len(headers)


A_CALLS_B = '#include "a.h"\n#include "b.h"\n\nint a(void)\n{\n\treturn b() + 1;\n}\n'
B_ALONE = '#include "b.h"\n\nint b(void)\n{\n\treturn 1;\n}\n'


@pytest.mark.parametrize(
    ("files", "is_circle"),
    [
        ({"b.c": B_ALONE}, False),
        # an include of what is above
        ({"b.c": '#include "a.h"\n' + B_ALONE}, True),
        ({"b.c": B_ALONE, "b.h": '#include "a.h"\nint b(void);\n'}, True),
        # a call without any include
        ({"b.c": "int a(void);\nint b(void)\n{\n\treturn a();\n}\n"}, True),
        ({"b.c": "int a(void);\nint (*f)(void) = a;\nint b(void) { return 0; }\n"}, True),
        # through a third file
        ({"b.c": "int c(void);\nint b(void)\n{\n\treturn c();\n}\n",
          "c.c": "int a(void);\nint c(void) { return a(); }\n"}, True),
        # what looks like a call, and is none
        ({"b.c": '/* a() */\nint b(void)\n{\n\treturn sizeof("a()"); // a()\n}\n'}, False),
        ({"b.c": "int b(struct s *s)\n{\n\treturn s->a + s->b.a;\n}\n"}, False),
        ({"b.c": "static int a(void) { return 2; }\nint b(void)\n{\n\treturn a();\n}\n"}, False),
        ({"b.c": "#define X a() + \\\n\ta()\nint b(void)\n{\n\treturn 1;\n}\n"}, False),
    ],
)  # fmt: skip
def test_the_check_itself(files: dict[str, str], is_circle: bool, tmp_path: Path):
    texts = {"a.c": A_CALLS_B, "a.h": "int a(void);\n", "b.h": "int b(void);\n", **files}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    arrows = arrows_of(sources_in(tmp_path), tmp_path, [])
    assert arrows["a"] == {"b"}
    assert bool(circle_in(arrows)) == is_circle
    assert climbs({"a": {"b"}}, {"a": 1, "b": 0}) == []
    assert climbs({"a": {"b"}}, {"a": 1, "b": 1}) == ["a → b"]


def test_functions_are_found_in_every_style():
    text = """
    __attribute__((constructor)) static void begin(void)
{
    if (x) { call(); }
}
enum lfs_result
two_lines(int (*f)(void),
      int n)
{
    return f();
}
static inline struct s *inlined(void) { return 0; }
int declared(void);
OPENS(open)
int one(void) { return '"' + '{'; }
PyMODINIT_FUNC PyInit_x(void)
{
}
struct t { int (*field)(int); } t = { .field = one };
"""
    assert functions_in(code_of(text)) == ({"two_lines", "one", "PyInit_x"}, {"begin", "inlined"})
