"""An image is prepared only if the policies in force trust it, and says why; hostile siblings and
a registry in trouble included."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.store.paths import Store
from lazyfs.store.signatures import load_signatures
from lazyfs.trust.errors import CannotTell, PolicyFault, Untrusted
from lazyfs.trust.options import TrustOptions
from tests.support.formats.images import (
    tagged,
)
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer
from tests.support.registries.registry_wire import Request as Asked
from tests.support.trust.preparing import ACCESS, NAME, mounted, options, scope
from tests.support.trust.signing import Cosigner, Notary

pytestmark = pytest.mark.anyio


async def test_a_signed_image_is_prepared_and_says_so(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    subject = tagged(layout, "single")
    policy = notary.policy(tmp_path, scope(registry))
    notary.sign(registry, NAME, subject)
    prepared = await mounted(registry, tmp_path, options(policy))
    trust = prepared.trust
    assert trust is not None
    assert (trust.verdict, trust.level, trust.format) == ("trusted", "strict", "notation/jws")
    assert trust.policy == f"{policy}: publisher"
    assert trust.signer == "CN=Publisher,O=Example,ST=Berlin,C=DE"
    assert trust.subject == subject["digest"]
    assert trust.signed_at == "2026-06-01T00:00:00Z"
    envelope = notary_envelope(registry, str(trust.signature))
    assert json.loads(envelope)["payload"]


def notary_envelope(registry: FakeRegistry, digest: str) -> bytes:
    data = registry.content.blob(NAME, digest)
    assert isinstance(data, bytes)
    return data


async def test_without_a_policy_nothing_is_asked(registry: FakeRegistry, tmp_path: Path) -> None:
    prepared = await mounted(registry, tmp_path, ACCESS)
    assert prepared.trust is None
    assert not any("referrers" in each.path or ".sig" in each.path for each in registry.requests)


async def test_an_unsigned_image_is_refused(
    registry: FakeRegistry, tmp_path: Path, notary: Notary
) -> None:
    policy = notary.policy(tmp_path, scope(registry))
    with pytest.raises(Untrusted, match="no signature found; policy publisher requires one"):
        await mounted(registry, tmp_path, options(policy))


async def test_a_signature_of_somebody_else_is_refused(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    Notary("Other").sign(registry, NAME, tagged(layout, "single"))
    policy = notary.policy(tmp_path, scope(registry))
    with pytest.raises(Untrusted, match="none of it is in trust store ca:publisher"):
        await mounted(registry, tmp_path, options(policy))


async def test_another_repository_is_not_covered(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    notary.sign(registry, NAME, tagged(layout, "single"))
    policy = notary.policy(tmp_path, f"{registry.host}/team/other")
    with pytest.raises(Untrusted, match="no statement of"):
        await mounted(registry, tmp_path, options(policy))


async def test_one_good_signature_among_bad_ones_is_enough(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    subject = tagged(layout, "single")
    for number in range(5):
        Notary(f"Other {number}").sign(registry, NAME, subject)
    broken = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.cncf.notary.signature", "digest": "x"},
        "layers": "none",
        "subject": subject,
    }
    media_type = "application/vnd.oci.image.manifest.v1+json"
    data = json.dumps(broken | {"mediaType": media_type}).encode()
    registry.content.put_manifest(NAME, data, media_type)
    notary.sign(registry, NAME, subject)
    policy = notary.policy(tmp_path, scope(registry))
    prepared = await mounted(registry, tmp_path, options(policy))
    assert prepared.trust is not None
    assert prepared.trust.verdict == "trusted"


async def test_an_index_that_is_signed_vouches_for_its_images(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    subject = tagged(layout, "many")
    notary.sign(registry, NAME, subject)
    access = options(notary.policy(tmp_path, scope(registry)))
    prepared = await mounted(registry, tmp_path, access, "many")
    assert prepared.trust is not None
    assert prepared.trust.subject == prepared.index_digest == subject["digest"]
    # By its own digest it is the same image: the index that led to it is remembered.
    digest = prepared.image.manifest_digest
    again = await mounted(registry, tmp_path, access, f"@{digest}")
    assert again.trust is not None
    assert again.trust.subject == subject["digest"]
    # Where nothing led to it, it is not signed.
    with pytest.raises(Untrusted):
        await mounted(registry, tmp_path / "other", access, f"@{digest}")


async def test_what_was_good_needs_no_registry(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    subject = tagged(layout, "single")
    notary.sign(registry, NAME, subject)
    access = options(notary.policy(tmp_path, scope(registry)))
    await mounted(registry, tmp_path, access)
    assert load_signatures(Store(tmp_path / "cache"), parse_digest(subject["digest"]))
    before = len(registry.requests)
    prepared = await mounted(registry, tmp_path, replace(access, is_offline=True))
    assert prepared.trust is not None
    assert prepared.trust.verdict == "trusted"
    assert len(registry.requests) == before


async def test_what_is_kept_is_judged_anew(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    notary.sign(registry, NAME, tagged(layout, "single"))
    await mounted(registry, tmp_path, options(notary.policy(tmp_path, scope(registry))))
    other = tmp_path / "other"
    other.mkdir()
    policy = Notary("Other").policy(other, scope(registry))
    with pytest.raises(Untrusted, match="trust store"):
        await mounted(registry, tmp_path, options(policy))
    with pytest.raises(CannotTell, match="--offline"):
        await mounted(registry, tmp_path, replace(options(policy), is_offline=True))


async def test_what_two_policies_want_is_kept_for_both(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    subject, signer = tagged(layout, "single"), Cosigner()
    notary.sign(registry, NAME, subject)
    signer.sign(registry, NAME, subject["digest"], identity=f"{scope(registry)}:single")
    for folder in ("notation", "containers"):
        (tmp_path / ".config" / folder).mkdir(parents=True)
    notary.policy(tmp_path / ".config/notation", scope(registry))
    signer.policy(tmp_path / ".config/containers", scope(registry))
    access = replace(ACCESS, environment={"HOME": str(tmp_path)}, trust=TrustOptions("default"))
    await mounted(registry, tmp_path, access)
    before = len(registry.requests)
    prepared = await mounted(registry, tmp_path, replace(access, is_offline=True))
    assert prepared.trust is not None
    assert prepared.trust.verdict == "trusted"
    assert len(prepared.trust.policy_files) == 2
    assert len(registry.requests) == before


async def test_what_is_kept_is_not_written_again(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    subject = tagged(layout, "single")
    notary.sign(registry, NAME, subject)
    access = options(notary.policy(tmp_path, scope(registry)))
    await mounted(registry, tmp_path, access)
    (path,) = (tmp_path / "cache/signatures").iterdir()
    before = path.stat()
    await mounted(registry, tmp_path, access)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_a_registry_in_trouble_leaves_it_open(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    def refuse(request: Asked, proceed) -> Answer:
        return Answer(500, {}, b"") if "/referrers/" in request.path else proceed(request)

    registry.wrap(refuse)
    policy = notary.policy(tmp_path, scope(registry))
    with pytest.raises(CannotTell, match="signatures could not be listed"):
        await mounted(registry, tmp_path, options(policy))


async def test_cosigns_tag_is_found(registry: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    signer, digest = Cosigner(), tagged(layout, "single")["digest"]
    policy = signer.policy(tmp_path, scope(registry))
    with pytest.raises(Untrusted, match="no signature found"):
        await mounted(registry, tmp_path, options(policy))
    signer.sign(registry, NAME, digest, identity=f"{scope(registry)}:single")
    prepared = await mounted(registry, tmp_path, options(policy))
    assert prepared.trust is not None
    assert (prepared.trust.verdict, prepared.trust.format) == ("trusted", "cosign/payload")


async def test_a_signature_for_another_name_is_refused(
    registry: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    signer, digest = Cosigner(), tagged(layout, "single")["digest"]
    signer.sign(registry, NAME, digest, identity="registry.example/team/app")
    policy = signer.policy(tmp_path, scope(registry))
    with pytest.raises(Untrusted, match="it is for the name"):
        await mounted(registry, tmp_path, options(policy))


async def test_a_bundle_is_found_among_the_referrers(
    registry: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    signer, subject = Cosigner(), tagged(layout, "single")
    signer.bundle(registry, NAME, {k: subject[k] for k in ("mediaType", "digest", "size")})
    identity = {"signedIdentity": {"type": "matchDigestOnly"}}
    policy = signer.policy(tmp_path, scope(registry), **identity)
    prepared = await mounted(registry, tmp_path, options(policy))
    assert prepared.trust is not None
    assert prepared.trust.format == "cosign/bundle"


async def test_a_policy_that_asks_for_nothing_makes_nothing_trusted(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    prepared = await mounted(registry, tmp_path, options(policy))
    assert prepared.trust is not None
    assert prepared.trust.verdict == "skipped"
    assert prepared.trust.signer is None
    assert not any("referrers" in each.path for each in registry.requests)


async def test_a_policy_that_is_not_valid_is_found_out_before_anything_is_asked(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    policy = tmp_path / "trustpolicy.json"
    policy.write_text('{"version": "1.0", "trustPolicies": []}')
    with pytest.raises(PolicyFault):
        await mounted(registry, tmp_path, options(policy))
    assert registry.requests == []


async def test_many_layers_are_not_fetched(
    registry: FakeRegistry, layout: Path, tmp_path: Path, notary: Notary
) -> None:
    """Anybody who can push could have gigabytes fetched, 64 blobs of each of 64 referrers."""
    subject = tagged(layout, "single")
    good = notary.sign(registry, NAME, subject)
    signature = registry.content.manifest(NAME, good)
    assert signature is not None
    manifest = json.loads(signature.data)
    blob = registry.put_blob(NAME, b"x" * 1000)
    layer = {"mediaType": "application/jose+json", "digest": blob, "size": 1000}
    media_type = manifest["mediaType"]
    data = json.dumps(manifest | {"layers": [layer] * 2}).encode()
    registry.content.put_manifest(NAME, data, media_type)
    prepared = await mounted(registry, tmp_path, options(notary.policy(tmp_path, scope(registry))))
    assert prepared.trust is not None
    assert not [each for each in registry.requests if blob in each.path]
