"""``lazyfs optimize``: what a program reads comes first, and nothing is left behind."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.formats.layers import find_layer_toc, read_layer_toc
from lazyfs.formats.tocs.claims import claims_of
from tests.support.formats.images import read_blob, tagged
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import needs_fuse, wait_until
from tools.images import host, layout
from tools.images.tree import Tree, add_parents, directory, file

pytestmark = [*needs_fuse]

NEEDED = "srv/needed"
LANDMARK = b".prefetch.landmark"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a layout whose image can run cat and sleep, with an ordinary layer."""
    folder = tmp_path_factory.mktemp("image") / "layout"
    tree: Tree = {"srv/other": file(os.urandom(100_000)), NEEDED: file(b"needed\n" * 1000)}
    for program in ("/bin/cat", "/bin/sleep"):
        host.add_program(tree, Path(program))
    for path in ("dev", "proc", "tmp"):
        tree[path] = directory()
    add_parents(tree)
    layout.write_image(folder, [tree], tag="latest", cmd=["cat", "/srv/needed"])
    return folder


@pytest.fixture
def lazyfs(tmp_path: Path) -> Iterator[Lazyfs]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    lazyfs = Lazyfs(tmp_path, environment={"TMPDIR": str(temporary)})
    yield lazyfs
    assert list(temporary.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert lazyfs.status() == []


def first_files(folder: Path) -> list[bytes]:
    """Return the regular files before the landmark."""
    manifest = json.loads(read_blob(folder, tagged(folder)["digest"]))
    (layer,) = manifest["layers"]
    blob = read_blob(folder, layer["digest"])
    claims = claims_of(layer["annotations"])
    place = find_layer_toc(blob[-4096:], len(blob), claims)
    entries = read_layer_toc(blob[place.start : place.end], place, claims).toc.entries
    paths = [entry.path for entry in entries if entry.size]
    return paths[: paths.index(LANDMARK)]


@pytest.mark.parametrize("target", ["estargz", "zstd-chunked"])
def test_what_a_program_reads_comes_first(lazyfs: Lazyfs, image: Path, target: str) -> None:
    made = lazyfs.folder / "made"
    done = lazyfs("optimize", f"oci:{image}", f"oci:{made}", "--to", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"oci:{made}@{tagged(made)['digest']}\n"
    assert "needed\n" in done.stderr, "what the program says"
    first = first_files(made)
    assert NEEDED.encode() in first
    assert any(path.endswith(b"/cat") for path in first)
    assert b"srv/other" not in first


def test_what_does_not_end_is_ended(lazyfs: Lazyfs, image: Path) -> None:
    made = lazyfs.folder / "made"
    words = ("--timeout", "1", "--", "sleep", "600")
    done = lazyfs("optimize", f"oci:{image}", f"oci:{made}", *words)
    assert done.returncode == 0, done.stderr
    assert "sleep: stopped after 1 s" in done.stderr
    assert any(path.endswith(b"/sleep") for path in first_files(made))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--", "cat", "/nowhere"], 1, "the command failed with exit status 1"),
        (["--", "no-such-program"], 1, "the command failed with"),
        (["--to", "zstd-chunked", "--external-toc"], 2, "--external-toc"),
        (["--level", "19"], 2, "--level: got 19"),
    ],
)
def test_failures_leave_nothing(
    lazyfs: Lazyfs, image: Path, words: list[str], code: int, said: str
) -> None:
    done = lazyfs("optimize", f"oci:{image}", f"oci:{lazyfs.folder}/made", *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not (lazyfs.folder / "made").exists()


def test_a_signal_leaves_nothing(lazyfs: Lazyfs, image: Path) -> None:
    words = ("optimize", f"oci:{image}", f"oci:{lazyfs.folder}/made", "--", "sleep", "600")
    process = lazyfs.start(*words)
    try:
        wait_until(lambda: lazyfs.status() != [])
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM, said


def test_what_a_new_cache_cannot_know_is_refused(
    image: Path, tmp_path: Path, lazyfs: Lazyfs
) -> None:
    made = tmp_path / "made"
    done = lazyfs("optimize", f"oci:{image}", f"oci:{made}", "--require-newer")
    assert done.returncode == 2
    assert "--require-newer has no meaning here" in done.stderr
    assert not made.exists()
