"""The native module is built from all of its sources, whoever builds it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MODULE = {f"native/{name}" for name in ("module.c", "module_server.c", "module_toc.c")}


def test_the_package_names_every_source():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (module,) = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "native/src").iterdir()}
    headers = {name for name in names if name.endswith(".h")}
    assert set(module["sources"]) == (names - headers) | MODULE
    others = {"native/include/lazyfs_core.h", "native/module.h"}
    assert set(module["depends"]) == headers | others
    assert module["optional"]


def test_the_core_knows_no_python():
    def who_includes(name: str) -> set[str]:
        files = (ROOT / "native").rglob("*.[ch]")
        return {str(path.relative_to(ROOT)) for path in files if name in path.read_text()}

    assert who_includes("Python.h") == {"native/module.h"}
    assert who_includes('"module.h"') == MODULE
