"""What users rely on when a snapshot is restored, with fakes for images and runtime.

The scenarios with real mounts and a real gVisor are in tests/interop/test_sandboxes.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from lazyfs.documents.documents import canonical_digest
from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseDrift,
    BaseUnavailable,
    FileCorrupt,
    FileMissing,
    ManifestInvalid,
    ManifestMissing,
    NotReady,
    PlatformMismatch,
    RuntimeFailed,
    RuntimeMismatch,
    SpecMismatch,
    StoreFailed,
    VersionUnsupported,
)
from lazyfs.documents.journal import State
from lazyfs.documents.manifest import MANIFEST_NAME
from lazyfs.documents.record import load_record
from lazyfs.errors import LazyfsError
from lazyfs.oci.platforms import Platform
from lazyfs.sandbox.sandbox import SandboxExists
from lazyfs.snapshot.gates import Allowed, BadRestoreOption
from lazyfs.snapshot.legacy import NotPinned
from lazyfs.snapshot.stores.keys import manifest_key
from tests.support.sandboxes.fake_bases import image
from tests.support.sandboxes.fake_runtime import ABILITIES, Crash, FakeRuntime
from tests.support.sandboxes.s3 import ENVIRONMENT, Fault, S3Server
from tests.support.sandboxes.world import TAG, Machine, counter, directory, machine, neighbour, pair


def saved(tmp_path: Path, times: int = 5, **fields: Any) -> Machine:
    """Return a machine that has counted and committed its snapshot as @latest."""
    here = machine(tmp_path)
    here.run(**fields)
    here.count(times=times)
    here.checkpoint(pointer="latest")
    return here


def file_of(here: Machine, name: str) -> Path:
    """Return where a file of the newest snapshot is stored."""
    return directory(here) / "snapshots" / here.snapshots.load("@latest").id / name


def rewrite(here: Machine, **changes: Any) -> str:
    """Write another manifest in the place of the newest one's, by force; return its id."""
    loaded = here.snapshots.load("@latest")
    document = json.loads(loaded.data) | changes
    (directory(here) / manifest_key(loaded.id)).write_text(json.dumps(document))
    return loaded.id


def test_a_restored_counter_goes_on(tmp_path: Path) -> None:
    # Given a committed snapshot of a counter at 5,
    there = neighbour(saved(tmp_path))
    # when it is restored under a new id, then it goes on with 6.
    restored = there.restore("@latest")
    assert there.count("r1") == 6
    assert there.state("r1") is State.RUNNING
    assert restored.images[0].source == "inherited"
    there.check_tidy("r1")


def test_a_moved_tag_plays_no_part(tmp_path: Path) -> None:
    # Given a tag that was moved to an image whose /etc/base differs,
    here = saved(tmp_path)
    now = here.images.tag(TAG, image("new"))
    here.images.requests.clear()
    there = neighbour(here)
    # when the snapshot is restored, then the sandbox reads the old /etc/base,
    there.restore("@latest")
    assert there.base_seen("r1") == "old"
    assert here.images.tag_requests() == []
    # and --check-drift says what the tag names now.
    restored = there.restore("@latest", "r2", check_drift=True)
    assert restored.drift == {"counter": now.manifest}
    assert any(now.manifest in line for line in there.said)
    assert there.base_seen("r2") == "old"


def test_a_tag_that_was_deleted_plays_no_part(tmp_path: Path) -> None:
    here = saved(tmp_path)
    here.images.tags.clear()
    there = neighbour(here)
    there.restore("@latest")
    assert there.count("r1") == 6


def test_what_was_started_without_a_protection_is_said_to_go_on_without(tmp_path: Path) -> None:
    # Given a snapshot of a release that did not know noNewPrivileges, or that says so,
    here = saved(tmp_path)
    document = json.loads(here.snapshots.load("@latest").data)
    facts = document["extensions"]["specs"]["counter"]
    del facts["noNewPrivileges"]
    document["runtime"]["containers"][0]["specDigest"] = canonical_digest(facts)
    snapshot_id = rewrite(here, extensions=document["extensions"], runtime=document["runtime"])
    there = neighbour(here)
    # when it is restored, then it is restored as it was, and the user is told.
    restored = there.restore(snapshot_id)
    assert there.count("r1") == 6
    (said,) = [line for line in there.said if "noNewPrivileges" in line]
    assert said.startswith("counter: the snapshot was made without noNewPrivileges")
    assert said in restored.notices
    # Nothing is said where it has it.
    (tmp_path / "again").mkdir()
    other = neighbour(saved(tmp_path / "again"))
    other.restore("@latest")
    assert not [line for line in other.said if "noNewPrivileges" in line]


def test_a_digest_that_nobody_has_fails_and_names_who_was_asked(tmp_path: Path) -> None:
    # Given the recorded digest is gone from registry and cache,
    here = saved(tmp_path)
    digest = here.snapshots.load("@latest").manifest.images[0].manifest_digest
    here.images.gone.add(digest)
    here.images.requests.clear()
    there = neighbour(here)
    # when it is restored, then exit 20 with all sources, and no tag was asked for.
    with pytest.raises(BaseUnavailable) as told:
        there.restore("@latest")
    assert told.value.exit_code == 20
    for source in ("cache", "embedded", "registry", TAG):
        assert source in told.value.message
    assert here.images.tag_requests() == []
    assert "restore" not in there.runtime.names()
    there.check_gone()


def test_another_image_in_the_mounts_place_is_drift(tmp_path: Path) -> None:
    # Given a mount of another image in the place of the base,
    there = neighbour(saved(tmp_path))
    digest = there.snapshots.load("@latest").manifest.images[0].manifest_digest
    there.bases.swap[digest] = image("forged")
    # when restore compares, then exit 22, and the runtime was never called.
    with pytest.raises(BaseDrift) as told:
        there.restore("@latest")
    assert told.value.exit_code == 22
    assert "restore" not in there.runtime.names()
    there.check_gone()


def test_another_platform_is_refused_before_any_download(tmp_path: Path) -> None:
    # Given an amd64 snapshot on an arm64 machine,
    here = saved(tmp_path)
    there = neighbour(here, host=Platform("linux", "arm64"))
    (directory(here) / "snapshots" / here.snapshots.load("@latest").id / "pages.img.zstd").unlink()
    # when it is restored, then exit 30 before any download.
    with pytest.raises(PlatformMismatch) as told:
        there.restore("@latest")
    assert told.value.exit_code == 30
    assert "linux/amd64" in told.value.message
    assert "linux/arm64" in told.value.message
    assert there.bases.calls == []
    there.check_gone()


def test_another_version_is_refused_before_any_download(tmp_path: Path) -> None:
    # Given a manifest of version 2,
    here = saved(tmp_path)
    snapshot_id = rewrite(here, version=2)
    file_of_id = directory(here) / "snapshots" / snapshot_id
    for path in file_of_id.iterdir():
        if path.name != MANIFEST_NAME:
            path.unlink()  # nobody reads them: FileMissing would be told
    # when it is restored, then exit 12.
    with pytest.raises(VersionUnsupported) as told:
        neighbour(here).restore(snapshot_id)
    assert told.value.exit_code == 12
    assert told.value.details == {"found": 2, "supported": [1]}


def test_unknown_extensions_are_ignored_unless_they_are_critical(tmp_path: Path) -> None:
    here = saved(tmp_path)
    extensions = here.snapshots.load("@latest").manifest.extensions or {}
    snapshot_id = rewrite(here, extensions={**extensions, "new.thing": {"a": 1}})
    there = neighbour(here)
    # Given an unknown extension, when it is read, then it is ignored;
    there.restore(snapshot_id)
    # given the same among the critical ones, then exit 12.
    loaded = here.snapshots.load(snapshot_id)
    document = json.loads(loaded.data) | {"critical": ["new.thing"]}
    (directory(here) / manifest_key(snapshot_id)).write_text(json.dumps(document))
    with pytest.raises(VersionUnsupported) as told:
        there.restore(snapshot_id, "r2")
    assert told.value.exit_code == 12
    there.check_gone("r2")


def test_a_missing_manifest_is_an_error_unless_images_are_assumed(tmp_path: Path) -> None:
    here = saved(tmp_path)
    loaded = here.snapshots.load("@latest")
    digest = loaded.manifest.images[0].manifest_digest
    (directory(here) / manifest_key(loaded.id)).unlink()
    there = neighbour(here)
    # Given files and no manifest, when it is restored, then exit 10,
    with pytest.raises(ManifestMissing) as told:
        there.restore(loaded.id)
    assert told.value.exit_code == 10
    assert "--assume-image" in (told.value.hint or "")
    # a tag is no answer,
    with pytest.raises(NotPinned) as refused:
        there.restore(loaded.id, assumed={"counter": "busybox:latest"})
    assert refused.value.exit_code == 2 if hasattr(refused.value, "exit_code") else True
    # with --assume-image it goes on, and says so in the next generation,
    pinned = f"busybox@{digest}"
    there.restore(loaded.id, assumed={"counter": pinned}, template=counter(pinned))
    assert there.count("r1") == 6
    made = there.checkpoint("r1", pointer="latest")
    assert made.manifest.images[0].source == "assumed"
    assert made.manifest.snapshot.generation == 1
    # and in the one after that.
    there.restore("@latest", "r2")
    again = there.checkpoint("r2")
    assert again.manifest.images[0].source == "assumed"
    assert again.manifest.snapshot.generation == 2


def test_a_pinned_template_may_stand_in_for_a_missing_manifest(tmp_path: Path) -> None:
    here = saved(tmp_path)
    loaded = here.snapshots.load("@latest")
    (directory(here) / manifest_key(loaded.id)).unlink()
    there = neighbour(here)
    with pytest.raises(NotPinned):
        there.restore(loaded.id, template=counter(), trusts_template=True)
    pinned = counter(f"busybox@{loaded.manifest.images[0].manifest_digest}")
    with pytest.raises(ManifestMissing):  # not by itself
        there.restore(loaded.id, template=pinned)
    restored = there.restore(loaded.id, template=pinned, trusts_template=True)
    assert restored.images[0].source == "assumed"
    assert there.count("r1") == 6


def test_a_recorded_image_is_not_assumed(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path))
    with pytest.raises(BadRestoreOption):
        there.restore("@latest", assumed={"counter": "busybox@sha256:" + "1" * 64})


@pytest.mark.parametrize("damage", ["flip", "cut", "longer"])
def test_damaged_files_are_refused_before_the_runtime_is_called(
    tmp_path: Path, damage: str
) -> None:
    # Given one flipped byte, a file that is cut, or one that is too long,
    here = saved(tmp_path)
    path = file_of(here, "pages.img.zstd")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-7] if damage == "cut" else data + (b"x" if damage == "longer" else b""))
    there = neighbour(here)
    # when it is restored, then exit 41, the runtime was not called, and nothing is left.
    with pytest.raises(FileCorrupt) as told:
        there.restore("@latest")
    assert told.value.exit_code == 41
    assert "pages.img" in told.value.message
    assert "restore" not in there.runtime.names()
    there.check_gone()


def test_more_than_was_recorded_is_never_written(tmp_path: Path) -> None:
    # Given bytes that decompress to more than the recorded size,
    here = saved(tmp_path)
    loaded = here.snapshots.load("@latest")
    path = file_of(here, "pages.img.zstd")
    bomb = zstandard.compress(bytes(64 << 20))
    path.write_bytes(bomb)
    document = json.loads(loaded.data)
    for file in document["files"]:
        if file["name"] == "pages.img":
            file["storedSize"] = len(bomb)
            file["storedDigest"] = "sha256:" + hashlib.sha256(bomb).hexdigest()
    snapshot_id = rewrite(here, files=document["files"])
    there = neighbour(here)
    # when it is read, then it stops at the limit with exit 41.
    with pytest.raises(FileCorrupt) as told:
        there.restore(snapshot_id)
    assert told.value.exit_code == 41
    there.check_gone()


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    here = saved(tmp_path)
    file_of(here, "pages.img.zstd").unlink()
    there = neighbour(here)
    with pytest.raises(FileMissing) as told:
        there.restore("@latest")
    assert told.value.exit_code == 40
    there.check_gone()


def test_a_rotten_cache_is_mended_from_the_registry(tmp_path: Path) -> None:
    here = saved(tmp_path)
    there = neighbour(here)
    digest = here.snapshots.load("@latest").manifest.images[0].manifest_digest
    there.restore("@latest", "r0")
    there.bases.corrupt.add(digest)
    # Given a damaged blob and a healthy registry, it is fetched again;
    there.restore("@latest")
    there.bases.corrupt.add(digest)
    here.images.is_down = True
    # with the registry off, exit 21 and no sandbox.
    with pytest.raises(BaseCorrupt) as told:
        there.restore("@latest", "r2")
    assert told.value.exit_code == 21
    there.check_gone("r2")


def test_generations_remember_what_the_user_wrote(tmp_path: Path) -> None:
    # Given three generations,
    here = saved(tmp_path)
    first = here.snapshots.load("@latest")
    here.images.tag(TAG, image("new"))
    there = neighbour(here)
    there.restore("@latest")
    second = there.checkpoint("r1", pointer="latest")
    third_machine = neighbour(here)
    third_machine.restore("@latest", "r2")
    assert third_machine.base_seen("r2") == "old"
    third = third_machine.checkpoint("r2", pointer="latest").manifest
    # when the third's manifest is read,
    # then the user's words, the digests and the chain of parents are what they were.
    assert third.images[0].original_ref == TAG
    assert third.images[0].manifest_digest == first.manifest.images[0].manifest_digest
    assert third.snapshot.generation == 3
    assert third.snapshot.parent is not None
    assert third.snapshot.parent.id == second.id
    assert third.snapshot.parent.manifest_digest == second.manifest_digest
    parent = here.snapshots.load(second.id)
    assert parent.digest == second.manifest_digest
    assert parent.manifest.snapshot.parent is not None
    assert parent.manifest.snapshot.parent.manifest_digest == first.digest


def test_one_snapshot_for_many(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path))
    for number in range(3):
        there.restore("@latest", f"r{number}")
    assert [there.count(f"r{number}") for number in range(3)] == [6, 6, 6]


def test_a_sandbox_that_has_stopped_is_restored_in_its_place(tmp_path: Path) -> None:
    here = saved(tmp_path)
    assert here.state() is State.STOPPED
    here.restore("@latest", "c1")
    assert here.count() == 6
    with pytest.raises(SandboxExists):
        here.restore("@latest", "c1")
    assert here.count() == 7


def test_changed_arguments_are_refused(tmp_path: Path) -> None:
    # Given changed arguments in the template,
    there = neighbour(saved(tmp_path))
    changed = counter(command=["/bin/counter", "--fast"])
    # when it is restored, then exit 33,
    with pytest.raises(SpecMismatch) as told:
        there.restore("@latest", template=changed)
    assert told.value.exit_code == 33
    assert "args" in told.value.message
    there.check_gone()
    # and for the root container no switch helps.
    with pytest.raises(SpecMismatch):
        there.restore("@latest", template=changed, allowed=Allowed(spec_drift=True))
    assert "restore" not in there.runtime.names()


def test_other_drift_of_the_spec_has_a_switch(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path))
    changed = counter(workingDir="/tmp")
    with pytest.raises(SpecMismatch, match="cwd"):
        there.restore("@latest", template=changed)
    there.restore("@latest", template=changed, allowed=Allowed(spec_drift=True))
    assert any("cwd" in line for line in there.said)


def test_the_manifest_wins_over_the_template(tmp_path: Path) -> None:
    here = saved(tmp_path)
    here.images.tag("busybox:2", image("two"))
    there = neighbour(here)
    there.restore("@latest", template=counter("busybox:2"))
    assert there.base_seen("r1") == "old"
    assert any("template now says busybox:2" in line for line in there.said)


@pytest.mark.parametrize("name", ["pages.img", "pages_meta.img"])
@pytest.mark.parametrize("is_said", [False, True])
def test_a_file_that_the_manifest_does_not_list_is_named(
    tmp_path: Path, name: str, is_said: bool
) -> None:
    here = saved(tmp_path)
    files = json.loads(here.snapshots.load("@latest").data)["files"]
    snapshot_id = rewrite(here, files=[file for file in files if file["name"] != name])
    there = neighbour(here)
    if is_said:  # as the real one fails, whose words are not for programs
        there.runtime.fail["restore"] = RuntimeFailed("runsc restore: exit status 128")
    with pytest.raises(FileMissing, match=f"has no file {name}, which the runtime needs") as told:
        there.restore(snapshot_id)
    assert told.value.exit_code == 40
    there.check_gone()


def test_a_failure_of_the_runtime_is_not_blamed_on_files_that_are_there(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path))
    there.runtime.fail["restore"] = RuntimeFailed("runsc restore: exit status 128")
    with pytest.raises(RuntimeFailed, match="exit status 128"):
        there.restore("@latest")
    there.runtime.fail["restore"] = FileNotFoundError(2, "no such file", "/fake/runsc")
    there.runtime._left.clear()
    with pytest.raises(FileNotFoundError):
        there.restore("@latest")


def test_a_template_of_another_name_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    here = saved(tmp_path)
    document = json.loads(here.snapshots.load("@latest").data)
    snapshot = document["snapshot"]
    stated = {"name": "other", "digest": "sha256:" + "0" * 64}
    snapshot_id = rewrite(here, snapshot=snapshot | {"template": stated})
    there = neighbour(here)
    for template in (None, counter()):
        with pytest.raises(
            ManifestInvalid, match=r'template\.name: got "other", expected "counter"'
        ):
            there.restore(snapshot_id, template=template)
    there.check_gone()
    assert "restore" not in there.runtime.names()
    # The digest is only claimed: that of the recorded template differs where there are values.
    document["snapshot"] = snapshot | {"template": stated | {"name": "counter"}}
    (directory(here) / manifest_key(snapshot_id)).write_text(json.dumps(document))
    there.restore(snapshot_id)
    assert there.count("r1") == 6


@pytest.mark.parametrize("change", ["added", "removed"])
def test_containers_can_be_neither_added_nor_removed(tmp_path: Path, change: str) -> None:
    here = saved(tmp_path, template=pair() if change == "removed" else counter())
    there = neighbour(here)
    with pytest.raises(SpecMismatch, match=change):
        there.restore("@latest", template=counter() if change == "removed" else pair())
    there.check_gone()


def test_the_very_program_that_made_it_is_used(tmp_path: Path) -> None:
    # Given a recorded program that is not the one on the PATH, but among those that are kept,
    here = saved(tmp_path)
    other = FakeRuntime(digest="sha256:" + "9" * 64, version="fake-2.0")
    there = neighbour(here, runtimes=(other, here.runtime))
    # when it is restored, then that one is used;
    there.restore("@latest")
    assert "restore" not in other.names()
    # if it is not there, exit 31.
    alone = neighbour(here, runtimes=(other,))
    with pytest.raises(RuntimeMismatch) as told:
        alone.restore("@latest")
    assert told.value.exit_code == 31
    alone.check_gone()


def test_another_program_is_refused_by_its_version_and_digest(tmp_path: Path) -> None:
    here = saved(tmp_path)
    other = FakeRuntime(digest="sha256:" + "9" * 64, version="fake-2.0")
    there = neighbour(here, runtimes=(other,))
    with pytest.raises(RuntimeMismatch) as told:
        there.restore("@latest", runtime_path=Path("/fake/runsc"))
    assert set(told.value.details) == {"version", "binary"}
    there.check_gone()


def test_data_goes_on_with_another_image(tmp_path: Path) -> None:
    # Given a snapshot of data only, and another image,
    here = saved(tmp_path)
    here.images.tag(TAG, image("new"))
    snapshot = json.loads(here.snapshots.load("@latest").data)["snapshot"] | {"scope": "data"}
    snapshot_id = rewrite(here, snapshot=snapshot)
    runtime = FakeRuntime(digest="sha256:" + "9" * 64, abilities=ABILITIES | {"fscheckpoint"})
    there = neighbour(here, runtimes=(runtime,))
    # when it is restored with what the template says now, then it works with a notice;
    there.restore(snapshot_id, template=counter())
    assert there.base_seen("r1") == "new"
    assert any("it is now used with" in line for line in there.said)
    # the same with --rebase, which the next generation remembers;
    there.restore(snapshot_id, "r2", rebase=TAG)
    made = there.checkpoint("r2")
    recorded = here.snapshots.load(snapshot_id).manifest.images[0].resolved_ref
    assert made.manifest.snapshot.rebased_from == recorded
    # and without either it has the image that it had.
    there.restore(snapshot_id, "r3")
    assert there.base_seen("r3") == "old"


def test_memory_goes_on_with_no_other_image(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path))
    with pytest.raises(BadRestoreOption, match="--rebase"):
        there.restore("@latest", rebase="busybox:2")
    there.check_gone()


def test_a_part_of_a_base_is_not_enough_unless_it_is_wanted(tmp_path: Path) -> None:
    here = saved(tmp_path)
    there = neighbour(here)
    there.restore("@latest", "r0")
    digest = here.snapshots.load("@latest").manifest.images[0].manifest_digest
    there.bases.partial.add(digest)
    here.images.is_down = True
    with pytest.raises(BaseUnavailable):
        there.restore("@latest")
    there.check_gone()
    there.restore("@latest", allow_partial=True)
    assert there.count("r1") == 6


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    from lazyfs.snapshot.review import Wanted, review

    there = neighbour(saved(tmp_path))
    tools = there.restore_tools()
    found = review(Wanted("@latest"), tools.snapshots, tools.bases, tools.choose, tools.host)
    assert found.file_size == sum(file.stored_size for file in found.manifest.files)
    assert found.image_size == 1000
    assert there.bases.calls == []
    assert not there.sandboxes.root.exists()


STEPS: dict[str, tuple[str, str]] = {
    "obtain": ("bases", "obtain"),
    "mount": ("bases", "mount"),
    "read back": ("bases", "identity"),
    "restore": ("runtime", "restore"),
    "restored": ("runtime", "restore:after"),
    "ready": ("runtime", "states"),
}


@pytest.mark.parametrize("kind", ["error", "crash", "interrupt"])
@pytest.mark.parametrize("step", STEPS)
def test_a_restore_that_fails_leaves_nothing(tmp_path: Path, step: str, kind: str) -> None:
    here = saved(tmp_path, template=pair())
    there = neighbour(here, runtimes=(FakeRuntime(),))
    where, call = STEPS[step]
    error = {
        "error": RuntimeFailed("told to fail"),
        "crash": ValueError("a bug"),
        "interrupt": KeyboardInterrupt(),
    }[kind]
    if where == "bases":
        there.bases.fail[call] = error  # type: ignore[assignment]
    else:
        there.runtime.fail = {call: error}  # type: ignore[dict-item]
    with pytest.raises(type(error)):
        there.restore("@latest")
    there.check_gone()
    there.bases.fail.clear()
    there.runtime.fail.clear()
    there.restore("@latest")  # it can be done again, under the same id
    assert there.count("r1") == 6


def test_a_restore_that_was_killed_can_be_done_again(tmp_path: Path) -> None:
    from lazyfs.snapshot.recover import recover

    here = saved(tmp_path)
    there = neighbour(here, runtimes=(FakeRuntime(crash={"restore:after"}),))
    undo = "lazyfs.snapshot.restore._undo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(undo, lambda *a, **k: None)  # a process that was killed undoes nothing
        with pytest.raises(Crash):
            there.restore("@latest")
    assert there.state("r1") is State.RESTORING
    sandbox = there.sandbox("r1")
    with sandbox.lock():
        assert recover(sandbox, there.checkpoint_tools()) is State.FAILED
    assert there.bases.mounts == {}
    there.restore("@latest")
    assert there.count("r1") == 6


def test_a_sandbox_that_does_not_become_ready_is_removed_or_kept(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path), runtimes=(FakeRuntime(),))

    def end(call: str, plan: Any) -> None:
        if call == "restore:after":
            there.runtime.exit(plan)

    there.runtime.on_call = end
    with pytest.raises(NotReady) as told:
        there.restore("@latest")
    assert told.value.exit_code == 53
    there.check_gone()
    with pytest.raises(NotReady):
        there.restore("@latest", keep_failed=True)
    assert there.state("r1") is State.FAILED
    assert there.sandbox("r1").log_dir.exists()


def test_a_restored_sandbox_has_a_record_of_its_own(tmp_path: Path) -> None:
    there = neighbour(saved(tmp_path))
    there.restore("@latest")
    record = load_record(there.sandbox("r1").record_path)
    assert record is not None
    assert record.images[0].image.original_ref == TAG
    assert record.images[0].image.source == "inherited"
    mount = there.bases.mounts[there.sandbox("r1").rootfs("counter")]
    assert record.images[0].mount_id == mount.mount_id


def test_a_pointer_to_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    here = saved(tmp_path)
    rewrite(here, host={"kernel": "other"})
    with pytest.raises(ManifestInvalid):
        neighbour(here).restore("@latest")


def test_an_embedded_image_needs_no_registry(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    here.count(times=5)
    digest = here.images.tags["docker.io/library/busybox:latest"].manifest
    layout = directory(here) / "base" / "blobs" / "sha256"
    layout.mkdir(parents=True)
    (layout / digest.removeprefix("sha256:")).write_text("here")
    made = here.checkpoint(pointer="latest", embedded=frozenset({digest}))
    assert made.manifest.images[0].embedded is True
    here.images.is_down = True
    there = neighbour(here)
    restored = there.restore("@latest")
    assert there.count("r1") == 6
    assert restored.images[0].embedded is msgspec.UNSET  # it is this snapshot's, not the next's


def test_a_snapshot_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, manifest, pointer and an embedded base, through a real client of S3."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    server = S3Server()
    client = server.bucket("sandboxes")
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        here = machine(tmp_path, store="s3://sandboxes/team/a")
        here.run()
        here.count(times=5)
        made = here.checkpoint(pointer="latest", leave_running=True)
        assert here.snapshots.verify(here.snapshots.load("@latest"), deep=True) == []
        there = neighbour(here)
        there.restore("@latest")
        assert there.count("r1") == 6
        # A file that cannot be stored leaves no upload and no manifest, and can be continued.
        server.faults.append(
            Fault(
                lambda *request: request[0] == "PUT" and "pages.img" in request[1],
                code="InternalError",
                times=99,
            )
        )
        with pytest.raises(StoreFailed):
            there.checkpoint("r1", pointer="latest")
        assert there.snapshots.load("@latest").id == made.id
        server.faults.clear()
        again = there.resume("r1")
        assert again is not None
        assert there.snapshots.load("@latest").id == again.id
        assert again.manifest.snapshot.generation == 2
    finally:
        client.close()
        server.close()


def test_errors_of_a_restore_are_snapshot_errors(tmp_path: Path) -> None:
    with pytest.raises(LazyfsError):
        machine(tmp_path).restore("20261120T194511Z-5b1c09ef")
