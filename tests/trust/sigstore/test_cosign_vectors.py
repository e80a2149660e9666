"""Signatures made by cosign 2.5.0 and 3.1.1: lazyfs says what cosign says, or what it should."""

import itertools
from typing import Any

import pytest

from lazyfs.trust.sigstore.candidates import Attachment, Bundled
from lazyfs.trust.verdict import Outcome
from tests.support.trust import cosign

CASES = {case["id"]: case for case in cosign.index()["cases"]}
SKOPEO = cosign.index()["skopeo_1_18_policy_json"]


def expected(case: dict[str, Any], registry: str) -> bool:
    """Say whether the newest cosign that was asked accepts; its recommended successor wins."""
    if recommended := case.get("recommended"):
        return bool(recommended.startswith("accept"))
    for tool in ("cosign3.1.1", "cosign2.5.0"):
        if answer := case.get(f"{tool}/{registry}"):
            return bool(answer["exit"] == 0)
    return False


def requirement_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return the requirement that says what cosign's arguments say."""
    arguments = case["args"]
    if "--certificate-identity" in arguments:
        return cosign.certified(arguments[arguments.index("--certificate-identity") + 1])
    if "(without --insecure-ignore-tlog)" in arguments:
        return cosign.signed_by(case["key"], rekorPublicKeyData=cosign.key_data("p384.pub"))
    return cosign.signed_by(case["key"])


def annotations_of(case: dict[str, Any]) -> dict[str, str]:
    arguments = case["args"]
    given = [after for flag, after in itertools.pairwise(arguments) if flag == "-a"]
    return dict(each.split("=") for each in given)


@pytest.mark.parametrize("registry", cosign.REGISTRIES)
@pytest.mark.parametrize("name", CASES)
def test_verdicts(name: str, registry: str) -> None:
    case = CASES[name]
    digest = cosign.image_digest(case["image"])
    found = cosign.candidates(case["image"], registry)
    requirement = requirement_of(case)
    verdict = cosign.judged(requirement, found, digest, annotations=annotations_of(case))
    outcome = Outcome.TRUSTED if expected(case, registry) else Outcome.UNTRUSTED
    assert verdict.outcome is outcome, verdict
    assert bool(verdict.reasons) == (outcome is Outcome.UNTRUSTED)
    assert (verdict.accepted is not None) == (outcome is Outcome.TRUSTED)


def test_the_vectors_are_all_there() -> None:
    assert len(CASES) == 36
    forms = {type(each) for image in cosign.index()["images"] for each in cosign.candidates(image)}
    assert forms == {Attachment, Bundled}
    for image in cosign.index()["images"]:
        olareg, docker = (cosign.candidates(image, each) for each in cosign.REGISTRIES)
        assert len(olareg) == len(docker), image
        assert bool(olareg) == (image != "unsigned"), image


@pytest.mark.parametrize("number", range(len(SKOPEO)))
def test_verdicts_of_skopeo(number: int) -> None:
    """The same policy.json as skopeo 1.18.0 had, names included; bundles it cannot see."""
    case = SKOPEO[number]
    requirement = cosign.signed_by(case["key"])
    del requirement["signedIdentity"]
    if case["signedIdentity"]:
        requirement["signedIdentity"] = {"type": case["signedIdentity"]}
    verdict = cosign.judged(
        requirement,
        cosign.candidates(case["image"], "docker-registry"),
        cosign.image_digest(case["image"]),
        asked=cosign.reference("docker-registry"),
    )
    assert verdict.is_allowed == (case["exit"] == 0), verdict


@pytest.mark.parametrize(
    ("name", "requirement", "check", "message"),
    [
        ("unsigned", cosign.signed_by("p256"), "signature", "no signature found"),
        ("old-p256", cosign.signed_by("wrong"), "authenticity", "does not verify with the key"),
        ("old-tampered", cosign.signed_by("p256"), "authenticity", "does not verify"),
        ("new-tampered", cosign.signed_by("p256"), "authenticity", "does not verify"),
        ("old-wrong-image", cosign.signed_by("p256"), "payload", "it is for sha256:37a07fdd"),
        ("new-wrong-image", cosign.signed_by("p256"), "payload", "it is for 'd4a3ae28"),
        ("att-only", cosign.signed_by("p256"), "payload", "it is an attestation"),
        ("new-relabel", cosign.signed_by("p256"), "payload", "it is an attestation"),
        ("new-cert", cosign.signed_by("p256"), "authenticity", "not with a bare key"),
        (
            "old-p256",
            requirement_of(CASES["old-p256-tlog-required"]),
            "authenticity",
            "it has no entry of a transparency log",
        ),
        ("new-p256", cosign.certified("x@y"), "authenticity", "not made with a certificate"),
        ("old-p256", cosign.certified("x@y"), "authenticity", "not made with a certificate"),
        ("old-cert", cosign.certified("x@y"), "authenticity", "the policy wants 'x@y'"),
        ("new-cert", cosign.certified("x@y"), "authenticity", "the policy wants 'x@y'"),
    ],
)
def test_reasons(name: str, requirement: dict[str, Any], check: str, message: str) -> None:
    digest = cosign.image_digest(name)
    verdict = cosign.judged(requirement, cosign.candidates(name), digest)
    assert verdict.outcome is Outcome.UNTRUSTED
    assert verdict.reasons[0].check == check
    assert message in verdict.reasons[0].message
    error = verdict.error()
    assert error is not None
    assert str(error).startswith(f"{cosign.reference().name}@{digest}: ")


def test_a_certificate_in_a_bundle() -> None:
    """What containers/image cannot read yet: a certificate of one's own in the new form."""
    verdict = cosign.judged(
        cosign.certified("release@example.test"),
        cosign.candidates("new-cert"),
        cosign.image_digest("new-cert"),
    )
    assert verdict.outcome is Outcome.TRUSTED
    assert verdict.accepted is not None
    assert verdict.accepted.signer is not None
    assert "CN=cosign leaf" in verdict.accepted.signer
    assert verdict.accepted.format == "cosign/bundle"
