"""The same command as an ordinary user, and in a user namespace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.formats.images import (
    char_device,
    directory,
    estargz_layer,
    file,
    make_layout,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs, copy_of_packages
from tests.support.mounts.mounting import (
    SECONDS,
    folder_for_all,
    force_unmount,
    fuse_for_all,
    is_mounted,
    needs_fuse,
    needs_root,
    run,
)
from tests.support.mounts.serving import records, serving

pytestmark = [*needs_fuse, *needs_root]  # root makes itself somebody else

UID = 65534  # nobody: fusermount3 wants a user that has a name
PYTHON = "/usr/bin/python3"
FUSE_CONF = Path("/etc/fuse.conf")


def why_no_python() -> str | None:
    """Return why the system's Python cannot run us; ours may be out of other users' reach."""
    try:
        done = run(PYTHON, "-c", "import sys; print(sys.version_info[:2])")
    except FileNotFoundError:
        return f"no {PYTHON}"
    wanted = str(tuple(sys.version_info[:2]))
    return None if done.stdout.strip() == wanted else f"{PYTHON} is not Python {wanted}"


@pytest.fixture(scope="module")
def place():
    """A folder for all users, with lazyfs and an image in it; /dev/fuse is for all meanwhile."""
    reason = why_no_python()
    if reason is not None:
        pytest.skip(reason)
    with fuse_for_all(), folder_for_all() as folder:
        copy_of_packages(folder)
        items = [
            directory("etc"),
            file("etc/secret", b"root's", mode=0o600),
            file("etc/own", b"own", mode=0o600, uid=UID, gid=UID),
            file("suid", Path("/bin/true").read_bytes(), mode=0o4755),
            char_device("null", 1, 3, mode=0o666),
            file("big", bytes(3 << 20)),
        ]
        make_layout(folder / "layout", [estargz_layer(tar_bytes(items))])
        run("chmod", "-R", "a+rX", folder / "layout")
        yield folder


@pytest.fixture
def home(place, request):
    """A directory of the ordinary user's."""
    path = place / request.node.name.replace("[", "-").replace("]", "")
    path.mkdir()
    os.chown(path, UID, UID)
    mountpoint = path / "mnt"
    mountpoint.mkdir()
    os.chown(mountpoint, UID, UID)
    yield path
    force_unmount(mountpoint)


@pytest.fixture
def lazyfs(place, home):
    """The command, run by the ordinary user."""
    variables = {"PYTHONPATH": str(place / "packages"), "HOME": str(home), "PATH": "/usr/bin:/bin"}
    identity = {"user": UID, "group": UID, "extra_groups": []}
    return Lazyfs(home, (PYTHON,), environment=variables, options=identity)


def as_user(*command: object) -> subprocess.CompletedProcess:
    return run(*command, user=UID, group=UID, extra_groups=[])


def test_an_ordinary_user_mounts(lazyfs, place, home):
    mountpoint = home / "mnt"
    done = lazyfs("mount", f"oci:{place}/layout", mountpoint)
    assert (done.returncode, done.stdout) == (0, f"{mountpoint}\n"), done.stderr
    shown = run("findmnt", "-n", "-o", "FSTYPE,OPTIONS", mountpoint).stdout
    assert shown.startswith("fuse.lazyfs ")
    assert {"ro", "nosuid", "nodev", f"user_id={UID}"} <= set(shown.split()[1].split(","))

    assert as_user("cat", mountpoint / "etc/own").stdout == "own"
    assert "Permission denied" in as_user("cat", mountpoint / "etc/secret").stderr
    assert as_user("stat", "-c", "%u %a", mountpoint / "suid").stdout == "0 4755\n"
    assert "Permission denied" in as_user("cat", mountpoint / "null").stderr
    assert as_user("cmp", "-n", str(3 << 20), mountpoint / "big", "/dev/zero").returncode == 0
    assert as_user(mountpoint / "suid").returncode == 0

    others = run("ls", mountpoint, user=1, group=1, extra_groups=[])
    assert "Permission denied" in others.stderr
    (status,) = lazyfs.status()
    assert (status["state"], status["mounted"]) == ("serving", True)
    done = lazyfs("umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(mountpoint)
    assert lazyfs.records() == []


def test_through_the_users_own_service(lazyfs, place, home):
    mountpoint = home / "mnt"
    with serving(lazyfs) as service:
        lazyfs.mount(f"oci:{place}/layout", mountpoint)
        (record,) = records(lazyfs)
        assert b"serve" in Path(f"/proc/{record['pid']}/cmdline").read_bytes()
        assert as_user("cat", mountpoint / "etc/own").stdout == "own"
        service.kill()
        service.wait(SECONDS)
        assert as_user("cmp", "-n", str(3 << 20), mountpoint / "big", "/dev/zero").returncode == 0
        assert lazyfs("umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)


def test_busy_and_lazy(lazyfs, place, home):
    mountpoint = home / "mnt"
    lazyfs.mount(f"oci:{place}/layout", mountpoint)
    script = f"cd {mountpoint} && echo inside && exec sleep 60"
    sleeper = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, user=UID, group=UID
    )
    try:
        assert sleeper.stdout.readline() == "inside\n"
        done = lazyfs("umount", mountpoint)
        assert done.returncode == 8
        assert "in use" in done.stderr
        assert lazyfs("umount", "--lazy", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
    finally:
        sleeper.kill()
        sleeper.communicate(timeout=SECONDS)


def test_a_killed_server(lazyfs, place, home):
    mountpoint = home / "mnt"
    lazyfs.mount(f"oci:{place}/layout", mountpoint)
    lazyfs.kill_server()
    done = lazyfs("mount", f"oci:{place}/layout", mountpoint)
    assert done.returncode == 0, done.stderr
    assert as_user("cat", mountpoint / "etc/own").stdout == "own"
    assert lazyfs("umount", mountpoint).returncode == 0


def test_signals_unmount(lazyfs, place, home):
    mountpoint = home / "mnt"
    process = lazyfs.start("mount", "--foreground", f"oci:{place}/layout", mountpoint)
    try:
        assert process.stdout.readline() == f"{mountpoint}\n"
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert not is_mounted(mountpoint)
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_allow_other_needs_permission(lazyfs, place, home):
    if "\nuser_allow_other" in "\n" + FUSE_CONF.read_text():
        pytest.skip("this machine permits it")
    done = lazyfs("mount", f"oci:{place}/layout", home / "mnt", "-o", "allow_other")
    assert done.returncode == 8
    assert "user_allow_other" in done.stderr
    assert not is_mounted(home / "mnt")


def test_a_mountpoint_of_somebody_else(lazyfs, place, home):
    theirs = home / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 0, 0)
    done = lazyfs("mount", f"oci:{place}/layout", theirs)
    assert done.returncode == 8
    assert "fusermount3" in done.stderr
    assert lazyfs.records() == []


def test_a_user_without_a_name(lazyfs, place, home):
    nameless = 54321
    for path in (home, home / "mnt"):
        os.chown(path, nameless, nameless)
    lazyfs.options = {"user": nameless, "group": nameless, "extra_groups": []}
    done = lazyfs("mount", f"oci:{place}/layout", home / "mnt")
    assert done.returncode == 8
    assert "/etc/passwd" in done.stderr


# In a mount namespace of its own: other tests are to open /dev/fuse meanwhile.
ONLY_ROOT = """
mknod -m 600 "$0" c 10 229 && mount --bind "$0" /dev/fuse && rm "$0" &&
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


def test_a_device_that_only_root_may_open(lazyfs, place, home):
    lazyfs.prefix = ("unshare", "-m", "sh", "-c", ONLY_ROOT, str(home / "fuse"))
    lazyfs.options = {}
    done = lazyfs("mount", f"oci:{place}/layout", home / "mnt")
    assert done.returncode == 8
    assert "chmod 666 /dev/fuse" in done.stderr


def test_directories_without_any_variable(place, home, lazyfs):
    """Only HOME is known: cache, state and runtime directories come from it."""
    variables = {k: v for k, v in lazyfs.variables.items() if not k.startswith("LAZYFS_")}
    mountpoint = home / "mnt"
    command = lazyfs.command("mount", f"oci:{place}/layout", mountpoint)
    assert run(*command, env=variables, **lazyfs.options).returncode == 0
    assert (home / ".cache/lazyfs").is_dir()
    assert len(list((home / ".local/state/lazyfs/run").iterdir())) == 2
    command = lazyfs.command("umount", mountpoint)
    assert run(*command, env=variables, **lazyfs.options).returncode == 0


def test_in_a_user_namespace(place, home, lazyfs):
    """Where the user is root, and mounts without fusermount3."""
    mountpoint = home / "mnt"
    mount = " ".join(lazyfs.command("mount", f"oci:{place}/layout", mountpoint))
    umount = " ".join(lazyfs.command("umount", mountpoint))
    script = (
        f"{mount} && stat -c '%u %a' {mountpoint}/suid {mountpoint}/etc/own && "
        f"cmp -n 3145728 {mountpoint}/big /dev/zero && echo same; {umount} && echo unmounted"
    )
    options = {"env": lazyfs.variables, "cwd": home, **lazyfs.options}
    done = run("unshare", "-Urm", "sh", "-c", script, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(mountpoint), "0 4755", f"{UID} 600", "same", "unmounted",
    ]  # fmt: skip
    assert lazyfs.records() == []
