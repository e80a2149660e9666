"""A snapshot gives orders: to the runtime's command line, to paths, and to what commands do later.

A word that is no option becomes a command of runsc, and "do" runs anything as root; an option may
write a file anywhere.  What a manifest says is checked when it is read, and what is left of it is
put where it wins over nothing of ours.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lazyfs.documents.errors import ManifestInvalid, NotAllowed, OtherManifest, RecordMissing
from lazyfs.documents.journal import SandboxBroken
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.documents.template_reading import template_of_document
from lazyfs.errors import LazyfsError
from lazyfs.sandbox.runtimes.oci_runtimes import Crun, Runc
from lazyfs.sandbox.runtimes.runsc import Runsc
from lazyfs.sandbox.runtimes.runsc_flags import HARMLESS, OPENING, Verdict, judge
from lazyfs.snapshot.clone import clone
from lazyfs.snapshot.grants import BadGrant, parse_grant
from lazyfs.snapshot.recover import recover
from lazyfs.snapshot.restore import Order
from lazyfs.snapshot.restore_policy import BadPolicy, load_policy
from lazyfs.snapshot.review import Wanted
from tests.support.mounts.mounting import run as run_program
from tests.support.sandboxes.fake_programs import FakeRunsc
from tests.support.sandboxes.fake_runtime import Crash, FakeRuntime
from tests.support.sandboxes.hostile import in_runtime, in_template, tamper
from tests.support.sandboxes.runscs import SUITES, need_runsc
from tests.support.sandboxes.world import Machine, counter, directory, machine, neighbour


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    """A machine that reaches a store with a snapshot."""
    here = machine(tmp_path)
    here.run()
    here.checkpoint(pointer="latest")
    return neighbour(here, runtimes=(FakeRuntime(),))


def check_untouched(there: Machine) -> None:
    assert not {"start", "restore"} & set(there.runtime.names())
    there.check_gone()


# The command line

WORDS = [
    # As it was found: a word that is no option is a command.
    ["do", "--force-overlay=false", "sh", "-c", "touch /root/marker"],
    ["--ignore-cgroups", "do", "sh"],
    ["-"],
    ["--"],
    ["---debug"],
    [""],
    [" --debug"],
    ["--debug "],
    ["--debug\n--root=/x"],
    ["--debug=\x1b]0;x\x07"],
    ["--debug=\x00"],
    ["-1"],
    ["--=x"],
]


@pytest.mark.parametrize("flags", WORDS)
def test_a_word_that_is_no_option_is_in_no_manifest(there: Machine, flags: list[str]) -> None:
    tamper(directory(there), "latest", in_runtime(flags=flags))
    with pytest.raises(ManifestInvalid, match=r"runtime.flags\[\d\]"):
        there.restore("@latest")
    check_untouched(there)


@pytest.mark.parametrize(
    "overlay",
    [
        *("", "do", "root", "root:", "rootmemory", "root:memory do", "all:self,x", "--debug"),
        *("root:/srv", "root:dir=srv", "root:dir=", "root:dir=/a,b", "root:dir=/a:b"),
        *("root:dir=/a\nb", "none:memory", "memory"),
    ],
)
def test_an_overlay_is_one_of_a_few(there: Machine, overlay: str) -> None:
    tamper(directory(there), "latest", in_runtime(overlay=overlay))
    with pytest.raises(ManifestInvalid, match=r"runtime.overlay"):
        there.restore("@latest")
    check_untouched(there)


@pytest.mark.parametrize("network", ["host", "do", "none --debug-log=/x", "", "plugin"])
def test_a_network_is_one_of_a_few(there: Machine, network: str) -> None:
    tamper(directory(there), "latest", in_runtime(network=network))
    with pytest.raises(ManifestInvalid, match=r"runtime.network"):
        there.restore("@latest")
    check_untouched(there)


# Options that write, run, read or replace: by their names in releases of 2022 and 2025.
NEVER = [
    *("--debug-log=/etc/cron.d/x", "--debug-log=%ID%/", "--panic-log=/x", "--log=/x"),
    *("--user-log=/x", "--pcap-log=/x", "--coverage-report=/x", "--trace=/x"),
    *("--profile-cpu=/x", "--profile-heap=/x", "--profile-block=/x", "--profile-mutex=/x"),
    *("--profile", "--profiling-metrics-log=/x", "--metric-server=0.0.0.0:1"),
    *("--root=/x", "-root=/x", "--log-fd=1", "--debug-log-fd=1", "--panic-log-fd=1"),
    *("--pod-init-config=/x", "--platform_device_path=/dev/sda", "--rootless"),
    *("--network=host", "--network=sandbox", "--overlay2=none", "--overlay", "--overlay=false"),
    *("--allow-flag-override", "--TESTONLY-unsafe-nonroot", "--TESTONLY-autosave-image-path=/x"),
    *("--EXPERIMENTAL-xdp=redirect:eth0", "--alsologtostderr", "--version", "--help", "--x"),
    "--force-overlay=false",
    # Known names with what they do not take: another word would be swallowed, or a check passed by.
    *("--dcache", "--dcache=/x", "--host-uds", "--host-uds=", "--platform", "--platform=/x"),
    *("--debug=do", "--watchdog-action", "--file-access=/x", "--nvproxy=/dev/x", "--DEBUG"),
]


@pytest.mark.parametrize("flag", NEVER)
def test_an_option_outside_the_list_is_refused_by_its_name(there: Machine, flag: str) -> None:
    tamper(directory(there), "latest", in_runtime(flags=["--debug", flag]))
    with pytest.raises(NotAllowed, match=re.escape(flag)):
        there.restore("@latest")
    # No words of the command line or of a policy allow it.
    try:
        grants = (parse_grant(f"runtime-flag={flag}", "--allow"),)
    except BadGrant:
        grants = ()
    with pytest.raises(NotAllowed, match="asks for more"):
        there.restore("@latest", grants=grants)
    check_untouched(there)
    # Only who writes the very same into a template of his own: then it is his word.
    other = template_of_document(counter().to_document() | {"runtime": {"flags": ["--debug"]}})
    with pytest.raises(NotAllowed):
        there.restore("@latest", template=other)


def test_the_recorded_templates_options_are_judged_too(there: Machine) -> None:
    tamper(directory(there), "latest", in_template(runtime={"flags": ["--debug-log=/x"]}))
    with pytest.raises(NotAllowed, match="--debug-log=/x"):
        there.restore("@latest")
    check_untouched(there)


def test_the_lists_of_options_do_not_meet_but_in_what_they_take() -> None:
    for name in HARMLESS.keys() & OPENING.keys():
        assert not set(HARMLESS[name].split("|")) & set(OPENING[name].split("|"))
    assert judge("--platform=kvm") is Verdict.OPENING
    assert judge("--platform=ptrace") is Verdict.HARMLESS


def plan(folder: Path, *flags: str, **fields: Any) -> SandboxPlan:
    bundle = folder / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text('{"root": {"path": "rootfs"}, "process": {"args": ["x"]}}')
    container = ContainerPlan("main", "box.main", bundle, is_root=True)
    return SandboxPlan(
        "box", folder / "state", folder / "logs", (container,), flags=flags, **fields
    )


def test_our_own_options_come_last_and_win(tmp_path: Path) -> None:
    fake = FakeRunsc(tmp_path / "fake")
    ours = ("--root=", "--log=", "--network=", "--overlay2=", "--ignore-cgroups")
    flags = ("--root=/elsewhere", "--log=/x", "--network=host", "--overlay2=none", "-debug-log")
    Runsc(fake.path).start(plan(tmp_path, *flags))
    words = fake.calls()[0].split()
    before = words[: len(flags)]
    assert before == [*flags[:-1], "-debug-log=true"]  # with a value: it swallows none of ours
    for name in ours:
        (last,) = [place for place, word in enumerate(words) if word.startswith(name)][-1:]
        assert last >= len(flags), name
    assert words[len(flags)] == f"--root={tmp_path / 'state'}"


@pytest.mark.parametrize("kind", [Crun, Runc])
def test_our_own_folder_wins_with_the_others_too(tmp_path: Path, kind: type[Crun | Runc]) -> None:
    words = kind(tmp_path / "program")._program(plan(tmp_path, "--root=/elsewhere"))
    folder = tmp_path / "state" / kind.name
    assert [str(word) for word in words][1:4] == ["--root=/elsewhere", "--root", str(folder)]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.interop
def test_the_real_program_takes_the_last_of_two(tmp_path: Path, suite: str) -> None:
    """What our options rely on when they come last."""
    runsc = need_runsc(suite)
    logs = [f"--log={tmp_path}/first", f"--log={tmp_path}/last"]
    done = run_program(runsc, f"--root={tmp_path}", "--debug=true", *logs, "list", "-quiet")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"last"}


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.interop
def test_what_the_real_program_can_write_is_in_no_list(suite: str) -> None:
    """No option of the program that takes a path, or an open file, gets by with one."""
    done = run_program(need_runsc(suite), "flags")
    names = re.findall(r"^  -([A-Za-z0-9_-]+)", done.stderr + done.stdout, re.MULTILINE)
    assert len(names) > 50
    for value in ("/x", "1x", "a b", "", "../x", "0.0.0.0:1"):
        passed = [name for name in names if judge(f"--{name}={value}") is not Verdict.REFUSED]
        assert passed == [], value


# Which manifest


def test_a_snapshot_can_be_pinned_to_its_manifest(there: Machine) -> None:
    loaded = there.snapshots.load("@latest")
    there.restore("@latest", manifest_digest=loaded.digest)
    tamper(directory(there), "latest", in_runtime(flags=["--debug"]))
    there.restore("@latest", "r2")  # the pointer was moved along: nothing else tells
    for name in ("@latest", loaded.id):
        with pytest.raises(OtherManifest) as told:
            there.restore(name, "r3", manifest_digest=loaded.digest)
        assert told.value.exit_code == 13
        assert told.value.details["expected"] == loaded.digest
    there.check_gone("r3")


def test_a_pin_stands_before_the_manifest_is_read(there: Machine) -> None:
    loaded = there.snapshots.load("@latest")
    path = directory(there) / "snapshots" / loaded.id / "snapshot-manifest.json"
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(OtherManifest):
        there.restore(loaded.id, manifest_digest=loaded.digest)


def test_what_has_no_manifest_fits_no_pin(there: Machine) -> None:
    loaded = there.snapshots.load("@latest")
    (directory(there) / "snapshots" / loaded.id / "snapshot-manifest.json").unlink()
    image = loaded.manifest.images[0].resolved_ref
    with pytest.raises(OtherManifest):
        there.restore(loaded.id, manifest_digest=loaded.digest, assumed={"counter": image})


def test_clones_are_all_of_the_manifest_that_was_looked_at(there: Machine) -> None:
    """Somebody replaces it between the look and the first clone."""
    download = there.snapshots.download

    class Swapped(type(there.snapshots)):  # type: ignore[misc]
        def download(self, loaded: Any, target: Path) -> None:
            download(loaded, target)
            tamper(directory(there), "latest", in_runtime(flags=["--debug"]))

    tools = there.restore_tools()
    import msgspec

    tools = msgspec.structs.replace(tools, snapshots=Swapped(tools.snapshots.objects))
    failed = clone(Order(Wanted("@latest"), "r"), ["r1", "r2"], tools, lambda each: None)
    assert [type(error) for _, error in failed] == [OtherManifest, OtherManifest]


# What was written down here


@pytest.fixture
def local(tmp_path: Path) -> Machine:
    here = machine(tmp_path)
    here.run()
    return here


def resumed(here: Machine) -> None:
    sandbox = here.sandbox()
    with sandbox.lock():
        recover(sandbox, here.checkpoint_tools())


FILES = ["journal.json", ".", ".."]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mode", [0o660, 0o606, 0o622])
def test_records_that_others_can_write_are_nobodys_word(
    local: Machine, name: str, mode: int
) -> None:
    path = local.sandbox().folder / name
    path.chmod(mode | (0o111 if path.is_dir() else 0))
    with pytest.raises(SandboxBroken, match="other users can write"):
        resumed(local)
    with pytest.raises(SandboxBroken):
        local.checkpoint()


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("name", FILES)
def test_records_of_somebody_else_are_not_followed_as_root(local: Machine, name: str) -> None:
    """As with a state directory that was handed over by the environment."""
    path = local.sandbox().folder / name
    os.chown(path, 12345, -1)
    with pytest.raises(SandboxBroken, match="user 12345"):
        resumed(local)
    with pytest.raises(SandboxBroken):
        local.checkpoint()
    assert "checkpoint" not in local.runtime.names()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_record_is_a_file(local: Machine, kind: str, tmp_path: Path) -> None:
    path = local.sandbox().journal_path
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    path.unlink()
    {"link": lambda: path.symlink_to(copy), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[
        kind
    ]()
    with pytest.raises(SandboxBroken):
        resumed(local)


@pytest.mark.parametrize("name", ["draft-manifest.json", "base-record.json", "template.json"])
def test_what_a_checkpoint_goes_on_with_is_ones_own(local: Machine, name: str) -> None:
    sandbox = local.sandbox()
    if name == "draft-manifest.json":
        local.runtime.crash = {"checkpoint:after"}
        with pytest.raises(Crash):
            local.checkpoint()
        local.runtime.crash = set()
        sandbox.draft_path.write_bytes(b"{}")
    (sandbox.folder / name).chmod(0o666)
    go_on = local.resume if name == "draft-manifest.json" else local.checkpoint
    with pytest.raises((SandboxBroken, RecordMissing)) as told:
        go_on()
    assert "other users can write" in told.value.message


def test_a_sandbox_of_ones_own_goes_on_without_asking(tmp_path: Path) -> None:
    """What was started here is the user's word already."""
    here = machine(tmp_path)
    document = counter().to_document() | {"runtime": {"flags": ["--host-uds=open"]}}
    here.run(template=template_of_document(document))
    here.runtime.crash = {"checkpoint:after"}
    with pytest.raises(Crash):
        here.checkpoint(leave_running=True)
    here.runtime.crash = set()
    here.run("c2", template=template_of_document(document))
    made = here.checkpoint("c2", leave_running=True)
    assert made.state == "RUNNING"
    # It is asked for when the snapshot is restored: a store is no record of one's own.
    with pytest.raises(NotAllowed):
        here.restore(made.id)


# Policies


def write_policy(path: Path, **rule: Any) -> None:
    document = {"store": "*", "allow": ["runtime-flag=--host-uds=open"]} | rule
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": 1, "rules": [document]}))
    path.chmod(0o644)


@pytest.fixture
def asking(there: Machine) -> Machine:
    tamper(directory(there), "latest", in_runtime(flags=["--host-uds=open"]))
    return there


def test_a_policy_speaks_of_stores_and_sandboxes(asking: Machine, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    for rule in (
        {"store": "/elsewhere"},
        {"store": f"{asking.store}/below"},
        {"store": str(Path(asking.store).parent)},
        {"sandbox": "worker-*"},
        {"store": "s3://bucket/*"},
    ):
        write_policy(path, **rule)
        with pytest.raises(NotAllowed):
            asking.restore("@latest", policy=load_policy(path, {}))
    for number, rule in enumerate(
        ({"store": f"file://{asking.store}"}, {"store": f"{asking.store}/", "sandbox": "r*"})
    ):
        write_policy(path, **rule)
        asking.restore("@latest", f"r{number}", policy=load_policy(path, {}))


def test_the_users_policy_is_found(asking: Machine, tmp_path: Path) -> None:
    write_policy(tmp_path / "config" / "lazyfs" / "restore-policy.yaml")
    asking.restore("@latest", policy=load_policy(None, {"XDG_CONFIG_HOME": f"{tmp_path}/config"}))
    with pytest.raises(NotAllowed):
        asking.restore("@latest", "r2", policy=load_policy(None, {"XDG_CONFIG_HOME": "/none"}))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_policy_that_others_can_write_is_none(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "policy.yaml"
    write_policy(path)
    path.chmod(mode)
    with pytest.raises(BadPolicy, match="other users can write"):
        load_policy(path, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_policy_of_somebody_else_is_none(asking: Machine, tmp_path: Path) -> None:
    """As when root is given another user's environment."""
    path = tmp_path / "config" / "lazyfs" / "restore-policy.yaml"
    write_policy(path)
    os.chown(path, 12345, 12345)
    policy = load_policy(None, {"XDG_CONFIG_HOME": f"{tmp_path}/config"})
    with pytest.raises(BadPolicy, match="user 12345"):
        asking.restore("@latest", policy=policy)
    check_untouched(asking)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "version: 2", "rules: []", "version: 1\nrules: 3"),
        "version: 1\nrules: [{store: x}]",
        "version: 1\nrules: [{store: x, allow: []}]",
        "version: 1\nrules: [{store: x, allow: [everything]}]",
        "version: 1\nrules: [{store: x, allow: [network=host], also: y}]",
        "version: 1\nversion: 1\nrules: []",
        "version: 1\nrules: [" + "{store: x, allow: [network=host]}, " * 20_000 + "]",
        "a: &a [*a]",
    ],
)
def test_a_policy_that_is_none_allows_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadPolicy):
        load_policy(path, {})


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder"])
def test_a_policy_is_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "policy.yaml"
    {"missing": lambda: None, "pipe": lambda: os.mkfifo(path, 0o600), "folder": path.mkdir}[kind]()
    with pytest.raises(LazyfsError) as told:
        load_policy(path, {})
    assert isinstance(told.value, BadPolicy)
