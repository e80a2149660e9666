"""Folders of processes that write: they stay while their process lives, and go when it is gone."""

import gzip
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.store.paths import Store
from lazyfs.store.scratch import open_scratch, sweep
from lazyfs.store.upkeep.evict import evict, remove_unused
from tests.formats.test_layer_pass import tar_of, words
from tests.support.formats.images import OCI_GZIP, Layer, make_layout
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import ROOT, SECONDS, wait_until
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry

HOLDER = """
import os, sys
from pathlib import Path
from lazyfs.store.paths import Store
from lazyfs.store.scratch import open_scratch
with open_scratch(Store(Path(sys.argv[1]))) as folder:
    (folder / "content").write_bytes(bytes(100_000))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def rests(store: Store) -> list[Path]:
    return sorted(store.tmp.iterdir())


def test_a_folder_is_there_for_a_while(store: Store) -> None:
    with open_scratch(store) as folder:
        (folder / "content").write_bytes(b"x")
        (folder / "more").mkdir()
        assert sweep(store) == 0
        assert rests(store) == [folder]
    assert rests(store) == []


@pytest.mark.parametrize("remove", [sweep, remove_unused, lambda store: evict(store, 0).freed_size])
def test_what_a_killed_process_leaves_goes_at_once(store: Store, remove) -> None:
    line = [sys.executable, "-c", HOLDER, str(store.root)]
    process = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert rests(store) == [folder]
        remove(store)
        assert rests(store) == [folder], "its process lives"
        process.kill()
        process.wait(SECONDS)
        assert remove(store) >= 100_000
        assert rests(store) == []
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_what_is_no_scratch_is_left_alone(store: Store) -> None:
    store.temporary().write_bytes(b"somebody writes this")
    (store.tmp / "scratch-link").symlink_to("/")
    before = rests(store)
    assert sweep(store) == 0
    assert rests(store) == before


def test_a_pass_that_is_killed(tmp_path: Path) -> None:
    """The next command removes what it wrote, whatever that command is for."""
    tar = tar_of([("noise", words(8_000_000, 1))])
    large = Layer(gzip.compress(tar, 1), OCI_GZIP, {}, digest_of(tar))
    make_layout(tmp_path / "large", [large])
    small = tar_of([("hello", b"hello\n")])
    make_layout(tmp_path / "small", [Layer(gzip.compress(small), OCI_GZIP, {}, digest_of(small))])
    lazyfs = Lazyfs(tmp_path)
    temporary = tmp_path / "cache/tmp"
    with FakeRegistry(tmp_path / "large") as registry:
        registry.faults.add(faults.hang(2_500_000), path=digest_of(large.blob).hex)
        process = lazyfs.start("pull", f"{registry.host}/image:latest")
        try:
            wait_until(lambda: any(path.stat().st_size for path in temporary.glob("*/content")))
            other = lazyfs("cat", f"oci:{tmp_path}/small", "hello")
            assert (other.returncode, other.stdout) == (0, "hello\n"), other.stderr
            assert any(temporary.iterdir()), "the pass goes on"
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate(timeout=SECONDS)
        registry.release()
    assert any(temporary.iterdir())
    other = lazyfs("cat", f"oci:{tmp_path}/small", "hello")
    assert (other.returncode, other.stdout) == (0, "hello\n"), other.stderr
    assert not any(temporary.iterdir())
