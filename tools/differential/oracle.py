"""containerd's own unpacker, in a program of ours that is built by Go: oracle/main.go."""

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from tools.differential.tree import Node, Tree, with_names

SOURCE = Path(__file__).parent / "oracle"
BUILD_SECONDS = 300
ANSWER_SECONDS = 60


class NoOracle(Exception):
    """The oracle cannot be built or run here; the text says why."""


class _Node(msgspec.Struct):
    path: bytes
    mode: int
    uid: int
    gid: int
    size: int
    sec: int
    nsec: int
    major: int
    minor: int
    inode: int
    link: bytes | None
    digest: str
    xattrs: dict[str, bytes] | None


class _Answer(msgspec.Struct):
    error: str
    nodes: list[_Node] | None


_DECODER = msgspec.json.Decoder(_Answer)


def build_oracle(program: Path, *, is_online: bool) -> None:
    """Build *program*; raises NoOracle where there is no Go, or not what it needs.

    Not *is_online*: only modules that are on this machine are used.
    """
    go = shutil.which("go")
    if go is None:
        raise NoOracle("Go is not installed")
    if os.geteuid() != 0:
        raise NoOracle("unpacking devices and owners takes root")
    environment = dict(os.environ)
    if not is_online:
        environment |= {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        [go, "build", "-o", program, "."],
        cwd=SOURCE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise NoOracle(f"the oracle cannot be built: {done.stderr.strip()[-300:]}")


class OracleFailed(Exception):
    """The oracle has no answer for an image; it goes on with the next one."""


class Oracle:
    """The program while it runs; a context."""

    def __init__(self, program: Path, folder: Path, *, seconds: float = ANSWER_SECONDS) -> None:
        # Its mounts are its own, and end with it however it ends.
        self._words: list[str | Path] = ["unshare", "--mount", program, folder]
        self._seconds = seconds
        self._process = self._start()

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def tree_of(self, layers: Sequence[bytes]) -> Tree:
        """Return what containerd unpacks *layers* to, bottom layer first.

        Raises OracleFailed where the program ends or takes too long; it is started again then.
        """
        image = len(layers).to_bytes(4, "big")
        image += b"".join(len(layer).to_bytes(8, "big") + layer for layer in layers)
        limit = threading.Timer(self._seconds, self._process.kill)
        limit.start()
        try:
            line = self._ask(image)
        finally:
            limit.cancel()
        if not line.endswith(b"\n"):
            code = self._end()
            self._process = self._start()
            raise OracleFailed(f"the oracle ended with {code}, in {self._seconds:g} s at most")
        answer = _DECODER.decode(line)
        if answer.error:
            return Tree(refusal=answer.error)
        nodes = {node.path: _read(node) for node in answer.nodes or ()}
        return Tree(with_names(nodes, {node.path: node.inode for node in answer.nodes or ()}))

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _end(self) -> int:
        """Have the program end, and return with what code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _ask(self, image: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(image)
            self._process.stdin.flush()
        except BrokenPipeError:
            return b""
        return self._process.stdout.readline()


def _read(node: _Node) -> Node:
    return Node(
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        size=node.size if stat.S_ISREG(node.mode) else 0,
        mtime=(node.sec, node.nsec),
        rdev=(node.major, node.minor),
        link=node.link or b"",
        digest=node.digest,
        xattrs={name.encode(): value for name, value in (node.xattrs or {}).items()},
    )
