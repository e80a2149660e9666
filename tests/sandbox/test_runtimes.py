"""Which runtime a name, a path or a digest stands for."""

import os
import shutil
from pathlib import Path

import pytest

from lazyfs.documents.errors import RuntimeFailed, RuntimeMismatch, Unsupported
from lazyfs.sandbox.runtimes import runtimes
from lazyfs.sandbox.runtimes.bubblewrap import Bubblewrap
from lazyfs.sandbox.runtimes.oci_runtimes import Crun, Runc
from lazyfs.sandbox.runtimes.probe import binary_digest
from lazyfs.sandbox.runtimes.runsc import Runsc
from lazyfs.sandbox.runtimes.runtimes import Chooser
from tests.support.sandboxes.fake_programs import FakeRunsc


@pytest.fixture(autouse=True)
def no_system(monkeypatch, tmp_path):
    """Only what a test puts on the PATH is there."""
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(runtimes, "SYSTEM_PATH", str(tmp_path / "system"))


@pytest.fixture
def choose(tmp_path):
    return Chooser(tmp_path / "state", {"PATH": str(tmp_path / "bin")})


def program(path: Path, version: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def runsc_in(folder: Path, **options) -> Path:
    return FakeRunsc(folder, **options).path


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("crun", "crun version 1.8.1", Crun),
        ("runc", "runc version 1.1.5", Runc),
        ("bwrap", "bubblewrap 0.8.0", Bubblewrap),
    ],
)
def test_by_name(choose, tmp_path, name, version, kind):
    path = program(tmp_path / "bin" / name, version)
    found = choose(name)
    assert (type(found), found.path, found.name) == (kind, path, name)
    facts = found.probe()
    assert (facts.name, facts.platform) == (name, "")
    assert "checkpoint" not in facts.abilities


def test_where_nobody_says_which_the_one_that_can_checkpoint_comes_first(choose, tmp_path):
    with pytest.raises(Unsupported, match="no runtime is installed: need one of runsc, crun, runc"):
        choose()
    program(tmp_path / "bin/bwrap", "bubblewrap 0.8.0")
    assert isinstance(choose(), Bubblewrap)
    program(tmp_path / "system/runc", "runc version 1.1.5")  # what a user's PATH lacks
    assert isinstance(choose(), Runc)
    program(tmp_path / "bin/crun", "crun version 1.8.1")
    assert isinstance(choose(), Crun)
    runsc_in(tmp_path / "bin")
    assert isinstance(choose(), Runsc)


def test_by_path(choose, tmp_path):
    path = runsc_in(tmp_path / "elsewhere")
    assert choose(str(path)).path == path
    assert choose("runsc", path=path).path == path
    with pytest.raises(Unsupported, match="is runsc, not crun"):
        choose("crun", path=path)
    with pytest.raises(RuntimeFailed, match="cannot run"):
        choose("runsc", path=tmp_path / "nothing")


def test_names_that_mean_nothing(choose):
    with pytest.raises(
        Unsupported, match="must be one of runsc, crun, runc, bwrap, or a path, not 'docker'"
    ):
        choose("docker")
    with pytest.raises(Unsupported, match="bwrap is not installed") as error:
        choose("bwrap")
    assert "apt install bubblewrap" in error.value.hint


def test_by_digest(choose, tmp_path):
    old = runsc_in(tmp_path / "old", version="runsc version 1\n")
    wanted = binary_digest(old)
    with pytest.raises(Unsupported, match="runsc is not installed"):
        choose("runsc", digest=wanted)

    present = runsc_in(tmp_path / "bin", version="runsc version 2\n")
    with pytest.raises(RuntimeMismatch) as error:
        choose("runsc", digest=wanted)
    assert error.value.details == {
        "path": str(present),
        "got": binary_digest(present),
        "expected": wanted,
    }
    kept = choose.version_store / f"runsc-{wanted.removeprefix('sha256:')}"
    assert str(choose.version_store) in error.value.hint
    assert kept.name in error.value.hint

    kept.parent.mkdir(parents=True)
    shutil.copy(old, kept)
    assert choose("runsc", digest=wanted).path == kept
    assert choose("runsc", path=present, digest=wanted).path == kept
    assert choose("runsc", path=old, digest=wanted).path == old
    assert choose("runsc", digest=binary_digest(present)).path == present


def test_a_kept_program_that_is_another_is_refused(choose, tmp_path):
    """The name of a file in the version store is no proof."""
    wanted = "sha256:" + "0" * 64
    kept = choose.version_store / f"runsc-{'0' * 64}"
    kept.parent.mkdir(parents=True)
    shutil.copy(runsc_in(tmp_path / "other"), kept)
    with pytest.raises(RuntimeMismatch):
        choose("runsc", digest=wanted)


def test_what_was_found_is_kept_in_the_state_directory(choose, tmp_path):
    runsc_in(tmp_path / "bin")
    choose("runsc")
    assert [path.parent.name for path in (tmp_path / "state").rglob("*.json")] == ["probes"]
    assert os.stat(tmp_path / "state/probes").st_mode & 0o777 == 0o700
