"""``lazyfs doctor``: what it finds, what one loses without it, and how it ends."""

import os
import shutil
from pathlib import Path

import pytest

from lazyfs.cli.mounts import doctor as module
from lazyfs.sandbox.runtimes import runtimes
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from tests.cli.test_json_reference import fields_of, section
from tests.support.sandboxes.fake_programs import FakeRunsc

NAMES = [
    *("fuse", "fusermount3", "native driver", "erofs", "user xattrs", "user namespaces"),
    *("runsc", "crun", "runc", "bwrap"),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A machine with a FUSE device, and a PATH with nothing but what a test puts there."""
    (tmp_path / "fuse").write_text("")
    monkeypatch.setattr(module, "FUSE", tmp_path / "fuse")
    monkeypatch.setattr(runtimes, "SYSTEM_PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("LAZYFS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "bin").mkdir()
    for name in ("unshare", "true", "env", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name, path="/usr/bin:/bin"))
    return tmp_path


def found(done, name: str) -> dict:
    return next(each for each in done.json["findings"] if each["name"] == name)


def test_every_field_is_documented(run, place):
    FakeRunsc(place / "bin")
    done = run("doctor", place / "store", "--json")
    assert done.code == 0
    assert done.json["type"] == "doctor"
    assert [each["name"] for each in done.json["findings"]] == [*NAMES, "store"]
    documented = section("doctor")
    assert {field for field in fields_of(done.json) if f"`{field}`" not in documented} == set()


def test_a_runtime_with_its_abilities(run, place):
    fake = FakeRunsc(place / "elsewhere")
    done = run("doctor", "--runsc", fake.path, "--json")
    runsc = found(done, "runsc")
    assert (runsc["ok"], runsc["path"], runsc["platform"]) == (True, str(fake.path), "systrap")
    assert {"checkpoint", "multi-restore"} <= set(runsc["abilities"])
    text = run("doctor", "--runsc", fake.path).text
    assert "systrap: runs, checkpoints, restores several containers" in text


def test_an_old_runsc_is_no_good_without_root(run, place, monkeypatch):
    fake = FakeRunsc(place / "bin", flags=(), can_subcontainers=False)
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    runsc = found(run("doctor", "--runsc", fake.path, "--json"), "runsc")
    assert not runsc["ok"]
    assert "restores one" in runsc["found"]
    assert runsc["means"].startswith("without root, ")
    assert "newer version" in runsc["means"]


def test_nothing_that_runs_sandboxes(run):
    done = run("doctor")
    assert done.code == 0  # mounts work
    lines = done.text.splitlines()
    assert [line for line in lines if line.startswith("missing  runsc")]
    assert (
        "--runtime runsc does not work; sandboxes cannot be checkpointed and restored" in done.text
    )
    assert lines[-2].startswith("missing  sandboxes")
    assert "apt install runsc" in lines[-1]


def test_without_fuse_nothing_mounts(run, place, monkeypatch):
    monkeypatch.setattr(module, "FUSE", place / "nothing")
    done = run("doctor", "--json")
    assert done.code == 8
    assert (found(done, "fuse")["ok"], found(done, "fuse")["needed"]) == (False, True)
    assert "modprobe fuse" in found(done, "fuse")["means"]
    assert run("doctor", place / "store").code == 8


def test_without_fusermount_only_root_mounts(run, place, monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(module, "_has_mount_right", lambda: False)
    done = run("doctor", "--json")
    assert done.code == 8
    assert found(done, "fusermount3")["found"] == "not installed"
    monkeypatch.setattr(module, "_has_mount_right", lambda: True)  # unshare -Urm
    assert run("doctor").code == 0
    program = place / "bin/fusermount3"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = run("doctor", "--json")
    assert done.code == 8
    assert "not setuid" in found(done, "fusermount3")["found"]
    program.chmod(0o4755)
    monkeypatch.setattr(module, "FUSE_CONF", place / "fuse.conf")
    assert "for this user only" in found(run("doctor", "--json"), "fusermount3")["found"]
    (place / "fuse.conf").write_text("# user_allow_other\n user_allow_other \n")
    assert "-o allow_other works" in found(run("doctor", "--json"), "fusermount3")["found"]


def test_without_user_namespaces(run, place):
    (place / "bin/unshare").unlink()
    (place / "bin/unshare").write_text("#!/bin/sh\necho 'unshare: not permitted' >&2\nexit 1\n")
    (place / "bin/unshare").chmod(0o755)
    namespaces = found(run("doctor", "--json"), "user namespaces")
    assert (namespaces["ok"], namespaces["found"]) == (False, "unshare: not permitted")
    assert namespaces["means"] == "without root, no sandbox can be started"


def test_a_store(run, place):
    done = run("doctor", place / "store", "--json")
    store = found(done, "store")
    assert (store["ok"], store["conditional"], store["url"]) == (True, True, f"{place}/store")
    assert "the first snapshot creates it" in store["found"]
    assert not (place / "store").exists()
    (place / "store").mkdir()
    assert "first snapshot" not in found(run("doctor", place / "store", "--json"), "store")["found"]
    assert list((place / "store").iterdir()) == []


def test_a_store_that_keeps_no_conditions(run, place, monkeypatch):
    monkeypatch.setattr(DirectoryStore, "is_conditional", lambda self: False)
    done = run("doctor", place / "store", "--json")
    store = found(done, "store")
    assert (done.code, store["ok"], store["conditional"]) == (0, False, False)
    assert "two machines move one pointer" in store["means"]


def test_a_store_that_cannot_be_written(run, place):
    (place / "file").write_text("")
    done = run("doctor", place / "file/store", "--json")
    assert done.code == 42
    assert not found(done, "store")["ok"]
    assert run("doctor", "ftp://x/y").code == 2


def test_the_right_to_mount():
    status = Path("/proc/self/status").read_text()
    assert module._has_mount_right() == (
        os.geteuid() == 0 and "CapEff:\t0000000000000000" not in status
    )
