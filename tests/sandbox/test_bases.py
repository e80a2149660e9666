"""Where the root filesystems of sandboxes come from, with a registry that counts what is asked."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseUnavailable,
    PlatformMismatch,
    TagUnresolvable,
    TemplateInvalid,
)
from lazyfs.documents.manifest import Image
from lazyfs.image.open import open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.registry.config.access import AccessOptions
from lazyfs.sandbox.bases import Bases
from lazyfs.service.bases import ImageBases
from lazyfs.service.processes.mount_command import MountCommand, _error_of
from lazyfs.store.completeness import TICK
from lazyfs.store.content.content import LayerContent
from lazyfs.trust.errors import Untrusted
from lazyfs.trust.options import TrustOptions
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    host_platform,
    make_layout,
    tar_bytes,
)
from tests.support.mounts.mounting import wait_until
from tests.support.registries.faults import status
from tests.support.registries.registry import FakeRegistry

ACCESS = AccessOptions(connect_seconds=2, idle_seconds=2)
OTHER = "linux/s390x"


def layer_of(text: bytes):
    """Return a layer of a few chunks."""
    items = [directory("etc"), file("etc/base", text), file("big", text * 3000)]
    return estargz_layer(tar_bytes(items), chunk_size=4096)


A, B, C = (layer_of(text) for text in (b"old", b"new", b"third"))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Return a layout whose tags are images: latest and 1.0 with A, multi an index."""
    made = tmp_path / "layout"
    make_layout(made, [A], tag="latest")
    make_layout(made, [A, B], tag="1.0")
    make_layout(made, [A], tag="multi", others={OTHER: [C]})
    make_layout(made, [C], tag="foreign", platform=OTHER)
    return made


@pytest.fixture
def registry(layout: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as serving:
        yield serving


@pytest.fixture
def bases(tmp_path: Path) -> ImageBases:
    cache = tmp_path / "cache"
    return ImageBases(cache, tmp_path / "run", ACCESS, MountCommand(cache, ACCESS))


def tag_requests(registry: FakeRegistry) -> int:
    return sum(
        "/manifests/" in each.path and "sha256:" not in each.path for each in registry.requests
    )


def forbid_tags(registry: FakeRegistry) -> None:
    for tag in ("latest", "1.0", "multi"):
        registry.faults.add(status(418), path=f"/manifests/{tag}", times=None)


def one(bases: Bases, reference: str, pull: str = "missing", platform: str | None = None) -> Image:
    return bases.resolve({"app": reference}, platform=platform, pull=pull)["app"].image


def fetch_all(cache: Path, reference: str) -> None:
    """Have all of an image in the cache."""

    async def work() -> None:
        prepared = await prepare(Request(reference, None, cache, ACCESS))
        async with open_image(prepared, ACCESS) as image:
            assert not (await verify_image(image, lambda size: None)).errors

    trio.run(work)


def move_tag(layout: Path, layers: list, tag: str = "latest") -> None:
    make_layout(layout, layers, tag=tag)


def made_just_now(cache: Path) -> bool:
    """Say whether a content file changed so lately that its time says little."""
    newest = max(path.stat().st_ctime_ns for path in cache.glob("layers/*/content"))
    return time.time_ns() - newest <= TICK


def rot(cache: Path) -> None:
    """Flip the first stored byte of every layer's content."""
    for content in cache.glob("layers/*/content"):
        with content.open("r+b") as stream:
            first = stream.read(1)
            stream.seek(0)
            stream.write(bytes([first[0] ^ 1]))


# A fresh run


def test_a_tag_is_asked_for_once_and_moves_in_vain(
    registry: FakeRegistry, bases: ImageBases, layout: Path
) -> None:
    """Scenarios 11 and 12: one request whatever the number of containers and spellings."""
    name = f"{registry.host}/busybox"
    found = bases.resolve(
        {"a": name, "b": f"{name}:latest", "c": name}, platform=None, pull="missing"
    )
    assert tag_requests(registry) == 1
    digests = {base.image.manifest_digest for base in found.values()}
    assert len(digests) == 1
    move_tag(layout, [B])
    image = found["a"].image
    assert found["a"].mount_ref == image.resolved_ref == f"{name}@{digests.pop()}"
    assert (image.original_ref, image.pinned, image.index_digest) == (name, False, None)
    assert found["b"].image.original_ref == f"{name}:latest"
    assert [layer.digest for layer in image.layers] == [str(A.digest)]
    assert [layer.diff_id for layer in image.layers] == [str(A.diff_id)]
    assert found["a"].config["config"]["Cmd"] == ["/bin/sh"]
    forbid_tags(registry)
    again = bases.obtain([image], embedded=None, allow_partial=False)["a"]
    assert again.image == image
    assert again.mount_ref == image.resolved_ref


def test_an_index_pin_keeps_its_meaning(registry: FakeRegistry, bases: ImageBases) -> None:
    """Scenario 13: the index is what was asked for, the child is what is used."""
    by_tag = one(bases, f"{registry.host}/x:multi")
    assert by_tag.index_digest is not None
    pin = f"{registry.host}/x@{by_tag.index_digest}"
    image = one(bases, pin)
    assert (image.original_ref, image.pinned) == (pin, True)
    assert image.index_digest == by_tag.index_digest
    assert image.resolved_ref == f"{registry.host}/x@{image.manifest_digest}"
    assert image.manifest_digest not in (image.index_digest,)
    assert f"{image.platform.os}/{image.platform.architecture}" == host_platform()
    both = bases.resolve({"a": f"{registry.host}/x:nothing@{by_tag.index_digest}"},
                         platform=None, pull="never")["a"]  # fmt: skip
    assert both.image.manifest_digest == image.manifest_digest
    assert both.note is not None
    assert "nothing is ignored" in both.note


def test_a_pin_that_is_here_needs_no_network(registry: FakeRegistry, bases: ImageBases) -> None:
    """Scenario 14 and R5."""
    image = one(bases, f"{registry.host}/x")
    registry.forget_requests()
    assert one(bases, image.resolved_ref).manifest_digest == image.manifest_digest
    assert registry.requests == []


def test_tags_that_are_known_are_alike(registry: FakeRegistry, bases: ImageBases) -> None:
    """Scenario 16: nothing is special about latest."""
    names = [f"{registry.host}/x:latest", f"{registry.host}/x:1.0"]
    before = [one(bases, name) for name in names]
    registry.forget_requests()
    for pull in ("missing", "never"):
        after = [one(bases, name, pull) for name in names]
        assert [each.manifest_digest for each in after] == [each.manifest_digest for each in before]
    assert registry.requests == []
    assert after[0].manifest_digest != after[1].manifest_digest  # C7: two tags of one repository


def test_what_pull_means(registry: FakeRegistry, bases: ImageBases, layout: Path) -> None:
    name = f"{registry.host}/x:latest"
    old = one(bases, name)
    move_tag(layout, [B])
    assert one(bases, name, "missing").manifest_digest == old.manifest_digest
    assert one(bases, name, "always").manifest_digest != old.manifest_digest
    with pytest.raises(TagUnresolvable, match="--pull never"):  # scenario 15
        one(bases, f"{registry.host}/x:1.0", "never")
    with pytest.raises(TagUnresolvable, match="404"):
        one(bases, f"{registry.host}/x:nothing")
    registry.faults.add(status(403), path="/manifests/private", times=None)
    with pytest.raises(TagUnresolvable, match="403") as refused:
        one(bases, f"{registry.host}/x:private")
    assert refused.value.exit_code == 24


def test_what_is_asked_of_a_tag_is_asked_of_a_known_one(
    registry: FakeRegistry, bases: ImageBases, tmp_path: Path
) -> None:
    """A policy for a tag holds although the image is had by the digest that the tag had."""
    name = f"{registry.host}/busybox"
    one(bases, f"{name}:1.0")
    document = {
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {f"{name}:1.0": [{"type": "reject"}]}},
    }
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(document))
    access = msgspec.structs.replace(ACCESS, trust=TrustOptions(policy=str(policy)))
    cache = tmp_path / "cache"
    judging = ImageBases(cache, tmp_path / "run", access, MountCommand(cache, access))
    with pytest.raises(Untrusted, match="rejects it"):
        one(judging, f"{name}:1.0")
    one(judging, f"{name}:latest")


def test_what_a_fresh_run_is_refused_for(
    registry: FakeRegistry, bases: ImageBases, layout: Path
) -> None:
    host = registry.host
    with pytest.raises(TemplateInvalid, match="Busybox"):
        one(bases, f"{host}/Busybox")
    with pytest.raises(PlatformMismatch, match="s390x"):
        one(bases, f"{host}/x:foreign")
    assert one(bases, f"{host}/x:foreign", platform=OTHER).platform.architecture == "s390x"
    with pytest.raises(PlatformMismatch):
        one(bases, f"{host}/x:multi", platform="linux/riscv64")
    with pytest.raises(BaseUnavailable, match="404"):
        one(bases, f"{host}/x@sha256:{'0' * 64}")
    registry.faults.add(status(404), path="/blobs/", times=None)
    with pytest.raises(BaseUnavailable):  # the tag was resolved; its layers are what is missing
        one(bases, f"{host}/x:1.0")
    assert tag_requests(registry) == 3


def test_a_layout_is_named_by_its_absolute_path(
    layout: Path, bases: ImageBases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(layout.parent)
    image = one(bases, "oci:layout:1.0")
    assert image.original_ref == "oci:layout:1.0"
    assert image.resolved_ref == f"oci:{layout}@{image.manifest_digest}"


# By digest


@pytest.fixture
def image(registry: FakeRegistry, bases: ImageBases) -> Image:
    """Return a recorded image whose tag nobody may ask for any more."""
    found = one(bases, f"{registry.host}/x:1.0")
    registry.forget_requests()
    forbid_tags(registry)
    return found


def test_nothing_is_asked_for_what_is_all_here(
    registry: FakeRegistry, bases: ImageBases, image: Image, tmp_path: Path
) -> None:
    """F11: the registry may be down."""
    fetch_all(tmp_path / "cache", image.resolved_ref)
    registry.forget_requests()
    assert bases.obtain([image], embedded=None, allow_partial=False)["app"].note is None
    assert registry.requests == []


def test_a_cache_that_has_nothing_asks_by_digest(
    registry: FakeRegistry, bases: ImageBases, image: Image, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "cache")
    found = bases.obtain([image], embedded=None, allow_partial=False)["app"]
    assert found.mount_ref == image.resolved_ref
    assert tag_requests(registry) == 0


def test_a_layer_that_is_gone_is_found_out_first(
    registry: FakeRegistry, bases: ImageBases, image: Image, layout: Path
) -> None:
    """F8: the manifest is there, and one layer is not."""
    (layout / "blobs" / "sha256" / B.digest.hex).unlink()
    with pytest.raises(BaseUnavailable, match=f"layer {B.digest}") as missing:
        bases.obtain([image], embedded=None, allow_partial=False)
    error = missing.value
    assert error.exit_code == 20
    assert f"{image.original_ref} (recorded {image.resolved_at})" in error.message
    assert [each["source"] for each in error.details["sources"]] == [
        "cache",
        f"registry {registry.host}/x",
    ]
    assert json.dumps(error.details)
    assert tag_requests(registry) == 0
    partial = bases.obtain([image], embedded=None, allow_partial=True)["app"]  # F12
    assert partial.note is not None
    assert "no source has them" in partial.note


def test_each_source_is_asked_in_its_order(
    registry: FakeRegistry, bases: ImageBases, image: Image, layout: Path, tmp_path: Path
) -> None:
    """F7: the embedded base, the registry, the hints."""
    shutil.rmtree(tmp_path / "cache")
    embedded = shutil.copytree(layout, tmp_path / "embedded")
    registry.faults.add(status(404), path="/v2/gone/", times=None)
    with FakeRegistry(layout) as other:
        forbid_tags(other)
        hinted = msgspec.structs.replace(
            image,
            resolved_ref=f"{registry.host}/gone@{image.manifest_digest}",
            hints=(f"{other.host}/y",),
        )
        found = bases.obtain([hinted], embedded=None, allow_partial=False)["app"]
        assert found.mount_ref == f"{other.host}/y@{image.manifest_digest}"
        assert found.image.original_ref == image.original_ref
        shutil.rmtree(tmp_path / "cache")
        other.forget_requests()
        found = bases.obtain([hinted], embedded=embedded, allow_partial=False)["app"]
        assert found.mount_ref == f"oci:{embedded}@{image.manifest_digest}"
        assert other.requests == []
        other.faults.add(status(404), times=None)
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(BaseUnavailable) as missing:
            bases.obtain([hinted], embedded=None, allow_partial=True)
    sources = [each["source"].partition(" ")[0] for each in missing.value.details["sources"]]
    assert sources == ["cache", "registry", "hint"]


def test_rotten_content_is_put_aside_and_had_again(
    registry: FakeRegistry, bases: ImageBases, image: Image, tmp_path: Path
) -> None:
    """F13: what was stored is hashed before it is believed."""
    cache = tmp_path / "cache"
    fetch_all(cache, image.resolved_ref)
    rot(cache)
    registry.forget_requests()
    bases.obtain([image], embedded=None, allow_partial=False)
    assert registry.count(path="/blobs/") == 2  # the registry has what is now missing
    assert len(list((cache / "quarantine").iterdir())) == 2
    fetch_all(cache, image.resolved_ref)
    rot(cache)
    registry.faults.add(status(404), times=None)
    with pytest.raises(BaseUnavailable):
        bases.obtain([image], embedded=None, allow_partial=False)


def test_content_is_hashed_once(
    registry: FakeRegistry,
    bases: ImageBases,
    image: Image,
    tmp_path: Path,
) -> None:
    """A restore believes what another one has hashed, unless it is told not to."""
    cache = tmp_path / "cache"
    fetch_all(cache, image.resolved_ref)
    bases.obtain([image], embedded=None, allow_partial=False)
    hashed: list[bool] = []

    def count(content: LayerContent, chunk: int) -> bool:
        hashed.append(True)
        return True

    wait_until(lambda: not made_just_now(cache))
    bases.obtain([image], embedded=None, allow_partial=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerContent, "hash_again", count)
        bases.obtain([image], embedded=None, allow_partial=False)
        assert not hashed
        strict = ImageBases(
            cache, tmp_path / "run", ACCESS, MountCommand(cache, ACCESS), rehash=True
        )
        strict.obtain([image], embedded=None, allow_partial=False)
        assert hashed


def test_a_rotten_manifest_is_fetched_again(
    registry: FakeRegistry, bases: ImageBases, image: Image, tmp_path: Path
) -> None:
    """F14: its bytes are hashed whenever they are read."""
    cache = tmp_path / "cache"
    stored = cache / "blobs" / "sha256" / image.manifest_digest.removeprefix("sha256:")
    right = stored.read_bytes()
    stored.write_bytes(right + b" ")
    bases.obtain([image], embedded=None, allow_partial=False)
    assert stored.read_bytes() == right
    assert registry.count(path=f"/manifests/{image.manifest_digest}") == 1
    assert [path.read_bytes() for path in (cache / "quarantine").iterdir()] == [right + b" "]
    stored.write_bytes(b"{}")
    wrong = status(200, {"Content-Type": image.manifest_media_type}, b"{}")
    registry.faults.add(wrong, path="/manifests/", times=None)
    with pytest.raises(BaseCorrupt) as corrupt:
        bases.obtain([image], embedded=None, allow_partial=False)
    assert corrupt.value.exit_code == 21


def test_an_index_is_no_recorded_image(registry: FakeRegistry, bases: ImageBases) -> None:
    index = one(bases, f"{registry.host}/x:multi")
    wrong = msgspec.structs.replace(index, manifest_digest=index.index_digest)
    with pytest.raises(BaseUnavailable, match="is an index"):
        bases.obtain([wrong], embedded=None, allow_partial=False)


# What else is asked


def test_drift_is_what_the_tag_names_now(
    registry: FakeRegistry, bases: ImageBases, layout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F9: said, and of no consequence; a tag that cannot be asked for is left out (F10)."""
    host = registry.host
    wanted = {"moved": f"{host}/x:1.0", "same": f"{host}/x:latest", "gone": f"{host}/x:multi"}
    wanted["pinned"] = one(bases, f"{host}/x:latest").resolved_ref
    images = [base.image for base in bases.resolve(wanted, platform=None, pull="missing").values()]
    move_tag(layout, [C], tag="1.0")
    registry.faults.add(status(404), path="/manifests/multi", times=None)
    registry.forget_requests()
    now = bases.drift(images)
    assert now.keys() == {"moved"}
    assert tag_requests(registry) == 3
    assert "x:multi: cannot resolve the tag again" in caplog.text
    assert one(bases, f"{host}/x:1.0").manifest_digest != now["moved"]  # nothing was remembered


def test_profiles_come_and_go_as_bytes(
    registry: FakeRegistry, bases: ImageBases, image: Image, tmp_path: Path
) -> None:
    from lazyfs.rootfs.layout import LAYOUT_VERSION
    from lazyfs.store.images import load_record
    from lazyfs.store.profiles import Profile, encode_profile

    digest = image.manifest_digest
    assert bases.profile(digest) is None
    record = load_record(tmp_path / "cache" / "images" / digest.removeprefix("sha256:"))
    assert record is not None
    layers = tuple(layer.toc_digest for layer in record.layers)
    data = encode_profile(Profile(digest, LAYOUT_VERSION, layers, ((0, 0), (1, 1))))
    for useless in (b"", b"{}", encode_profile(Profile("x", 1, layers, ())), data[:-9]):
        bases.add_profile(digest, useless)
        assert bases.profile(digest) is None
    bases.add_profile(digest, data)
    assert bases.profile(digest) == data
    bases.add_profile(digest, encode_profile(Profile(digest, LAYOUT_VERSION, layers, ())))
    assert bases.profile(digest) == data


def test_what_the_mounting_process_says_is_told() -> None:
    said = json.dumps({"type": "error", "code": "E_X", "message": "m", "hint": None, "exitCode": 8})
    error = _error_of(8, f"a warning\n{said}\n")
    assert (error.code, error.message, type(error).__name__) == ("E_X", "m", "MountFailed")
    assert "Traceback" in _error_of(1, "Traceback\nboom").message
