"""Trees from Debian packages, by the ordinary apt and dpkg programs, without root.

apt resolves what belongs to a few named packages against an empty list of installed ones, and
downloads it into a cache; dpkg-deb turns packages into tars, which are merged here.  Nothing is
installed and no maintainer script runs: what those would have made and a program needs to start is
added by hand (the links of a merged /usr, the accounts, byte-compiled Python).
"""

import io
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.images.tree import MTIME, Node, Tree, add_parents, directory, file, symlink

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Read by people, not by programs; images usually leave them out.
LEFT_OUT = re.compile(r"usr/share/(doc|man|info|locale|lintian|bug|doc-base)/.|var/lib/dpkg/.")
SECONDS = 600


class DebianFailed(RuntimeError):
    """apt or dpkg did not do what was asked; the message holds what they said."""


class Packages:
    """A cache folder with a package list and packages of its own; the machine's sources."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache.resolve()
        self.debs = self.cache / "debs"
        self.debs.mkdir(parents=True, exist_ok=True)
        (self.cache / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        # An empty list of installed packages; the sandbox user cannot write below a home.
        self.options = [
            f"-oDir::State={self.cache}", f"-oDir::Cache={self.cache}",
            f"-oDir::State::lists={self.cache}/lists", "-oDir::State::status=/dev/null",
            "-oDebug::NoLocking=true", "-oAPT::Sandbox::User=", "-oDir::Log=/dev/null",
        ]  # fmt: skip

    def closure(self, names: Sequence[str]) -> list[str]:
        """Return ``name=version`` of the named packages and all they depend on, sorted."""
        if not any(self.cache.glob("lists/*_Packages*")):
            self._apt("update")
        plan = self._apt("install", "--simulate", "--no-install-recommends", *names)
        found = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE)
        return sorted({f"{name}={version}" for name, version in found})

    def download(self, pinned: Sequence[str]) -> list[Path]:
        """Return the package files for ``name=version`` of *pinned*, fetching what is not here."""
        have = self._by_name()
        lacking = [p for p in pinned if p.replace("=", "_", 1) not in have]
        if lacking:
            self._apt("download", *lacking)
            have = self._by_name()
        return [have[p.replace("=", "_", 1)] for p in pinned]

    def tree(self, names: Sequence[str]) -> Tree:
        """Return the merged contents of *names* and all they depend on."""
        tree: Tree = {}
        for path in self.download(self.closure(names)):
            tar = _run(["dpkg-deb", "--fsys-tarfile", str(path)])
            _unpack(tar, tree)
        add_parents(tree)
        return tree

    def _by_name(self) -> dict[str, Path]:
        # File names quote the colon of an epoch as %3a.
        return {
            "_".join(path.stem.replace("%3a", ":").split("_")[:2]): path
            for path in self.debs.glob("*.deb")
        }

    def _apt(self, command: str, *arguments: str) -> str:
        line = ["apt-get", "-q", *self.options, command, *arguments]
        return _run(line, cwd=self.debs).decode()


def add_system_files(tree: Tree) -> None:
    """Add what an installation would have made: links of a merged /usr, accounts, empty folders."""
    for name in MERGED:
        if f"usr/{name}" in tree:
            tree[name] = symlink(f"usr/{name}")
    for path in ("dev", "proc", "sys", "run", "root", "mnt", "tmp", "etc"):
        tree.setdefault(path, directory(0o1777 if path == "tmp" else 0o755))
    tree["etc/passwd"] = file(b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    tree["etc/group"] = file(b"root:x:0:\nnogroup:x:65534:\n")
    tree["etc/hostname"] = file(b"image\n")
    if "usr/bin/dash" in tree:
        tree.setdefault("usr/bin/sh", symlink("dash"))


def byte_compile(tree: Tree) -> None:
    """Add the .pyc files that installing Python packages makes, by the Python that is in *tree*."""
    interpreter = next((p for p in sorted(tree) if re.fullmatch(r"usr/bin/python3\.\d+", p)), None)
    loader = next((p for p in sorted(tree) if re.fullmatch(r"usr/lib(64)?/ld-linux-\S+", p)), None)
    if interpreter is None or loader is None:
        raise DebianFailed("byte-compiling: got no python3.N or no dynamic loader in the tree")
    with tempfile.TemporaryDirectory(prefix="make-image-") as folder:
        root = Path(folder)
        _lay_out(tree, root)
        libraries = ":".join(sorted({str(p.parent) for p in root.glob("usr/lib/**/lib*.so*")}))
        folders = [root / "usr/lib/python3", root / interpreter.replace("bin", "lib")]
        _run(
            [str(root / loader), "--library-path", libraries, str(root / interpreter),
             "-B", "-s", "-S", "-m", "compileall", "-q", "-s", str(root), "-p", "/",
             *(str(p) for p in folders if p.is_dir())],
            env={"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            allowed=(0, 1),  # a few files of lib2to3's tests are wrong on purpose
        )  # fmt: skip
        for path in root.glob("usr/lib/python3*/**/*.pyc"):
            tree[str(path.relative_to(root))] = file(path.read_bytes())
    add_parents(tree)


def _unpack(tar: bytes, tree: Tree) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            path = _merged(os.path.normpath(member.name))
            if path == "." or LEFT_OUT.match(path):
                continue
            link = member.linkname
            if member.islnk():
                link = _merged(os.path.normpath(link))
            elif member.issym() and "/" in path:
                link = _relinked(os.path.normpath(member.name), path, link)
            kind = tarfile.REGTYPE if member.isreg() else member.type
            content = members.extractfile(member) if member.isreg() else None
            data = content.read() if content else b""
            node = Node(kind, member.mode, data, link, member.uid, member.gid, int(member.mtime))
            if member.isdir() and path in tree:
                continue
            tree[path] = node


def _merged(path: str) -> str:
    """Return where *path* lies once /bin, /lib and the like are links into /usr."""
    return f"usr/{path}" if path.partition("/")[0] in MERGED else path


def _relinked(old: str, new: str, target: str) -> str:
    """Return what a relative link must say after it has moved from *old* to *new*."""
    if target.startswith("/") or old == new:
        return target
    meant = _merged(os.path.normpath(os.path.join(os.path.dirname(old), target)))
    return os.path.relpath(meant, os.path.dirname(new))


def _lay_out(tree: Tree, root: Path) -> None:
    """Write the parts of *tree* that Python needs to run below *root*."""
    for path in sorted(tree):
        node, target = tree[path], root / path
        if not re.match(r"usr/(bin/python|lib)|lib\w*$", path):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if node.kind == tarfile.DIRTYPE:
            target.mkdir(exist_ok=True)
        elif node.kind == tarfile.SYMTYPE:
            target.symlink_to(str(root) + node.link if node.link.startswith("/") else node.link)
        elif node.kind == tarfile.REGTYPE:
            target.write_bytes(node.data)
            target.chmod(0o755 if node.mode & 0o111 else 0o644)
            os.utime(target, (MTIME, node.mtime))


def _run(
    line: list[str],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    allowed: tuple[int, ...] = (0,),
) -> bytes:
    try:
        done = subprocess.run(
            line, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
        )
    except FileNotFoundError as exc:
        raise DebianFailed(f"{line[0]}: not installed; this needs Debian or Ubuntu") from exc
    if done.returncode not in allowed:
        said = done.stderr.decode(errors="replace").strip()
        raise DebianFailed(f"{' '.join(line)}: ended with {done.returncode}\n{said}")
    return done.stdout
