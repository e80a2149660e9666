"""The native module is built from all of its sources, whoever builds it."""

import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import lazyfs

ROOT = Path(__file__).parent.parent.parent
MODULE = {
    f"native/{name}.c" for name in ("module_image", "module_init", "module_server", "module_toc")
}


def test_the_package_names_every_source():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (module,) = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "native").rglob("*.[ch]")}
    names = {name for name in names if not name.startswith(("native/fuzz/", "native/tests/"))}
    headers = {name for name in names if name.endswith(".h")}
    assert set(module["sources"]) == names - headers
    assert set(module["depends"]) == headers
    assert module["optional"]


def test_the_core_knows_no_python():
    def who_includes(name: str) -> set[str]:
        files = (ROOT / "native").rglob("*.[ch]")
        return {str(path.relative_to(ROOT)) for path in files if name in path.read_text()}

    assert who_includes("Python.h") == {"native/module.h"}
    assert {name for name in who_includes('"module') if name.endswith(".c")} == MODULE


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
