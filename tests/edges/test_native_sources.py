"""The native module is built from all of its sources, whoever builds it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_package_names_every_source():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (module,) = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "native/src").iterdir()}
    headers = {name for name in names if name.endswith(".h")}
    assert set(module["sources"]) == (names - headers) | {"native/module.c"}
    assert set(module["depends"]) == headers | {"native/include/lazyfs_core.h"}
    assert module["optional"]


def test_the_core_knows_no_python():
    knowing = [
        path.name for path in (ROOT / "native").rglob("*.[ch]") if "Python.h" in path.read_text()
    ]
    assert knowing == ["module.c"]
