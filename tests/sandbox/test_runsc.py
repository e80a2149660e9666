"""How runsc is called, and what is made of its answers; a script plays it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.sandbox.runtimes import runsc as module
from lazyfs.sandbox.runtimes.logs import container_output, parse_log, shorten_reason
from lazyfs.sandbox.runtimes.programs import TimeExpired, processes_with
from lazyfs.sandbox.runtimes.runsc import Runsc, parse_state
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.sandbox.runtimes.sockets import remove_dead_sockets
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.spec import OUTPUT, PIPE
from tests.support.mounts.mounting import wait_until
from tests.support.sandboxes.fake_programs import FakeRunsc


@pytest.fixture
def fake(tmp_path):
    return FakeRunsc(tmp_path / "fake")


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)


pytestmark = pytest.mark.usefixtures("as_root")


def plan_in(folder: Path, *names: str, **options) -> SandboxPlan:
    names = names or ("main",)
    containers = [
        ContainerPlan(name, f"box.{name}", folder / "bundles" / name, name == names[0])
        for name in names
    ]
    for container in containers:
        write_bundle(container.bundle, {"annotations": {OUTPUT: PIPE}})
    return SandboxPlan("box", folder / "state", folder / "logs", tuple(containers), **options)


def image_in(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.mkdir()
    return path


def test_one_container_is_run(fake, tmp_path):
    plan = plan_in(tmp_path)
    Runsc(fake.path).start(plan)
    (call,) = fake.calls()
    assert call == (
        f"--root={plan.state_dir} --log={plan.log_dir}/runsc.log --log-format=json "
        "--ignore-cgroups --network=none --platform=systrap --overlay2=root:memory "
        f"run --detach --bundle {plan.root.bundle} box.main"
    )


def test_several_are_created_and_started_the_root_first(fake, tmp_path):
    Runsc(fake.path).start(plan_in(tmp_path, "pause", "one"))
    words = [call.split("--overlay2=root:memory ")[1].split() for call in fake.calls()]
    assert [(each[0], each[-1]) for each in words] == [
        ("create", "box.pause"),
        ("start", "box.pause"),
        ("create", "box.one"),
        ("start", "box.one"),
    ]


def test_flags_of_the_plan_come_before_ours(fake, tmp_path):
    plan = plan_in(tmp_path, flags=("--debug", "--strace"), overlay="none", network="sandbox")
    Runsc(fake.path).start(plan)
    assert "--network=sandbox" in fake.calls()[0]
    # With a value each, so that none takes the word behind it.
    assert fake.calls()[0].startswith("--debug=true --strace=true --root=")
    assert "--overlay2=none run" in fake.calls()[0]


def test_the_plan_may_choose_the_platform(fake, tmp_path):
    Runsc(fake.path).start(plan_in(tmp_path, flags=("--platform=kvm",)))
    assert fake.calls()[0].count("--platform=") == 1
    assert fake.calls()[0].startswith("--platform=kvm ")


def test_an_overlay_on_disk_is_spelled_as_the_program_knows_it(tmp_path):
    old = FakeRunsc(tmp_path / "old")
    old.say("flags", (tmp_path / "old/flags").read_text().replace("'dir=", "'"))
    Runsc(old.path).start(plan_in(tmp_path / "a", overlay="root:dir=/x"))
    assert "--overlay2=root:/x" in old.calls()[0]
    new = FakeRunsc(tmp_path / "new")
    Runsc(new.path).start(plan_in(tmp_path / "b", overlay="root:dir=/x"))
    assert "--overlay2=root:dir=/x" in new.calls()[0]


def test_without_an_overlay_nothing_is_started(fake, tmp_path):
    fake.say("flags", "  -root string\n    \tx\n")
    with pytest.raises(Unsupported, match="has no --overlay2"):
        Runsc(fake.path).start(plan_in(tmp_path))
    assert fake.calls() == []


def test_a_checkpoint_is_not_compressed_where_that_can_be_chosen(fake, tmp_path):
    image = image_in(tmp_path)
    Runsc(fake.path).checkpoint(plan_in(tmp_path), image)
    assert f"checkpoint --image-path {image} --compression=none box.main" in fake.calls()[-1]

    old = FakeRunsc(tmp_path / "old", checkpoint_flags=("image-path",))
    Runsc(old.path).checkpoint(plan_in(tmp_path), image)
    assert f"checkpoint --image-path {image} box.main" in old.calls()[-1]


def test_a_used_folder_is_refused_before_the_call(fake, tmp_path):
    image = image_in(tmp_path)
    (image / "checkpoint.img").write_text("")
    with pytest.raises(RuntimeFailed, match="is not empty"):
        Runsc(fake.path).checkpoint(plan_in(tmp_path), image)
    assert fake.calls() == []


def test_a_restore_of_several(fake, tmp_path):
    image = image_in(tmp_path)
    Runsc(fake.path).restore(plan_in(tmp_path, "pause", "one"), image)()
    words = [call.split("--overlay2=root:memory ")[1] for call in fake.calls()]
    assert words == [
        f"restore --detach --bundle {tmp_path}/bundles/{name} --image-path {image} box.{name}"
        for name in ("pause", "one")
    ]


def test_a_restore_in_the_background_is_waited_for_by_whom_wants(tmp_path):
    fake = FakeRunsc(
        tmp_path / "fake", restore_flags=("background", "detach"), wait_flags=("restore",)
    )
    wait = Runsc(fake.path).restore(plan_in(tmp_path), image_in(tmp_path))
    assert "--background box.main" in fake.calls()[-1]
    count = len(fake.calls())
    wait()
    assert fake.calls()[-1].endswith("wait --restore box.main")
    assert len(fake.calls()) == count + 1


@pytest.mark.parametrize("call", ["checkpoint", "restore"])
def test_several_need_a_program_that_can_restore_them(tmp_path, call):
    fake = FakeRunsc(tmp_path / "fake", can_subcontainers=False)
    with pytest.raises(Unsupported, match="2 containers"):
        getattr(Runsc(fake.path), call)(plan_in(tmp_path, "pause", "one"), image_in(tmp_path))
    assert fake.calls() == []


def test_a_failure_says_the_last_message_without_traces(fake, tmp_path):
    trace = "restoring: mismatched segment:\ngoroutine 12 [running]:\nmain()\n\t/x.go:1 +0x1"
    fake.fail("restore", "first", trace)
    plan = plan_in(tmp_path)
    with pytest.raises(RuntimeFailed) as error:
        Runsc(fake.path).restore(plan, image_in(tmp_path))
    assert error.value.message == "runsc restore: restoring: mismatched segment"
    assert error.value.hint == f"its full output is in {plan.log_dir}"
    assert error.value.details == {"command": "restore", "status": 128}
    assert "goroutine" in (plan.log_dir / "runsc.log").read_text()


def test_a_failure_is_not_blamed_on_what_was_said_before(fake, tmp_path):
    fake.fail("checkpoint", "no such thing")
    runsc, plan, image = Runsc(fake.path), plan_in(tmp_path), image_in(tmp_path)
    with pytest.raises(RuntimeFailed, match="no such thing"):
        runsc.checkpoint(plan, image)
    fake.say("log-checkpoint", "")
    fake.say("err-checkpoint", "said on standard error\n")
    with pytest.raises(RuntimeFailed, match="runsc checkpoint: said on standard error"):
        runsc.checkpoint(plan, image)
    fake.say("err-checkpoint", "")
    with pytest.raises(RuntimeFailed, match="runsc checkpoint: exit status 128"):
        runsc.checkpoint(plan, image)


def test_a_program_that_hangs_is_killed(fake, tmp_path):
    nap = f"60.{os.getpid()}"  # nobody else's
    fake.say("sleep-checkpoint", nap)
    with pytest.raises(TimeExpired, match=r"did not finish within 0.2 s"):
        Runsc(fake.path, image_seconds=0.2).checkpoint(plan_in(tmp_path), image_in(tmp_path))
    wait_until(lambda: not list(processes_with(nap)))  # what is killed takes its time


def test_states(fake, tmp_path):
    plan = plan_in(tmp_path, "pause", "one")
    assert set(Runsc(fake.path).states(plan).values()) == {ContainerState.ABSENT}
    assert fake.calls() == []  # without a folder nothing is asked

    plan.state_dir.mkdir()
    fake.say("out-state", json.dumps({"status": "running", "pid": os.getpid()}))
    assert set(Runsc(fake.path).states(plan).values()) == {ContainerState.RUNNING}

    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(30)
    fake.say("out-state", json.dumps({"status": "running", "pid": ended.pid}))
    assert set(Runsc(fake.path).states(plan).values()) == {ContainerState.STOPPED}

    fake.fail("state", "loading container: file does not exist")
    assert set(Runsc(fake.path).states(plan).values()) == {ContainerState.ABSENT}
    fake.fail("state", "loading container: permission denied")
    with pytest.raises(RuntimeFailed, match="permission denied"):
        Runsc(fake.path).states(plan)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"status":"odd"}', '{"status":"running","pid":"x"}']
)
def test_odd_states(text):
    with pytest.raises(RuntimeFailed, match="not JSON with a known status"):
        parse_state(text)


@given(st.text())
def test_any_state_is_read_or_refused(text):
    try:
        parse_state(text)
    except RuntimeFailed:
        pass


def test_waiting(fake, tmp_path):
    plan = plan_in(tmp_path)
    fake.say("out-wait", '{"id":"box.main","exitStatus":7}')
    assert Runsc(fake.path).wait(plan, 10) == 7
    fake.say("out-wait", "odd")
    with pytest.raises(RuntimeFailed, match="printed no exit status"):
        Runsc(fake.path).wait(plan, None)
    fake.say("sleep-wait", "60")
    assert Runsc(fake.path).wait(plan, 0.1) is None


def test_a_known_name_is_not_started_again(fake, tmp_path):
    plan = plan_in(tmp_path)
    plan.state_dir.mkdir()
    (plan.state_dir / "box.main_sandbox:box.main.state").write_text("{}")
    runsc = Runsc(fake.path)
    for call in (
        lambda: runsc.start(plan),
        lambda: runsc.run_attached(plan),
        lambda: runsc.restore(plan, tmp_path),
    ):
        with pytest.raises(RuntimeFailed, match=r"container box.main already exists"):
            call()
    assert fake.calls() == []
    runsc.delete(plan)
    assert list(plan.state_dir.iterdir()) == []
    runsc.start(plan)


def test_what_uses_the_disk_is_deleted_by_the_program(fake, tmp_path):
    plan = plan_in(tmp_path, overlay="root:dir=/x")
    plan.state_dir.mkdir()
    (plan.state_dir / "box.main_sandbox:box.main.state").write_text("{}")
    Runsc(fake.path).delete(plan)
    assert fake.calls()[-1].endswith("delete --force box.main")


def test_deleting_nothing(fake, tmp_path):
    Runsc(fake.path).delete(plan_in(tmp_path))
    assert fake.calls() == []


def test_on_this_terminal(fake, tmp_path):
    plan = plan_in(tmp_path)
    fake.say("status-run", "3")
    assert Runsc(fake.path).run_attached(plan) == 3
    fake.say("status-run", "128")
    assert Runsc(fake.path).run_attached(plan) == 128
    fake.fail("run", "starting: no such file")
    with pytest.raises(RuntimeFailed, match="runsc run: starting: no such file"):
        Runsc(fake.path).run_attached(plan)
    with pytest.raises(Unsupported, match="2 containers"):
        Runsc(fake.path).run_attached(plan_in(tmp_path, "pause", "one"))


def test_without_root_it_is_root_of_a_namespace(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    assert Runsc(fake.path)._words(plan_in(tmp_path), "state")[:4] == [
        "unshare",
        "--user",
        "--map-root-user",
        fake.path,
    ]
    assert "--rootless" not in Runsc(fake.path)._words(plan_in(tmp_path), "state")


def test_without_root_an_old_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    fake = FakeRunsc(tmp_path / "fake", flags=())
    with pytest.raises(Unsupported, match="cannot run a mounted image without root"):
        Runsc(fake.path).start(plan_in(tmp_path))


def test_output_is_added_to_and_private(fake, tmp_path):
    """As of sandboxes that were saved while they wrote into a file."""
    plan = plan_in(tmp_path)
    for word in (b"one\n", b"two\n"):
        with container_output(plan, plan.root, is_file=True) as file:
            os.pwrite(file.fileno(), word, 0)  # what a restored sandbox does: at its old offset
    path = plan.log_dir / "main.log"
    assert path.read_bytes() == b"one\ntwo\n"
    assert (path.stat().st_mode & 0o777, plan.log_dir.stat().st_mode & 0o777) == (0o600, 0o700)


@given(st.lists(st.text(min_size=1)), st.text(alphabet='{}":,ab\\'))
def test_any_log_is_read(messages, rubbish):
    entries = "".join(json.dumps({"msg": text}) for text in messages)
    assert parse_log(entries) == messages
    parse_log(rubbish + entries)
    assert parse_log(entries[1:])[-1:] == messages[1:][-1:]


@given(st.text())
def test_a_reason_is_one_short_line(text):
    assert "\n" not in shorten_reason(text)
    assert len(shorten_reason(text)) <= 601


def test_a_trace_alone_is_better_than_nothing():
    assert shorten_reason("goroutine 1 [running]:\nmain()").startswith("goroutine 1 [running]:")
    assert shorten_reason("panic: out of it\n\ngoroutine 1 [running]:\n") == "panic: out of it"


def test_sockets_of_the_dead_are_removed_and_no_others(tmp_path, monkeypatch):
    """gVisor leaves one with each checkpoint, and starts nothing when all places are taken."""
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    shared.mkdir()
    monkeypatch.setattr("lazyfs.sandbox.runtimes.sockets.SHARED", (Path("shared"),))
    monkeypatch.chdir(tmp_path)  # short names: a socket's must fit into 107 bytes
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        dead.bind("own/runsc-c.main.sock")
        alive.bind("shared/runsc-c.main.sock")
        alive.listen()
        (shared / "runsc-d.main.sock").write_text("no socket")
        for name in ("c.main", "d.main"):
            remove_dead_sockets(Path("own"), name)
    assert list(own.iterdir()) == []
    assert len(list(shared.iterdir())) == 2
