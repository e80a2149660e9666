"""What users rely on when a sandbox is checkpointed, with fakes for images and runtime.

The scenarios with a real gVisor are in tests/interop/test_sandboxes.py.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseDrift,
    BaseUnresolved,
    Busy,
    CheckpointLost,
    ManifestInvalid,
    RecordMissing,
    RuntimeFailed,
    StoreConflict,
    StoreFailed,
    Unsupported,
)
from lazyfs.documents.journal import State
from lazyfs.documents.record import remove_record
from lazyfs.errors import UsageError
from lazyfs.snapshot.checkpoint import NotRunning
from lazyfs.snapshot.extensions import unpack_profiles
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.pointers import Pointer
from lazyfs.store.profiles import Profile, decode_profile, encode_profile
from tests.support.mounts.mounting import ROOT
from tests.support.sandboxes.fake_runtime import ABILITIES, Crash, FakeRuntime
from tests.support.sandboxes.snapshots import FaultyStore
from tests.support.sandboxes.world import Machine, counter, machine, neighbour, pair

SCHEMA = ROOT / "docs" / "reference" / "snapshot-manifest.schema.json"


def test_a_checkpoint_has_files_that_fit_and_a_manifest_that_keeps_the_rules(
    tmp_path: Path,
) -> None:
    # Given a running counter on a mounted image,
    here = machine(tmp_path)
    here.run()
    here.count(times=3)
    # when it is checkpointed to a directory,
    made = here.checkpoint(pointer="latest")
    # then the manifest keeps schema and rules, and all hashes are right.
    loaded = here.snapshots.load("@latest")
    assert loaded.id == made.id
    jsonschema.validate(json.loads(loaded.data), json.loads(SCHEMA.read_text()))
    assert here.snapshots.verify(loaded, deep=True) == []
    names = [file.name for file in loaded.manifest.files]
    assert names == ["checkpoint.img", "pages.img", "pages_meta.img"]
    assert loaded.manifest.snapshot.generation == 1
    assert loaded.manifest.images[0].source == "xattr+record"
    assert here.state() is State.STOPPED
    here.check_tidy()
    assert here.bases.mounts == {}


def test_a_checkpoint_asks_no_registry(tmp_path: Path) -> None:
    # Given a running sandbox and a registry that has gone,
    here = machine(tmp_path)
    here.run()
    here.images.is_down = True
    here.images.requests.clear()
    # when it is checkpointed, then it works, and nobody was asked.
    here.checkpoint()
    assert here.images.requests == []


IMPORTS = """
import sys
from lazyfs.cli.main import cli
try:
    cli.main(["checkpoint", "missing", "--to", "/nowhere"], standalone_mode=False)
except Exception as error:
    print(type(error).__name__)
names = ("lazyfs.registry", "lazyfs.image", "httpx", "httpcore", "trio")
print([name for name in sys.modules if name.startswith(names)])
"""


def test_what_checkpoints_import_can_reach_no_network(tmp_path: Path) -> None:
    # Given the command and all modules that it imports to do its work,
    code = IMPORTS + "import lazyfs.snapshot.checkpoint, lazyfs.service.mounts\n"
    # when they are imported, then there is no client of registries among them.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LAZYFS_STATE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines() == ["SandboxMissing", "[]"]


def test_another_layer_than_recorded_is_drift(tmp_path: Path) -> None:
    # Given a record and a mount that differ in one layer's digest,
    here = machine(tmp_path)
    sandbox = here.run()
    mount = here.bases.mounts[sandbox.rootfs("counter")]
    layers = json.loads(here.bases.identity(sandbox.rootfs("counter"))["user.lazyfs.layers"])
    layers[0]["digest"] = "sha256:" + "7" * 64
    mount.changes["layers"] = json.dumps(layers)
    # when it is checkpointed, then it is refused, goes on, and the store is untouched.
    with pytest.raises(BaseDrift):
        here.checkpoint()
    assert here.state() is State.RUNNING
    assert here.count() == 1
    assert here.stored() == []
    here.check_tidy()


def test_a_mount_that_was_replaced_is_drift(tmp_path: Path) -> None:
    here = machine(tmp_path)
    sandbox = here.run()
    here.bases.mounts[sandbox.rootfs("counter")].changes["mount.id"] = "f" * 16
    with pytest.raises(BaseDrift, match=r"mount\.id"):
        here.checkpoint()
    assert here.state() is State.RUNNING


def test_a_mount_that_met_wrong_bytes_is_not_checkpointed(tmp_path: Path) -> None:
    # Given a mount whose health is not ok,
    here = machine(tmp_path)
    sandbox = here.run()
    here.bases.mounts[sandbox.rootfs("counter")].health = "corrupt sha256:12"
    # when it is checkpointed, then it is refused and there is no manifest.
    with pytest.raises(BaseCorrupt, match="corrupt sha256:12"):
        here.checkpoint()
    assert here.stored() == []
    assert here.state() is State.RUNNING


def test_wrong_bytes_during_the_saving_make_no_snapshot(tmp_path: Path) -> None:
    """What the runtime read last may have been an error: it is looked at again."""
    here = machine(tmp_path)
    sandbox = here.run()
    here.count(times=2)
    mount = here.bases.mounts[sandbox.rootfs("counter")]
    here.runtime.on_call = lambda call, plan: (
        setattr(mount, "health", "corrupt sha256:12") if call == "checkpoint:after" else None
    )
    with pytest.raises(BaseCorrupt, match="after the checkpoint"):
        here.checkpoint()
    assert here.stored() == []
    assert here.state() is State.RUNNING  # it goes on from the local files
    assert here.count() == 3
    here.check_tidy()


def test_a_dead_mount_is_refused_unless_the_record_is_to_do(tmp_path: Path) -> None:
    # Given a mount whose server has died,
    here = machine(tmp_path)
    sandbox = here.run()
    here.bases.mounts[sandbox.rootfs("counter")].is_dead = True
    # when it is checkpointed, then it is refused;
    with pytest.raises(BaseUnresolved):
        here.checkpoint()
    assert here.state() is State.RUNNING
    # with --allow-dead-mount the manifest says on whose word it is.
    made = here.checkpoint(allow_dead_mount=True)
    assert made.manifest.images[0].source == "record"


def test_a_missing_record_is_refused_or_adopted(tmp_path: Path) -> None:
    here = machine(tmp_path)
    sandbox = here.run()
    remove_record(sandbox.record_path)
    with pytest.raises(RecordMissing):
        here.checkpoint()
    assert here.state() is State.RUNNING
    made = here.checkpoint(adopt=True)
    assert made.manifest.images[0].original_ref == "busybox:latest"


def test_a_store_that_fails_leaves_a_checkpoint_to_be_continued(tmp_path: Path) -> None:
    # Given a store that fails at the second file,
    here = machine(tmp_path)
    here.run()
    here.count(times=4)
    store = FaultyStore(tmp_path / "store")
    store.fail_put = {"pages.img.zstd"}
    here.objects = store
    # when the sandbox is checkpointed, then there is no manifest;
    with pytest.raises(StoreFailed):
        here.checkpoint(pointer="latest")
    assert not any("manifest" in key or "pointer" in key for key in here.stored())
    assert here.state() is State.UPLOADING
    journal = here.sandbox().journal()
    assert journal is not None
    # --continue finishes it with the same id, and does not send again what was there.
    store.fail_put = set()
    before = list(store.writes)
    made = here.resume()
    assert made is not None
    assert made.id == journal.snapshot_id
    assert here.snapshots.pointer("latest") == Pointer(made.id, made.manifest_digest)
    assert not set(before) & set(store.writes[len(before) :])
    here.check_tidy()
    assert neighbour(here).restore("@latest")


@contextmanager
def _failing_store(here: Machine, path: Path) -> Iterator[None]:
    """Have a checkpoint go to a store that takes the first files, and then no more."""
    here.objects = store = FaultyStore(path)
    store.fail_put = {"pages.img.zstd"}
    yield
    here.objects = None


def test_a_checkpoint_can_be_continued_to_another_store(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    with _failing_store(here, tmp_path / "failing"), pytest.raises(StoreFailed):
        here.checkpoint()
    made = here.resume(store=here.store)
    assert made is not None
    assert here.snapshots.ids() == [made.id]


def test_a_checkpoint_can_be_continued_under_another_pointer(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    with _failing_store(here, tmp_path / "failing"), pytest.raises(StoreFailed):
        here.checkpoint()
    with pytest.raises(UsageError, match="not 'a b'"):
        here.resume(store=here.store, pointer="a b")
    made = here.resume(store=here.store, pointer="latest")
    assert made is not None
    assert here.snapshots.pointer("latest") == Pointer(made.id, made.manifest_digest)
    assert made.pointer == "latest"


def test_a_store_that_cannot_be_read_ends_no_sandbox(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()

    class Away(DirectoryStore):
        def get(self, key: str, limit: int) -> bytes:
            raise StoreFailed(f"store: {key}: got NoSuchBucket, expected to read it")

    here.objects = Away(tmp_path / "store")
    with pytest.raises(StoreFailed, match="NoSuchBucket"):
        here.checkpoint()
    journal = here.sandbox().journal()
    assert journal is not None
    assert journal.state is State.RUNNING
    here.objects = None
    assert here.checkpoint().id in here.snapshots.ids()


def test_a_store_that_cannot_be_written_ends_no_sandbox(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    here.count(times=2)
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StoreFailed, match="cannot write"):
        here.checkpoint(store=str(tmp_path / "file" / "store"))
    assert here.state() is State.RUNNING
    assert "checkpoint" not in here.runtime.names()
    assert here.count() == 3
    assert here.checkpoint().id in here.snapshots.ids()
    assert not any("probe" in key for key in here.stored())


def test_a_kill_before_the_manifest_is_made_good(tmp_path: Path) -> None:
    # Given a kill between the last file and the manifest,
    here = machine(tmp_path)
    here.run()

    class Killed(DirectoryStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            raise Crash(key)

    here.objects = Killed(tmp_path / "store")
    with pytest.raises(Crash):
        here.checkpoint(pointer="latest")
    assert here.snapshots.ids() == []
    journal = here.sandbox().journal()
    assert journal is not None
    # when recover runs, then the manifest is written with the same id, and the pointer moves.
    here.objects = None
    made = here.resume()
    assert made is not None
    assert made.id == journal.snapshot_id
    assert here.snapshots.load("@latest").id == made.id


def test_a_kill_before_the_pointer_is_made_good_once(tmp_path: Path) -> None:
    # Given a kill after the manifest and before the pointer,
    here = machine(tmp_path)
    here.run()

    class Killed(DirectoryStore):
        def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
            raise Crash(key)

    here.objects = Killed(tmp_path / "store")
    with pytest.raises(Crash):
        here.checkpoint(pointer="latest")
    assert len(here.snapshots.ids()) == 1  # a list shows it already
    assert here.state() is State.COMMITTED
    # when recover runs, then the pointer names it; a second time there is nothing to do.
    here.objects = None
    made = here.resume()
    assert made is not None
    assert here.snapshots.load("@latest").id == made.id
    assert here.state() is State.STOPPED
    with pytest.raises(NotRunning):
        here.resume()
    assert here.snapshots.ids() == [made.id]


CRASHES = [
    "checkpoint",
    "checkpoint:middle",
    "checkpoint:after",
    "delete",
    "delete:after",
    "restore",
    "restore:after",
    "restore:wait",
]


@pytest.mark.parametrize("leave_running", [False, True])
@pytest.mark.parametrize("call", CRASHES)
def test_a_crash_leaves_all_or_nothing(tmp_path: Path, call: str, leave_running: bool) -> None:
    """Wherever the command dies: a complete snapshot, or none and the sandbox or its loss told."""
    here = machine(tmp_path)
    here.run()
    here.count(times=6)
    here.runtime.crash = {call}
    try:
        here.checkpoint(pointer="latest", leave_running=leave_running)
    except Crash:
        pass
    else:
        assert not leave_running
        assert call.startswith("restore")
        return
    for state in here.snapshots.states():
        assert state.is_committed or not here.snapshots.pointers()
    try:
        made = here.resume()
    except CheckpointLost:
        assert call == "checkpoint:after"  # it had ended, and nobody knew whether it was whole
        assert here.state() is State.FAILED
        assert here.snapshots.ids() == []
        return
    if made is None:
        assert call in ("checkpoint", "checkpoint:middle")
        assert here.state() is State.RUNNING
        assert here.count() == 7
        here.check_tidy()
        return
    assert here.snapshots.verify(here.snapshots.load("@latest"), deep=True) == []
    assert here.state() is (State.RUNNING if leave_running else State.STOPPED)
    here.check_tidy()
    if leave_running:
        assert here.count() == 7
    other = neighbour(here)
    other.restore("@latest")
    assert other.count("r1") == 7


def test_of_two_checkpoints_at_once_one_is_told(tmp_path: Path) -> None:
    # Given a checkpoint under way,
    here = machine(tmp_path)
    sandbox = here.run()
    # when another one begins, then one wins and the other ends with 50.
    with sandbox.lock(), pytest.raises(Busy) as told:
        here.checkpoint()
    assert told.value.exit_code == 50
    assert here.checkpoint().state is State.STOPPED


def test_of_two_machines_with_one_pointer_one_is_told(tmp_path: Path) -> None:
    # Given two machines with the same pointer,
    here = machine(tmp_path)
    there = neighbour(here)
    here.run("same")
    there.run("same")
    # when both commit at the same time,
    there.runtime.on_call = lambda call, plan: None

    def first(call: str, plan: object) -> None:
        if call == "checkpoint":
            there.runtime.on_call = None
            here.checkpoint("same", pointer="latest")

    there.runtimes = (FakeRuntime(on_call=first),)
    with pytest.raises(StoreConflict) as told:
        there.checkpoint("same", pointer="latest")
    # then two snapshots exist, one pointer, and the loser ends with 43.
    assert told.value.exit_code == 43
    ids = here.snapshots.ids()
    assert len(ids) == 2
    assert here.snapshots.load("@latest").id != told.value.details["id"]
    assert told.value.details["id"] in ids
    assert there.state("same") is State.STOPPED
    there.check_tidy("same")


def test_an_answer_that_was_lost_counts_as_success(tmp_path: Path) -> None:
    # Given an answer lost on the manifest's put,
    here = machine(tmp_path)
    here.run()
    store = FaultyStore(tmp_path / "store")
    store.lose_answer = 1
    here.objects = store
    # when that is repeated, then "exists with the same bytes" is success.
    made = here.checkpoint(pointer="latest")
    assert here.snapshots.load("@latest").digest == made.manifest_digest


def test_a_sandbox_that_is_left_running_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    here.count(times=3)
    # Given --leave-running, when the command returns,
    made = here.checkpoint(leave_running=True, pointer="latest")
    assert made.state is State.RUNNING
    # then the same counter goes on from the saved value,
    assert here.count() == 4
    here.check_tidy()
    # and its next snapshot is the next generation of that one.
    after = here.checkpoint(pointer="latest")
    assert after.manifest.snapshot.generation == 2
    assert after.manifest.snapshot.parent is not None
    assert after.manifest.snapshot.parent.id == made.id


def test_a_sandbox_goes_on_before_its_files_are_uploaded(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    store = FaultyStore(tmp_path / "store")
    store.fail_put = {"checkpoint.img.zstd"}
    here.objects = store
    with pytest.raises(StoreFailed):
        here.checkpoint(leave_running=True)
    assert here.count() == 1  # it runs, whatever becomes of the snapshot
    store.fail_put = set()
    made = here.resume()
    assert made is not None
    assert here.state() is State.RUNNING
    assert here.count() == 2
    assert here.runtime.names().count("restore") == 1


def test_a_sandbox_that_cannot_go_on_still_leaves_its_snapshot(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    here.runtime.fail = {"restore": None}
    with pytest.raises(RuntimeFailed, match="could not be resumed"):
        here.checkpoint(leave_running=True, pointer="latest")
    assert here.state() is State.STOPPED
    assert here.snapshots.load("@latest")
    here.check_tidy()


def test_secrets_are_nowhere_in_the_manifest(tmp_path: Path) -> None:
    # Given a template with a secret value in its environment,
    here = machine(tmp_path)
    here.run(template=counter(env=[{"name": "TOKEN", "value": "hunter2-secret"}]))
    # when it is checkpointed, then that value is in no manifest, journal or line that was said.
    here.checkpoint(pointer="latest")
    data = here.snapshots.load("@latest").data
    assert b"TOKEN" in data
    assert b"hunter2-secret" not in data
    sandbox = here.sandbox()
    assert b"hunter2" not in sandbox.journal_path.read_bytes()
    assert not any("hunter2" in line for line in here.said)
    other = neighbour(here)
    other.restore("@latest")  # the processes have it in their memory
    assert other.count("r1") == 1


def test_all_containers_are_recorded(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run(template=pair())
    made = here.checkpoint()
    assert [image.name for image in made.manifest.images] == ["counter", "pause"]
    roots = [each.name for each in made.manifest.runtime.containers or () if each.root]
    assert roots == ["pause"]


def test_what_was_read_first_goes_with_the_snapshot(tmp_path: Path) -> None:
    """The next machine fetches it before the sandbox asks."""
    here = machine(tmp_path)
    here.run()
    digest = here.images.tags["docker.io/library/busybox:latest"].manifest
    profile = Profile(digest, 1, ("sha256:" + "1" * 64,), ((0, 3), (0, 1)))
    here.bases.profiles[digest] = encode_profile(profile)
    made = here.checkpoint(pointer="latest")
    packed = unpack_profiles(made.manifest.extensions or {}, [digest])
    assert decode_profile(packed[digest]) == profile
    other = neighbour(here)
    other.restore("@latest")
    assert decode_profile(other.bases.added[digest]) == profile
    assert other.bases.calls.index("add_profile") < other.bases.calls.index("mount")


def test_what_cannot_checkpoint_says_so_before_anything_is_done(tmp_path: Path) -> None:
    here = machine(tmp_path, runtimes=(FakeRuntime(abilities=ABILITIES - {"checkpoint"}),))
    here.run()
    with pytest.raises(Unsupported):
        here.checkpoint()
    assert here.state() is State.RUNNING


@pytest.mark.parametrize("state", ["ended", "stopped", "interrupted"])
def test_only_what_runs_is_checkpointed(tmp_path: Path, state: str) -> None:
    here = machine(tmp_path)
    here.run()
    if state == "ended":
        here.runtime.exit(here.plan())
        with pytest.raises(RuntimeFailed):
            here.checkpoint()
        return
    if state == "interrupted":
        here.objects = FaultyStore(tmp_path / "store")
        here.objects.fail_put = {"pages.img.zstd"}
        with pytest.raises(StoreFailed):
            here.checkpoint()
    else:
        here.checkpoint()
    with pytest.raises(NotRunning) as told:
        here.checkpoint()
    assert ("--continue" in (told.value.hint or "")) == (state == "interrupted")


@pytest.mark.parametrize("is_draft_lost", [False, True])
def test_files_that_were_lost_after_a_crash_of_the_machine_are_not_believed(
    is_draft_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they are compressed, the runtime's files, and the draft, may not be on the disk."""
    here = machine(tmp_path)
    here.run()
    monkeypatch.setattr("lazyfs.snapshot.publish.store_file", lambda *a, **k: _crash())
    with pytest.raises(Crash):
        here.checkpoint()
    monkeypatch.undo()
    monkeypatch.setattr("lazyfs.snapshot.checkpoint.boot_id", lambda: "another start")
    if is_draft_lost:
        assert here.sandbox().draft_path.stat().st_size
        here.sandbox().draft_path.write_bytes(b"")
    with pytest.raises(CheckpointLost):
        here.resume()
    assert here.snapshots.ids() == []


def _crash() -> None:
    raise Crash("killed")


def test_compressed_files_that_are_gone_are_made_again(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    store = FaultyStore(tmp_path / "store")
    store.fail_put = {"pages.img.zstd"}
    here.objects = store
    with pytest.raises(StoreFailed):
        here.checkpoint()
    journal = here.sandbox().journal()
    assert journal is not None
    assert journal.snapshot_id is not None
    shutil.rmtree(here.sandbox().checkpoint_dir(journal.snapshot_id) / "stored")
    store.fail_put = set()
    made = here.resume()
    assert made is not None
    assert here.snapshots.verify(here.snapshots.load(made.id), deep=True) == []


def test_what_no_manifest_could_say_is_found_before_the_sandbox_ends(tmp_path: Path) -> None:
    # Given a sandbox that shares the machine's network,
    here = machine(tmp_path)
    here.run(network="host")
    # when it is checkpointed, then it is refused and goes on; nothing is in the store.
    with pytest.raises(ManifestInvalid, match=r'runtime.network: must be .*, not "host"'):
        here.checkpoint()
    assert here.state() is State.RUNNING
    assert list(here.snapshots.ids()) == []


def test_a_store_named_from_a_folder_is_found_from_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(tmp_path)
    here.run()
    monkeypatch.chdir(tmp_path)

    class Killed(DirectoryStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            raise Crash(key)

    here.objects = Killed(Path("store").absolute())
    with pytest.raises(Crash):
        here.checkpoint(store="store")
    here.objects = None
    monkeypatch.chdir("/")
    assert here.resume() is not None
    assert len(here.snapshots.ids()) == 1
