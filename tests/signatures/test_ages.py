"""How old a signature may be, and older images under the same tag: what was seen is remembered."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lazyfs.convert.convert import ConvertOptions, convert_image, convert_reference
from lazyfs.oci.platforms import parse_platform
from lazyfs.store.paths import Store, StoreFull
from lazyfs.store.signatures import load_newest
from lazyfs.trust.errors import CannotTell, Untrusted
from tests.support.formats.images import host_platform, tagged
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.preparing import NAME, mounted, options, scope
from tests.support.trust.signing import Notary

pytestmark = pytest.mark.anyio


async def test_an_older_image_under_the_same_tag_is_noticed(
    registry: FakeRegistry, tmp_path: Path, notary: Notary, layout: Path
) -> None:
    new, old = tagged(layout, "single"), tagged(layout, "many")
    notary.sign(registry, NAME, new, "2026-06-02T00:00:00Z")
    notary.sign(registry, NAME, old, "2026-06-01T00:00:00Z")
    policy = notary.policy(tmp_path, scope(registry))
    move(registry, layout, new)
    await mounted(registry, tmp_path, options(policy), "moving")
    move(registry, layout, old)
    prepared = await mounted(registry, tmp_path, options(policy), "moving")
    assert prepared.trust is not None
    (warning,) = prepared.trust.warnings
    assert "a newer signature, of 2026-06-02T00:00:00Z, was seen before" in warning
    with pytest.raises(Untrusted, match="a newer signature"):
        await mounted(registry, tmp_path, options(policy, is_newer_required=True), "moving")
    kept = load_newest(Store(tmp_path / "cache"), f"{scope(registry)}:moving")
    assert kept is not None
    assert kept.signed_at == "2026-06-02T00:00:00Z"
    move(registry, layout, new)
    await mounted(registry, tmp_path, options(policy, is_newer_required=True), "moving")


def move(registry: FakeRegistry, layout: Path, described: dict) -> None:
    data = (layout / "blobs" / described["digest"].replace(":", "/")).read_bytes()
    registry.content.put_manifest(NAME, data, described["mediaType"], "moving")


async def test_a_signature_may_be_too_old(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    notary.sign(registry, NAME, tagged(layout, "single"), "2026-01-02T00:00:00Z")
    policy = notary.policy(tmp_path, scope(registry))
    await mounted(registry, tmp_path, options(policy))
    with pytest.raises(Untrusted, match="days ago; at most"):
        await mounted(registry, tmp_path, options(policy, max_age=30 * 86400.0))


async def test_an_image_that_was_signed_again_is_young_enough(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    """Neither the signature that is kept nor the order of the list hides the newest one."""
    subject = tagged(layout, "single")
    policy = notary.policy(tmp_path, scope(registry))
    for month in (1, 2, 3):
        notary.sign(registry, NAME, subject, f"2026-0{month}-02T00:00:00Z")
    await mounted(registry, tmp_path, options(policy))
    newest = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    notary.sign(registry, NAME, subject, newest)
    young = options(policy, max_age=30 * 86400.0)
    for folder in (tmp_path, tmp_path / "other", tmp_path):
        prepared = await mounted(registry, folder, young)
        assert prepared.trust is not None
        assert prepared.trust.signed_at == newest
    before = len(registry.requests)
    await mounted(registry, tmp_path, replace(young, is_offline=True))
    assert len(registry.requests) == before


async def test_an_older_image_that_was_signed_again_may_come_back(
    registry: FakeRegistry, tmp_path: Path, notary: Notary, layout: Path
) -> None:
    new, old = tagged(layout, "single"), tagged(layout, "many")
    notary.sign(registry, NAME, new, "2026-06-02T00:00:00Z")
    notary.sign(registry, NAME, old, "2026-06-01T00:00:00Z")
    access = options(notary.policy(tmp_path, scope(registry)), is_newer_required=True)
    for described in (old, new):
        move(registry, layout, described)
        await mounted(registry, tmp_path, access, "moving")
    move(registry, layout, old)
    with pytest.raises(Untrusted, match="a newer signature"):
        await mounted(registry, tmp_path, access, "moving")
    notary.sign(registry, NAME, old, "2026-06-03T00:00:00Z")
    prepared = await mounted(registry, tmp_path, access, "moving")
    assert prepared.trust is not None
    assert prepared.trust.signed_at == "2026-06-03T00:00:00Z"


async def test_a_full_disk_forgets_no_newer_signature(
    registry: FakeRegistry,
    tmp_path: Path,
    notary: Notary,
    layout: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, old = tagged(layout, "single"), tagged(layout, "many")
    notary.sign(registry, NAME, new, "2026-06-02T00:00:00Z")
    notary.sign(registry, NAME, old, "2026-06-01T00:00:00Z")
    access = options(notary.policy(tmp_path, scope(registry)), is_newer_required=True)
    move(registry, layout, new)
    await mounted(registry, tmp_path, access, "moving")
    move(registry, layout, old)
    write_file = Store.write_file

    def full(store: Store, *args: Any, **more: Any) -> None:
        if store.root == tmp_path / "cache":
            raise StoreFull("no space left")
        write_file(store, *args, **more)

    monkeypatch.setattr(Store, "write_file", full)
    with pytest.raises(Untrusted, match="a newer signature"):
        await mounted(registry, tmp_path, access, "moving")


async def test_a_conversion_knows_newer_signatures_too(
    registry: FakeRegistry, tmp_path: Path, notary: Notary, layout: Path
) -> None:
    new, old = tagged(layout, "single"), tagged(layout, "many")
    notary.sign(registry, NAME, new, "2026-06-02T00:00:00Z")
    notary.sign(registry, NAME, old, "2026-06-01T00:00:00Z")
    access = options(notary.policy(tmp_path, scope(registry)), is_newer_required=True)

    async def convert(number: int, cache: Path | None) -> None:
        await convert_reference(
            f"{scope(registry)}:moving",
            f"oci:{tmp_path}/made{number}:v1",
            access,
            ConvertOptions(parse_platform(host_platform())),
            convert_image,
            cache_dir=cache,
        )

    move(registry, layout, new)
    await convert(1, tmp_path / "cache")
    move(registry, layout, old)
    with pytest.raises(Untrusted, match="a newer signature"):
        await convert(2, tmp_path / "cache")
    with pytest.raises(CannotTell, match="without a cache"):
        await convert(3, None)
    assert not (tmp_path / "made2").exists()
    assert not (tmp_path / "made3").exists()
