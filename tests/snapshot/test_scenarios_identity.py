"""What users rely on: that a template may name tags, and that a mount says what it is.

``SCENARIOS`` names the test of everything that users are promised of sandboxes and snapshots.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.documents.errors import TagUnresolvable, TemplateInvalid
from lazyfs.documents.record import load_record
from lazyfs.documents.template_reading import require_pinned, template_of_document
from tests.snapshot.test_failures import (
    BASES,
    CHECKED,
    REAL,
    RESTORED,
    S3,
    STORED,
    check_tests_exist,
)
from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse
from tests.support.sandboxes.fake_bases import image
from tests.support.sandboxes.world import TAG, counter, machine, pair

PREFIX = "user.lazyfs."


def test_a_tag_is_accepted() -> None:
    # Given a template with a tag, when it is validated, then it is accepted.
    assert counter("busybox:latest").images == {"counter": "busybox:latest"}
    assert counter("busybox").images == {"counter": "busybox"}


def test_pins_can_be_required() -> None:
    # Given that policy, when the same template is validated,
    with pytest.raises(TemplateInvalid) as told:
        require_pinned(counter("busybox:latest"), "counter.yaml")
    # then the field is named, and the command that pins.
    assert "containers[0].image" in told.value.message
    assert "lazyfs resolve counter.yaml --write" in (told.value.hint or "")


@pytest.mark.parametrize("text", ["busybox@", "busybox@latest", "busybox@sha256:12", "@sha256:"])
def test_an_at_sign_is_no_digest(text: str) -> None:
    with pytest.raises(TemplateInvalid, match=r"containers\[0\]\.image"):
        counter(text)


@pytest.mark.parametrize("name", ["pause", "_pause"])
def test_pause_is_reserved(name: str) -> None:
    container = {"name": name, "image": "busybox"}
    with pytest.raises(TemplateInvalid, match="name"):
        template_of_document({"name": "t", "containers": [container]})


# Mounts


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A mount of two layers, the upper of which replaces etc/a; the image tries to lie."""
    folder = tmp_path_factory.mktemp("identity")
    forged = {"user.lazyfs.manifest.digest": b"sha256:" + b"0" * 64, "user.mine": b"kept"}
    lower = [
        directory("etc", xattrs=forged),
        file("etc/a", b"lower"),
        file("etc/b", b"lower"),
    ]
    upper = [
        directory(".", xattrs=forged),
        directory("etc", xattrs=forged),
        file("etc/a", b"upper"),
    ]
    layers = [estargz_layer(tar_bytes(items)) for items in (lower, upper)]
    make_layout(folder / "layout", layers)
    lazyfs = Lazyfs(folder)
    mountpoint = folder / "mnt"
    mountpoint.mkdir()
    try:
        lazyfs.mount(f"oci:{folder}/layout", mountpoint)
        yield mountpoint, folder / "layout"
    finally:
        lazyfs("umount", mountpoint)
        force_unmount(mountpoint)


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, PREFIX + name).decode()


@pytest.mark.fuse
@needs_fuse[1]
class TestMounts:
    """What a mount says of itself and of its files."""

    def test_digests_are_those_of_the_raw_bytes(self, mounted: tuple[Path, Path]) -> None:
        mountpoint, layout = mounted
        (listed,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        data = (layout / "blobs" / listed["digest"].replace(":", "/")).read_bytes()
        assert attribute(mountpoint, "manifest.digest") == _sha256(data)
        manifest = json.loads(data)
        config = (layout / "blobs" / manifest["config"]["digest"].replace(":", "/")).read_bytes()
        assert attribute(mountpoint, "config.digest") == _sha256(config)
        assert attribute(mountpoint, "platform") == "linux/amd64"
        layers = json.loads(attribute(mountpoint, "layers"))
        assert [each["digest"] for each in layers] == [e["digest"] for e in manifest["layers"]]
        assert [each["diffId"] for each in layers] == json.loads(config)["rootfs"]["diff_ids"]

    def test_files_name_their_layer(self, mounted: tuple[Path, Path]) -> None:
        mountpoint, _ = mounted
        lower, upper = (each["digest"] for each in json.loads(attribute(mountpoint, "layers")))
        assert attribute(mountpoint / "etc/a", "file.layer") == upper
        assert attribute(mountpoint / "etc/b", "file.layer") == lower

    def test_an_image_cannot_say_what_it_is(self, mounted: tuple[Path, Path]) -> None:
        mountpoint, _ = mounted
        assert not attribute(mountpoint, "manifest.digest").endswith("0" * 64)
        assert not [name for name in os.listxattr(mountpoint / "etc") if name.startswith(PREFIX)]
        assert os.getxattr(mountpoint / "etc", "user.mine") == b"kept"

    def test_attributes_of_files_are_not_listed(self, mounted: tuple[Path, Path]) -> None:
        mountpoint, _ = mounted
        assert os.listxattr(mountpoint / "etc/a") == []
        assert attribute(mountpoint / "etc/a", "file.layer.index") == "1"

    def test_nobody_changes_them(self, mounted: tuple[Path, Path]) -> None:
        mountpoint, _ = mounted
        before = attribute(mountpoint, "health")
        with pytest.raises(OSError) as told:
            os.setxattr(mountpoint, PREFIX + "health", b"fine")
        assert told.value.errno == errno.EROFS
        assert attribute(mountpoint, "health") == before

    def test_copies_claim_nothing(self, mounted: tuple[Path, Path], tmp_path: Path) -> None:
        mountpoint, _ = mounted
        if shutil.which("cp") is None:
            pytest.skip("no cp")
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", mountpoint / "etc", copy], check=True, timeout=30)
        for path in (copy, copy / "a", copy / "b"):
            assert not [name for name in os.listxattr(path) if name.startswith(PREFIX)]


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# Runs


def test_a_tag_is_asked_for_once_whatever_happens_to_it(tmp_path: Path) -> None:
    # Given a tag that moves between its resolution and the mount,
    here = machine(tmp_path)
    here.bases.on_call = lambda call: (
        here.images.tag(TAG, image("new")) and None if call == "mount" else None
    )
    # when a sandbox is run, then one request was made and the mount is of what it said.
    here.run()
    assert len(here.images.tag_requests()) == 1
    assert here.base_seen() == "old"


def test_one_tag_is_one_image(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run(template=pair(pause=TAG))
    record = load_record(here.sandbox().record_path)
    assert record is not None
    assert len({each.image.manifest_digest for each in record.images}) == 1
    assert len(here.images.tag_requests()) == 1


def test_never_and_an_unknown_tag(tmp_path: Path) -> None:
    here = machine(tmp_path)
    with pytest.raises(TagUnresolvable) as told:
        here.run(pull="never")
    assert told.value.exit_code == 24
    assert here.bases.mounts == {}
    here.check_gone("c1")


def test_a_pin_in_the_cache_needs_nobody(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.run()
    digest = here.images.tags["docker.io/library/busybox:latest"].manifest
    here.images.is_down = True
    here.images.requests.clear()
    here.run("c2", counter(f"busybox@{digest}"))
    assert here.images.requests == []


def test_latest_is_a_tag_like_any(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.images.tag("busybox:1.0", image("one"))
    here.run("c1", counter("busybox:latest"))
    here.run("c2", counter("busybox:1.0"))
    here.images.requests.clear()
    here.run("c3", counter("busybox:latest"), pull="missing")
    here.run("c4", counter("busybox:1.0"), pull="missing")
    assert here.images.requests == []


GOLDEN = "test_scenarios_golden.py"
IDENTITY = "test_scenarios_identity.py"
SCENARIOS = {
    "1 a tag is accepted": (IDENTITY, "test_a_tag_is_accepted"),
    "2 pins required": (IDENTITY, "test_pins_can_be_required"),
    "3 no valid digest": (IDENTITY, "test_an_at_sign_is_no_digest"),
    "4 pause is reserved": (IDENTITY, "test_pause_is_reserved"),
    "5 digests of the raw bytes": (IDENTITY, "test_digests_are_those_of_the_raw_bytes"),
    "6 the layer of a file": (IDENTITY, "test_files_name_their_layer"),
    "7 forged attributes": (IDENTITY, "test_an_image_cannot_say_what_it_is"),
    "8 what is listed": (IDENTITY, "test_attributes_of_files_are_not_listed"),
    "9 setting attributes": (IDENTITY, "test_nobody_changes_them"),
    "10 copies": (IDENTITY, "test_copies_claim_nothing"),
    "11 one request": (IDENTITY, "test_a_tag_is_asked_for_once_whatever_happens_to_it"),
    "12 two containers, one tag": (IDENTITY, "test_one_tag_is_one_image"),
    "13 an index pin": (BASES, "test_an_index_pin_keeps_its_meaning"),
    "14 pinned, network blocked": (
        "test_run_command.py",
        "test_a_pinned_image_that_is_here_starts_without_a_network",
    ),
    "15 never": (IDENTITY, "test_never_and_an_unknown_tag"),
    "16 latest is nothing special": (IDENTITY, "test_latest_is_a_tag_like_any"),
    "17 no old record": (
        "test_run.py",
        "test_a_sandbox_that_was_there_stays_and_has_no_old_record",
    ),
    "18 a checkpoint": (REAL, "test_a_counter_goes_on_elsewhere_whatever_its_tag_means_now"),
    "19 no network": (REAL, "test_a_checkpoint_needs_no_network"),
    "20 drift": (CHECKED, "test_another_layer_than_recorded_is_drift"),
    "21 health": (CHECKED, "test_a_mount_that_met_wrong_bytes_is_not_checkpointed"),
    "22 a dead server": (CHECKED, "test_a_dead_mount_is_refused_unless_the_record_is_to_do"),
    "23 a failing store": (CHECKED, "test_a_store_that_fails_leaves_a_checkpoint_to_be_continued"),
    "24 killed before the manifest": (CHECKED, "test_a_kill_before_the_manifest_is_made_good"),
    "25 killed before the pointer": (CHECKED, "test_a_kill_before_the_pointer_is_made_good_once"),
    "26 two at once": (CHECKED, "test_of_two_checkpoints_at_once_one_is_told"),
    "27 two hosts": (S3, "test_two_hosts_with_one_pointer"),
    "28 a lost answer": (CHECKED, "test_an_answer_that_was_lost_counts_as_success"),
    "29 left running": (REAL, "test_left_running"),
    "30 secrets": (CHECKED, "test_secrets_are_nowhere_in_the_manifest"),
    "31 a restore": (REAL, "test_a_counter_goes_on_elsewhere_whatever_its_tag_means_now"),
    "32 the tag moved": (REAL, "test_a_counter_goes_on_elsewhere_whatever_its_tag_means_now"),
    "33 the digest is gone": (REAL, "test_a_digest_that_vanished_is_told_with_all_sources"),
    "34 another mount": (REAL, "test_another_image_in_the_mounts_place"),
    "35 another platform": (RESTORED, "test_another_platform_is_refused_before_any_download"),
    "36 another version": (RESTORED, "test_another_version_is_refused_before_any_download"),
    "37 extensions": (RESTORED, "test_unknown_extensions_are_ignored_unless_they_are_critical"),
    "38 no manifest": (
        RESTORED,
        "test_a_missing_manifest_is_an_error_unless_images_are_assumed",
    ),
    "39 a flipped byte": (RESTORED, "test_damaged_files_are_refused_before_the_runtime_is_called"),
    "40 cut short": (RESTORED, "test_damaged_files_are_refused_before_the_runtime_is_called"),
    "41 too much": (RESTORED, "test_more_than_was_recorded_is_never_written"),
    "42 a rotten cache": (BASES, "test_rotten_content_is_put_aside_and_had_again"),
    "43 --pull": (IDENTITY, "test_a_restore_takes_no_pull"),
    "44 three generations": (RESTORED, "test_generations_remember_what_the_user_wrote"),
    "45 fan-out": (REAL, "test_many_from_one_snapshot"),
    "46 other arguments": (RESTORED, "test_changed_arguments_are_refused"),
    "47 the very program": (RESTORED, "test_the_very_program_that_made_it_is_used"),
    "48 failure after each step": (RESTORED, "test_a_restore_that_fails_leaves_nothing"),
    "49 data only": (RESTORED, "test_data_goes_on_with_another_image"),
    "50 a new golden": (GOLDEN, "test_a_new_golden_asks_anew_and_says_what_moved"),
    "51 a locked golden": (GOLDEN, "test_a_locked_golden_uses_what_the_lock_says"),
    "52 bounded attempts": (GOLDEN, "test_a_golden_of_a_digest_that_is_gone_fails_for_good"),
    "53 garbage": ("test_collect.py", "test_old_partials_go_and_nothing_else"),
    "54 an interrupted removal": (STORED, "test_removed_in_the_other_order"),
    "55 refused": (S3, "test_refused_is_not_missing"),
    "56 verify": ("test_snapshot_command.py", "test_verify"),
    "57 copy": (S3, "test_copies_between_kinds_of_stores"),
}


def test_a_restore_takes_no_pull(tmp_path: Path) -> None:
    # Given restore with --pull=always, then exit 2.
    done = Lazyfs(tmp_path)("restore", "/store@latest", "--id", "r1", "--pull=always")
    assert done.returncode == 2
    assert "never resolves a tag" in done.stderr


def test_every_scenario_has_a_test() -> None:
    assert [int(name.split()[0]) for name in SCENARIOS] == list(range(1, 58))
    check_tests_exist(SCENARIOS)
