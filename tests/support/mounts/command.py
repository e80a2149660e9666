"""The ``lazyfs`` command in tests: with directories of its own, as root or as somebody else."""

import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from tests.support.mounts.mounting import ROOT, SECONDS

# What the command needs of this environment, as top-level names of packages.
PACKAGES = (
    *("trio", "outcome", "attr", "attrs", "sortedcontainers", "sniffio", "idna", "pyfuse3"),
    *("httpx", "httpcore", "h11", "certifi", "anyio", "msgspec", "isal", "zstandard", "click"),
    *("rich", "typing_extensions", "yaml", "_yaml"),
)


@dataclass
class Lazyfs:
    """Runs ``lazyfs`` with its own cache, state and runtime directories below *folder*."""

    folder: Path
    interpreter: tuple[str, ...] = (sys.executable,)
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LAZYFS_", "XDG_"))},
            "LAZYFS_CACHE_DIR": str(self.folder / "cache"),
            "LAZYFS_STATE_DIR": str(self.folder / "state"),
            "LAZYFS_RUNTIME_DIR": str(self.folder / "run"),
            "PYTHONPATH": str(ROOT),
            **self.environment,
        }

    def command(self, *words: object) -> list[str]:
        return [*self.prefix, *self.interpreter, "-m", "lazyfs", *(str(word) for word in words)]

    def __call__(self, *words: object, **options) -> subprocess.CompletedProcess:
        """Run a command to its end; the exit code is the caller's to check."""
        defaults = {"capture_output": True, "text": True, "timeout": SECONDS, "check": False}
        return subprocess.run(
            self.command(*words),
            **(defaults | self.options | {"env": self.variables, "cwd": self.folder} | options),
        )

    def start(self, *words: object, **options) -> subprocess.Popen:
        """Start a command and return its process."""
        defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            self.command(*words),
            **(defaults | self.options | {"env": self.variables, "cwd": self.folder} | options),
        )

    def mount(self, *words: object) -> None:
        """Run ``lazyfs mount``, which must work."""
        done = self("mount", *words)
        assert done.returncode == 0, done.stderr

    def status(self) -> list[dict]:
        """Return what ``lazyfs status --json`` says of the mounts."""
        done = self("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["mounts"]

    def kill_server(self) -> int:
        """Kill the only mount's server for good, with its keeper; return its process number."""
        (status,) = self.status()
        while status["keeperPid"] is None and not status["keeperNote"]:  # it is starting
            (status,) = self.status()
        keeper, server = status["keeperPid"], status["pid"]
        if keeper is not None:
            os.kill(keeper, signal.SIGSTOP)  # so that neither sees the other die
        os.kill(server, signal.SIGKILL)
        if keeper is not None:
            os.kill(keeper, signal.SIGKILL)
        return server

    def records(self) -> list[Path]:
        return sorted((self.folder / "run").glob("*"))


def copy_of_packages(folder: Path) -> Path:
    """Copy lazyfs and what it needs to *folder*, where any user can read it."""
    target = folder / "packages"
    target.mkdir()
    ignored = shutil.ignore_patterns("tests", "*.c", "*.pyx", "*.pxi")
    site = Path(distribution("trio").locate_file(""))
    for name in PACKAGES:
        if (site / name).is_dir():
            shutil.copytree(site / name, target / name, ignore=ignored)
        elif (site / f"{name}.py").exists():
            shutil.copy(site / f"{name}.py", target)
    for library in site.glob("*.so"):
        shutil.copy(library, target)
    shutil.copytree(ROOT / "lazyfs", target / "lazyfs", ignore=ignored)
    compileall.compile_dir(target / "lazyfs", quiet=1)  # nobody else could keep it
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".so" else 0o644)
    return target
