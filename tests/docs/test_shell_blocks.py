"""Every shell block of the README and the how-to pages runs, or says why it is not run.

The blocks of a page are run one after another by one shell, in an empty directory.  The names of
registries in them lead to one on loopback, by the configuration that users have for mirrors.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts.mounting import folder_for_all, force_unmount, needs_fuse, needs_root
from tests.support.mounts.pages import Block, blocks_of, indented_commands, script_of
from tests.support.registries.registry import FakeRegistry
from tools.demo import layers
from tools.images import layout
from tools.images.tree import Node, Tree, file

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/getting-started.md",
    ROOT / "docs/howto/sandboxes.md",
    ROOT / "docs/howto/snapshots.md",
    ROOT / "docs/howto/snapshot-stores.md",
]
LANGUAGES = {"sh", "text", "json", "yaml", "toml", "python", "console", "ini"}
HOSTS = ("docker.io", "registry.example", "ghcr.io")
SECONDS = 240


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_in_a_block_that_says_what_it_is(page: Path) -> None:
    text = page.read_text()
    assert indented_commands(text) == []
    unknown = [(block.line, block.language) for block in blocks_of(text)]
    assert [each for each in unknown if each[1] not in LANGUAGES] == []


@pytest.fixture(scope="module")
def registry():
    """A registry with the images that the pages name."""
    import tarfile

    python = Path(os.path.realpath(sys.executable))
    system, application = layers(python)
    added: Tree = {
        "usr/bin/python3": Node(tarfile.SYMTYPE, 0o777, link=str(python)),
        "etc/os-release": file(b'NAME="an image of this machine\'s Python"\n'),
    }
    with folder_for_all() as folder:
        for name in ("library/python", "library/busybox", "app"):
            path = folder / name
            path.mkdir(parents=True)
            trees = [system | added, application] if name == "library/python" else [application]
            tag = {"library/python": "3.12", "app": "1.2"}.get(name, "latest")
            layout.write_image(path, trees, tag=tag, cmd=["python3"])
        with FakeRegistry(folder) as registry:
            registry.list_referrers()
            yield registry


@needs_fuse[0]
@needs_root[0]
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_run(page: Path, registry: FakeRegistry, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for host in HOSTS:
        hosts = tmp_path / "config/containerd/certs.d" / host / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(f'server = "{registry.url}"\n')
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LAZYFS_", "XDG_", "PYTHON"))
    } | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "LAZYFS_CACHE_DIR": str(tmp_path / "cache"),
        "LAZYFS_STATE_DIR": str(tmp_path / "state"),
        "LAZYFS_RUNTIME_DIR": str(tmp_path / "run"),
    }
    try:
        done = subprocess.run(
            ["bash", "-c", script_of(page)],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    finally:
        force_unmount(work / "mnt")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_blocks_are_found() -> None:
    text = "a\n<!-- not run: needs root -->\n```sh\nx\ny\n```\n\n```text\nz\n```\n    lazyfs ls\n"
    assert list(blocks_of(text)) == [
        Block(3, "sh", "x\ny", "needs root"),
        Block(8, "text", "z", None),
    ]
    assert indented_commands(text) == [11]


def test_a_block_without_an_end_is_noticed() -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(blocks_of("```sh\nx"))
