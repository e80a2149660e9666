"""Trees from files of this machine: a program, the libraries it loads, and links on the way."""

import os
import re
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tools.images.tree import Node, Tree, add_parents, symlink

SECONDS = 30
LDD_RE = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")


def add_program(tree: Tree, program: Path) -> None:
    """Add *program* and all shared libraries that it loads, at the paths where they are here."""
    add_file(tree, program)
    for library in libraries_of(program):
        add_file(tree, library)


def add_folder(tree: Tree, folder: Path, *, without: Iterable[str] = ()) -> None:
    """Add all files below *folder*, leaving out directories by the names in *without*."""
    left_out = set(without)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - left_out)
        for name in sorted(names):
            if (Path(parent) / name).exists():
                add_file(tree, Path(parent) / name)


def add_file(tree: Tree, path: Path) -> None:
    """Add the file at *path*, and every symbolic link that leads to it."""
    current = Path("/")
    parts = list(Path(os.path.abspath(path)).parts[1:])
    while parts:
        current /= parts.pop(0)
        if current.is_symlink():
            target = os.readlink(current)
            tree[_name(current)] = symlink(target)
            parts = list(Path(os.path.normpath(current.parent / target)).parts[1:]) + parts
            current = Path("/")
    attributes = current.stat()
    mode = 0o755 if attributes.st_mode & 0o111 else 0o644
    if _name(current) not in tree:
        node = Node(tarfile.REGTYPE, mode, current.read_bytes(), mtime=int(attributes.st_mtime))
        tree[_name(current)] = node
    add_parents(tree)


def libraries_of(program: Path) -> list[Path]:
    """Return the shared libraries that *program* loads, the loader too; none if it is static."""
    done = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return [Path(found) for found in LDD_RE.findall(done.stdout)]


def _name(path: Path) -> str:
    return str(path).lstrip("/")
