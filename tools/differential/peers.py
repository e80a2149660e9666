"""What other readers of tars make of them; where they differ from containerd, containerd wins.

They are asked for a share of the tars, to know how many agree.  GNU tar, bsdtar and Python's
tarfile only read: unpacking hostile tars with them is not safe.  umoci unpacks, inside its root.
"""

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.formats.images import make_layout, plain_layer
from tools.differential.compare import differences
from tools.differential.tree import Node, Tree, digest_of, with_names

SECONDS = 60
TYPES = {"-": stat.S_IFREG, "h": 0, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "c": stat.S_IFCHR}


def walked(root: Path) -> Tree:
    """Return the tree below the directory *root*."""
    nodes: dict[bytes, Node] = {}
    inodes: dict[bytes, object] = {}
    top = os.fsencode(root)
    for above, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(above, name)
            status = os.lstat(path)
            short = path[len(top) + 1 :]
            inodes[short] = status.st_ino
            nodes[short] = _described(path, status)
    return Tree(with_names(nodes, inodes))


def _described(path: bytes, status: os.stat_result) -> Node:
    is_file = stat.S_ISREG(status.st_mode)
    digest, link = "", b""
    if is_file:
        with open(path, "rb") as file:
            digest = digest_of(file.read())
    elif stat.S_ISLNK(status.st_mode):
        link = os.readlink(path)
    names = os.listxattr(path, follow_symlinks=False)
    return Node(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if is_file else 0,
        mtime=divmod(status.st_mtime_ns, 10**9),
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        link=link,
        digest=digest,
        xattrs={
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if not name.startswith("user.lazyfs.")
        },
    )


def by_umoci(tar: bytes, folder: Path) -> Tree:
    """Unpack the tar with umoci."""
    shutil.rmtree(folder, ignore_errors=True)
    make_layout(folder / "image", [plain_layer(tar)])
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{folder}/image:latest", folder / "bundle"],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        return Tree(refusal=done.stderr.decode(errors="replace").strip()[-200:] or "refused")
    return walked(folder / "bundle" / "rootfs")


Peer = Callable[[bytes, Tree, Path], bool]
"""Whether another reader makes the same of a tar as we do."""

Listing = Mapping[bytes, tuple[int, int]] | None
"""The kind (0 for a hardlink) and the size of each name; None where it is refused."""


def by_tarfile(tar: bytes, folder: Path) -> Listing:
    """Read the tar with Python's tarfile."""
    found: dict[bytes, tuple[int, int]] = {}
    kinds = {
        tarfile.DIRTYPE: stat.S_IFDIR,
        tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.CHRTYPE: stat.S_IFCHR,
        tarfile.BLKTYPE: stat.S_IFBLK,
        tarfile.FIFOTYPE: stat.S_IFIFO,
        tarfile.LNKTYPE: 0,
    }
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
            for member in archive:
                name = member.name.encode("utf-8", "surrogateescape")
                kind = kinds.get(member.type, stat.S_IFREG)
                found[_clean(name)] = kind, member.size if kind == stat.S_IFREG else 0
    except (tarfile.TarError, ValueError, OSError, EOFError, OverflowError):
        return None
    return found


def by_gnu_tar(tar: bytes, folder: Path) -> Listing:
    """Have GNU tar list it."""
    return _listed(["tar", "-tvf", "-", "--numeric-owner", "--quoting-style=escape"], tar)


def by_bsdtar(tar: bytes, folder: Path) -> Listing:
    """Have bsdtar make a list of it."""
    words = ["bsdtar", "-cf", "-", "--format=mtree", "--options=!all,type,size", "@-"]
    done = subprocess.run(words, input=tar, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        return None
    found: dict[bytes, tuple[int, int]] = {}
    kinds = {
        b"dir": stat.S_IFDIR,
        b"link": stat.S_IFLNK,
        b"char": stat.S_IFCHR,
        b"block": stat.S_IFBLK,
        b"fifo": stat.S_IFIFO,
    }
    for line in done.stdout.splitlines():
        if line.startswith(b"#") or not line:
            continue
        name, *fields = line.split(b" ")
        values = dict(field.split(b"=", 1) for field in fields if b"=" in field)
        kind = kinds.get(values.get(b"type", b""), stat.S_IFREG)
        found[_clean(_unescaped(name))] = kind, int(values.get(b"size", 0))
    return found


READERS = {"tarfile": by_tarfile, "GNU tar": by_gnu_tar, "bsdtar": by_bsdtar}
UMOCI_FIELDS = ("refusal", "name", "kind", "content", "link")
PROGRAMS = {"GNU tar": "tar", "bsdtar": "bsdtar", "umoci": "umoci"}


def is_here(peer: str) -> bool:
    """Say whether the program is installed."""
    return peer not in PROGRAMS or shutil.which(PROGRAMS[peer]) is not None


def umoci_agrees(tar: bytes, ours: Tree, folder: Path) -> bool:
    """Say whether umoci unpacks the tar to *ours*, as far as it is asked."""
    theirs = by_umoci(tar, folder / "umoci")
    return not any(each.field in UMOCI_FIELDS for each in differences(ours, theirs))


def agrees(listing: Listing, tree: Tree) -> bool:
    """Say whether a list has the names, kinds and sizes of *tree*, implied directories apart."""
    if listing is None or tree.refusal:
        return listing is None and bool(tree.refusal)
    files = {path for path, node in tree.nodes.items() if not node.is_implied}
    if not files <= {path for path in listing if path}:
        return False
    for path in files:
        kind, size = listing[path]
        node = tree.nodes[path]
        if kind and (kind, size) != (node.kind, node.size):
            return False
    return True


def _listed(words: list[str], tar: bytes) -> Listing:
    done = subprocess.run(words, input=tar, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        return None
    found: dict[bytes, tuple[int, int]] = {}
    for line in done.stdout.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6:
            continue
        letter = fields[0][:1].decode()
        kind = TYPES.get(letter, stat.S_IFBLK if letter == "b" else stat.S_IFIFO)
        name = fields[5].split(b" link to ")[0].split(b" -> ")[0]
        size = int(fields[2]) if kind == stat.S_IFREG and fields[2].isdigit() else 0
        found[_clean(_unescaped(name))] = kind, size
    return found


def _unescaped(name: bytes) -> bytes:
    return name.decode("unicode_escape", "replace").encode("latin-1", "replace")


def _clean(name: bytes) -> bytes:
    return os.path.normpath(b"/" + name).lstrip(b"/")


def _by_listing(read: Callable[[bytes, Path], Listing]) -> Peer:
    return lambda tar, ours, folder: agrees(read(tar, folder), ours)


PEERS: Mapping[str, Peer] = {
    **{name: _by_listing(read) for name, read in READERS.items()},
    "umoci": umoci_agrees,
}
