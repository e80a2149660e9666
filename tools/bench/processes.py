"""Processes that the bench runs beside what it measures: the link, the registries."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Self

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0


class ProcessFailed(RuntimeError):
    """A helper process did not come up, or went away."""


class RunningProcess:
    """A child that is ended on exit: asked first, killed if it does not listen."""

    def __init__(self, arguments: list[str], *, log: IO[bytes] | None = None) -> None:
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log if log is not None else subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,  # a Ctrl-C is ours to handle, in order
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        process = self.process
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def written_size(self) -> int:
        """Return the bytes that the process has written so far; a server's are what it sent."""
        for line in Path(f"/proc/{self.process.pid}/io").read_text().splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
        raise LookupError(f"process {self.process.pid}: no wchar")

    def read_json(self) -> dict[str, int]:
        """Return the next line of its stdout, a JSON object."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ProcessFailed(f"{self.process.args!r}: ended with {self.process.wait(5)}")
        document: dict[str, int] = json.loads(line)
        return document


class RunningLink(RunningProcess):
    """tools.bench.link in front of *target* ("host:port")."""

    def __init__(self, target: str, *, rtt_ms: float, mbit: float) -> None:
        super().__init__(
            [
                sys.executable, "-m", "tools.bench.link", "--target", target,
                "--rtt-ms", str(rtt_ms), "--mbit", str(mbit),
            ]
        )  # fmt: skip
        self.port = self.read_json()["port"]
        self.address = f"127.0.0.1:{self.port}"

    def statistics(self) -> dict[str, int]:
        """Return connections, sent_size and received_size (bytes) since the start."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"statistics\n")
        self.process.stdin.flush()
        return self.read_json()


class DockerRegistry(RunningProcess):
    """The distribution project's registry (package docker-registry), storing in *folder*."""

    name = "docker-registry"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        config = folder / f"config-{self.port}.yml"  # others may use the folder, too
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
        )
        super().__init__(["docker-registry", "serve", str(config)])
        try:
            wait_until_listening(self.port)
        except ProcessFailed:
            self.close()
            raise
        finally:
            config.unlink()

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("docker-registry") is not None


class EmbeddedRegistry(RunningProcess):
    """The tests' own registry; used where docker-registry is not installed."""

    name = "tests.support.registries.registry"

    def __init__(self, folder: Path) -> None:
        super().__init__([sys.executable, "-m", "tests.support.registries.registry", str(folder)])
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().split()[-1]
        self.port = int(self.address.rpartition(":")[2])

    def statistics(self) -> dict[str, int]:
        """Return its counters: ``requests`` and ``bytes`` (of bodies) among others."""
        with urllib.request.urlopen(f"http://{self.address}/_stats", timeout=10) as response:
            counters: dict[str, int] = json.load(response)
        return counters


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_listening(port: int) -> None:
    """Return once something accepts connections at *port*, at the latest after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as exc:
            if time.monotonic() > deadline:
                raise ProcessFailed(
                    f"port {port}: nothing listens after {START_SECONDS} s"
                ) from exc
            time.sleep(0.02)
