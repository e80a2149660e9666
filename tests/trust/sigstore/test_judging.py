"""Judging by policy.json: requirements together, signatures that are wrong, what is away."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyfs.digest import digest_of
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_MANIFEST, Manifest, decode_manifest
from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import CannotTell, Malformed, PolicyFault, Untrusted
from lazyfs.trust.files.containers import LocalFiles
from lazyfs.trust.request import SIGNATURES_LIMIT, NextCandidate, Request, Unfetched
from lazyfs.trust.sigstore.candidates import (
    SIGNATURE,
    Attachment,
    Bundled,
    Candidate,
    bundle_layer,
    payload_layers,
)
from lazyfs.trust.sigstore.judge import judge, judging
from lazyfs.trust.sigstore.policy_reading import parse_policy
from lazyfs.trust.verdict import Outcome, Verdict
from tests.support.trust import cosign
from tests.support.trust.cosign import NOW, candidates, image_digest, judged, key_data, signed_by

ACCEPT, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}
P256 = signed_by("p256")


def bad(count: int = 1) -> list[Candidate]:
    """Return candidates that anyone could have pushed."""
    made: list[Candidate] = []
    for number in range(count):
        data = b"{}" * number
        made.append(Attachment(digest_of(data), data, {SIGNATURE: "AAAA"}))
        made.append(Bundled(digest_of(data), data))
    return made[:count]


@pytest.mark.parametrize(
    ("requirements", "outcome"),
    [
        ([ACCEPT], Outcome.SKIPPED),
        ([ACCEPT, ACCEPT], Outcome.SKIPPED),
        ([REJECT], Outcome.UNTRUSTED),
        ([ACCEPT, REJECT], Outcome.UNTRUSTED),
        ([P256], Outcome.TRUSTED),
        ([P256, ACCEPT], Outcome.TRUSTED),
        ([P256, REJECT], Outcome.UNTRUSTED),
        ([P256, signed_by("wrong")], Outcome.UNTRUSTED),
        ([signed_by("wrong"), P256], Outcome.UNTRUSTED),
        ([P256, signed_by("p384")], Outcome.UNTRUSTED),
    ],
)
def test_all_requirements_must_hold(requirements: list[dict[str, Any]], outcome: Outcome) -> None:
    verdict = judged(requirements, candidates("old-p256"), image_digest("old-p256"))
    assert verdict.outcome is outcome
    assert verdict.policy == "policy.json: default"


def test_two_requirements_may_be_met_by_two_signatures() -> None:
    """old-two is signed with p256 and another key; each requirement finds its own signature."""
    found = candidates("old-two")
    key = signed_by("rsa2048"), signed_by("p384"), signed_by("wrong")
    digest = image_digest("old-two")
    (second,) = [each for each in key if judged(each, found, digest).is_allowed]
    for requirements in ([P256, second], [second, P256]):
        verdict = judged(requirements, found, digest)
        assert verdict.outcome is Outcome.TRUSTED
        assert [each.failure for each in verdict.signatures] == [None, None]
    assert judged([P256, second], found[:1], digest).outcome is Outcome.UNTRUSTED


def test_one_key_of_several_is_enough() -> None:
    keys = [key_data("wrong.pub"), key_data("p256.pub")]
    requirement = {**P256, "keyDatas": keys}
    del requirement["keyData"]
    digest = image_digest("new-p256")
    verdict = judged(requirement, candidates("new-p256"), digest)
    assert verdict.accepted is not None
    assert verdict.accepted.signer is not None
    assert verdict.accepted.signer.startswith("the key sha256:22f7b96f89ee84")  # as the hint says


def test_accepting_anything_is_never_called_verified() -> None:
    verdict = judged(ACCEPT, candidates("old-p256"), image_digest("old-p256"))
    assert verdict.outcome is Outcome.SKIPPED
    assert verdict.accepted is None
    assert verdict.level == "insecureAcceptAnything"


@pytest.mark.parametrize("image", ["old-p256", "new-p256"])
def test_wrong_signatures_do_not_block_the_good_one(image: str) -> None:
    found = [*bad(20), *candidates("att-only"), *candidates("old-tampered"), *candidates(image)]
    verdict = judged(P256, found, image_digest(image))
    assert verdict.outcome is Outcome.TRUSTED
    assert len(verdict.signatures) == len(found)
    assert [each.failure is None for each in verdict.signatures[-2:]] == [False, True]
    assert {each.format for each in verdict.signatures} == {"cosign/payload", "cosign/bundle"}


def test_no_more_is_fetched_than_is_needed() -> None:
    def fetched() -> Iterator[Candidate]:
        yield from candidates("old-p256")
        raise AssertionError("asked for one more")

    assert judged([P256, P256], fetched(), image_digest("old-p256")).is_allowed
    assert judged(ACCEPT, fetched(), image_digest("old-p256")).is_allowed
    assert not judged(REJECT, fetched(), image_digest("old-p256")).is_allowed


def test_what_could_not_be_fetched_is_not_called_untrusted() -> None:
    away = Unfetched(None, "registry.example answered 503")
    digest = image_digest("old-p256")
    verdict = judged(P256, [away, *bad()], digest)
    assert verdict.outcome is Outcome.UNKNOWN
    text = "cannot fetch the list of signatures: registry.example answered 503"
    assert verdict.reasons[0].message == text
    assert isinstance(verdict.error(), CannotTell)
    assert judged(P256, [away, *candidates("old-p256")], digest).outcome is Outcome.TRUSTED


def test_signatures_that_cannot_be_fetched_end() -> None:
    def away() -> Iterator[Unfetched]:
        while True:
            yield Unfetched(image_digest("both"), "away")

    verdict = judged(P256, away(), image_digest("old-p256"))
    assert verdict.outcome is Outcome.UNKNOWN
    assert str(image_digest("both")) in verdict.reasons[0].message
    assert len(verdict.reasons) == SIGNATURES_LIMIT + 1


def test_more_signatures_than_are_tried() -> None:
    digest = image_digest("old-p256")
    most = bad(SIGNATURES_LIMIT)
    assert judged(P256, most, digest).outcome is Outcome.UNTRUSTED
    assert judged(P256, [*most[1:], *candidates("old-p256")], digest).outcome is Outcome.TRUSTED
    verdict = judged(P256, [*most, *candidates("old-p256")], digest)
    assert verdict.outcome is Outcome.UNKNOWN
    assert "none of the first 100 signatures is good" in verdict.reasons[0].message
    assert len(verdict.signatures) == SIGNATURES_LIMIT


def test_the_summary_is_short() -> None:
    verdict = judged(P256, [*bad(30), *candidates("att-only")], image_digest("old-p256"))
    assert isinstance(verdict.error(), Untrusted)
    (reason,) = verdict.reasons
    assert reason.message.startswith("none of 31 is accepted by default[0]: ")
    assert "; and " in reason.message
    assert len(reason.message) < 600


def test_signatures_of_names() -> None:
    digest = image_digest("old-p256")
    requirement = {**P256, "signedIdentity": {"type": "matchRepository"}}
    found = candidates("old-p256")
    assert judged(requirement, found, digest).is_allowed
    verdict = judged(requirement, found, digest, asked=cosign.reference("docker-registry"))
    assert verdict.outcome is Outcome.UNTRUSTED
    assert "it is for the name 127.0.0.1:8912/cs-fixtures" in verdict.reasons[0].message
    assert verdict.signatures[0].signer is not None


@pytest.mark.parametrize(
    "identity",
    [
        None,
        {"type": "matchExact"},
        {"type": "matchRepository"},
        {"type": "matchRepoDigestOrExact"},
        {"type": "exactRepository", "dockerRepository": "a.example/b"},
        {"type": "exactReference", "dockerReference": "a.example/b:1"},
        {"type": "remapIdentity", "prefix": "127.0.0.1:8912", "signedPrefix": "a.example"},
    ],
)
def test_a_bundle_names_no_repository(identity: dict[str, str] | None) -> None:
    """Else the bundle of one image, copied beside another's name, would meet the rule."""
    requirement = {**P256, "signedIdentity": identity}
    if identity is None:
        del requirement["signedIdentity"]
    verdict = judged(requirement, candidates("new-p256"), image_digest("new-p256"))
    assert verdict.outcome is Outcome.UNTRUSTED
    assert "a bundle names no repository" in verdict.reasons[0].message


def test_both_forms_beside_each_other() -> None:
    """One good signature is enough, whichever form it has."""
    requirement = {**P256, "signedIdentity": {"type": "matchRepository"}}
    for found in (candidates("both"), candidates("both")[::-1]):
        assert {type(each) for each in found} == {Attachment, Bundled}
        assert judged(requirement, found, image_digest("both")).is_allowed


def test_images_in_layouts() -> None:
    digest = image_digest("new-p256")
    layout = parse_reference("oci:/var/images:1")
    assert judged(P256, candidates("new-p256"), digest, asked=layout).is_allowed
    found = candidates("old-p256")
    requirement = {**P256, "signedIdentity": {"type": "matchRepository"}}
    digest = image_digest("old-p256")
    assert not judged(requirement, found, digest, asked=layout).is_allowed
    name = cosign.reference().name
    requirement["signedIdentity"] = {"type": "exactRepository", "dockerRepository": name}
    assert judged(requirement, found, digest, asked=layout).is_allowed


def faulty(verdict: Verdict, message: str) -> None:
    """Check that an image is refused because of the policy, for this reason."""
    assert verdict.outcome is Outcome.UNTRUSTED
    assert re.search(message, verdict.reasons[0].message), verdict.reasons[0].message
    assert isinstance(verdict.error(), PolicyFault)


def test_keys_are_read_from_their_files(tmp_path: Path) -> None:
    path = tmp_path / "cosign.pub"
    path.write_bytes(cosign.key_file("p256.pub"))
    requirement = {**P256, "keyPath": str(path)}
    del requirement["keyData"]
    verdict = judged(requirement, candidates("old-p256"), image_digest("old-p256"))
    assert verdict.accepted is not None
    assert verdict.accepted.signer == str(path)


PEM = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the public key cannot be read"),
        (b"no key", "the public key cannot be read"),
        (PEM, "the public key cannot be read"),
        (cosign.key_file("ca.crt"), "the public key cannot be read"),
        (cosign.key_file("p256.pub") * 2, "it holds 2 keys, and one is expected"),
        (cosign.key_file("p256.pub") + PEM, "it holds 2 keys, and one is expected"),
        (b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", "it holds a private key"),
        (b"x" * 100_000, "is longer than"),
    ],
)
def test_broken_keys_are_the_policys_fault(data: bytes, message: str) -> None:
    requirement = {**P256, "keyData": base64.b64encode(data).decode() or "AA=="}
    verdict = judged(requirement, candidates("old-p256"), image_digest("old-p256"))
    faulty(verdict, message)
    assert verdict.reasons[0].message.startswith("policy.json: default[0].keyData: ")


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    requirement = {**P256, "keyPaths": ["/dev/null", str(tmp_path / "none")]}
    del requirement["keyData"]
    faulty(
        judged(requirement, [], image_digest("old-p256")),
        r"keyPaths\[0\]: /dev/null cannot be read",
    )
    requirement["keyPaths"] = [str(tmp_path / "none")]
    verdict = judged(requirement, [], image_digest("old-p256"))
    faulty(verdict, r"keyPaths\[0\]: .*/none does not exist")


def test_keys_of_other_scopes_are_not_read() -> None:
    document = {
        "default": [ACCEPT],
        "transports": {"docker": {"a.example": [{"type": "sigstoreSigned", "keyPath": "/none"}]}},
    }
    policy = parse_policy(json.dumps(document).encode(), "policy.json")

    class NoFiles:
        def read(self, path: str) -> bytes:
            raise AssertionError(path)

    request = Request(
        reference=parse_reference("b.example/x"),
        image=Descriptor(OCI_MANIFEST, image_digest("old-p256"), 0),
        now=NOW,
    )
    assert judge(policy, NoFiles(), request, []).is_allowed


def test_judging_in_steps() -> None:
    """For who fetches between the steps: a wish for each signature, none once one is good."""
    document = {"default": [P256]}
    policy = parse_policy(json.dumps(document).encode(), "policy.json")
    digest = image_digest("old-p256")
    image = Descriptor(OCI_MANIFEST, digest, 0)
    request = Request(reference=cosign.reference(), image=image, now=NOW)
    steps = judging(policy, LocalFiles(), request)
    assert next(steps) == NextCandidate()
    assert steps.send(bad()[0]) == NextCandidate()
    with pytest.raises(StopIteration) as end:
        steps.send(candidates("old-p256")[0])
    assert end.value.value.outcome is Outcome.TRUSTED
    steps = judging(policy, LocalFiles(), request)
    next(steps)
    with pytest.raises(TypeError, match="given something else"):
        steps.send("text")  # type: ignore[arg-type]


def test_annotations_must_be_signed() -> None:
    """An annotation of the layer, or of the manifest, is anybody's."""
    digest = image_digest("old-p256")
    (found,) = candidates("old-p256")
    assert isinstance(found, Attachment)
    noted = msgspec.structs.replace(found, annotations={**found.annotations, "env": "prod"})
    verdict = judged(P256, [noted], digest, annotations={"env": "prod"})
    assert verdict.outcome is Outcome.UNTRUSTED
    assert verdict.reasons[0].check == "metadata"
    assert "it says nothing of 'env'; 'prod' is wanted" in verdict.reasons[0].message


def manifest_of(image: str) -> Manifest:
    files = cosign.layout("referrers")
    for entry in json.loads(files["index.json"])["manifests"]:
        document = decode_manifest(files[f"blobs/sha256/{entry['digest'][7:]}"], None)
        assert isinstance(document, Manifest)
        if document.subject is not None and document.subject.digest == image_digest(image):
            return document
    raise KeyError(image)


def test_manifests_of_bundles() -> None:
    manifest, digest = manifest_of("new-p256"), image_digest("new-p256")
    layer = bundle_layer(manifest, digest)
    assert layer == manifest.layers[0]
    assert payload_layers(manifest) == []
    replace = msgspec.structs.replace
    assert bundle_layer(replace(manifest, artifact_type="application/x"), digest) is None
    assert bundle_layer(replace(manifest, artifact_type=None), digest) is None
    large = replace(layer, size=(1 << 20) + 1)
    for change, message in [
        ({"subject": None}, "does not refer to this image"),
        ({"layers": ()}, "not one bundle"),
        ({"layers": (layer, layer)}, "not one bundle"),
        ({"layers": (replace(layer, media_type="text/plain"),)}, "not one bundle"),
        ({"layers": (large,)}, "longer than"),
    ]:
        with pytest.raises(Malformed, match=message):
            bundle_layer(replace(manifest, **change), digest)
    with pytest.raises(Malformed, match="does not refer"):
        bundle_layer(manifest, image_digest("old-p256"))


def test_payloads_of_a_possible_size() -> None:
    manifest = manifest_of("new-p256")
    layer = msgspec.structs.replace(
        manifest.layers[0], media_type="application/vnd.dev.cosign.simplesigning.v1+json"
    )
    large = msgspec.structs.replace(layer, size=(1 << 20) + 1)
    both = msgspec.structs.replace(manifest, layers=(large, layer, manifest.layers[0]))
    assert payload_layers(both) == [layer]


def test_cryptography_is_imported_once_it_is_needed() -> None:
    program = (
        "import sys\n"
        "from lazyfs.trust.sigstore import candidates, judge, policy_reading, registries_d\n"
        "assert not [name for name in sys.modules if name.startswith(('cryptography', 'yaml'))]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
