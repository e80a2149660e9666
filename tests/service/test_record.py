"""Records of mounts on disk, and whether their servers live."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyfs.service.record import (
    BadRuntimeDirectory,
    MountRecord,
    decode_record,
    find_record,
    is_alive,
    load_records,
    make_runtime_directory,
    remove_record,
    remove_stale,
    save_record,
    socket_path,
    start_ticks_of,
    wait_server_end,
)

SECONDS = 30


def record(**changes) -> MountRecord:
    return replace(
        MountRecord(
            mount_id="00ff",
            pid=os.getpid(),
            start_ticks=start_ticks_of(os.getpid()),
            mountpoint="/srv/app",
            requested="app:latest",
            resolved="docker.io/library/app@sha256:00",
            manifest_digest="sha256:00",
            platform="linux/amd64",
            cache_dir="/c",
            log_path="/l",
            driver="pyfuse3",
            started="2026-01-01T00:00:00Z",
        ),
        **changes,
    )


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_round_trip(tmp_path):
    wanted = record(mountpoint="/srv/odd \udce9 ünïcode\n")
    save_record(tmp_path, wanted)
    assert list(load_records(tmp_path)) == [wanted]
    assert [path.name for path in tmp_path.iterdir()] == ["00ff.json"]
    socket_path(tmp_path, "00ff").touch()
    remove_record(tmp_path, "00ff")
    remove_record(tmp_path, "00ff")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_record_is_skipped(tmp_path):
    save_record(tmp_path, record())
    for name, data in {
        "a.json": b"",
        "b.json": b"[]",
        "c.json": b"\xff",
        "d.json": record(mount_id="other").encode(),
        "e.json": b"[" * 60000,
        "notes.txt": record(mount_id="notes").encode(),
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "dangling.json").symlink_to("nowhere")
    assert list(load_records(tmp_path)) == [record()]
    assert list(load_records(tmp_path / "none")) == []


@pytest.mark.parametrize("field", MountRecord.__struct_fields__)
def test_each_field_is_needed_and_of_its_type(field):
    document = json.loads(record().encode())
    assert decode_record(json.dumps(document).encode()) == record()
    for wrong in (None, [], 1.5, True, {"a": 1}):
        assert decode_record(json.dumps(document | {field: wrong}).encode()) is None
    del document[field]
    assert decode_record(json.dumps(document).encode()) is None


def test_more_fields_than_we_know_are_from_the_future():
    document = json.loads(record().encode()) | {"colour": "green"}
    assert decode_record(json.dumps(document).encode()) == record()


@pytest.mark.parametrize("mount_id", ["", "../x", "a/b", ".", "a b"])
def test_an_id_is_never_a_path(mount_id):
    assert decode_record(record(mount_id=mount_id).encode()) is None


@given(st.binary(max_size=300))
def test_anything_is_a_record_or_not(data):
    decode_record(data)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_record_or_not(document):
    assert decode_record(json.dumps(document).encode()) is None


def test_a_process_is_more_than_its_number(process):
    ours = start_ticks_of(process.pid)
    assert is_alive(record(pid=process.pid, start_ticks=ours))
    assert not is_alive(record(pid=process.pid, start_ticks=ours - 1))
    process.kill()
    wait_zombie = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert wait_zombie is not None
    assert not is_alive(record(pid=process.pid, start_ticks=ours)), "a zombie serves nobody"
    process.wait(SECONDS)
    assert start_ticks_of(process.pid) is None


def test_names_of_processes_do_not_confuse(tmp_path):
    program = tmp_path / "a ) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        assert start_ticks_of(process.pid) > 0
        process.kill()


def test_waiting_for_a_server(process):
    server = record(pid=process.pid, start_ticks=start_ticks_of(process.pid))
    assert not wait_server_end(server, 0)
    assert wait_server_end(replace(server, start_ticks=1), 0)
    process.stdin.close()
    assert wait_server_end(server, SECONDS)
    process.wait(SECONDS)
    assert wait_server_end(server, 0)


def test_finding_the_server_of_a_mountpoint(tmp_path):
    alive = record(mount_id="01", started="2026-01-02T00:00:00Z")
    older = record(mount_id="02", started="2026-01-01T00:00:00Z")
    dead = record(mount_id="03", started="2026-01-03T00:00:00Z", start_ticks=1)
    other = record(mount_id="04", mountpoint="/other")
    for each in (alive, older, dead, other):
        save_record(tmp_path, each)
    assert find_record(tmp_path, "/srv/app") == alive
    assert find_record(tmp_path, "/nothing") is None
    remove_stale(tmp_path, "/srv/app")
    assert sorted(r.mount_id for r in load_records(tmp_path)) == ["01", "02", "04"]


def test_the_runtime_directory_is_ours_alone(tmp_path):
    path = tmp_path / "a" / "run"
    make_runtime_directory(path)
    make_runtime_directory(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o770)
    with pytest.raises(BadRuntimeDirectory, match="only user"):
        make_runtime_directory(path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(BadRuntimeDirectory):
        make_runtime_directory(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(BadRuntimeDirectory):
        make_runtime_directory(tmp_path / "file")
    with pytest.raises(BadRuntimeDirectory):
        make_runtime_directory(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_the_runtime_directory_of_another_user(tmp_path):
    os.chown(tmp_path, 1234, 1234)
    with pytest.raises(BadRuntimeDirectory, match="1234"):
        make_runtime_directory(tmp_path)


def test_a_record_that_cannot_be_written(tmp_path):
    with pytest.raises(BadRuntimeDirectory):
        save_record(tmp_path / "none", record())
