"""``lazyfs run`` with real mounts and real containers: bubblewrap, which needs least."""

import errno
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.documents.errors import BaseUnresolved, DeadMount
from lazyfs.service.witness import MountWitness
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    symlink,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    SECONDS,
    force_unmount,
    is_mounted,
    needs_fuse,
    needs_root,
    run,
    wait_until,
)
from tests.support.registries.faults import status
from tests.support.registries.registry import FakeRegistry
from tests.support.sandboxes.runscs import BUSYBOX, NEW, OLD, need_runsc, why_no_busybox

pytestmark = [
    *needs_fuse,
    *needs_root,
    pytest.mark.skipif(why_no_busybox() is not None, reason=str(why_no_busybox())),
]
FORGED = {"user.lazyfs.manifest.digest": b"forged", "user.other": b"kept"}
TEMPLATE = """
name: counter
containers:
- name: counter
  image: {image}
  command: [/bin/sh, -c, "while true; do echo on; sleep 1; done"]
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two layers, of which the upper one replaces /etc/a, and forges its identity."""
    folder = tmp_path_factory.mktemp("images") / "layout"
    lower = [
        *(directory(name) for name in ("bin", "dev", "etc", "proc", "sys", "tmp")),
        file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in ("sh", "sleep", "cat", "echo", "touch")),
        file("etc/a", b"lower"),
        file("etc/b", b"lower"),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    ]
    upper = [directory("./", xattrs=FORGED), file("etc/a", b"upper", xattrs=FORGED)]
    make_layout(folder, [estargz_layer(tar_bytes(each)) for each in (lower, upper)], index=True)
    return folder


@pytest.fixture(scope="module")
def registry(layout: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as serving:
        yield serving


@pytest.fixture
def lazyfs(tmp_path: Path) -> Iterator[Lazyfs]:
    command = Lazyfs(tmp_path)
    yield command
    for rootfs in tmp_path.glob("state/sandboxes/*/bundles/*/rootfs"):
        if is_mounted(rootfs):
            command("delete", "--force", rootfs.parents[2].name)
        force_unmount(rootfs)


@pytest.fixture
def image(registry: FakeRegistry) -> str:
    registry.faults.clear()
    registry.forget_requests()
    return f"{registry.host}/box:latest"


def need_bwrap() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("no bwrap (apt install bubblewrap)")


@pytest.fixture
def counter(lazyfs: Lazyfs, image: str) -> Path:
    """A sandbox c1 that runs; return its rootfs."""
    need_bwrap()
    template = lazyfs.folder / "t.yaml"
    template.write_text(TEMPLATE.format(image=image))
    done = lazyfs("run", "./t.yaml", "--id", "c1", "--runtime", "bwrap")
    assert (done.returncode, done.stdout) == (0, "c1\n"), done.stderr
    return lazyfs.folder / "state/sandboxes/c1/bundles/counter/rootfs"


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def sandbox_status(lazyfs: Lazyfs, sandbox_id: str = "c1") -> dict:
    done = lazyfs("status", sandbox_id, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["sandboxes"]
    return found


def assert_nothing_left(lazyfs: Lazyfs) -> None:
    assert list((lazyfs.folder / "state/sandboxes").glob("*")) == []
    assert lazyfs.status() == []


# One image, as by docker run --rm


@pytest.mark.parametrize("runtime", ["bwrap", "crun", "runc", OLD, NEW])
def test_an_image_is_run_and_nothing_stays(lazyfs: Lazyfs, image: str, runtime: str) -> None:
    if runtime in (OLD, NEW):
        runtime = str(need_runsc(runtime))
    elif shutil.which(runtime) is None:
        pytest.skip(f"no {runtime}")
    script = "cat /etc/a; echo x >/new && echo wrote; echo $NAME; exit 7"
    words = ["--runtime", runtime, "--env", "NAME=value", image, "--", "/bin/sh", "-c", script]
    done = lazyfs("run", *words)
    assert done.stdout == "upperwrote\nvalue\n", done.stderr
    assert done.returncode == 7
    assert f"box: {image} -> {image.removesuffix(':latest')}@sha256:" in done.stderr
    assert "recorded for this sandbox and its snapshots" in done.stderr
    assert_nothing_left(lazyfs)


def test_a_pinned_image_that_is_here_starts_without_a_network(
    lazyfs: Lazyfs, registry: FakeRegistry, image: str
) -> None:
    """Scenario 14: nothing is asked when all of it is here."""
    need_bwrap()
    assert lazyfs("verify", image).returncode == 0
    words = ["run", "--runtime", "bwrap"]
    digest = json.loads(lazyfs("inspect", image, "--json").stdout)["indexDigest"]
    registry.faults.add(status(500), times=None)
    registry.forget_requests()
    pinned = f"{registry.host}/box@{digest}"
    done = lazyfs(*words, pinned, "--", "/bin/cat", "/etc/b")
    assert (done.returncode, done.stdout) == (0, "lower"), done.stderr
    done = lazyfs(*words, "--pull", "never", image, "--", "/bin/cat", "/etc/b")
    assert (done.returncode, done.stdout) == (0, "lower"), done.stderr
    assert registry.requests == []


def test_why_an_image_is_not_run(lazyfs: Lazyfs, image: str) -> None:
    need_bwrap()
    words = ["run", "--runtime", "bwrap"]
    for more, code, said in (
        (["--pull", "never", image], 24, "E_TAG_UNRESOLVABLE"),
        (["--require-pinned", image], 2, "E_TEMPLATE_INVALID"),
        (["./no.yaml"], 2, "E_TEMPLATE_INVALID"),
        (["busybox@sha256:12"], 2, "E_TEMPLATE_INVALID"),
        (["--env", "novalue", image], 2, "E_USAGE"),
        (["--id", "No", image], 2, "E_USAGE"),
        (["--platform", "linux/s390x", image], 30, "E_PLATFORM_MISMATCH"),
    ):
        done = lazyfs(*words, *more, "--detach", "--json")
        assert done.returncode == code, (more, done.stderr)
        assert json.loads(done.stderr.splitlines()[-1])["code"] == said
    done = lazyfs(*words, image, "--", "/bin/nothing")
    assert done.returncode != 0
    assert_nothing_left(lazyfs)


def test_two_interrupts_end_what_listens_to_none(lazyfs: Lazyfs, image: str) -> None:
    """Ctrl-C on a terminal: the first is the program's, which as process 1 may ignore it."""
    need_bwrap()
    leader, follower = pty.openpty()
    words = lazyfs.command("run", "--runtime", "bwrap", image, "--", "/bin/sh", "-c",
                           "echo begun; exec /bin/sleep 1000")  # fmt: skip
    opened = "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    starter = [sys.executable, "-c", f"{opened}; os.execv(sys.argv[1], sys.argv[1:])", *words]
    process = subprocess.Popen(
        starter, stdin=follower, stdout=follower, stderr=follower, env=lazyfs.variables,
        cwd=lazyfs.folder, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    said = b""
    try:
        while b"begun" not in said:
            said += os.read(leader, 4096)
        while process.poll() is None:
            os.write(leader, b"\x03")
            wait_until(lambda: readable(leader) or process.poll() is not None)
            try:
                said += os.read(leader, 4096) if readable(leader) else b""
            except OSError:  # nobody has the terminal any more
                process.wait(SECONDS)
        assert process.returncode in (130, -signal.SIGINT), said  # the last may come after the end
    finally:
        process.kill()
        process.wait(SECONDS)
        os.close(leader)
    assert_nothing_left(lazyfs)


# A template


def test_what_runs_says_what_it_runs_on(
    lazyfs: Lazyfs, counter: Path, image: str, layout: Path
) -> None:
    """Scenario 5 and Q5: the mount, the record and the registry's bytes agree."""
    shown = sandbox_status(lazyfs)
    (container,) = shown["containers"]
    assert (shown["state"], container["state"], container["base"]) == ("RUNNING", "running", "ok")
    assert container["originalRef"] == image
    attributes = MountWitness(lazyfs.folder / "run").identity(counter)
    assert attributes["user.lazyfs.ref.requested"] == image  # though it is mounted by digest
    assert attributes["user.lazyfs.ref.resolved"] == container["resolvedRef"]
    digest = attributes["user.lazyfs.manifest.digest"]
    manifest = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    assert container["resolvedRef"].endswith(f"@{digest}")
    assert manifest["config"]["digest"] == attributes["user.lazyfs.config.digest"]
    stated = [each["digest"] for each in json.loads(attributes["user.lazyfs.layers"])]
    assert stated == [each["digest"] for each in manifest["layers"]]
    # Scenario 6: of two layers that have a file the upper one counts.
    layer = "user.lazyfs.file.layer"
    assert os.getxattr(counter / "etc/a", layer).decode() == stated[1]
    assert os.getxattr(counter / "etc/b", layer).decode() == stated[0]
    # Scenarios 7 and 8, F34: what an image claims of itself is not seen.
    assert os.listxattr(counter / "etc/a") == ["user.other"]
    assert "user.lazyfs.file.layer" not in os.listxattr(counter)
    # Scenario 9
    with pytest.raises(OSError, match="Read-only") as refused:
        os.setxattr(counter, "user.lazyfs.manifest.digest", b"forged")
    assert refused.value.errno == errno.EROFS
    # Scenario 10
    copy = lazyfs.folder / "copy"
    assert run("cp", "-a", counter / "etc", copy).returncode == 0
    for path in (copy, copy / "a", copy / "b"):
        assert not [name for name in os.listxattr(path) if name.startswith("user.lazyfs.")]


def test_it_is_stopped_by_force_only(lazyfs: Lazyfs, counter: Path) -> None:
    done = lazyfs("run", "./t.yaml", "--id", "c1", "--json")
    assert (done.returncode, json.loads(done.stderr)["code"]) == (2, "E_USAGE")
    done = lazyfs("delete", "c1")
    assert (done.returncode, "is running" in done.stderr) == (2, True)
    assert lazyfs("recover").stdout == "c1  RUNNING\n"
    assert lazyfs("delete", "--force", "c1").returncode == 0
    assert_nothing_left(lazyfs)
    assert lazyfs("delete", "c1").returncode == 3


def test_what_a_sandbox_needs_stays_in_the_cache(lazyfs: Lazyfs, counter: Path, image: str) -> None:
    """C10: also when nothing is mounted any more; until the sandbox is deleted."""
    assert lazyfs("pull", image).returncode == 0
    lazyfs.kill_server()
    wait_until(lambda: sandbox_status(lazyfs)["containers"][0]["base"] == "dead")
    paths = (lazyfs.folder / "cache").glob("layers/*/content")
    contents = {path: path.stat().st_blocks for path in paths}
    assert len(contents) == 2
    done = lazyfs("cache", "rm", image)
    assert done.returncode == 1
    assert "is needed by sandbox c1" in done.stderr
    assert "lazyfs delete c1" in done.stderr
    for words in (["rm", "--all"], ["prune", "--size", "0"], ["prune", "--unused"]):
        assert lazyfs("cache", *words).returncode == 0
    assert {path: path.stat().st_blocks for path in contents} == contents
    (shown,) = json.loads(lazyfs("cache", "ls", "--json").stdout)["images"]
    assert (shown["pinnedBy"], shown["inUse"]) == (["c1"], False)
    assert lazyfs("delete", "--force", "c1").returncode == 0
    assert lazyfs("cache", "rm", image).returncode == 0
    assert not any(path.exists() for path in contents)


def test_a_dead_server_is_seen(lazyfs: Lazyfs, counter: Path) -> None:
    """F31 and F33: status tells, and the witness will not vouch."""
    witness = MountWitness(lazyfs.folder / "run")
    lazyfs.kill_server()
    wait_until(lambda: sandbox_status(lazyfs)["containers"][0]["base"] == "dead")
    with pytest.raises(DeadMount):
        witness.identity(counter)
    assert lazyfs("delete", "--force", "c1").returncode == 0
    with pytest.raises(BaseUnresolved):
        witness.identity(lazyfs.folder)
    assert run("mount", "-t", "tmpfs", "none", lazyfs.folder / "run").returncode == 0
    try:
        with pytest.raises(BaseUnresolved, match="tmpfs"):
            witness.identity(lazyfs.folder / "run")
    finally:
        force_unmount(lazyfs.folder / "run")


def test_another_mount_in_its_place_is_seen(lazyfs: Lazyfs, counter: Path, image: str) -> None:
    """F32: the same image, and another mount."""
    force_unmount(counter)
    lazyfs.mount(image, counter)
    assert sandbox_status(lazyfs)["containers"][0]["base"] == "replaced"


def test_a_command_that_is_killed_is_cleared_away(lazyfs: Lazyfs, image: str) -> None:
    """Killed while it waits for the registry: the next command undoes what there is."""
    need_bwrap()
    (lazyfs.folder / "t.yaml").write_text(TEMPLATE.format(image=image))
    words = ["run", "./t.yaml", "--id", "c1", "--runtime", "bwrap"]
    process = lazyfs.start(*words, "--network", "none")
    journal = lazyfs.folder / "state/sandboxes/c1/journal.json"
    try:
        wait_until(journal.exists)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=SECONDS)
    done = lazyfs("recover", "c1", "--json")
    assert done.returncode == 0, done.stderr
    (recovered,) = json.loads(done.stdout)["sandboxes"]
    assert recovered["state"] in ("FAILED", "RUNNING")
    if recovered["state"] == "FAILED":
        assert sandbox_status(lazyfs)["error"]["code"] == "E_INTERRUPTED"
        done = lazyfs(*words)
        assert (done.returncode, done.stdout) == (0, "c1\n"), done.stderr
    assert sandbox_status(lazyfs)["state"] == "RUNNING"


def test_the_witness_imports_no_network() -> None:
    """R13: what vouches for mounts cannot ask a registry."""
    script = (
        "import sys, lazyfs.service.witness, lazyfs.service.mounts; "
        "print([name for name in sys.modules if name.startswith(('httpx', 'lazyfs.registry', "
        "'lazyfs.image', 'trio'))])"
    )
    done = run(sys.executable, "-c", script)
    assert done.stdout == "[]\n", done.stderr


def test_what_a_mount_says_was_requested(
    lazyfs: Lazyfs, registry: FakeRegistry, image: str
) -> None:
    mountpoint = lazyfs.folder / "mnt"
    mountpoint.mkdir()
    for option, code in (("requested=No/", 2), ("requested=other:1", 2)):
        done = lazyfs("mount", "-o", option, image, mountpoint, "--json")
        assert done.returncode == code
        assert json.loads(done.stderr)["exitCode"] == 2
    digest = json.loads(lazyfs("inspect", image, "--json").stdout)["manifestDigest"]
    pinned = f"{registry.host}/box@{digest}"
    done = lazyfs("mount", "-o", "requested=other:1", pinned, mountpoint, "--json")
    try:
        assert json.loads(done.stdout) == {"mountpoint": str(mountpoint)}
        (shown,) = lazyfs.status()
        assert (shown["requested"], shown["resolved"]) == ("other:1", pinned)
        assert (mountpoint / "etc/b").read_text() == "lower"
    finally:
        force_unmount(mountpoint)
