"""What is found of a runtime's program, and that it is asked once."""

import hashlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.sandbox.runtimes import probe
from lazyfs.sandbox.runtimes.probe import (
    abilities_of,
    binary_digest,
    choose_platform,
    load_cpu_features,
    parse_cpu_features,
    parse_flags,
    parse_version,
    probe_program,
)
from tests.support.sandboxes.fake_programs import FakeRunsc


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(probe, "_found", {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n", ("runsc", "0.0~20240729.0")),
        ("runsc version release-20260601.0\n", ("runsc", "release-20260601.0")),
        ("crun version 1.8.1\ncommit: f8a0\n", ("crun", "1.8.1")),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5\n", ("runc", "1.1.5+ds1")),
        ("bubblewrap 0.8.0\n", ("bwrap", "0.8.0")),
        ("GNU bash, version 5.2.15\n", ("", "")),
        ("", ("", "")),
    ],
)
def test_versions(text, found):
    assert parse_version(text) == found


def test_flags_are_those_described_not_those_mentioned():
    text = "  -overlay2 value\n    \tuse -direct or --background.\n  -debug\n    \tx\n"
    assert parse_flags(text) == {"overlay2", "debug"}


@given(st.text())
def test_any_text_is_read(text):
    parse_flags(text)
    parse_version(text)
    parse_cpu_features(text)
    assert choose_platform(text) in ("", "systrap", "ptrace", "kvm")
    assert abilities_of({"": text, "checkpoint": text}, text) is not None


def test_a_new_one(tmp_path):
    fake = FakeRunsc(
        tmp_path,
        restore_flags=("background", "direct", "detach"),
        wait_flags=("restore",),
        subcommands=("checkpoint", "restore", "fscheckpoint"),
    )
    facts = probe_program(fake.path)
    assert (facts.name, facts.version) == ("runsc", "release-20990101.0")
    assert facts.path == fake.path
    assert facts.platform == "systrap"
    assert facts.abilities == {
        "background", "checkpoint", "compression", "detach", "direct", "directfs", "fscheckpoint",
        "multi-restore", "overlay-dir", "overlay2", "restore", "rootless", "wait-restore",
    }  # fmt: skip


def test_an_old_one(tmp_path):
    fake = FakeRunsc(
        tmp_path,
        flags=(),
        checkpoint_flags=("leave-running",),
        restore_flags=("detach",),
        platforms=("ptrace", "kvm"),
        can_subcontainers=False,
    )
    facts = probe_program(fake.path)
    assert facts.platform == "ptrace"
    assert {"checkpoint", "restore", "leave-running"} <= facts.abilities
    assert not {"compression", "direct", "multi-restore", "rootless"} & facts.abilities


def test_the_version_does_not_decide(tmp_path):
    """The newest version's number with the flags of the oldest is an old one."""
    fake = FakeRunsc(tmp_path, version="runsc version release-29990101.0\n", checkpoint_flags=())
    assert "compression" not in probe_program(fake.path).abilities


def test_kvm_is_taken_only_where_there_is_nothing_else(tmp_path):
    assert probe_program(FakeRunsc(tmp_path / "a", platforms=("kvm",)).path).platform == "kvm"
    both = FakeRunsc(tmp_path / "b", platforms=("kvm", "ptrace"))
    assert probe_program(both.path).platform == "ptrace"


def test_it_is_asked_once(tmp_path):
    fake = FakeRunsc(tmp_path)
    first = probe_program(fake.path)
    assert probe_program(fake.path) == first
    assert fake.questions() == 1
    fake.path.write_text(fake.path.read_text() + "# another\n")
    assert probe_program(fake.path).binary_digest != first.binary_digest
    assert fake.questions() == 2


def test_answers_outlive_the_process(tmp_path, monkeypatch):
    fake, kept = FakeRunsc(tmp_path / "fake"), tmp_path / "kept"
    first = probe_program(fake.path, kept)
    monkeypatch.setattr(probe, "_found", {})
    assert probe_program(fake.path, kept) == first
    assert fake.questions() == 1
    (path,) = (each for each in kept.iterdir() if not each.name.startswith("read-"))
    path.write_text("{")
    monkeypatch.setattr(probe, "_found", {})
    assert probe_program(fake.path, kept) == first
    assert fake.questions() == 2


def test_what_is_kept_of_other_rules_is_not_believed(tmp_path, monkeypatch):
    fake, kept = FakeRunsc(tmp_path / "fake"), tmp_path / "kept"
    probe_program(fake.path, kept)
    monkeypatch.setattr(probe, "_found", {})
    monkeypatch.setattr(probe, "RULES", "other")
    probe_program(fake.path, kept)
    assert fake.questions() == 2


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    assert probe_program(FakeRunsc(tmp_path / "fake").path, tmp_path / "file").name == "runsc"


def test_what_is_no_runtime(tmp_path):
    with pytest.raises(Unsupported, match="is not runsc, crun, runc or bwrap"):
        probe_program(Path("/bin/sh"))
    with pytest.raises(RuntimeFailed, match=r"cannot run .*: No such file or directory"):
        probe_program(tmp_path / "nothing")
    (tmp_path / "empty").write_text("")
    with pytest.raises(RuntimeFailed, match="cannot run"):
        probe_program(tmp_path / "empty")
    (tmp_path / "text").write_text("no program")
    with pytest.raises(RuntimeFailed, match="cannot start"):
        probe_program(tmp_path / "text")


def test_features_of_the_processor():
    text = "processor\t: 0\nflags\t\t: fpu sse avx fpu\n\nprocessor\t: 1\nflags\t\t: other\n"
    assert parse_cpu_features(text) == ("avx", "fpu", "sse")
    assert parse_cpu_features("Features\t: fp asimd\n") == ("asimd", "fp")
    assert parse_cpu_features("vmx flags\t: x\n") == ()
    assert all(re.fullmatch(r"[a-z0-9_]+", word) for word in load_cpu_features())


def test_a_program_that_has_not_changed_is_not_hashed_again(tmp_path, monkeypatch):
    """Not by another process either; a file that was changed is, whatever time it was given."""
    fake = FakeRunsc(tmp_path / "fake")
    kept = tmp_path / "kept"
    hashed = []
    sha256 = hashlib.sha256

    def noted(data):
        if not isinstance(data, bytes):  # a map of the program
            hashed.append(len(data))
        return sha256(data)

    def read(path):
        """Return the digest, as a process does that knows nothing."""
        monkeypatch.setattr(probe, "_binaries", {})
        return binary_digest(path, kept)

    monkeypatch.setattr(probe.hashlib, "sha256", noted)
    monkeypatch.setattr(probe, "SETTLED_SECONDS", -1e9)
    first = read(fake.path)
    assert read(fake.path) == first
    assert len(hashed) == 1
    (record,) = kept.glob("read-*.json")
    record.write_bytes(record.read_bytes()[:-3])  # broken off
    assert read(fake.path) == first
    assert len(hashed) == 2
    status = fake.path.stat()
    data = bytearray(fake.path.read_bytes())
    data[-1] ^= 1
    fake.path.write_bytes(data)
    os.utime(fake.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read(fake.path) != first
    monkeypatch.setattr(probe, "SETTLED_SECONDS", 1e9)
    record.unlink()
    read(fake.path)
    assert not record.exists()  # it may still change, and look the same
