"""What is asked of mounts whose answers are compared.

A question is a function of the mountpoint that returns a value or raises OSError; what counts of an
error is its errno.
"""

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

HIDDEN = [
    "user.lazyfs.file.layer", "user.lazyfs.file.diffid", "user.lazyfs.file.layer.index",
    "user.lazyfs.file.digest", "user.lazyfs.file.other", "user.lazyfs.file.", "user.lazyfs.",
    "user.lazyfs.health", "user.lazyfs.verify", "user.lazyfs.schema", "user.lazyfs.other",
    "user.other", "user.note",
    "security.capability", "security.selinux", "trusted.overlay.opaque",
    "system.posix_acl_access", "system.posix_acl_default", "system.other",
]  # fmt: skip
STAT_FIELDS = [name for name in dir(os.stat_result) if name.startswith("st_") and name != "st_dev"]

Question = Callable[[Path], object]


def ask(question: Question, root: Path) -> object:
    """Return the answer, or the name of the errno."""
    try:
        return question(root)
    except OSError as error:
        return errno.errorcode[error.errno]


def names(root: Path) -> list[bytes]:
    """Return all paths below *root*, in the order in which directories list them."""
    found, waiting = [b"."], [b"."]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(os.fsencode(root), folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                found.append(path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
    return found


def attributes(root: Path) -> dict[bytes, dict[str, object]]:
    result = {}
    for path in names(root):
        status = os.lstat(os.path.join(os.fsencode(root), path))
        result[path] = {name: getattr(status, name) for name in STAT_FIELDS}
    return result


def extended_attributes(root: Path) -> dict[bytes, object]:
    result = {}
    for path in names(root):
        full = os.path.join(os.fsencode(root), path)
        listed = os.listxattr(full, follow_symlinks=False)
        result[path] = (
            listed,
            {
                name: ask(lambda _: os.getxattr(full, name, follow_symlinks=False), root)  # noqa: B023
                for name in {*listed, *HIDDEN}
            },
        )
    return result


def links(root: Path) -> dict[bytes, object]:
    return {
        path: ask(lambda top: os.readlink(os.path.join(os.fsencode(top), path)), root)  # noqa: B023
        for path in names(root)
    }


def contents(root: Path) -> dict[bytes, str]:
    result = {}
    for path in names(root):
        full = os.path.join(os.fsencode(root), path)
        if stat.S_ISREG(os.lstat(full).st_mode):
            with open(full, "rb") as file:
                result[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def mapped(root: Path) -> dict[bytes, str]:
    """Return what the files' bytes hash to as a mapping of memory shows them."""
    result = {}
    for path in regular_files(root):
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                    result[path] = hashlib.sha256(view).hexdigest()
    return {path[len(os.fsencode(root)) :]: digest for path, digest in result.items()}


def data_and_holes(root: Path) -> dict[bytes, list[object]]:
    """Return for each file where data and holes are, asked at its start, middle and end."""
    result: dict[bytes, list[object]] = {}
    for path in regular_files(root):
        file = os.open(path, os.O_RDONLY)
        size = os.fstat(file).st_size
        result[path[len(os.fsencode(root)) :]] = [
            ask(lambda _: os.lseek(file, offset, where), root)  # noqa: B023
            for offset in (0, size // 2, size)
            for where in (os.SEEK_DATA, os.SEEK_HOLE)
        ]
        os.close(file)
    return result


def regular_files(root: Path) -> list[bytes]:
    """Return the paths of all files that hold bytes, sorted."""
    paths = sorted(os.path.join(os.fsencode(root), path) for path in names(root))
    return [path for path in paths if stat.S_ISREG(os.lstat(path).st_mode)]


def as_by_kernel(question: Question, answer):
    """Return what *question* is answered by a mount of the kernel's, from FUSE's *answer*."""
    if question is attributes:
        answer[b"."].pop("st_ino")  # FUSE's root is 1, whatever its nid
    if question is extended_attributes:
        for path, (listed, values) in answer.items():
            own = {name for name in values if name.startswith("user.lazyfs.")}
            # What a file says of its origin is not in the index, nor what only this mount says
            for name in own - {"user.lazyfs.schema"}:
                values.pop(name)
            values.pop("system.other")  # no such namespace: ENOTSUP before anybody looks
            shown = own & set(listed) & {"user.lazyfs.schema"}
            answer[path] = sorted((set(listed) - own) | shown), values
    return answer
