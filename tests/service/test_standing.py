"""Who a process is and where it stands, compared with another."""

import json
import os
import sys

import pytest

from lazyfs.service.processes.standing import build, creation_mask, standing
from tests.support.mounts.mounting import ROOT, needs_root, run

SAY = (
    "import json, sys; sys.path.insert(0, {root!r});"
    "from lazyfs.service.processes.standing import standing; print(json.dumps(standing()))"
)


def standing_of(*prefix: str) -> list[str]:
    """Return what a process that *prefix* starts says of itself."""
    done = run(*prefix, sys.executable, "-c", SAY.format(root=str(ROOT)))
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_child_stands_where_its_parent_does():
    assert standing_of() == standing()


@pytest.mark.parametrize(
    ("prefix", "different"),
    [
        (["unshare", "-m"], {"mnt", "root"}),
        (["unshare", "-n"], {"net"}),
        (["unshare", "-p", "-f"], {"pid"}),
        (["setpriv", "--regid", "12", "--clear-groups"], {"Gid", "Groups"}),
        (["setpriv", "--no-new-privs"], {"NoNewPrivs"}),
        (["setpriv", "--bounding-set", "-sys_admin"], {"CapEff"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@needs_root[0]
@needs_root[1]
def test_what_makes_a_difference(prefix, different):
    here, there = standing(), standing_of(*prefix)
    found = {text.partition(" ")[0] for text in set(here) ^ set(there)}
    assert different & found
    assert found <= different


@needs_root[0]
@needs_root[1]
def test_another_root_of_the_same_tree():
    script = 'mount --rbind / /mnt && exec chroot /mnt "$@"'
    there = standing_of("unshare", "-m", "sh", "-c", script, "-")
    assert there[-1].startswith("root ")
    assert there[-1] != standing()[-1]


def test_the_mask_is_left_as_it_is():
    previous = os.umask(0o137)
    try:
        assert creation_mask() == 0o137
        assert os.umask(0o137) == 0o137
    finally:
        os.umask(previous)


def test_a_build_is_its_files(tmp_path):
    assert build() == build()
    code = "import sys; sys.path.insert(0, sys.argv[1]); "
    code += "from lazyfs.service.processes import standing; "
    (tmp_path / "lazyfs").mkdir()
    (tmp_path / "lazyfs/__init__.py").write_text((ROOT / "lazyfs/__init__.py").read_text())
    (tmp_path / "lazyfs/service").symlink_to(ROOT / "lazyfs/service")
    code += "print(standing.build())"
    done = run(sys.executable, "-c", code, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != build()
