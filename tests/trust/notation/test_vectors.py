"""Verdicts of notation 1.3.2 on 174 images, at four levels, and where lazyfs differs on purpose."""

import json

import pytest

from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.notation.judge import judge
from lazyfs.trust.notation.policy import parse_policy
from lazyfs.trust.verdict import Outcome
from tests.support.trust.notation import NOTATION, FixtureServers, FixtureStores, vectors

LEVELS = ("strict", "permissive", "audit", "skip")
INDEX = json.loads((NOTATION / "index.json").read_bytes())
CASES = {each["id"]: each for each in INDEX["cases"]}
DOCUMENTS = json.loads((NOTATION / "policy_documents.json").read_bytes())
# "either": what lazyfs has chosen.
CHOSEN = {"rev-crlsecond": "accept", "cose-inprot": "reject", "jws-early": "accept"}
CHOSEN["jws-future"] = "accept"
# Policies that notation accepts and that say less, or more, than whoever wrote them can see.
REFUSED = {"skip-global", "trailing", "dup-member"}
# Sound policies that no signature satisfies.
FAIL_WHEN_USED = {"id-otherprefix", "tsa-only"}
# The classes of failures, by case: what is not "untrusted".
UNKNOWN = {"rev-crlmissing", "rev-crlexpired", "rev-crlforged", "rev-crlhttps", "rev-ocspunknown"}
MISCONFIGURED = {"p256-leafstore", "p256-nostore", "p256-emptystore"}


def expected(case: str, level: str) -> str:
    found = CASES[case]
    wanted: str = found["expected"][level]
    advice = found.get("recommended", "").partition(":")[0]
    if level == "skip" or not advice:
        return wanted
    if advice != "either":
        return str(advice)
    # A choice in which only one check is at stake: levels that only log it accept anyway.
    return "accept" if "accept" in (wanted, CHOSEN[case]) else "reject"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_a_vector(case: str, level: str) -> None:
    verdict = vectors().judge(case, level)
    assert ("accept" if verdict.is_allowed else "reject") == expected(case, level), verdict
    assert (verdict.outcome is Outcome.SKIPPED) == (level == "skip" and verdict.is_allowed)
    if verdict.is_allowed:
        assert verdict.error() is None
        return
    error = verdict.error()
    assert error is not None
    assert "\n" not in error.message
    code = "E_UNTRUSTED"
    if case in UNKNOWN:
        code = "E_TRUST_UNKNOWN"
    elif case in MISCONFIGURED:
        code = "E_POLICY"
    assert error.code == code, error


@pytest.mark.parametrize(
    "case", [case for case, each in CASES.items() if "failed_validation" in each]
)
def test_the_check_that_fails_is_the_same(case: str) -> None:
    """Where both refuse an image, lazyfs names the check that notation names."""
    verdict = vectors().judge(case)
    if verdict.is_allowed:
        return
    named = {"no-signature": "signature", "retrieval": "integrity"}
    failed = CASES[case]["failed_validation"]
    checks = [reason.check for reason in verdict.reasons]
    assert named.get(failed, failed) in checks


@pytest.mark.parametrize("case", ["rev-crlrevoked", "jws-expired", "jws-longexpired", "other-ca"])
def test_what_is_only_logged_is_told(case: str) -> None:
    verdict = vectors().judge(case, "audit")
    assert verdict.outcome is Outcome.TRUSTED
    assert CASES[case]["failed_validation"] in [each.check for each in verdict.warnings]


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if "document" in each], ids=lambda each: each["id"]
)
def test_a_policy_document(document: dict[str, str]) -> None:
    """Judged with the image of the vectors, as notation has: some fail only when they are used."""
    wanted = "reject" if document["id"] in REFUSED else document["expected"]
    data = document["document"].encode()
    if wanted == "reject" and document["id"] not in FAIL_WHEN_USED:
        with pytest.raises(PolicyFault, match=r"^trustpolicy\.json"):
            parse_policy(data, "trustpolicy.json")
        return
    policy = parse_policy(data, "trustpolicy.json")
    found = vectors()
    verdict = judge(
        policy,
        FixtureStores(),
        found.request("jws-p256"),
        found.candidates("jws-p256"),
        FixtureServers(),
    )
    assert ("accept" if verdict.is_allowed else "reject") == wanted


def test_all_vectors_are_here() -> None:
    assert len(CASES) == 174
    assert len(DOCUMENTS) == 49
    assert INDEX["levels"] == list(LEVELS)
