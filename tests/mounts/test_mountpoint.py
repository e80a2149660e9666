"""The kernel's mount table, and what can be mounted on."""

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import MountFailed
from lazyfs.mount import point
from lazyfs.mount.point import (
    BadMountinfo,
    BadMountpoint,
    BusyMountpoint,
    MountEntry,
    State,
    check_fuse_device,
    load_mountinfo,
    parse_mountinfo,
    prepare_mountpoint,
    state_of,
    topmost,
)

LINE = (
    b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    b"37 35 0:45 / /srv/with\\040blank\\134 ro shared:2 master:3 - fuse.lazyfs a\\011b ro\n"
    b"38 35 0:46 / / rw - tmpfs none rw\n"
)


def test_the_example_of_the_manual():
    first, second, third = parse_mountinfo(LINE)
    assert first == MountEntry(36, "98:0", b"/mnt2", "ext3", b"/dev/root")
    assert second == MountEntry(37, "0:45", b"/srv/with blank\\", "fuse.lazyfs", b"a\tb")
    assert third.mountpoint == b"/"


def test_a_mount_may_not_hide_what_its_server_needs(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a" / "cache")
    point.check_covers_none(str(tmp_path / "a"), {})
    for free in (tmp_path / "a" / "cache" / "below", tmp_path / "ab", tmp_path / "link"):
        point.check_covers_none(str(free), {"cache": tmp_path / "a" / "cache"})
    for folder in (tmp_path / "a", tmp_path / "a" / "cache" / "layers", link):
        with pytest.raises(BadMountpoint, match=f"contains the cache of lazyfs, {folder}, which"):
            point.check_covers_none(str(tmp_path / "a"), {"cache": folder})


def test_this_machines_table():
    assert topmost(load_mountinfo(), b"/proc").filesystem_type == "proc"


def test_the_latest_mount_is_the_one_that_is_seen():
    lower = MountEntry(1, "0:1", b"/a", "ext4", b"x")
    upper = MountEntry(2, "0:2", b"/a", "tmpfs", b"y")
    below = MountEntry(3, "0:3", b"/a/b", "tmpfs", b"z")
    assert topmost([lower, upper, below], b"/a") is upper
    assert topmost([lower, upper], b"/a/b") is None


@pytest.mark.parametrize("cut", range(len(LINE.splitlines()[0])))
def test_cut_lines_are_refused_or_shorter(cut):
    line = LINE.splitlines()[0][:cut]
    try:
        (entry,) = parse_mountinfo(line) or [None]
    except BadMountinfo:
        return
    assert entry is None or entry.mountpoint == b"/mnt2"


@given(st.binary(max_size=200))
def test_anything_is_understood_or_refused(data):
    try:
        parse_mountinfo(data)
    except BadMountinfo:
        pass


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b))
def test_names_survive_the_kernels_escaping(name):
    escaped = b"".join(
        b"\\%03o" % c if c in b" \t\n\\" else bytes([c]) for c in name
    )  # as the kernel's mangle() does
    line = b"1 2 0:3 / /" + escaped + b" rw - fuse.lazyfs src rw"
    (entry,) = parse_mountinfo(line)
    assert entry.mountpoint == b"/" + name


def test_states_of_directories(tmp_path: pathlib.Path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    assert state_of(str(tmp_path))[0] is State.FREE
    assert state_of(str(tmp_path / "link"))[0] is State.FREE
    assert state_of(str(tmp_path / "none"))[0] is State.MISSING
    assert state_of(str(tmp_path / "dangling"))[0] is State.MISSING
    assert state_of(str(tmp_path / "file"))[0] is State.NOT_DIRECTORY
    assert state_of(str(tmp_path / "file" / "below"))[0] is State.MISSING
    assert state_of("/proc")[0] is State.MOUNTED


def test_what_cannot_be_mounted_on(tmp_path: pathlib.Path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_bytes(b"")
    with pytest.raises(BadMountpoint, match="does not exist") as caught:
        prepare_mountpoint(str(tmp_path / "none"))
    assert "mkdir" in caught.value.hint
    with pytest.raises(BadMountpoint, match="is not a directory"):
        prepare_mountpoint(str(tmp_path / "file"))
    with pytest.raises(BusyMountpoint, match="proc"):
        prepare_mountpoint("/proc")
    assert prepare_mountpoint(str(tmp_path / "full")) is False


def table(monkeypatch, *entries: MountEntry) -> None:
    monkeypatch.setattr(point, "load_mountinfo", lambda: list(entries))


def entry_at(path: pathlib.Path, kind: str) -> MountEntry:
    return MountEntry(9, "0:9", os.fsencode(path), kind, b"somewhere")


def test_a_directory_that_waits_for_its_automount(tmp_path, monkeypatch):
    table(monkeypatch, entry_at(tmp_path, "autofs"))
    assert prepare_mountpoint(str(tmp_path)) is False


def test_a_live_mount_of_ours_is_named(tmp_path, monkeypatch):
    table(monkeypatch, entry_at(tmp_path, "fuse.lazyfs"))
    with pytest.raises(BusyMountpoint) as caught:
        prepare_mountpoint(str(tmp_path))
    assert "lazyfs umount" in caught.value.hint


@pytest.mark.parametrize("path", ["/nonexistent", "/etc/passwd"])
def test_a_machine_without_fuse(path):
    with pytest.raises(MountFailed, match="FUSE device") as caught:
        check_fuse_device(path)
    assert "--device /dev/fuse" in caught.value.hint


def test_unmounting_what_is_not_mounted(tmp_path):
    with pytest.raises(MountFailed, match="unmount"):
        point.unmount(str(tmp_path))


def test_the_helper_is_found_without_a_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert point.find_helper() in ("/bin/fusermount3", "/usr/bin/fusermount3")


def test_a_machine_without_the_helper(monkeypatch):
    monkeypatch.setattr(point, "FUSERMOUNT", "fusermount3-that-is-not-there")
    with pytest.raises(MountFailed, match="is not in PATH"):
        point.find_helper()
