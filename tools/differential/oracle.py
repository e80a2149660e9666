"""containerd's own unpacker, in a program of ours that is built by Go: oracle/main.go."""

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from tools.differential.tree import Node, Tree, with_names

SOURCE = Path(__file__).parent / "oracle"
BUILD_SECONDS = 300


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


class Oracle:
    """The program while it runs; a context."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            [program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tree_of(self, layers: Sequence[bytes]) -> Tree:
        """Return what containerd unpacks *layers* to, bottom layer first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        image = len(layers).to_bytes(4, "big")
        image += b"".join(len(layer).to_bytes(8, "big") + layer for layer in layers)
        self._process.stdin.write(image)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise NoOracle("the oracle has ended")
        answer = _DECODER.decode(line)
        if answer.error:
            return Tree(refusal=answer.error)
        nodes = {node.path: _read(node) for node in answer.nodes or ()}
        return Tree(with_names(nodes, {node.path: node.inode for node in answer.nodes or ()}))


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
