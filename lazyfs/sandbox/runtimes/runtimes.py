"""Finding a runtime by name, by path, or by the digest of its program."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.documents.errors import RuntimeMismatch, Unsupported
from lazyfs.sandbox.runtimes.bubblewrap import Bubblewrap
from lazyfs.sandbox.runtimes.oci_runtimes import Crun, Runc
from lazyfs.sandbox.runtimes.probe import binary_digest, probe_program
from lazyfs.sandbox.runtimes.runsc import Runsc
from lazyfs.sandbox.runtimes.runtime import Runtime

# Where programs are that the PATH of an ordinary user lacks.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HINT = "install it (apt install {package}), or give its path with --runsc or --runtime"
FIRST = "runsc"  # the only one that can checkpoint
PACKAGES = {"bwrap": "bubblewrap"}

# Name → how it is made.  Where nobody says which, the first that is there is taken.
MAKERS: dict[str, Callable[[Path, Path | None], Runtime]] = {
    "runsc": Runsc,
    "crun": Crun,
    "runc": Runc,
    "bwrap": Bubblewrap,
}


@dataclass(frozen=True)
class Chooser:
    """A Choose.  *state_dir* is lazyfs' own: what is known of programs is kept below it, and
    programs by digest, ``runsc-<sha256>``, may be (the version store).
    """

    state_dir: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def version_store(self) -> Path:
        """The folder of programs that are kept by their digest."""
        return self.state_dir / "runtimes"

    @property
    def _cache_dir(self) -> Path:
        return self.state_dir / "probes"

    def __call__(
        self, name: str = "", *, path: Path | None = None, digest: str | None = None
    ) -> Runtime:
        """Return the runtime *name* ("" for the first there is), the program at *path*, or both.

        With *digest* it is that very program: at *path*, in the version store, or on the PATH.
        Raises Unsupported where there is none, RuntimeMismatch where it is another program.
        """
        if not path and "/" in name:
            name, path = "", Path(name)
        if name and name not in MAKERS:
            raise Unsupported(
                f"runtime: must be one of {', '.join(MAKERS)}, or a path, not {name[:80]!r}"
            )
        program: Path | None
        if digest is not None:
            program = self._of_digest(name or FIRST, path, digest)
        elif path is not None:
            program = path
        else:
            program = self.find(name) if name else next(filter(None, map(self.find, MAKERS)), None)
        if program is None:
            raise _none(name)
        if digest is not None and (got := self._digest(program)) != digest:
            raise RuntimeMismatch(
                f"{name or FIRST}: got {program} with {got}, expected {digest}",
                hint="give the program that made the snapshot with --runsc PATH, or put it into "
                f"{self.version_store} as {name or FIRST}-{digest.removeprefix('sha256:')}",
                details={"path": str(program), "got": got, "expected": digest},
            )
        found = probe_program(program, self._cache_dir).name
        if name and found != name:
            raise Unsupported(f"{program} is {found}, not {name}")
        return MAKERS[found](program.absolute(), self._cache_dir)

    def find(self, name: str) -> Path | None:
        """Return the program *name* on the PATH, or where systems keep such programs."""
        for folders in (self.environment.get("PATH", ""), SYSTEM_PATH):
            if found := shutil.which(name, path=folders):
                return Path(found)
        return None

    def _digest(self, program: Path) -> str:
        return binary_digest(program, self._cache_dir)

    def _of_digest(self, name: str, path: Path | None, digest: str) -> Path | None:
        """Return *path*, or what goes by *name*; what is kept of *digest* if that is another."""
        program = path or self.find(name)
        if program is not None and program.exists() and self._digest(program) == digest:
            return program
        kept = self.version_store / f"{name}-{digest.removeprefix('sha256:')}"
        return kept if os.access(kept, os.X_OK) else program


def _none(name: str) -> Unsupported:
    if not name:
        return Unsupported(
            f"no runtime is installed: need one of {', '.join(MAKERS)}",
            hint="install one; only runsc can checkpoint and restore",
        )
    package = PACKAGES.get(name, name)
    return Unsupported(f"{name} is not installed", hint=HINT.format(package=package))
