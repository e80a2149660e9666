"""Which files of an image a program reads while it starts, as far as its own bytes tell.

A program names its interpreter and its libraries, a script its program, a Python module the
modules that it imports.  Nothing here fetches: paths go in, files come out, and where bytes are
needed they are asked for.  What is named and is not in the image is left out.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lazyfs.errors import LazyfsError
from lazyfs.formats.tocs.toc import Kind
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.walk import resolve_path

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Whoever starts at all reads these, where the image has them.
LOADERS = (
    b"/lib64/ld-linux-x86-64.so.2",
    b"/lib/ld-linux-aarch64.so.1",
    b"/lib/ld-musl-x86_64.so.1",
    b"/lib/ld-musl-aarch64.so.1",
)
SYSTEM_FILES = (b"/etc/ld.so.cache", b"/etc/nsswitch.conf", b"/etc/passwd", b"/etc/localtime")
LIBRARY_FOLDERS = (b"/usr/local/lib", b"/lib64", b"/usr/lib64", b"/lib", b"/usr/lib")
C_LIBRARY = b"libc.so.6"
SCRIPT_RE = re.compile(rb"#![ \t]*([^\s]{1,255})(?:[ \t]+([^\s]{1,255}))?")

PYTHON_RE = re.compile(rb"(.*)/bin/python3\.(\d{1,2})")
PYTHON_MEMBER_RE = re.compile(rb"(.*/lib/python3\.(\d{1,2}))/.*")
# Modules that CPython brings within its program since 3.11, and reads from disk before.
FROZEN = (
    b"abc", b"codecs", b"io", b"_collections_abc", b"_sitebuiltins", b"genericpath", b"ntpath",
    b"posixpath", b"os", b"site", b"stat", b"importlib", b"runpy", b"zipimport",
)  # fmt: skip
FROZEN_SINCE = 11
PYTHON_START = (
    b"encodings", b"encodings.aliases", b"encodings.utf_8", b"sitecustomize", b"usercustomize",
)  # fmt: skip
PYTHON_COMMON = (
    b"types", b"operator", b"keyword", b"reprlib", b"collections", b"functools", b"enum",
    b"copyreg", b"re", b"re._casefix", b"re._compiler", b"re._constants", b"re._parser",
)  # fmt: skip
"""Loaded by 59 to 77 % of the 155 modules of the standard library that load any (3.11); the next
one is loaded by 44 %."""
PYTHON_FILES = (b"/usr/lib/locale/C.utf8/LC_CTYPE",)
GCONV_CACHE = b"/gconv/gconv-modules.cache"  # beside the C library
PYTHON_LIBRARIES = (b"libm.so.6",)
STATIC_SIZE = 4 << 20
STATIC_LIBRARIES = (b"libz.so.1", b"libexpat.so.1")
"""A Python is linked with the mathematics library.  One that is larger than STATIC_SIZE, as that of
Debian, has modules within it that others keep in files, and is linked with what these need."""
COMPANIONS_SIZE = 64 << 10
PTH_LIMIT = 20
NO_MODULES = (
    b".", b"..", b"test", b"tests", b"idlelib", b"lib2to3", b"site-packages", b"dist-packages",
)  # fmt: skip
MAX_WORDS = 20
MAX_NAMES = 20_000
MAX_FOLDERS = 1_000


class File(NamedTuple):
    """A file with bytes: its real path, and where it lies, in bytes of a device."""

    path: bytes
    nid: int
    device: int
    offset: int
    size: int


class Library(NamedTuple):
    """Where a Python keeps its standard library; ``minor`` is 11 for 3.11."""

    folder: bytes
    minor: int


class Finder:
    """Finds files of one image; each path is looked up once."""

    def __init__(self, index: ErofsIndex) -> None:
        self._index = index
        self._found: dict[bytes, File | None] = {}
        self._folders: dict[bytes, dict[bytes, Kind]] = {}
        self.library_folders: list[bytes] = []

    def file(self, path: bytes) -> File | None:
        """Return the regular file that *path* leads to; None for nothing, or one without bytes."""
        if path not in self._found:
            folder, _, name = path.rpartition(b"/")
            is_there = name in self._names(folder)
            self._found[path] = self._find(path) if is_there else None
        return self._found[path]

    def _find(self, path: bytes) -> File | None:
        try:
            nid, real = resolve_path(self._index, path)
            inode = self._index.inode(nid)
            if inode.kind is not Kind.REGULAR:
                return None
            extent = self._index.extent_of(inode)
        except LazyfsError:
            return None
        return None if extent is None else File(real, nid, *_fields(extent))

    def files(self, paths: Sequence[bytes]) -> list[File]:
        """Return those of *paths* that are files."""
        return [file for path in paths if (file := self.file(path)) is not None]

    def _names(self, folder: bytes) -> dict[bytes, Kind]:
        """Return the names in *folder* and what they are; nothing where that is no directory."""
        found = self._folders.get(folder)
        if found is None:
            try:
                nid, _ = resolve_path(self._index, folder)
                entries = itertools.islice(self._index.entries(nid), MAX_NAMES)
                found = {entry.name: entry.kind for entry in entries}
            except LazyfsError:
                found = {}
            self._folders[folder] = found
        return found

    # Programs.

    def command(self, config: Mapping[str, Any]) -> tuple[list[File], list[File]]:
        """Return the programs that an image's config starts, and the files that it hands them."""
        inner = config.get("config")
        if not isinstance(inner, dict):
            return [], []
        variables = dict(text.partition("=")[::2] for text in _texts(inner.get("Env")))
        path = variables.get("PATH") or DEFAULT_PATH
        folder = inner.get("WorkingDir")
        folder = folder if isinstance(folder, str) else ""
        programs: list[File] = []
        arguments: list[File] = []
        for words in (_texts(inner.get("Entrypoint")), _texts(inner.get("Cmd"))):
            if len(words) > 2 and words[1] == "-c":  # of a shell
                words[2:] = words[2].split()
            for number, word in enumerate(words[:MAX_WORDS]):
                is_program = number == 0 or words[number - 1] == "-c"
                file = self._in_path(word, path) if is_program else None
                if file is not None:
                    programs.append(file)
                elif "/" in word or "." in word:
                    name = f"{folder}/{word}" if not word.startswith("/") else word
                    arguments += self.files([_raw(name)])
        return programs, arguments

    def _in_path(self, word: str, path: str) -> File | None:
        name = _raw(word)
        if b"/" in name:
            return self.file(name)
        for folder in _raw(path).split(b":"):
            file = self.file(folder + b"/" + name)
            if file is not None:
                return file
        return None

    def script_programs(self, line: bytes) -> list[File]:
        """Return the programs that the first line of a script names."""
        match = SCRIPT_RE.match(line)
        if match is None:
            return []
        programs = self.files([match[1]])
        if match[1].endswith(b"/env") and match[2]:
            program = self._in_path(match[2].decode("utf-8", "surrogateescape"), DEFAULT_PATH)
            programs += [] if program is None else [program]
        return programs

    def system_files(self) -> list[File]:
        """Return what any program that is linked dynamically reads, whichever it is."""
        loaders = self.files(LOADERS)
        for loader in loaders:
            self.note_loader(loader)
        return [*loaders, *self.libraries([C_LIBRARY], []), *self.files(SYSTEM_FILES)]

    def note_loader(self, loader: File) -> None:
        """Note an interpreter of programs: libraries lie beside it."""
        folder = loader.path.rpartition(b"/")[0]
        twin = folder[4:] if folder.startswith(b"/usr/") else b"/usr" + folder
        for each in (folder, twin):
            if each not in self.library_folders:
                self.library_folders.append(each)

    def libraries(self, names: Sequence[bytes], folders: Sequence[bytes]) -> list[File]:
        """Return the libraries *names*, from *folders* first, then from the usual ones."""
        found = []
        for name in names:
            if b"/" in name:
                found += self.files([name])
                continue
            for folder in (*folders, *self.library_folders, *LIBRARY_FOLDERS):
                file = self.file(folder + b"/" + name)
                if file is not None:
                    found.append(file)
                    break
        return found

    # Python.

    def pythons(self) -> list[File]:
        """Return the Pythons that a shell would find."""
        folders = DEFAULT_PATH.encode().split(b":")
        return self.files([folder + b"/python3" for folder in folders])

    def python_library(self, program: File) -> Library | None:
        """Return the standard library of *program*, None if it is no Python."""
        match = PYTHON_RE.fullmatch(program.path)
        if match is None:
            return None
        return Library(match[1] + b"/lib/python3." + match[2], int(match[2]))

    def python_start(self, library: Library) -> list[File]:
        """Return what a Python reads before it runs anything, and what most programs import."""
        names = [*PYTHON_START, *PYTHON_COMMON]
        if library.minor < FROZEN_SINCE:
            names = [*FROZEN, *names]
        found = []
        for name in names:
            module = self._module(library, library.folder, name)
            found += [] if module is None else [module]
        folders = [library.folder + b"/site-packages", _debian_packages(library)]
        for folder in folders:
            hooks = [name for name in self._names(folder) if name.endswith(b".pth")][:PTH_LIMIT]
            found += self.files([folder + b"/" + hook for hook in hooks])
        caches = [folder + GCONV_CACHE for folder in self.library_folders]
        return [*found, *self.files(PYTHON_FILES), *self.files(caches)]

    def python_libraries(self, program: File, library: Library) -> list[File]:
        """Return what a Python is linked with, which it says itself once all of it is here."""
        names = [b"libpython3.%d.so.1.0" % library.minor, *PYTHON_LIBRARIES]
        if program.size > STATIC_SIZE:
            names += STATIC_LIBRARIES
        return self.libraries(names, [library.folder.rpartition(b"/")[0]])

    def companions(self, module: File, library: Library) -> list[File]:
        """Return what is imported with *module*, going by names alone.

        The part of it that is written in C, ``_json`` for ``json``; of a small package all modules.
        """
        folder, _, name = module.path.rpartition(b"/")
        above = folder.removesuffix(b"/__pycache__")
        is_package = name.startswith(b"__init__.")
        name = above.rpartition(b"/")[2] if is_package else name.partition(b".")[0]
        own = self._module(library, library.folder + b"/lib-dynload", b"_" + name)
        found = [] if own is None else [own]
        if is_package and above != library.folder:
            ending = name_ending(module.path)
            names = sorted(each for each in self._names(folder) if each.endswith(ending))
            parts = self.files([folder + b"/" + each for each in names])
            if sum(part.size for part in parts) <= COMPANIONS_SIZE:
                found += parts
        return found

    def python_modules(
        self, module: bytes, names: Sequence[bytes], library: Library | None
    ) -> list[File]:
        """Return the modules *names* that the one at path *module* imports.

        *library* is the one of the program that runs, for modules that lie in none.
        """
        match = PYTHON_MEMBER_RE.fullmatch(module)
        if match is not None:
            library = Library(match[1], int(match[2]))
        if library is None:
            return []
        own = module.rpartition(b"/")[0].removesuffix(b"/__pycache__")
        packages = library.folder + b"/site-packages", _debian_packages(library)
        roots = [library.folder, library.folder + b"/lib-dynload", *packages]
        folders = roots if own in roots else [own, *roots]
        is_frozen = library.minor >= FROZEN_SINCE
        found = []
        for name in names:
            if is_frozen and name.partition(b".")[0] in FROZEN:
                continue
            for folder in folders:
                file = self._module(library, folder, name)
                if file is not None:
                    found.append(file)
                    if folder is not own:
                        break
        return found

    def _module(self, library: Library, folder: bytes, name: bytes) -> File | None:
        """Return what Python reads to import *name* from *folder*."""
        if folder.endswith(b"/lib-dynload"):
            start = name + b".cpython-"
            names = (each for each in self._names(folder) if each.startswith(start))
            found = self.files([folder + b"/" + each for each in names])
        else:
            found = self.files(_spellings(library, folder, name))
        return found[0] if found else None

    def modules(self, library: Library) -> Iterator[list[File]]:
        """Yield the files of the standard library that are modules, those of each folder."""
        pending = [library.folder]
        while pending and len(self._folders) < MAX_FOLDERS:
            folder = pending.pop()
            found: list[File] = []
            for name, kind in self._names(folder).items():
                if kind is Kind.DIRECTORY and name not in NO_MODULES:
                    pending.append(folder + b"/" + name)
                elif name.endswith((b".pyc", b".py")):
                    found += self.files([folder + b"/" + name])
            yield found


def name_ending(path: bytes) -> bytes:
    """Return how the names of modules end that lie beside the one at *path*."""
    return b"." + path.rpartition(b"/")[2].partition(b".")[2]


def _raw(text: str) -> bytes:
    return text.encode()


def _fields(extent: Any) -> tuple[int, int, int]:
    return extent.device, extent.offset, extent.size


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _debian_packages(library: Library) -> bytes:
    return library.folder.rpartition(b"/")[0] + b"/python3/dist-packages"


def _spellings(library: Library, folder: bytes, name: bytes) -> list[bytes]:
    """Return where Python looks for a module in *folder*: what it reads, in order."""
    path = folder + b"/" + name.replace(b".", b"/")
    above, _, last = path.rpartition(b"/")
    tag = b".cpython-3%d.pyc" % library.minor
    return [
        path + b"/__pycache__/__init__" + tag,
        path + b"/__init__.py",
        above + b"/__pycache__/" + last + tag,
        path + b".py",
    ]
