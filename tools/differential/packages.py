"""Fetch other projects' sources by the names of their packages, with the packages' own tools.

Nothing is fetched but by a program that knows how: go, pip3, npm, cargo and apt-get, each as this
machine has it set up.  Each run of one is limited in time, and so are the processes that it starts.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SECONDS = 120
APT_SOURCES = Path("/etc/apt")
MAX_OPENED = 1 << 30


class NotToBeHad(Exception):
    """A package cannot be fetched here; the text says why."""


def go_package(package: str, folder: Path) -> Path:
    """Return the test data of a package that comes with Go."""
    return Path(_run("go", "env", "GOROOT").strip()) / "src" / package / "testdata"


def go_module(module: str, folder: Path) -> Path:
    """Return where the module ``PATH@VERSION`` is, in Go's own cache."""
    said = json.loads(_run("go", "mod", "download", "-json", module))
    return Path(said["Dir"])


def python_source(source: str, folder: Path) -> Path:
    """Return the opened source distribution of ``NAME==VERSION``."""
    words = ("pip3", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder, source)
    _run(*words)
    return opened(folder)


def npm_package(package: str, folder: Path) -> Path:
    """Return the opened package ``NAME@VERSION``."""
    _run("npm", "pack", "--silent", "--pack-destination", folder, package)
    return opened(folder)


def rust_crate(crate: str, folder: Path) -> Path:
    """Return the sources of ``NAME@VERSION``, without what it depends on."""
    name, _, version = crate.partition("@")
    (folder / "lib.rs").touch()
    (folder / "Cargo.toml").write_text(
        '[package]\nname = "corpus"\nversion = "0.0.0"\nedition = "2021"\n'
        f'[lib]\npath = "lib.rs"\n[dependencies]\n{name} = "={version}"\n'
    )
    _run("cargo", "vendor", "--quiet", "--versioned-dirs", "vendored", folder=folder)
    return folder / "vendored" / f"{name}-{version}"


class DebianSources:
    """Debian's source packages, by lists of our own: few machines keep those of sources."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options: list[str] | None = None

    def source(self, name: str, folder: Path) -> Path:
        """Return the opened source package; a file of it that lacks is left out."""
        options = self._options or self._update()
        self._options = options
        words = ("apt-get", *options, "source", "--download-only", "-qq", name)
        try:
            _run(*words, folder=folder)
        except NotToBeHad:
            if not any(".orig" in path.name for path in folder.iterdir()):
                raise
        return opened(folder)

    def _update(self) -> list[str]:
        parts = self._folder / "parts"
        for place in (parts, self._folder / "lists" / "partial", self._folder / "cache"):
            place.mkdir(parents=True, exist_ok=True)
        for path in (
            APT_SOURCES / "sources.list",
            *sorted((APT_SOURCES / "sources.list.d").glob("*.list")),
            *sorted((APT_SOURCES / "sources.list.d").glob("*.sources")),
        ):
            if path.is_file():
                text = re.sub(r"(?m)^deb\s", "deb-src ", path.read_text())
                (parts / path.name).write_text(re.sub(r"(?m)^Types:.*", "Types: deb-src", text))
        pairs = (
            "Dir::Etc::SourceList=/dev/null",
            f"Dir::Etc::SourceParts={parts}",
            f"Dir::State::Lists={self._folder}/lists",
            f"Dir::Cache={self._folder}/cache",
            f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}",
        )
        options = [word for pair in pairs for word in ("-o", pair)]
        with suppress(NotToBeHad):  # one dead list must not stop the others
            _run("apt-get", *options, "update", "-qq")
        return options


def _run(*words: str | Path, folder: Path | None = None) -> str:
    """Return what a program says; raises NotToBeHad where it fails or takes too long."""
    return run_limited(words, folder=folder).decode(errors="replace")


def run_limited(
    words: Sequence[str | Path],
    *,
    folder: Path | None = None,
    seconds: float = SECONDS,
) -> bytes:
    """Return what a program prints; raises NotToBeHad where it fails or takes too long.

    Then everything that it started ends, too: a grandchild would keep the pipes open for ever.
    """
    program = str(words[0])
    if shutil.which(program) is None:
        raise NotToBeHad(f"{program} is not installed")
    with subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException as exc:
            if process.returncode is None:  # or its number may be another's by now
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise NotToBeHad(f"{program} took longer than {seconds:g} s") from None
            raise
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        raise NotToBeHad(f"{program}: {lines[-1] if lines else 'failed'}")
    return out


def opened(folder: Path) -> Path:
    """Return what the archives in *folder* have in them, side by side."""
    place = folder / "opened"
    for path in sorted(folder.iterdir()):
        is_archive = ".tar" in path.name or path.suffix in (".tgz", ".tbz2")
        if not (is_archive and path.is_file()):
            continue
        with suppress(tarfile.TarError, EOFError), tarfile.open(path) as archive:
            _open(archive, place / path.name)
    if not place.is_dir():
        raise NotToBeHad(f"{folder.name}: nothing in it is an archive")
    return place


def _open(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the files of *archive* below *folder*, and nothing that is not a file."""
    room = MAX_OPENED
    for member in archive:
        room -= member.size
        if room < 0:
            return
        inside = archive.extractfile(member) if member.isreg() else None
        if inside is None:
            continue
        target = folder / os.path.normpath("/" + member.name).lstrip("/")
        with suppress(OSError, ValueError):  # a name that no file may have
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(inside, file)
