"""``lazyfs serve``: mounts that are made through it, and what is done when it cannot."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    tagged,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    ROOT,
    SECONDS,
    force_unmount,
    is_mounted,
    needs_fuse,
    needs_root,
    run,
    wait_until,
)
from tests.support.mounts.serving import (
    activated,
    children_of,
    control_socket,
    is_listened_to,
    log_of,
    records,
    serving,
)
from tests.support.registries.registry import FakeRegistry

pytestmark = needs_fuse


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    own = [directory("own"), file("own/small", b"small"), file("own/other", b"other" * 9999)]
    make_layout(path, [estargz_layer(tar_bytes(own))])
    return path


def servers(lazyfs: Lazyfs) -> list[int]:
    return [record["pid"] for record in records(lazyfs)]


def is_from_service(pid: int) -> bool:
    """Say whether a server was forked from the serving process, whose arguments it then has."""
    return b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def processes_of(lazyfs: Lazyfs) -> list[int]:
    """Return all processes that were started with the directories of *lazyfs*."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if str(lazyfs.folder).encode() in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def mounted_without(lazyfs: Lazyfs, layout, mountpoint, *words: str, code: int = 0) -> str:
    """Mount while the service cannot be had; return what is said when debugging."""
    done = lazyfs("mount", *words, f"oci:{layout}", mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mountpoint}\n", "")
    (pid,) = servers(lazyfs)
    assert not is_from_service(pid)
    assert (mountpoint / "own/small").read_bytes() == b"small"
    assert lazyfs("umount", mountpoint).returncode == 0
    done = lazyfs("-vv", "mount", *words, f"oci:{layout}", mountpoint)
    assert done.returncode == 0
    assert lazyfs("umount", mountpoint).returncode == 0
    return done.stderr


# Through the service


def test_mount_use_unmount(lazyfs, layout, mountpoint):
    with serving(lazyfs) as service:
        done = lazyfs("mount", f"oci:{layout}", mountpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{mountpoint}\n", "")
        (pid,) = servers(lazyfs)
        assert is_from_service(pid)
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert (
            os.getxattr(mountpoint, "user.lazyfs.manifest.digest").decode()
            == (tagged(layout)["digest"])
        )
        assert (mountpoint / "own/small").read_bytes() == b"small"
        (status,) = lazyfs.status()
        assert (status["state"], status["pid"]) == ("serving", pid)
        wait_until(lambda: not children_of(service.pid))  # who prepared is gone, with its memory
        assert lazyfs("umount", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
        assert records(lazyfs) == []
        assert list((lazyfs.folder / "state/log").iterdir()) == []
    assert not control_socket(lazyfs).exists()
    wait_until(lambda: processes_of(lazyfs) == [])


def test_two_mounts_at_once(lazyfs, layout, tmp_path):
    paths = [tmp_path / f"mnt{n}" for n in range(4)]
    try:
        with serving(lazyfs):
            clients = []
            for path in paths:
                path.mkdir()
                clients.append(lazyfs.start("mount", f"oci:{layout}", path))
            for path, client in zip(paths, clients, strict=True):
                said, complaint = client.communicate(timeout=SECONDS)
                assert (client.returncode, said, complaint) == (0, f"{path}\n", "")
                assert (path / "own/small").read_bytes() == b"small"
            pids = servers(lazyfs)
            assert len(set(pids)) == len(paths)
            for path in paths:
                assert lazyfs("umount", path).returncode == 0
    finally:
        for path in paths:
            force_unmount(path)


def test_relative_names_and_the_clients_directories(lazyfs, layout, mountpoint, tmp_path):
    """The service stands somewhere else and keeps its own things somewhere else."""
    (tmp_path / "here").symlink_to(layout)
    with serving(lazyfs, cwd="/", env=lazyfs.variables | {"LAZYFS_CACHE_DIR": "/nonexistent"}):
        done = lazyfs("mount", "-o", "cache_dir=own cache", "oci:here", "mnt")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{mountpoint}\n", "")
        (pid,) = servers(lazyfs)
        assert is_from_service(pid)
        assert (mountpoint / "own/small").read_bytes() == b"small"
        assert (tmp_path / "own cache").is_dir()
        assert lazyfs("umount", "mnt").returncode == 0


def test_nothing_is_left_to_import(lazyfs, layout, mountpoint):
    """The interpreter says on standard error, the client's and then the log, what it imports."""
    variables = lazyfs.variables | {"PYTHONPROFILEIMPORTTIME": "1"}
    with FakeRegistry(layout) as registry, serving(lazyfs, env=variables):
        done = lazyfs("mount", f"{registry.host}/demo:latest", mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        (record,) = records(lazyfs)
        assert is_from_service(record["pid"])
        assert (mountpoint / "own/other").read_bytes() == b"other" * 9999
        (status,) = lazyfs.status()
        assert status["source"]["requests"] > 0
        assert "import time" not in Path(record["log_path"]).read_text()
        lazyfs("umount", mountpoint)
        assert "import time" in log_of(lazyfs)


def test_credentials_are_the_clients(lazyfs, layout, mountpoint):
    with FakeRegistry(layout) as registry, serving(lazyfs):
        registry.require_basic({"user": "secret"})
        reference = f"{registry.host}/demo:latest"
        assert lazyfs("mount", reference, mountpoint).returncode == 4
        words = ["mount", "--creds", "user:secret", reference, mountpoint]
        assert lazyfs(*words).returncode == 0
        (pid,) = servers(lazyfs)
        assert is_from_service(pid)
        assert (mountpoint / "own/other").read_bytes() == b"other" * 9999
        lazyfs("umount", mountpoint)


def test_errors_are_the_same(lazyfs, layout, mountpoint, tmp_path):
    (tmp_path / "file").touch()
    with FakeRegistry(layout) as registry, serving(lazyfs):
        for words, code in (
            (["oci:/nonexistent", mountpoint], 3),
            (["UPPER/case:tag:tag", mountpoint], 2),
            (["127.0.0.1:1/nobody/listens:here", mountpoint], 5),
            ([f"{registry.host}/demo:none", mountpoint], 3),
            ([f"oci:{layout}", tmp_path / "file"], 8),
            ([f"oci:{layout}", tmp_path / "none"], 8),
            (["-o", "rw", f"oci:{layout}", mountpoint], 2),
            (["-o", "driver=x", f"oci:{layout}", mountpoint], 2),
        ):
            through = lazyfs("mount", *words)
            alone = lazyfs("mount", "--no-service", *words)
            assert through.returncode == alone.returncode == code, words
            assert through.stdout == ""
            # one waits longer for what does not come, and may say how often it tried
            assert through.stderr == alone.stderr
            assert records(lazyfs) == []
        assert not is_mounted(mountpoint)
    logs = lazyfs.folder / "state/log"
    assert not logs.exists() or list(logs.iterdir()) == []


def test_warnings_reach_the_clients_terminal(lazyfs, layout, mountpoint):
    with serving(lazyfs):
        lazyfs.mount(f"oci:{layout}", mountpoint, "-o", "auto_unmount")
        (pid,) = servers(lazyfs)
        assert is_from_service(pid)
        done = lazyfs("mount", f"oci:{layout}", mountpoint)
        assert done.returncode == 8
        assert "lazyfs umount" in done.stderr
        lazyfs("umount", mountpoint)


def test_memory_is_not_more_than_without(lazyfs, layout, tmp_path):
    def resident(pid: int) -> float:
        """Return a server's share of memory, in MiB: what it shares counts in part."""
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.partition("Pss:")[2].split()[0]) / 1024

    sizes = {}
    with serving(lazyfs):
        for name, words in (("through", []), ("alone", ["--no-service"])):
            path = tmp_path / name
            path.mkdir()
            try:
                lazyfs.mount(*words, f"oci:{layout}", path)
                (path / "own/small").read_bytes()
                (pid,) = servers(lazyfs)
                assert is_from_service(pid) == (name == "through")
                sizes[name] = resident(pid)
                lazyfs("umount", path)
            finally:
                force_unmount(path)
    print(sizes)
    assert sizes["through"] < sizes["alone"] + 2


# Its end


def test_it_is_killed(lazyfs, layout, mountpoint):
    """Its death harms no mount, and keeps nobody from making one."""
    with serving(lazyfs) as service:
        lazyfs.mount(f"oci:{layout}", mountpoint)
        (pid,) = servers(lazyfs)
        assert is_from_service(pid)
        os.kill(service.pid, signal.SIGKILL)
        service.wait(SECONDS)
        assert (mountpoint / "own/other").read_bytes() == b"other" * 9999
        assert lazyfs.status()[0]["state"] == "serving"
        assert lazyfs("umount", mountpoint).returncode == 0
        assert "refused" in mounted_without(lazyfs, layout, mountpoint)
    with serving(lazyfs):  # and a new one takes the socket over
        lazyfs.mount(f"oci:{layout}", mountpoint)
        assert is_from_service(*servers(lazyfs))
        lazyfs("umount", mountpoint)


def test_it_is_ended(lazyfs, layout, mountpoint):
    with serving(lazyfs) as service:
        lazyfs.mount(f"oci:{layout}", mountpoint)
        service.terminate()
        assert service.wait(SECONDS) == 0
    assert (mountpoint / "own/other").read_bytes() == b"other" * 9999
    assert lazyfs("umount", mountpoint).returncode == 0
    wait_until(lambda: processes_of(lazyfs) == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_ends_early_leaves_nothing(lazyfs, mountpoint, number):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        serving(lazyfs) as service,
    ):
        silent.settimeout(SECONDS)
        image = f"127.0.0.1:{silent.getsockname()[1]}/slow:latest"
        client = lazyfs.start("mount", image, mountpoint)
        with silent.accept()[0]:
            client.send_signal(number)
            _, said = client.communicate(timeout=SECONDS)
            assert client.returncode == (130 if number == signal.SIGINT else -number)
            assert "Traceback" not in said
            if number == signal.SIGINT:  # it waits until nothing is left but a process that ends
                assert records(lazyfs) == []
            wait_until(lambda: processes_of(lazyfs) == [service.pid])
    assert not is_mounted(mountpoint)
    assert records(lazyfs) == []
    assert "Traceback" not in log_of(lazyfs)


# Without it


@pytest.mark.parametrize("how", ["option", "variable"])
def test_it_is_not_wanted(lazyfs, layout, mountpoint, how):
    with serving(lazyfs):
        if how == "variable":
            lazyfs.environment["LAZYFS_SERVICE"] = "0"
        words = ["--no-service"] if how == "option" else []
        assert "service" not in mounted_without(lazyfs, layout, mountpoint, *words)


def test_in_the_foreground_this_process_serves(lazyfs, layout, mountpoint):
    with (
        serving(lazyfs),
        lazyfs.start("mount", "--foreground", f"oci:{layout}", mountpoint) as process,
    ):
        assert process.stdout.readline() == f"{mountpoint}\n"
        assert servers(lazyfs) == [process.pid]
        process.terminate()
        process.communicate(timeout=SECONDS)
        assert process.returncode == 0


def test_the_foreground_tells_systemd(lazyfs, layout, mountpoint, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(SECONDS)
        manager.bind(str(tmp_path / "notify"))
        lazyfs.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with lazyfs.start("mount", "--foreground", f"oci:{layout}", mountpoint) as process:
            assert manager.recv(1000).startswith(b"READY=1\n")
            assert is_mounted(mountpoint)
            process.terminate()
            process.communicate(timeout=SECONDS)


def test_a_stale_socket(lazyfs, layout, mountpoint):
    (lazyfs.folder / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(control_socket(lazyfs)))
    assert "refused" in mounted_without(lazyfs, layout, mountpoint)


def test_a_service_that_is_stuck(lazyfs, layout, mountpoint):
    with serving(lazyfs) as service:
        service.send_signal(signal.SIGSTOP)
        try:
            assert "timed out" in mounted_without(lazyfs, layout, mountpoint)
        finally:
            service.send_signal(signal.SIGCONT)


def package_of_its_own(folder: Path) -> Path:
    """Return a directory with a lazyfs that differs from ours in its identity only."""
    package = folder / "package/lazyfs"
    package.mkdir(parents=True)
    for path in (ROOT / "lazyfs").iterdir():
        if path.name != "__init__.py":
            (package / path.name).symlink_to(path)
    shutil.copy(ROOT / "lazyfs/__init__.py", package)
    return package.parent


def test_a_service_of_another_version(lazyfs, layout, mountpoint, tmp_path):
    other = package_of_its_own(tmp_path)
    with serving(lazyfs, env=lazyfs.variables | {"PYTHONPATH": str(other)}):
        assert "another version" in mounted_without(lazyfs, layout, mountpoint)


def test_a_service_whose_files_are_replaced_ends(lazyfs, layout, mountpoint, tmp_path):
    other = package_of_its_own(tmp_path)
    lazyfs.environment["PYTHONPATH"] = str(other)
    with serving(lazyfs) as service:
        lazyfs.mount(f"oci:{layout}", mountpoint)
        assert is_from_service(*servers(lazyfs))
        shutil.copy(ROOT / "lazyfs/__init__.py", tmp_path / "new")
        os.replace(tmp_path / "new", other / "lazyfs/__init__.py")
        assert lazyfs("umount", mountpoint).returncode == 0
        mounted_without(lazyfs, layout, mountpoint)
        assert service.wait(SECONDS) == 0
        assert "replaced" in log_of(lazyfs)


@needs_root[0]
@needs_root[1]
def test_another_mount_namespace(lazyfs, layout, mountpoint):
    """What the service mounted would not be seen there."""
    mount = " ".join(lazyfs.command("-vv", "mount", f"oci:{layout}", mountpoint))
    umount = " ".join(lazyfs.command("umount", mountpoint))
    script = f"{mount} && cat {mountpoint}/own/small && {umount}"
    with serving(lazyfs):
        done = run("unshare", "-m", "sh", "-c", script, env=lazyfs.variables, cwd=lazyfs.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{mountpoint}\nsmall"
    assert "it has another mnt" in done.stderr


@needs_root[0]
@needs_root[1]
def test_another_user(lazyfs, layout, mountpoint):
    """A service that a user set up where root looks gets nothing of root's."""
    path = control_socket(lazyfs)
    path.parent.mkdir(mode=0o700)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "os.setresuid(65534, 65534, 65534); s.listen(); print('listening', flush=True);"
        "print([s.accept()[0].recv(100) for _ in range(2)])"
    )
    with subprocess.Popen(
        [*lazyfs.interpreter, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdout.readline() == "listening\n"
        assert "user 65534" in mounted_without(lazyfs, layout, mountpoint)
        assert stranger.stdout.readline() == "[b'', b'']\n"


# Started by systemd


def test_socket_activation(lazyfs, layout, mountpoint, tmp_path):
    path = control_socket(lazyfs)
    path.parent.mkdir(mode=0o700)
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        listener.bind(str(path))
        listener.listen()
        manager.settimeout(SECONDS)
        manager.bind(str(tmp_path / "notify"))
        command = activated(listener, *lazyfs.command("-v", "serve", "--idle-seconds", "600"))
        client = lazyfs.start("mount", f"oci:{layout}", mountpoint)  # before it runs
        with (tmp_path / "serve.log").open("wb") as stderr:
            service = subprocess.Popen(
                command.pop("args"), **command, stderr=stderr, cwd=lazyfs.folder,
                env=lazyfs.variables | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
            )  # fmt: skip
        try:
            assert manager.recv(1000) == b"READY=1"
            assert manager.recv(1000).startswith(b"STATUS=0 mounts made")
            said, complaint = client.communicate(timeout=SECONDS)
            assert (client.returncode, said, complaint) == (0, f"{mountpoint}\n", "")
            (pid,) = servers(lazyfs)
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" in environment or not is_from_service(pid)
            assert (mountpoint / "own/small").read_bytes() == b"small"
            assert lazyfs("umount", mountpoint).returncode == 0
        finally:
            service.terminate()
            assert service.wait(SECONDS) == 0, log_of(lazyfs)
        assert is_listened_to(path), "the socket is systemd's, who will start the next one"


def test_it_ends_when_nobody_asks(lazyfs):
    process = lazyfs.start("serve", "--idle-seconds", "0.05")
    said, complaint = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (0, "")
    assert "ending: no request for" in complaint
    assert not control_socket(lazyfs).exists()


def test_one_is_enough(lazyfs):
    with serving(lazyfs):
        done = lazyfs("serve")
        assert done.returncode == 1
        assert "is in use" in done.stderr
