"""Which modules a module imports: source and bytecode against Python's own parser."""

import ast
import importlib.util
import marshal
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.rootfs.imports import (
    MAX_NAMES,
    MAX_SOURCE_SIZE,
    PYC_HEADER_SIZE,
    BadBytecode,
    imports_of_bytecode,
    imports_of_source,
)

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="the bytecode of 3.14 is not known here"
)

SOURCE = b'''"""Doc: import nothing"""
import os, sys as system
import collections.abc
from . import sibling
from .package.module import (one,
                             two)
try:
    import fast
except ImportError:
    fast = None

def later():
    import lazy
    return 1.5, 2j, b"x", "\\u00e9" * 300, 10 ** 40, {1, 2}, frozenset({3}), ..., True, None

class Inner:
    value = later
'''


def bytecode(source: bytes) -> bytes:
    """Return what this Python would keep of *source*."""
    code = compile(source, "module.py", "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def test_statements_of_source() -> None:
    names = imports_of_source(SOURCE)
    assert names == [
        b"os",
        b"sys",
        b"system",
        b"collections.abc",
        b"sibling",
        b"package.module",
        b"one",
    ]


def test_instructions_of_bytecode() -> None:
    assert imports_of_bytecode(bytecode(SOURCE)) == [
        b"os", b"sys", b"collections.abc", b"sibling", b"package.module", b"one", b"two", b"fast"
    ]  # fmt: skip


def truth(source: bytes) -> set[str]:
    """Return what the module's own statements import, those of functions left out."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.update([node.module or "", *(alias.name for alias in node.names)])
            pending.append(node)
    return found - {"", "*", "annotations", "__future__"}


@pytest.mark.parametrize(
    "name", ["json", "enum", "collections", "asyncio.events", "subprocess", "typing", "argparse"]
)
def test_the_standard_library(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_bytes()
    found = {each.decode() for each in imports_of_bytecode(bytecode(source))}
    # What can be decided when compiling (``if False``) is not in the bytecode.
    missing = truth(source) - found
    assert not missing or "TYPE_CHECKING" in source.decode()
    assert found - truth(source) - {"__future__", "annotations"} == set()


def test_many_names_need_long_instructions() -> None:
    source = "".join(f"v{n} = {n}\n" for n in range(700)) + "import last\n"
    assert imports_of_bytecode(bytecode(source.encode())) == [b"last"]


def test_no_more_names_than_a_bound() -> None:
    source = b"".join(b"import m%d\n" % n for n in range(MAX_NAMES + 50))
    assert len(imports_of_source(source)) == MAX_NAMES
    assert len(imports_of_bytecode(bytecode(source))) == MAX_NAMES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa7\x0d\r\n",
        bytes(40),
        struct.pack("<H", 3379) + b"\r\n" + bytes(12) + b"c" + bytes(99),  # 3.6
        importlib.util.MAGIC_NUMBER + bytes(12) + b"N",
        importlib.util.MAGIC_NUMBER + bytes(12) + b"c" + bytes(24) + b"(" * 1000,
        importlib.util.MAGIC_NUMBER + bytes(12) + b"c" + bytes(24) + b"\xa9\x01" * 500,
        importlib.util.MAGIC_NUMBER + bytes(12) + b"c" + bytes(24) + b"(\xff\xff\xff\x7f",
        importlib.util.MAGIC_NUMBER + bytes(12) + b"c" + bytes(24) + b"s\xff\xff\xff\xff",
    ],
)
def test_no_bytecode(data: bytes) -> None:
    with pytest.raises(BadBytecode):
        imports_of_bytecode(data)


def test_bytecode_that_ends_early() -> None:
    whole = bytecode(SOURCE)
    found = imports_of_bytecode(whole)
    for size in range(len(whole)):
        try:
            assert imports_of_bytecode(whole[:size]) == found  # the names are not the last thing
        except BadBytecode:
            pass


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=10))
def test_changed_bytecode(changes: list[tuple[int, int]]) -> None:
    whole = bytearray(bytecode(SOURCE))
    for place, value in changes:
        whole[PYC_HEADER_SIZE + place % (len(whole) - PYC_HEADER_SIZE)] = value
    try:
        assert len(imports_of_bytecode(bytes(whole))) <= MAX_NAMES
    except BadBytecode:
        pass


@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    try:
        imports_of_bytecode(importlib.util.MAGIC_NUMBER + bytes(12) + b"c" + bytes(24) + data)
    except BadBytecode:
        pass
    imports_of_source(data)


def test_a_source_is_looked_at_up_to_a_size() -> None:
    lines = b"import early\n" + b"# and so on\n" * (MAX_SOURCE_SIZE // 12) + b"import late\n"
    assert imports_of_source(lines) == [b"early"]
    assert imports_of_source(lines[:100] + lines[-20:]) == [b"early", b"late"]
