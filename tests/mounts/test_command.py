"""``lazyfs mount``, ``umount`` and ``status`` on real mounts."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time

import pytest

from lazyfs.mount.point import State, state_of
from lazyfs.service.processes.control import ask
from tests.cli.test_json_reference import fields_of
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    layer_from_fixture,
    make_layout,
    tagged,
    tamper_blob,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    ROOT,
    SECONDS,
    force_unmount,
    is_mounted,
    needs_fuse,
    run,
    serving_made,
    wait_until,
)
from tests.support.registries.registry import FakeRegistry

pytestmark = needs_fuse

CONTENT = random.Random(7).randbytes(3 << 20)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    own = [directory("own"), file("own/content", CONTENT), file("own/small", b"small")]
    layers = [layer_from_fixture("estargz-go-0.12/real-gnu"), estargz_layer(tar_bytes(own))]
    make_layout(path, layers)
    return path


def server_of(lazyfs: Lazyfs) -> int:
    (record,) = [
        json.loads(path.read_text()) for path in lazyfs.records() if path.suffix == ".json"
    ]
    return record["pid"]


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file_:
            return file_.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes_with(text: str) -> list[int]:
    """Return the processes whose command line has *text*."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file_:
            if text.encode() in file_.read() and is_running(int(name)):
                found.append(int(name))
    return found


# The way it is meant


def test_mount_use_unmount(lazyfs, layout, mountpoint):
    done = lazyfs("mount", f"oci:{layout}", mountpoint)
    assert (done.returncode, done.stdout) == (0, f"{mountpoint}\n"), done.stderr
    assert done.stderr == ""
    assert (mountpoint / "own/content").read_bytes() == CONTENT
    digest = tagged(layout)["digest"]
    assert os.getxattr(mountpoint, "user.lazyfs.manifest.digest").decode() == digest
    assert os.getxattr(mountpoint, "user.lazyfs.ref.requested").decode() == f"oci:{layout}"

    (status,) = lazyfs.status()
    assert status["state"] == "serving"
    assert status["mounted"] is True
    assert status["health"] == "ok"
    assert status["manifestDigest"] == digest
    assert status["mountpoint"] == str(mountpoint)
    assert os.getxattr(mountpoint, "user.lazyfs.mount.id").decode() == status["mountId"]
    assert len(status["layers"]) == 2
    assert status["layers"][1]["contentSize"] == len(CONTENT) + 5 + 1  # and the landmark
    text = lazyfs("status").stdout
    assert str(mountpoint) in text
    assert "health     ok" in text

    pid = server_of(lazyfs)
    done = lazyfs("umount", mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not is_running(pid), "umount returned before the server had ended"
    assert not is_mounted(mountpoint)
    assert lazyfs.records() == []
    assert lazyfs.status() == []
    assert list((lazyfs.folder / "state/log").iterdir()) == []


def test_a_shell_does_not_wait_for_the_server(lazyfs, layout, mountpoint):
    """Everything that waits for the end of our output gets it when the mount is live."""
    command = " ".join(lazyfs.command("mount", f"oci:{layout}", mountpoint))
    done = run("sh", "-c", f"out=$({command} 2>&1 | cat); echo got $out", env=lazyfs.variables)
    assert done.stdout == f"got {mountpoint}\n"
    lazyfs("umount", mountpoint)


def test_closed_standard_streams(lazyfs, layout, mountpoint):
    command = " ".join(lazyfs.command("mount", f"oci:{layout}", mountpoint))
    done = run("sh", "-c", f"{command} <&- >&- 2>&-", env=lazyfs.variables)
    assert done.returncode == 0
    assert (mountpoint / "own/small").read_bytes() == b"small"
    assert lazyfs("umount", mountpoint).returncode == 0


def test_the_server_has_left_its_caller(lazyfs, layout, mountpoint, tmp_path):
    with open(tmp_path / "inherited", "wb") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        done = lazyfs("mount", f"oci:{layout}", mountpoint, pass_fds=[inherited.fileno()])
    assert done.returncode == 0
    pid = server_of(lazyfs)
    assert os.getsid(pid) == pid
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not any("inherited" in link for link in links)
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1)] == [os.devnull] * 2
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    lazyfs("umount", mountpoint)


def test_a_relative_layout_and_mountpoint(lazyfs, layout, mountpoint):
    (lazyfs.folder / "here").symlink_to(layout)
    done = lazyfs("mount", "oci:here", "mnt")
    assert (done.returncode, done.stdout) == (0, f"{mountpoint}\n"), done.stderr
    assert (mountpoint / "own/content").read_bytes() == CONTENT
    assert os.getxattr(mountpoint, "user.lazyfs.ref.requested") == b"oci:here"
    assert lazyfs("umount", "mnt").returncode == 0


def test_a_mountpoint_with_any_name(lazyfs, layout, tmp_path):
    mountpoint = os.fsencode(tmp_path) + b"/blank \xe9 \\ \n,end"
    os.mkdir(mountpoint)
    try:
        done = lazyfs("mount", f"oci:{layout}", os.fsdecode(mountpoint), text=False)
        assert (done.returncode, done.stdout) == (0, mountpoint + b"\n"), done.stderr
        with open(mountpoint + b"/own/small") as file_:
            assert file_.read() == "small"
        shown = os.fsencode(tmp_path) + rb"/blank \xe9 \ \n,end" + b"\n"
        assert lazyfs("status", text=False).stdout.startswith(shown)
        (status,) = lazyfs.status()
        assert os.fsencode(status["mountpoint"]) == mountpoint
        assert lazyfs("umount", os.fsdecode(mountpoint)).returncode == 0
        assert lazyfs.records() == []
    finally:
        force_unmount(os.fsdecode(mountpoint))


def test_the_status_is_documented(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    text = (ROOT / "docs/reference/json.md").read_text()
    section = text.partition("## `lazyfs status")[2].partition("\n## ")[0]
    (mountpoint / "own/small").read_bytes()
    (status,) = lazyfs.status()
    fields = set(fields_of(status))
    assert {"usedSize", "p95Seconds", "roundTripSeconds", "readySeconds"} <= fields
    assert {field for field in fields if f"`{field}`" not in section} == set()
    lazyfs("umount", mountpoint)


def test_the_attributes_of_the_root_are_documented(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    text = (ROOT / "docs/reference/xattrs.md").read_text()
    names = {name.removeprefix("user.lazyfs.") for name in os.listxattr(mountpoint)}
    assert {"schema", "layers", "health", "mount.id"} <= names
    assert {name for name in names if f"`{name}`" not in text} == set()
    for word in ("layer", "diffid", "layer.index", "digest"):
        assert f"`{word}`" in text
        assert os.getxattr(mountpoint / "own/small", f"user.lazyfs.file.{word}")
    lazyfs("umount", mountpoint)


def test_two_mounts_of_one_image(lazyfs, layout, mountpoint, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    try:
        lazyfs.mount(f"oci:{layout}", mountpoint)
        lazyfs.mount(f"oci:{layout}", second)
        assert len(lazyfs.status()) == 2
        assert lazyfs("umount", mountpoint).returncode == 0
        assert (second / "own/content").read_bytes() == CONTENT
        ids = [entry["mountId"] for entry in lazyfs.status()]
        assert len(ids) == 1
        assert json.loads(lazyfs("status", second, "--json").stdout)["mounts"] != []
        assert json.loads(lazyfs("status", mountpoint, "--json").stdout)["mounts"] == []
    finally:
        lazyfs("umount", second)
        force_unmount(second)


def test_from_a_registry(lazyfs, layout, mountpoint):
    with FakeRegistry(layout) as registry:
        reference = f"{registry.host}/demo/image:latest"
        lazyfs.mount(reference, mountpoint, "--prefetch", "none")
        try:
            before = registry.count()
            assert (mountpoint / "own/small").read_bytes() == b"small"
            assert registry.count() > before, "contents came before they were read"
            (status,) = lazyfs.status()
            assert status["resolved"].startswith(f"{registry.host}/demo/image@sha256:")
            assert status["source"]["requests"] > 0
            assert 0 < status["layers"][1]["residentSize"] < status["layers"][1]["contentSize"]
        finally:
            assert lazyfs("umount", mountpoint).returncode == 0


def test_a_known_digest_needs_no_registry(lazyfs, layout, mountpoint):
    with FakeRegistry(layout) as registry:
        reference = f"{registry.host}/demo@{tagged(layout)['digest']}"
        lazyfs.mount(reference, mountpoint)
        run("tar", "-C", mountpoint, "-cf", "/dev/null", ".")
        (mountpoint / "own/content").read_bytes()
        lazyfs("umount", mountpoint)
    lazyfs.mount(reference, mountpoint)  # without a registry
    assert os.getxattr(mountpoint, "user.lazyfs.source") == b"cache"
    assert (mountpoint / "own/small").read_bytes() == b"small"
    assert lazyfs("umount", mountpoint).returncode == 0


def test_memory_stays_small(lazyfs, layout, mountpoint):
    with FakeRegistry(layout) as registry:
        lazyfs.mount(f"{registry.host}/demo:latest", mountpoint)
        run("tar", "-C", mountpoint, "-cf", "/dev/null", ".")
        assert (mountpoint / "own/content").read_bytes() == CONTENT
        with open(f"/proc/{server_of(lazyfs)}/status") as file_:
            resident = int(re.search(r"VmRSS:\s+(\d+) kB", file_.read())[1]) / 1024
        print(f"server: {resident:.1f} MiB resident")
        assert resident < 60
        lazyfs("umount", mountpoint)


# In the foreground


@contextlib.contextmanager
def foreground(lazyfs, *words):
    process = lazyfs.start("mount", "--foreground", *words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_ends_on_a_signal(lazyfs, layout, mountpoint, number):
    with foreground(lazyfs, f"oci:{layout}", mountpoint) as process:
        assert process.stdout.readline() == f"{mountpoint}\n"
        assert (mountpoint / "own/content").read_bytes() == CONTENT
        assert server_of(lazyfs) == process.pid
        process.send_signal(number)
        assert process.wait(SECONDS) == 0, process.stderr.read()
        assert not is_mounted(mountpoint)
        assert lazyfs.records() == []


def test_foreground_ends_with_its_mount(lazyfs, layout, mountpoint):
    with foreground(lazyfs, f"oci:{layout}", mountpoint) as process:
        assert process.stdout.readline() == f"{mountpoint}\n"
        assert lazyfs("umount", mountpoint).returncode == 0
        assert process.wait(SECONDS) == 0


def test_foreground_says_what_went_wrong(lazyfs, mountpoint):
    with foreground(lazyfs, "oci:/nonexistent:tag", mountpoint) as process:
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 3, said
        assert "/nonexistent" in said
        assert "Traceback" not in said


# Ending otherwise


def test_a_signal_to_the_server_unmounts(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    pid = server_of(lazyfs)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_running(pid))
    assert not is_mounted(mountpoint)
    assert lazyfs.records() == []


def test_a_hangup_or_interrupt_does_not_reach_the_server(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    pid = server_of(lazyfs)
    os.kill(pid, signal.SIGHUP)
    assert (mountpoint / "own/small").read_bytes() == b"small"
    assert is_running(pid)
    lazyfs("umount", mountpoint)


def test_a_mount_in_use(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    pid = server_of(lazyfs)
    with open(mountpoint / "own/content", "rb") as user:
        done = lazyfs("umount", mountpoint)
        assert done.returncode == 8
        assert "in use" in done.stderr
        assert "--lazy" in done.stderr
        assert is_mounted(mountpoint)

        done = lazyfs("umount", "--lazy", mountpoint)
        assert done.returncode == 0
        assert str(pid) in done.stderr
        assert not is_mounted(mountpoint)
        assert user.read() == CONTENT, "a lazy unmount lets users finish"
    wait_until(lambda: not is_running(pid))
    assert lazyfs.records() == []


def test_what_is_not_ours_stays_mounted(lazyfs, mountpoint):
    for path in (mountpoint, "/proc"):
        done = lazyfs("umount", path, "--json")
        assert done.returncode in (2, 8)
    done = lazyfs("umount", mountpoint)
    assert done.returncode == 8
    assert "is not a lazyfs mount" in done.stderr
    assert "type proc" in lazyfs("umount", "/proc").stderr
    assert os.path.exists("/proc/self")


# A server that was killed


def kill_server(lazyfs, mountpoint) -> None:
    pid = lazyfs.kill_server()
    wait_until(lambda: not is_running(pid))
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.listdir(mountpoint)


def test_mounting_again_where_a_server_was_killed(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    assert (mountpoint / "own/small").read_bytes() == b"small"
    kill_server(lazyfs, mountpoint)
    (status,) = lazyfs.status()
    assert (status["state"], status["mounted"]) == ("dead", True)
    assert "has died" in lazyfs("status").stdout

    done = lazyfs("mount", f"oci:{layout}", mountpoint)
    assert (done.returncode, done.stdout) == (0, f"{mountpoint}\n"), done.stderr
    assert "had died" in done.stderr
    assert (mountpoint / "own/content").read_bytes() == CONTENT
    assert len(lazyfs.status()) == 1, "the dead server's record is gone"
    assert lazyfs("umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)


def test_a_killed_server_whose_root_is_remembered(lazyfs, layout, mountpoint):
    """The kernel answers stat from memory for ever: a dead mount looks alive to whoever asks so."""
    lazyfs.mount(f"oci:{layout}", mountpoint)
    os.stat(mountpoint)
    kill_server(lazyfs, mountpoint)
    os.stat(mountpoint)
    assert state_of(str(mountpoint))[0] is State.DEAD


def test_unmounting_where_a_server_was_killed(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    kill_server(lazyfs, mountpoint)
    assert lazyfs("umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)
    assert lazyfs.records() == []


def test_a_record_whose_mount_and_server_are_gone(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    kill_server(lazyfs, mountpoint)
    force_unmount(mountpoint)
    assert len(lazyfs.records()) == 2
    assert lazyfs.status() == []
    assert lazyfs.records() == []


def test_readers_of_a_killed_server_get_errors_and_do_not_hang(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    with open(mountpoint / "own/content", "rb", buffering=0) as user:
        kill_server(lazyfs, mountpoint)
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.listdir(mountpoint / "own")
        with contextlib.suppress(OSError):
            user.close()


# What cannot be mounted, or mounted on


def refused(lazyfs, *words, code: int, match: str) -> None:
    """A mount fails with *code* and says *match*; as JSON too; nothing is left of it."""
    done = lazyfs("mount", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert re.search(match, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert lazyfs.records() == []
    logs = lazyfs.folder / "state/log"
    assert not logs.exists() or list(logs.iterdir()) == []


def test_a_missing_mountpoint(lazyfs, layout, tmp_path):
    refused(lazyfs, f"oci:{layout}", tmp_path / "none", code=8, match="does not exist")


def test_a_mountpoint_that_is_a_file(lazyfs, layout, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refused(lazyfs, f"oci:{layout}", tmp_path / "file", code=8, match="is not a directory")


def test_a_mountpoint_that_is_taken(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    done = lazyfs("mount", f"oci:{layout}", mountpoint)
    assert done.returncode == 8
    assert "lazyfs umount" in done.stderr
    assert len(lazyfs.status()) == 1
    lazyfs("umount", mountpoint)


def test_a_dead_mount_of_somebody_else(lazyfs, layout, mountpoint, monkeypatch):
    with serving_made(mountpoint) as server:
        server.process.kill()
        server.process.wait(SECONDS)
        # to the command it shall look like another program's
        script = (
            "import sys; from lazyfs.mount import point; point.FILESYSTEM_TYPE = 'fuse.other';"
            "from lazyfs.cli.main import main; main()"
        )
        done = run(
            *lazyfs.interpreter, "-c", script, "mount", f"oci:{layout}", mountpoint,
            env=lazyfs.variables, cwd=lazyfs.folder,
        )  # fmt: skip
        assert done.returncode == 8
        assert "dead" in done.stderr
        assert is_mounted(mountpoint)


@pytest.mark.parametrize(
    ("image", "code", "match"),
    [
        ("oci:/nonexistent", 3, "oci:/nonexistent is not an OCI image layout"),
        ("UPPER/case:tag:tag", 2, "tag 'tag:tag' is not valid"),
        ("127.0.0.1:1/nobody/listens:here", 5, "cannot reach 127.0.0.1:1: connection refused "),
    ],
)
def test_images_that_cannot_be_had(lazyfs, mountpoint, image, code, match):
    refused(lazyfs, image, mountpoint, code=code, match=match)
    assert not is_mounted(mountpoint)


def test_an_unknown_tag(lazyfs, layout, mountpoint):
    with FakeRegistry(layout) as registry:
        refused(lazyfs, f"{registry.host}/demo:none", mountpoint, code=3, match="none")


def test_errors_as_json(lazyfs, layout, mountpoint):
    done = lazyfs("status", "--json", "--nonsense")
    document = json.loads(done.stderr)
    assert done.returncode == document["exitCode"] == 2
    assert (document["type"], document["code"]) == ("error", "E_USAGE")


@pytest.mark.parametrize(
    "words", [["-o", "rw"], ["-o", "nonsense"], ["-o", "driver=x"], ["--prefetch", "x"]]
)
def test_bad_options(lazyfs, layout, mountpoint, words):
    match = "expected|not one of|unknown|read-only"
    refused(lazyfs, f"oci:{layout}", mountpoint, *words, code=2, match=match)


def test_options_reach_the_mount(lazyfs, layout, mountpoint, tmp_path):
    other = tmp_path / "other cache"
    words = f"noexec,fsname=mine,x-systemd.automount,cache_dir={other}"
    lazyfs.mount(f"oci:{layout}", mountpoint, "-o", words, "-o", "prefetch=none")
    shown = run("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", mountpoint).stdout
    assert shown.startswith("mine ")
    assert "noexec" in shown
    assert other.is_dir()
    assert not (lazyfs.folder / "cache").exists()
    lazyfs("umount", mountpoint)


def test_no_fuse_device(lazyfs, layout, mountpoint):
    if os.geteuid() != 0:
        pytest.skip("only root can hide /dev/fuse")
    command = " ".join(lazyfs.command("mount", f"oci:{layout}", mountpoint))
    script = f"mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec {command}"
    done = run("unshare", "-m", "sh", "-c", script, env=lazyfs.variables, cwd=lazyfs.folder)
    assert done.returncode == 8
    assert "/dev/fuse" in done.stderr
    assert "modprobe fuse" in done.stderr


def test_a_server_that_cannot_mount_says_why(lazyfs, layout, mountpoint):
    """The reason is libfuse's, in another process; it must reach this one's terminal."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a broken /dev/fuse")
    command = " ".join(lazyfs.command("mount", f"oci:{layout}", mountpoint))
    script = (
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod /dev/fuse c 1 3 && "
        f"exec {command}"
    )
    done = run("unshare", "-m", "sh", "-c", script, env=lazyfs.variables, cwd=lazyfs.folder)
    assert done.returncode == 8
    assert "fuse" in done.stderr
    assert lazyfs.records() == []


def test_a_server_that_is_lost_is_told(lazyfs, layout, mountpoint):
    script = (
        "import os, lazyfs.service.processes.supervise as s; s._be_server = lambda *a: os._exit(9);"
        "from lazyfs.cli.main import main; main()"
    )
    done = run(
        *lazyfs.interpreter, "-c", script, "mount", f"oci:{layout}", mountpoint,
        env=lazyfs.variables, cwd=lazyfs.folder,
    )  # fmt: skip
    assert done.returncode == 8
    assert "server" in done.stderr
    assert not is_mounted(mountpoint)


# Interrupted while preparing


@pytest.fixture
def silent_registry():
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        listener.settimeout(SECONDS)
        yield listener


@pytest.mark.parametrize("words", [[], ["--foreground"]], ids=["background", "foreground"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ending_the_command_early_leaves_nothing(
    lazyfs, mountpoint, silent_registry, number, words
):
    image = f"127.0.0.1:{silent_registry.getsockname()[1]}/slow:latest"
    process = lazyfs.start("mount", image, mountpoint, *words, start_new_session=True)
    try:
        connection, _ = silent_registry.accept()
        with connection:
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)
            process.wait(SECONDS)
            expected = {signal.SIGINT: 130}.get(number, -number)
            assert process.returncode == expected, process.stderr.read()
            assert "Traceback" not in process.stderr.read()
            wait_until(lambda: processes_with(image) == [])
    finally:
        process.communicate(timeout=SECONDS)
    assert not is_mounted(mountpoint)
    assert lazyfs.records() == []


def test_a_command_that_ends_while_the_server_mounts(lazyfs, layout, mountpoint):
    """Nobody hears that the mount is live: it must not stay."""
    script = (
        "import os, lazyfs.service.processes.supervise as s\n"
        "main_pid, expect = os.getpid(), s.Channel.expect\n"
        "def leave(self, word):\n"
        "    if os.getpid() == main_pid: os._exit(5)\n"
        "    return expect(self, word)\n"
        "s.Channel.expect = leave\n"
        "from lazyfs.cli.main import main; main()"
    )
    marker = f"oci:{layout}"
    done = run(
        *lazyfs.interpreter, "-c", script, "mount", marker, mountpoint,
        env=lazyfs.variables, cwd=lazyfs.folder,
    )  # fmt: skip
    assert done.returncode == 5
    wait_until(lambda: processes_with(marker) == [])
    assert not is_mounted(mountpoint)
    assert lazyfs.records() == []


# The control socket


def socket_of(lazyfs):
    (path,) = [path for path in lazyfs.records() if path.suffix == ".sock"]
    return path


def test_the_control_socket(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    path = socket_of(lazyfs)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (lazyfs.folder / "run").stat().st_mode & 0o777 == 0o700
    assert ask(path, {"type": "ping"}) == {"type": "pong"}
    assert ask(path, {"type": "status"})["mountpoint"] == str(mountpoint)
    assert ask(path, {"type": "dance"})["type"] == "error"
    for nonsense in (b"\n", b"[]\n", b"\xff\xfe\n", b"[" * 60000 + b"\n", b'{"type":1}\n', b"x"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(str(path))
            client.sendall(nonsense)
            client.shutdown(socket.SHUT_WR)
            answer = client.makefile("rb").readline()
            assert answer == b"" or json.loads(answer)["type"] == "error"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(path))
        client.sendall(b'{"type":"ping"}\n{"type":"ping"}\n')
        with client.makefile("rb") as stream:
            assert [stream.readline() for _ in range(2)] == [b'{"type":"pong"}\n'] * 2
    with socket.socket(socket.AF_UNIX) as client:  # more than a question may be long
        client.settimeout(SECONDS)
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                client.sendall(b"x" * 65536)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert ask(path, {"type": "ping"}) == {"type": "pong"}
    lazyfs("umount", mountpoint)


def test_a_runtime_directory_with_a_long_name(tmp_path, layout, mountpoint):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    lazyfs = Lazyfs(tmp_path, environment={"LAZYFS_RUNTIME_DIR": str(deep)})
    lazyfs.mount(f"oci:{layout}", mountpoint)
    (status,) = lazyfs.status()
    assert status["state"] == "serving"
    lazyfs("umount", mountpoint)


def test_a_runtime_directory_that_others_can_write_to(tmp_path, layout, mountpoint):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    done = Lazyfs(tmp_path)("mount", f"oci:{layout}", mountpoint)
    assert done.returncode == 1
    assert "runtime directory" in done.stderr
    assert not is_mounted(mountpoint)


def test_a_server_that_does_not_answer(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    socket_of(lazyfs).unlink()
    (status,) = lazyfs.status()
    assert status["state"] == "silent"
    assert "message" in status
    assert lazyfs("status").returncode == 0
    lazyfs("umount", mountpoint)


# Trouble with content


def test_a_tampered_chunk_is_an_error_with_a_reason(lazyfs, tmp_path, mountpoint):
    layout = tmp_path / "layout"
    layer = estargz_layer(tar_bytes([file("a", b"A" * 5000), file("b", os.urandom(5000))]))
    make_layout(layout, [layer])
    start = layer.blob.index(b"\x1f\x8b", 1)
    tamper_blob(layout, layer.digest, layer.size // 3)
    assert start
    lazyfs.mount(f"oci:{layout}", mountpoint, "--prefetch", "none")
    results = {}
    for name in ("a", "b"):
        try:
            results[name] = (mountpoint / name).read_bytes()
        except OSError as error:
            results[name] = error.strerror
    assert "Input/output error" in results.values()
    (status,) = lazyfs.status()
    assert status["health"].startswith("corrupt sha256:")
    assert os.getxattr(mountpoint, "user.lazyfs.health").decode() == status["health"]
    with open(status["log"]) as log:
        text = log.read()
    assert layer.digest.hex in text
    assert "read of '" in text
    assert "Traceback" not in text
    lazyfs("umount", mountpoint)
    assert os.path.exists(status["log"]), "a log that has something to tell is kept"


def test_stacks_can_be_asked_for(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint)
    (status,) = lazyfs.status()
    os.kill(status["pid"], signal.SIGUSR1)
    wait_until(lambda: os.path.getsize(status["log"]) > 100)
    with open(status["log"]) as log:
        assert "most recent call first" in log.read()
    lazyfs("umount", mountpoint)


def test_time_until_ready(lazyfs, layout, mountpoint):
    """A bound that only a mistake would break, such as waiting for something that never comes."""
    lazyfs.mount(f"oci:{layout}", mountpoint)
    lazyfs("umount", mountpoint)
    start = time.monotonic()
    lazyfs.mount(f"oci:{layout}", mountpoint)
    took = time.monotonic() - start
    print(f"second mount: {took:.3f} s")
    assert took < 5
    lazyfs("umount", mountpoint)


def test_help_needs_no_mount(lazyfs):
    done = subprocess.run(
        lazyfs.command("mount", "--help"), capture_output=True, text=True, timeout=SECONDS,
        env=lazyfs.variables, check=True,
    )  # fmt: skip
    assert "IMAGE" in done.stdout
