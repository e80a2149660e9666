"""docs/reference/environment.md names the variables that the code reads, and no others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/environment.md"
NAME = r"[A-Za-z][A-Za-z_]*[A-Za-z]"
OWN = re.compile(r"LAZYFS_[A-Z_]*[A-Z]")
MAPPINGS = {"environ", "environment", "env"}
INDIRECT = {
    # read by libraries, or by a name that is put together
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "TMPDIR",
    "LAZYFS_CACHE_DIR", "LAZYFS_STATE_DIR", "LAZYFS_SECRET_NAME_KEY",
    "CACHE_DIRECTORY", "STATE_DIRECTORY", "XDG_CACHE_HOME", "XDG_STATE_HOME",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
}  # fmt: skip
UNMENTIONED = {
    "no_proxy",  # the page says that lower case works
    "LAZYFS_SECRET_MY_API_THE_TOKEN",  # an example
    "LAZYFS_SECRET_API_TOKEN",
    "LAZYFS_SUCCESSORS",  # said by a keeper to the successor that it starts
}


def read_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names of variables that a module reads, as far as they are literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if OWN.fullmatch(node.value):
                yield node.value
        elif isinstance(node, ast.Subscript) and is_environment(node.value):
            yield from literal(node.slice)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"get", "pop"}
            and is_environment(node.func.value)
            and node.args
        ):
            yield from literal(node.args[0])


def is_environment(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in MAPPINGS


def literal(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if re.fullmatch(NAME, node.value):
            yield node.value


def documented() -> set[str]:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(rf"`({NAME})`", row.split(" | ")[0])}


def read() -> set[str]:
    files = sorted((ROOT / "lazyfs").rglob("*.py"))
    return {name for path in files for name in read_names(ast.parse(path.read_text()))}


def test_every_variable_that_is_read_is_documented() -> None:
    assert read() - documented() - UNMENTIONED == set()


def test_every_documented_variable_is_read() -> None:
    assert documented() - read() - INDIRECT == set()


def test_reading_is_noticed() -> None:
    code = 'os.environ.get("A_B")\nenvironment["C"]\nx.environ.pop("D_D", "")\ny = "LAZYFS_Z"'
    assert set(read_names(ast.parse(code))) == {"A_B", "D_D", "LAZYFS_Z"}
