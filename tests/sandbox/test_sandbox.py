"""A sandbox's folder, lock and journal."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.documents.errors import Busy, ManifestMissing, SnapshotError
from lazyfs.documents.journal import (
    NEXT,
    JournalContainer,
    SandboxBroken,
    State,
    decode_journal,
    encode_journal,
)
from lazyfs.documents.manifest import Parent
from lazyfs.documents.plans import RuntimeFacts
from lazyfs.sandbox.sandbox import BadSandboxId, Sandbox, Sandboxes, SandboxExists, SandboxMissing

TIME = "2026-11-21T12:00:00Z"
HOLD = """
import sys
from pathlib import Path
from lazyfs.sandbox.sandbox import Sandboxes
with Sandboxes(Path(sys.argv[1])).open(sys.argv[2]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def sandboxes(tmp_path: Path) -> Sandboxes:
    return Sandboxes(tmp_path / "sandboxes", clock=lambda: TIME)


@pytest.fixture
def sandbox(sandboxes: Sandboxes) -> Sandbox:
    return sandboxes.create("counter-1")


def test_a_sandbox_is_private_and_found_again(sandboxes: Sandboxes) -> None:
    made = sandboxes.create("counter-1")
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(sandboxes.root.stat().st_mode) == 0o700
    assert sandboxes.open("counter-1").folder == made.folder
    (sandboxes.root / "No Sandbox").mkdir()
    assert [each.id for each in sandboxes.all()] == ["counter-1"]


@pytest.mark.parametrize("wrong", ["", "..", "a/b", "A", "-a", "a-", "a.b", "x" * 64, "a\n", "é"])
def test_an_id_is_a_label(sandboxes: Sandboxes, wrong: str) -> None:
    with pytest.raises(BadSandboxId, match="must be 1 to 63"):
        sandboxes.create(wrong)
    with pytest.raises(BadSandboxId):
        sandboxes.open(wrong)
    assert not sandboxes.root.exists()


def test_an_id_is_taken_once(sandboxes: Sandboxes, sandbox: Sandbox) -> None:
    with pytest.raises(SandboxExists, match="counter-1"):
        sandboxes.create("counter-1")
    with pytest.raises(SandboxMissing, match="counter-2"):
        sandboxes.open("counter-2")


def test_one_works_on_it_and_another_is_told_who(sandboxes: Sandboxes, sandbox: Sandbox) -> None:
    """F22: the second command is refused at once, and the lock goes with its process."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(sandboxes.root), sandbox.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(Busy, match=f"process {holder.pid} since 20") as busy, sandbox.lock():
            pass
        assert busy.value.exit_code == 50
        assert busy.value.details["pid"] == holder.pid
        with pytest.raises(Busy), sandbox.lock(wait=0.2):
            pass
        holder.kill()
        with sandbox.lock(wait=30):
            assert sandbox.holder() == (os.getpid(), TIME)
    finally:
        holder.kill()
        holder.wait(30)
        holder.stdin.close()
        holder.stdout.close()


def test_who_waits_for_a_sandbox_that_goes_is_told_so(sandbox: Sandbox) -> None:
    with sandbox.lock():
        sandbox.remove()
    with pytest.raises(SandboxMissing), sandbox.lock():
        pass
    assert not sandbox.folder.exists()


def test_a_lock_on_a_file_that_was_replaced_is_none(sandbox: Sandbox) -> None:
    with sandbox.lock():
        sandbox.lock_path.unlink()
        with sandbox.lock():  # of the file that is there now
            assert sandbox.holder() == (os.getpid(), TIME)


def test_a_journal_goes_through_states(sandbox: Sandbox) -> None:
    assert sandbox.journal() is None
    facts = RuntimeFacts("runsc", Path("/usr/bin/runsc"), "1", "sha256:" + "0" * 64, "ptrace",
                         frozenset({"checkpoint"}), ("avx",))  # fmt: skip
    begun = sandbox.begin(
        State.STARTING,
        containers=(JournalContainer("pause", "counter-1.pause"),
                    JournalContainer("app", "counter-1.app")),
        parent=Parent("x", "sha256:" + "1" * 64),
    ).with_runtime(facts)  # fmt: skip
    running = sandbox.step(begun, State.RUNNING, network="sandbox")
    assert sandbox.journal() == running
    assert running.created_at == TIME
    assert running.runtime is not None
    assert running.runtime.cpu_features == ("avx",)
    plan = sandbox.plan()
    assert plan.root.name == "pause"
    assert plan.root.is_root
    assert [each.container_id for each in plan.containers] == ["counter-1.pause", "counter-1.app"]
    assert plan.containers[1].bundle == sandbox.folder / "bundles" / "app"
    assert plan.network == "sandbox"
    assert plan.state_dir == sandbox.folder / "runtime"
    with pytest.raises(SandboxBroken, match="COMMITTED cannot follow RUNNING"):
        sandbox.step(running, State.COMMITTED)
    failed = sandbox.fail(running, ManifestMissing("gone"))
    assert failed.error is not None
    assert failed.error.code == "E_MANIFEST_MISSING"
    assert sandbox.fail(failed, SnapshotError("again")).error is not None
    assert stat.S_IMODE(sandbox.journal_path.stat().st_mode) & 0o077 == 0


def test_every_state_can_be_reached_and_left() -> None:
    """The table has no dead end but by deletion, and nothing that cannot be."""
    assert NEXT.keys() == {None, *State}
    reached: set[State | None] = {None}
    while True:
        more = {after for before in reached for after in NEXT[before]} - reached
        if not more:
            break
        reached |= more
    assert reached == NEXT.keys()
    assert all(NEXT.values())


def test_a_journal_that_does_not_fit_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxBroken, match="CHECKPOINTING cannot follow nothing"):
        sandbox.begin(State.CHECKPOINTING)
    journal = sandbox.begin(State.RESTORING)
    with pytest.raises(SandboxBroken, match="lists no containers"):
        sandbox.plan()
    data = encode_journal(journal)
    newer = data.replace(b'"state"', b'"version": 2, "state"', 1)
    with pytest.raises(SandboxBroken, match="got version 2"):
        decode_journal(newer)
    sandbox.journal_path.write_bytes(b"")  # it had only begun when the machine lost power
    assert sandbox.journal() is None
    for length in range(1, len(data) - 1):
        sandbox.journal_path.write_bytes(data[:length])
        if data[:length].rstrip() != data.rstrip():
            with pytest.raises(SandboxBroken):
                sandbox.journal()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_journal_or_refused(data: bytes) -> None:
    try:
        decode_journal(data)
    except SandboxBroken:
        pass


def test_what_is_removed_and_what_is_not(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.rootfs("app").mkdir(parents=True)
    sandbox.record_path.write_text("{}")
    from lazyfs.mount import point

    entry = point.MountEntry(1, "0:1", os.fsencode(sandbox.rootfs("app")), "fuse", b"x")
    monkeypatch.setattr("lazyfs.sandbox.sandbox.load_mountinfo", lambda: [entry])
    with pytest.raises(SandboxBroken, match="bundles cannot be removed"):
        sandbox.remove()
    assert sandbox.rootfs("app").is_dir()
    monkeypatch.undo()
    sandbox.clear("base-record.json", "nothing")
    assert not sandbox.record_path.exists()
    sandbox.remove()
    assert not sandbox.folder.exists()
