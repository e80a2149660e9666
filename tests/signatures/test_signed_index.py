"""An index of plain layers that is signed as images must be needs no pin; any other is not used."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from lazyfs.convert.indexing import build_index_of, push_index
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.trust.options import TrustOptions
from tests.support.formats.images import (
    directory,
    file,
    make_layout,
    plain_layer,
    tagged,
    tar_bytes,
)
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.preparing import ACCESS, NAME
from tests.support.trust.signing import Notary, described

pytestmark = pytest.mark.anyio

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    entries = [directory("d"), file("d/file", b"contents" * 100_000)]
    make_layout(path, [plain_layer(tar_bytes(entries))])
    return path


async def published(registry: FakeRegistry, folder: Path) -> dict:
    """Push an index as its builder does; return its descriptor."""
    request = Request(f"{registry.host}/{NAME}:latest", None, folder / "builder", ACCESS)
    built = await build_index_of(request)
    await push_index(request, built)
    return described(OCI_MANIFEST, built.artifact.manifest)


async def mounted(registry: FakeRegistry, folder: Path, policy: Path | None) -> Prepared:
    trust = TrustOptions(policy="off" if policy is None else str(policy))
    access = replace(ACCESS, trust=trust)
    reference = f"{registry.host}/{NAME}:latest"
    return await prepare(Request(reference, None, folder / "cache", access))


async def test_a_signed_index_is_used(registry: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    notary = Notary()
    policy = notary.policy(tmp_path, f"{registry.host}/{NAME}")
    notary.sign(registry, NAME, tagged(layout))
    notary.sign(registry, NAME, await published(registry, tmp_path))
    prepared = await mounted(registry, tmp_path, policy)
    assert [layer.verified_by for layer in prepared.image.layers] == ["index"]
    # Another mount of what is here now needs neither.
    again = await mounted(registry, tmp_path, policy)
    assert again.image == prepared.image


async def test_one_that_is_not_signed_is_not(
    registry: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    notary = Notary()
    policy = notary.policy(tmp_path, f"{registry.host}/{NAME}")
    notary.sign(registry, NAME, tagged(layout))
    Notary("Other").sign(registry, NAME, await published(registry, tmp_path))
    prepared = await mounted(registry, tmp_path, policy)
    assert [layer.verified_by for layer in prepared.image.layers] == ["pass"]


async def test_without_a_policy_none_is_looked_for(
    registry: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    await published(registry, tmp_path)
    registry.forget_requests()
    prepared = await mounted(registry, tmp_path, None)
    assert [layer.verified_by for layer in prepared.image.layers] == ["pass"]
    assert not any("referrers" in each.path for each in registry.requests)


async def test_a_policy_that_asks_for_nothing_vouches_for_no_index(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    await published(registry, tmp_path)
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    prepared = await mounted(registry, tmp_path, policy)
    assert [layer.verified_by for layer in prepared.image.layers] == ["pass"]
