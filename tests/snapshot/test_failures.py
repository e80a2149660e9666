"""What goes wrong with snapshots: each time the promised code, and nothing left behind.

``ROWS`` names a test for every situation that users are promised something about; those that are
not in this file are where their matter is.
"""

import ast
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lazyfs.documents.errors import SnapshotError, StoreFailed
from lazyfs.documents.journal import State
from lazyfs.oci.platforms import Platform
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import manifest_key
from lazyfs.snapshot.stores.pointers import Pointer
from tests.support.mounts.mounting import ROOT
from tests.support.sandboxes.fake_bases import image
from tests.support.sandboxes.fake_runtime import FakeRuntime
from tests.support.sandboxes.world import TAG, Machine, counter, directory, machine, neighbour, pair


def saved(tmp_path: Path) -> Machine:
    """Return a machine that has counted to five, and committed that as @latest."""
    here = machine(tmp_path)
    here.run()
    here.count(times=5)
    here.checkpoint(pointer="latest")
    return here


def manifest_of(here: Machine) -> Path:
    return directory(here) / manifest_key(here.snapshots.load("@latest").id)


def stored_file(here: Machine, name: str = "pages.img.zstd") -> Path:
    return manifest_of(here).with_name(name)


def edit(here: Machine, change: Callable[[dict[str, Any]], None]) -> str:
    """Change the manifest in place, by force; return the snapshot's id."""
    path = manifest_of(here)
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    return path.parent.name


def without_manifest(here: Machine, there: Machine) -> str:
    path = manifest_of(here)
    path.unlink()
    return path.parent.name


def nothing_at_all(here: Machine, there: Machine) -> str:
    return "20200101T000000Z-00000000"


class Refusing(DirectoryStore):
    """A store that answers as S3 does without the right to list."""

    def get(self, key: str, limit: int) -> bytes:
        raise StoreFailed(
            f"{key}: got 403, expected an object",
            hint="a store that may not be listed answers so for what is missing, too",
        )


def refused(here: Machine, there: Machine) -> str:
    snapshot_id = here.snapshots.load("@latest").id
    there.objects = Refusing(directory(here))
    return snapshot_id


def critical(here: Machine, there: Machine) -> str:
    return edit(here, lambda document: document.update(critical=["later.thing"]))


def later_version(here: Machine, there: Machine) -> str:
    return edit(here, lambda document: document.update(version=7))


def no_json(here: Machine, there: Machine) -> str:
    path = manifest_of(here)
    path.write_bytes(path.read_bytes()[:-20])
    return path.parent.name


def twice_a_key(here: Machine, there: Machine) -> str:
    path = manifest_of(here)
    path.write_bytes(b'{"version":1,' + path.read_bytes()[1:])
    return path.parent.name


def too_long(here: Machine, there: Machine) -> str:
    path = manifest_of(here)
    path.write_bytes(path.read_bytes() + b" " * (1 << 20))
    return path.parent.name


def changed_after_the_pointer(here: Machine, there: Machine) -> str:
    edit(here, lambda document: document.update(host={"kernel": "another"}))
    return "@latest"


def vanished(here: Machine, there: Machine) -> str:
    here.images.gone.add(here.snapshots.load("@latest").manifest.images[0].manifest_digest)
    return "@latest"


def parts_only(here: Machine, there: Machine) -> str:
    digest = here.snapshots.load("@latest").manifest.images[0].manifest_digest
    there.bases.cache[digest] = here.images.by_digest[digest]
    there.bases.partial.add(digest)
    here.images.is_down = True
    return "@latest"


def rotten(here: Machine, there: Machine) -> str:
    digest = here.snapshots.load("@latest").manifest.images[0].manifest_digest
    there.bases.corrupt.add(digest)
    here.images.is_down = True
    return "@latest"


def other_architecture(here: Machine, there: Machine) -> str:
    there.host = Platform("linux", "arm64")
    return "@latest"


def other_variant(here: Machine, there: Machine) -> str:
    def change(document: dict[str, Any]) -> None:
        document["images"][0]["platform"]["variant"] = "v4"

    return edit(here, change)


def lesser_processor(here: Machine, there: Machine) -> str:
    there.runtimes = (FakeRuntime(cpu_features=("sse4_2",)),)
    return "@latest"


def other_runtime(here: Machine, there: Machine) -> str:
    there.runtimes = (FakeRuntime(digest="sha256:" + "8" * 64, version="fake-9"),)
    return "@latest"


def truncated(here: Machine, there: Machine) -> str:
    path = stored_file(here)
    path.write_bytes(path.read_bytes()[:-3])
    return "@latest"


def gone(here: Machine, there: Machine) -> str:
    stored_file(here).unlink()
    return "@latest"


def bomb(here: Machine, there: Machine) -> str:
    def change(document: dict[str, Any]) -> None:
        for file in document["files"]:
            file["rawSize"] -= 1

    return edit(here, change)


def forged_mount(here: Machine, there: Machine) -> str:
    digest = here.snapshots.load("@latest").manifest.images[0].manifest_digest
    there.bases.swap[digest] = image("another")
    return "@latest"


def no_room(here: Machine, there: Machine) -> str:
    def change(document: dict[str, Any]) -> None:
        document["files"][-1]["rawSize"] = 1 << 52

    return edit(here, change)


def panics(here: Machine, there: Machine) -> str:
    there.runtimes = (FakeRuntime(fail={"restore": None}),)
    return "@latest"


def never_ready(here: Machine, there: Machine) -> str:
    runtime = FakeRuntime()
    runtime.on_call = lambda call, plan: (
        runtime.exit(plan) if call == "restore:after" and plan is not None else None
    )
    there.runtimes = (runtime,)
    return "@latest"


def pointer_to_nothing(here: Machine, there: Machine) -> str:
    without_manifest(here, there)
    return "@latest"


def of_others(here: Machine, there: Machine) -> str:
    path = manifest_of(here)
    path.rename(path.with_name("manifest.json"))
    return path.parent.name


RESTORES: dict[str, tuple[Callable[[Machine, Machine], str], str, int, str]] = {
    "manifest missing, files there": (without_manifest, "E_MANIFEST_MISSING", 10, "--assume-image"),
    "nothing there": (nothing_at_all, "E_MANIFEST_MISSING", 10, "closest"),
    "refused": (refused, "E_STORE", 42, "may not be listed"),
    "later version": (later_version, "E_VERSION_UNSUPPORTED", 12, "got 7"),
    "critical extension": (critical, "E_VERSION_UNSUPPORTED", 12, "later.thing"),
    "no JSON": (no_json, "E_MANIFEST_INVALID", 11, "JSON"),
    "a key twice": (twice_a_key, "E_MANIFEST_INVALID", 11, "version"),
    "too long": (too_long, "E_MANIFEST_INVALID", 11, "1048576"),
    "changed after the pointer": (changed_after_the_pointer, "E_MANIFEST_INVALID", 11, "latest"),
    "digest vanished": (vanished, "E_BASE_UNAVAILABLE", 20, "registry"),
    "parts of the base only": (parts_only, "E_BASE_UNAVAILABLE", 20, "cache"),
    "cache rotten": (rotten, "E_BASE_CORRUPT", 21, "cache"),
    "other architecture": (other_architecture, "E_PLATFORM_MISMATCH", 30, "linux/arm64"),
    "other variant": (other_variant, "E_CPU_MISMATCH", 32, "--ignore-cpu"),
    "processor lacks features": (lesser_processor, "E_CPU_MISMATCH", 32, "avx"),
    "other runtime": (other_runtime, "E_RUNTIME_MISMATCH", 31, "expected"),
    "truncated": (truncated, "E_FILE_CORRUPT", 41, "pages.img"),
    "file gone": (gone, "E_FILE_MISSING", 40, "pages.img"),
    "more bytes than recorded": (bomb, "E_FILE_CORRUPT", 41, "raw"),
    "no room": (no_room, "E_NO_SPACE", 44, "bytes free"),
    "another image in the mount's place": (forged_mount, "E_BASE_DRIFT", 22, "manifest"),
    "the runtime panics": (panics, "E_RUNTIME_FAILED", 51, "told to fail"),
    "never ready": (never_ready, "E_NOT_READY", 53, "stopped"),
    "pointer to nothing": (pointer_to_nothing, "E_MANIFEST_MISSING", 10, "latest"),
    "of agent-substrate": (of_others, "E_MANIFEST_MISSING", 10, "agent-substrate"),
}  # fmt: skip


@pytest.mark.parametrize("situation", RESTORES)
def test_a_restore_is_refused(tmp_path: Path, situation: str) -> None:
    arrange, code, exit_code, words = RESTORES[situation]
    here = saved(tmp_path)
    there = neighbour(here, runtimes=(FakeRuntime(),))
    name = arrange(here, there)
    there.runtime.calls.clear()
    stored = here.stored()
    here.images.requests.clear()
    with pytest.raises(SnapshotError) as told:
        there.restore(name)
    assert (told.value.code, told.value.exit_code) == (code, exit_code)
    assert words in f"{told.value.message} {told.value.hint}"
    there.check_gone()
    assert here.images.tag_requests() == []
    if situation not in ("the runtime panics", "never ready"):
        assert "restore" not in there.runtime.names()
    there.objects = None
    assert here.stored() == stored


def ill(here: Machine) -> None:
    here.bases.mounts[here.sandbox().rootfs("counter")].health = "corrupt sha256:34"


def dead(here: Machine) -> None:
    here.bases.mounts[here.sandbox().rootfs("counter")].is_dead = True


def replaced(here: Machine) -> None:
    here.bases.mounts[here.sandbox().rootfs("counter")].changes["mount.id"] = "e" * 16


def not_ours(here: Machine) -> None:
    del here.bases.mounts[here.sandbox().rootfs("counter")]


def full_disk(here: Machine) -> None:
    here.runtime.fail = {"checkpoint": None}


CHECKPOINTS: dict[str, tuple[Callable[[Machine], None], str, int]] = {
    "health": (ill, "E_BASE_CORRUPT", 21),
    "server died": (dead, "E_BASE_UNRESOLVED", 23),
    "mount replaced": (replaced, "E_BASE_DRIFT", 22),
    "not our mount": (not_ours, "E_BASE_UNRESOLVED", 23),
    "the runtime fails": (full_disk, "E_RUNTIME_FAILED", 51),
}


@pytest.mark.parametrize("situation", CHECKPOINTS)
def test_a_checkpoint_is_refused_and_the_sandbox_goes_on(tmp_path: Path, situation: str) -> None:
    arrange, code, exit_code = CHECKPOINTS[situation]
    here = machine(tmp_path)
    here.run()
    here.count(times=2)
    arrange(here)
    with pytest.raises(SnapshotError) as told:
        here.checkpoint(pointer="latest")
    assert (told.value.code, told.value.exit_code) == (code, exit_code)
    assert here.state() is State.RUNNING
    assert here.count() == 3
    assert here.stored() == []
    here.check_tidy()


def test_a_sandbox_that_the_runtime_lost_is_told(tmp_path: Path) -> None:
    """A full disk while the runtime saves may end the sandbox: it is asked, and not guessed."""
    here = machine(tmp_path, runtimes=(FakeRuntime(dies=True),))
    here.run()
    with pytest.raises(SnapshotError) as told:
        here.checkpoint()
    assert told.value.code == "E_RUNTIME_FAILED"
    assert here.state() is State.FAILED
    journal = here.sandbox().journal()
    assert journal is not None
    assert journal.error is not None
    assert "no space left" in journal.error.message
    assert here.stored() == []


def test_a_local_disk_that_is_full_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressing needs room; when there is some, the checkpoint is completed."""
    here = machine(tmp_path)
    here.run()
    here.count(times=5)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("lazyfs.snapshot.stores.codec.zstandard.ZstdCompressor", full)
        with pytest.raises(SnapshotError) as told:
            here.checkpoint(pointer="latest")
    assert told.value.exit_code == 44
    assert here.state() is State.CHECKPOINTING
    assert here.resume() is not None
    other = neighbour(here)
    other.restore("@latest")
    assert other.count("r1") == 6


def test_a_host_that_is_lost_leaves_the_snapshot_before(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    first = here.checkpoint(pointer="latest", leave_running=True)

    class Lost(DirectoryStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            raise StoreFailed("the cable was cut")

    here.objects = Lost(directory(here))
    with pytest.raises(StoreFailed):
        here.checkpoint(pointer="latest")
    there = neighbour(here)
    assert there.snapshots.load("@latest").id == first.id
    assert len(there.snapshots.states()) == 2
    assert len(there.snapshots.ids()) == 1
    there.restore("@latest")


def test_clocks_may_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(tmp_path)
    here.run()
    first = here.checkpoint(pointer="latest", leave_running=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            "lazyfs.snapshot.stores.snapshots.time",
            SimpleNamespace(strftime=lambda *_: "19700101T000000Z", gmtime=lambda *_: None),
        )
        second = here.checkpoint(pointer="latest", leave_running=True)
    assert second.id < first.id
    parent = here.snapshots.load("@latest").manifest.snapshot.parent
    assert parent is not None
    assert parent.id == first.id
    # The order is that of parents, and the pointer's.
    assert here.snapshots.pointer("latest") == Pointer(second.id, second.manifest_digest)


def test_the_template_names_another_image_or_container(tmp_path: Path) -> None:
    here = saved(tmp_path)
    here.images.tag("busybox:2", image("two"))
    there = neighbour(here)
    there.restore("@latest", template=counter("busybox:2"))
    assert there.base_seen("r1") == "old"
    with pytest.raises(SnapshotError) as told:
        there.restore("@latest", "r2", template=pair())
    assert told.value.code == "E_SPEC_MISMATCH"
    there.check_gone("r2")


def test_tag_and_registry_play_no_part(tmp_path: Path) -> None:
    here = saved(tmp_path)
    there = neighbour(here)
    here.images.tag(TAG, image("new"))
    there.restore("@latest", check_drift=True)
    here.images.tags.clear()
    there.restore("@latest", "r2")
    here.images.is_down = True
    there.restore("@latest", "r3")  # all of it is in the cache by now
    assert {there.base_seen(name) for name in ("r1", "r2", "r3")} == {"old"}


HERE = "test_failures.py"
STORED = "test_snapshots.py"
S3 = "test_s3_store.py"
CHECKED = "test_scenarios_checkpoint.py"
RESTORED = "test_scenarios_restore.py"
BASES = "test_bases.py"
REAL = "test_sandboxes.py"
ROWS = {
    "F1 manifest missing, files there": (HERE, "test_a_restore_is_refused"),
    "F2 nothing there": (HERE, "test_a_restore_is_refused"),
    "F3 manifest refused": (S3, "test_refused_is_not_missing"),
    "F4 version, critical extension": (HERE, "test_a_restore_is_refused"),
    "F5 damaged document": (HERE, "test_a_restore_is_refused"),
    "F6 changed after the pointer": (HERE, "test_a_restore_is_refused"),
    "F7 digest vanished": (REAL, "test_a_digest_that_vanished_is_told_with_all_sources"),
    "F8 one layer vanished": (BASES, "test_a_layer_that_is_gone_is_found_out_first"),
    "F9 tag moved": (REAL, "test_a_counter_goes_on_elsewhere_whatever_its_tag_means_now"),
    "F10 tag deleted": (RESTORED, "test_a_tag_that_was_deleted_plays_no_part"),
    "F11 registry down, cache complete": (HERE, "test_tag_and_registry_play_no_part"),
    "F12 registry down, cache in parts": (
        RESTORED,
        "test_a_part_of_a_base_is_not_enough_unless_it_is_wanted",
    ),
    "F13 cached blob corrupt": (BASES, "test_rotten_content_is_put_aside_and_had_again"),
    "F14 cached manifest corrupt": (BASES, "test_a_rotten_manifest_is_fetched_again"),
    "F15 other architecture": (HERE, "test_a_restore_is_refused"),
    "F16 other variant or processor": (HERE, "test_a_restore_is_refused"),
    "F17 other runtime": (RESTORED, "test_the_very_program_that_made_it_is_used"),
    "F18 crash before the manifest": (CHECKED, "test_a_kill_before_the_manifest_is_made_good"),
    "F19 host lost": (HERE, "test_a_host_that_is_lost_leaves_the_snapshot_before"),
    "F20 crash before the pointer": (CHECKED, "test_a_kill_before_the_pointer_is_made_good_once"),
    "F21 crash while the runtime saves": (CHECKED, "test_a_crash_leaves_all_or_nothing"),
    "F22 two checkpoints at once": (CHECKED, "test_of_two_checkpoints_at_once_one_is_told"),
    "F23 two hosts": (CHECKED, "test_of_two_machines_with_one_pointer_one_is_told"),
    "F24 same id twice": (STORED, "test_a_commit_done_twice"),
    "F25 partial upload": (S3, "test_an_upload_that_fails_is_aborted"),
    "F26 object truncated": (HERE, "test_a_restore_is_refused"),
    "F27 file gone": (HERE, "test_a_restore_is_refused"),
    "F28 more bytes than recorded": (RESTORED, "test_more_than_was_recorded_is_never_written"),
    "F29 disk full while downloading": (STORED, "test_too_little_room"),
    "F30 disk full while saving": (HERE, "test_a_sandbox_that_the_runtime_lost_is_told"),
    "F31 server died": (REAL, "test_a_server_that_died_is_told"),
    "F32 mount replaced": (HERE, "test_a_checkpoint_is_refused_and_the_sandbox_goes_on"),
    "F33 not our mount": (HERE, "test_a_checkpoint_is_refused_and_the_sandbox_goes_on"),
    "F34 forged attributes": (
        "test_driver_handlers.py",
        "test_an_image_cannot_forge_an_identity",
    ),
    "F35 template names another image": (
        HERE,
        "test_the_template_names_another_image_or_container",
    ),
    "F36 template has other containers": (
        HERE,
        "test_the_template_names_another_image_or_container",
    ),
    "F37 data with another image": (RESTORED, "test_data_goes_on_with_another_image"),
    "F38 never ready": (RESTORED, "test_a_sandbox_that_does_not_become_ready_is_removed_or_kept"),
    "F39 the runtime panics": (HERE, "test_a_restore_is_refused"),
    "F40 pointer to nothing": (HERE, "test_a_restore_is_refused"),
    "F41 no conditional put": (S3, "test_a_service_that_ignores_conditions"),
    "F42 clocks": (HERE, "test_clocks_may_be_wrong"),
    "F43 of agent-substrate": (HERE, "test_a_restore_is_refused"),
}


def check_tests_exist(rows: dict[str, tuple[str, str]]) -> None:
    """Assert that each named test is there, in whatever folder its file is."""
    known: dict[str, set[str]] = {}
    for file, _ in rows.values():
        if file not in known:
            (path,) = (ROOT / "tests").rglob(file)
            tree = ast.parse(path.read_text())
            known[file] = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    assert {row: where for row, where in rows.items() if where[1] not in known[where[0]]} == {}


def test_every_situation_has_a_test() -> None:
    assert [int(row.split()[0][1:]) for row in ROWS] == list(range(1, 44))
    check_tests_exist(ROWS)
