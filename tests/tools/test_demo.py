"""The demo runs, shows what it promises, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 120


@pytest.mark.fuse
@pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse cannot be opened"
)
def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    for shown in (
        '"hello from": "an image that is mounted lazily"',
        "etc/obsolete exists: False",
        "one file: True",
        "user.lazyfs.manifest.digest = sha256:",
        "Input/output error",
        "health: corrupt sha256:",
        "app/hello.py is still readable and correct: True",
        "exit code 6",
    ):
        assert shown in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
