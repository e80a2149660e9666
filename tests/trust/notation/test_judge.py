"""An image judged: the order of things, one signature beside another, and who is asked."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import trio
import trio.lowlevel

from lazyfs.digest import Digest, digest_of
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.notation import envelope as envelopes
from lazyfs.trust.notation.artifact import MANIFEST_LIMIT, Candidate, wanted_envelope
from lazyfs.trust.notation.envelope import (
    AUTHENTIC_TIME,
    EXPIRY,
    PLUGIN,
    PLUGIN_VERSION,
    SCHEME,
    SIGNING_AUTHORITY,
    SIGNING_TIME,
    TIMESTAMP,
)
from lazyfs.trust.notation.judge import (
    QUESTIONS_LIMIT,
    SIGNATURES_LIMIT,
    NextCandidate,
    Request,
    Unfetched,
    judge,
    judging,
)
from lazyfs.trust.notation.jws import parse_jws
from lazyfs.trust.notation.policy import StoreName, parse_policy
from lazyfs.trust.questions import Answers, Away, Question
from lazyfs.trust.verdict import Outcome, Reason, SignatureReport, Verdict
from tests.support.trust import pki
from tests.support.trust.notation import vectors

IMAGE = Descriptor(
    "application/vnd.oci.image.manifest.v1+json", digest_of(b"the image"), len(b"the image")
)
URL = "http://crl.test/a"
LEAF = pki.issue("leaf", pki.root(), extensions=[pki.points(URL)])
PAYLOAD = pki.payload(str(IMAGE.digest), IMAGE.size)


class Stores:
    """Two stores: the root's, and one that is not there."""

    def files(self, store: StoreName) -> Sequence[tuple[str, bytes]]:
        if store.name != "main":
            raise PolicyFault(f"trust store {store} does not exist")
        return [("root.pem", pki.root().pem)]


class Server:
    """A source with one answer, that counts the questions."""

    def __init__(self, answer: Answers = ()) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def answers(self, question: Question) -> Answers:
        self.asked.append(question.url)
        return self.answer


def policy(level: str = "strict", **changes: Any) -> Any:
    statement = {
        "name": "main",
        "registryScopes": ["registry.test/app"],
        "signatureVerification": {"level": level, "override": changes.pop("override", {})},
        "trustStores": ["ca:main"],
        "trustedIdentities": ["*"],
        **changes,
    }
    document = {"version": "1.0", "trustPolicies": [statement]}
    return parse_policy(json.dumps(document).encode(), "FILE")


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "reference": parse_reference("registry.test/app"),
        "image": IMAGE,
        "now": pki.NOW,
        **changes,
    }
    return Request(**given)


def candidate(
    chain: Sequence[pki.Issued] = (LEAF, pki.root()),
    content: bytes = PAYLOAD,
    *,
    manifest: dict[str, Any] | None = None,
    **attributes: Any,
) -> Candidate:
    made = pki.jws(chain, content, **attributes)
    data = pki.manifest(made, str(IMAGE.digest), **(manifest or {}))
    return Candidate(digest_of(data), data, made)


GOOD = pki.crl(pki.root())


def run(
    *candidates: Candidate | Unfetched,
    answer: Answers = (GOOD,),
    given: Any = None,
    **changes: Any,
) -> Verdict:
    return judge(given or policy(), Stores(), request(**changes), candidates, Server(answer))


def test_a_good_signature() -> None:
    verdict = run(candidate())
    assert verdict.outcome is Outcome.TRUSTED
    assert verdict.is_allowed
    assert (verdict.policy, verdict.level) == ("main", "strict")
    assert verdict.accepted is not None
    assert verdict.accepted.signer == "CN=leaf,O=Acme,ST=Berlin,C=DE"
    assert verdict.accepted.format == "notation/jws"
    assert verdict.warnings == ()


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"protected": {"crit": [SCHEME, "com.example.x"], "com.example.x": 1}}, "unknown"),
        ({"protected": {"crit": [SCHEME, "com.example.x"]}}, "absent"),
        ({"protected": {"crit": [SCHEME, SCHEME]}}, "twice"),
        ({"protected": {"crit": [SCHEME, "alg"]}}, "'?alg'? is unknown|attribute alg"),
        ({"protected": {"crit": [SCHEME, 1]}}, "what is critical"),
        ({"protected": {"crit": SCHEME}}, "what is critical"),
        ({"protected": {"cty": None}}, "payload is of type"),
        ({"protected": {SCHEME: None}}, "scheme"),
        ({"protected": {SIGNING_TIME: 5}}, "not text"),
        ({"protected": {SIGNING_TIME: "yesterday"}}, "RFC 3339"),
        ({"protected": {SIGNING_TIME: "2026-02-30T00:00:00Z"}}, "calendar"),
        ({"protected": {SIGNING_TIME: "9999-12-31T23:59:59-23:59"}}, "calendar"),
        ({"protected": {SIGNING_TIME: "0001-01-01T00:00:00+23:59"}}, "calendar"),
        ({"protected": {SIGNING_TIME: "2026-01-01T00:00:00+99:00"}}, "calendar"),
        ({"protected": {AUTHENTIC_TIME: "2026-11-30T00:00:00Z"}}, "does not go"),
        ({"protected": {EXPIRY: "2027-01-01T00:00:00Z"}}, "critical"),
        (
            {"protected": {EXPIRY: "2026-11-30T00:00:00Z", "crit": [SCHEME, EXPIRY]}},
            "expires before",
        ),
        ({"protected": {PLUGIN: 5}}, "not text"),
        ({"protected": {PLUGIN: None, PLUGIN_VERSION: 5, SCHEME: 5}}, "scheme"),
        ({"protected": {"alg": "ES384"}}, "asks for ES256"),
        ({"protected": {"alg": None}}, "asks for ES256"),
        ({"protected": {"alg": "HS256"}}, "asks for ES256"),
        ({"header": {"x5c": []}}, "chain is missing"),
        ({"header": {"x5c": "MII"}}, "chain is missing"),
        ({"header": {"x5c": ["!"]}}, "not base64"),
        ({"header": {"x5c": [5]}}, "not base64"),
        ({"header": {TIMESTAMP: 5}}, "not base64"),
        ({"header": {"alg": "ES256"}}, "both headers"),
    ],
)
def test_envelopes_that_are_not_sound(attributes: dict[str, Any], fault: str) -> None:
    import re

    verdict = run(candidate(**attributes))
    assert verdict.outcome is Outcome.UNTRUSTED
    assert verdict.reasons[0].check == "integrity"
    assert re.search(fault, verdict.reasons[0].message), verdict.reasons


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"targetArtifact": 5}',
        pki.payload("sha256:00"),
        pki.payload(str(IMAGE.digest), -1),
        pki.payload(str(IMAGE.digest), True),
        pki.payload(str(IMAGE.digest), IMAGE.size, annotations={"a": 1}),
        pki.payload(str(IMAGE.digest), IMAGE.size, mediaType=5),
        pki.payload(str(IMAGE.digest)).replace(b"targetArtifact", b"TargetArtifact"),
    ],
)
def test_payloads_that_are_not_sound(content: bytes) -> None:
    verdict = run(candidate(content=content))
    assert verdict.outcome is Outcome.UNTRUSTED
    assert verdict.reasons[0].check == "integrity"


def test_a_chain_of_a_thousand() -> None:
    many = [LEAF, *[pki.root()] * 1000]
    began = time.process_time()
    verdict = run(candidate(many))
    assert "longer than 10" in verdict.reasons[0].message
    assert time.process_time() - began < 2


def test_an_envelope_that_is_not_what_its_manifest_says() -> None:
    good = candidate()
    for other in (good.envelope + b" ", good.envelope[:-1], b"", good.envelope.replace(b"a", b"b")):
        verdict = run(Candidate(good.digest, good.manifest, other))
        assert "size or digest" in verdict.reasons[0].message
    verdict = run(Candidate(digest_of(b"x"), good.manifest, good.envelope))
    assert "does not have its digest" in verdict.reasons[0].message


@pytest.mark.parametrize(
    "changes",
    [
        {"artifactType": "application/vnd.example"},
        {"artifactType": None},
        {"subject": {"digest": str(digest_of(b"other"))}},
        {"subject": None},
        {"subject": "x"},
    ],
)
def test_what_is_no_signature_of_the_image_is_passed_over(changes: dict[str, Any]) -> None:
    verdict = run(candidate(manifest=changes))
    assert verdict.signatures == ()
    assert verdict.reasons[0].check == "signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": []},
        {"layers": "x"},
        {"layers": ["x"]},
        {"layers": [{"mediaType": "text/plain", "digest": "", "size": 1}]},
        {"layers": [{"mediaType": "application/jose+json", "digest": "x", "size": 1}]},
        {"layers": [{"mediaType": "application/jose+json", "digest": "sha256:0", "size": 1}]},
        {"layers": [{"mediaType": "application/jose+json", "size": 1}]},
        {"layers": [{"mediaType": [], "digest": "x", "size": 1}]},
    ],
)
def test_a_malformed_artifact_stands_in_nobodys_way(changes: dict[str, Any]) -> None:
    """notation gives up: whoever may push could block every good signature."""
    bad = candidate(manifest=changes)
    assert run(bad).outcome is Outcome.UNTRUSTED
    verdict = run(bad, candidate())
    assert verdict.outcome is Outcome.TRUSTED
    assert len(verdict.signatures) == 2


@pytest.mark.parametrize("size", [1 << 40, True, -1, None, "1", 1.0])
def test_the_size_of_an_envelope(size: Any) -> None:
    layer = {"mediaType": "application/jose+json", "digest": str(IMAGE.digest), "size": size}
    verdict = run(candidate(manifest={"layers": [layer]}))
    assert "is not of 0 to" in verdict.reasons[0].message


def test_a_manifest_that_is_too_large() -> None:
    data = b'{"x":"' + b"x" * MANIFEST_LIMIT + b'"}'
    with pytest.raises(Malformed, match="longer than"):
        wanted_envelope(digest_of(data), data, IMAGE.digest)


def test_after_a_good_one_no_more_are_taken() -> None:
    taken = []

    def all_of_them() -> Iterator[Candidate]:
        for each in (candidate(content=b"{}"), candidate(), candidate()):
            taken.append(each)
            yield each

    verdict = judge(policy(), Stores(), request(), all_of_them(), Server([GOOD]))
    assert verdict.outcome is Outcome.TRUSTED
    assert len(taken) == 2


def test_too_many_signatures_are_not_an_answer() -> None:
    bad = candidate(content=b"{}")
    verdict = run(*[bad] * SIGNATURES_LIMIT)
    assert verdict.outcome is Outcome.UNTRUSTED
    verdict = run(*[bad] * SIGNATURES_LIMIT, candidate())
    assert verdict.outcome is Outcome.UNKNOWN
    assert "there are more" in verdict.reasons[0].message


def test_what_could_not_be_fetched_is_not_absent() -> None:
    away = Unfetched(None, "HTTP 503")
    verdict = run(away)
    assert verdict.outcome is Outcome.UNKNOWN
    assert verdict.error().code == "E_TRUST_UNKNOWN"  # type: ignore[union-attr]
    assert run(away, candidate()).outcome is Outcome.TRUSTED
    assert (
        run(Unfetched(IMAGE.digest, "HTTP 404"), candidate(content=b"{}")).outcome
        is Outcome.UNKNOWN
    )


def test_an_image_without_signature() -> None:
    for level in ("strict", "permissive", "audit"):
        verdict = run(given=policy(level))
        assert verdict.outcome is Outcome.UNTRUSTED
        assert verdict.reasons[0].check == "signature"
    wanted = policy(trustedIdentities=["x509.subject: C=DE, ST=Berlin, O=Acme"])
    assert "requires one by C=DE" in run(given=wanted).reasons[0].message


def test_no_statement_and_skip() -> None:
    other = parse_reference("registry.test/other")
    verdict = run(candidate(), reference=other)
    assert verdict.outcome is Outcome.UNTRUSTED
    assert verdict.reasons[0] == Reason("policy", "no statement of FILE is for registry.test/other")
    verdict = run(given=policy("skip", trustStores=[], trustedIdentities=[]))
    assert verdict.outcome is Outcome.SKIPPED
    assert verdict.is_allowed
    # A layout on this machine is in no repository.
    assert run(candidate(), reference=parse_reference("oci:app")).reasons[0].check == "policy"


def test_docker_hub_is_called_by_its_whole_name() -> None:
    given = policy(registryScopes=["docker.io/library/app"])
    verdict = run(candidate(), given=given, reference=parse_reference("app:1"))
    assert verdict.outcome is Outcome.TRUSTED


def test_a_plugin_that_is_asked_for() -> None:
    for protected in (
        {PLUGIN: "x"},
        {PLUGIN: "x", "crit": [SCHEME, PLUGIN]},
        {PLUGIN_VERSION: "1"},
    ):
        for level in ("strict", "audit"):
            verdict = run(candidate(protected=protected), given=policy(level))
            assert verdict.reasons[0].check == "plugin"


def test_metadata() -> None:
    content = pki.payload(str(IMAGE.digest), IMAGE.size, annotations={"build": "7", "x": "y"})
    signed = candidate(content=content)
    assert run(signed, metadata={"build": "7"}).outcome is Outcome.TRUSTED
    for wanted in ({"build": "8"}, {"other": "7"}):
        verdict = run(signed, metadata=wanted, given=policy("audit"))
        assert verdict.reasons[0].check == "metadata"


def test_the_image_is_meant_and_no_other() -> None:
    for content in (
        pki.payload(str(digest_of(b"other")), IMAGE.size),
        pki.payload(str(IMAGE.digest), IMAGE.size + 1),
        pki.payload(str(IMAGE.digest), IMAGE.size, mediaType="text/plain"),
    ):
        for level in ("strict", "audit"):
            verdict = run(candidate(content=content), given=policy(level))
            assert verdict.reasons[0].check == "payload"


def test_expiry_is_a_moment() -> None:
    signed = candidate(protected={EXPIRY: "2026-12-01T00:00:00Z", "crit": [SCHEME, EXPIRY]})
    assert run(signed, now=pki.later(seconds=-1)).outcome is Outcome.TRUSTED
    assert run(signed).reasons[0].check == "expiry"
    lenient = run(signed, given=policy(override={"expiry": "log"}))
    assert lenient.outcome is Outcome.TRUSTED
    assert [each.check for each in lenient.warnings] == ["expiry"]


def test_a_store_that_is_broken_is_the_administrators_fault() -> None:
    verdict = run(candidate(), given=policy(trustStores=["ca:main", "ca:gone"]))
    assert verdict.error().code == "E_POLICY"  # type: ignore[union-attr]
    # But not where another kind of store is asked for.
    given = policy(trustStores=["ca:main", "signingAuthority:gone"])
    assert run(candidate(), given=given).outcome is Outcome.TRUSTED


def test_a_signature_cannot_turn_the_verdict_into_a_fault_of_the_policy() -> None:
    """A scheme that asks for a broken store is passed over like any other bad signature."""
    scheme = {
        SCHEME: SIGNING_AUTHORITY,
        SIGNING_TIME: None,
        AUTHENTIC_TIME: "2026-11-30T00:00:00Z",
        "crit": [SCHEME, AUTHENTIC_TIME],
    }
    given = policy(trustStores=["ca:main", "signingAuthority:gone"])
    verdict = run(candidate(protected=scheme), candidate(), given=given)
    assert verdict.outcome is Outcome.TRUSTED


# Revocation


def test_a_revoked_signer() -> None:
    revoking = [pki.crl(pki.root(), [LEAF.certificate.serial])]
    assert run(candidate(), answer=revoking).outcome is Outcome.UNTRUSTED
    verdict = run(candidate(), answer=revoking, given=policy("permissive"))
    assert verdict.outcome is Outcome.TRUSTED
    assert "revoked since" in verdict.warnings[0].message
    skipping = policy(override={"revocation": "skip"})
    verdict = run(candidate(), answer=revoking, given=skipping)
    assert verdict.outcome is Outcome.TRUSTED
    assert verdict.warnings == ()


def test_nothing_is_known_of_revocation() -> None:
    assert run(candidate(), answer=Away("HTTP 503")).outcome is Outcome.UNKNOWN
    assert judge(policy(), Stores(), request(), [candidate()], None).outcome is Outcome.UNKNOWN
    lenient = run(candidate(), answer=Away("HTTP 503"), given=policy("permissive"))
    assert lenient.outcome is Outcome.TRUSTED
    assert lenient.warnings[0].kind == "unknown"


def test_unknown_is_not_said_of_a_signature_for_another_image() -> None:
    other = candidate(content=pki.payload(str(digest_of(b"other")), IMAGE.size))
    verdict = run(other, answer=Away("HTTP 503"))
    assert verdict.outcome is Outcome.UNTRUSTED
    assert verdict.reasons[0].check == "payload"


def test_strangers_do_not_decide_who_is_asked() -> None:
    """At level audit a foreign chain passes; the addresses in it are its maker's choice."""
    foreign = pki.issue("foreign", authority=True)
    leaf = pki.issue("leaf", foreign, extensions=[pki.points("http://inside.test/")])
    signed = candidate([leaf, foreign])
    for level, outcome in (("strict", Outcome.UNTRUSTED), ("audit", Outcome.TRUSTED)):
        server = Server()
        verdict = judge(policy(level), Stores(), request(), [signed], server)
        assert verdict.outcome is outcome
        assert server.asked == []
        if level == "audit":
            assert "revocation" in [each.check for each in verdict.warnings]


def test_one_question_is_asked_once() -> None:
    server = Server(Away("HTTP 503"))
    judge(policy(), Stores(), request(), [candidate()] * 5, server)
    assert server.asked == [URL]


def test_a_list_is_asked_for_once_for_all_certificates() -> None:
    leaves = [pki.issue("leaf", pki.root(), extensions=[pki.points(URL)]) for _ in range(3)]
    server = Server(Away("HTTP 503"))
    judge(policy(), Stores(), request(), [candidate([each, pki.root()]) for each in leaves], server)
    assert server.asked == [URL]


def many(count: int) -> list[Candidate]:
    """Return signatures by different signers, each with eight addresses of its own."""
    found = []
    for number in range(count):
        urls = [f"http://crl.test/{number}/{at}" for at in range(8)]
        leaf = pki.issue("leaf", pki.root(), extensions=[pki.points(*urls)])
        found.append(candidate([leaf, pki.root()]))
    return found


def test_questions_are_bounded() -> None:
    server = Server(Away("HTTP 503"))
    verdict = judge(policy(), Stores(), request(), many(10), server)
    assert len(server.asked) == QUESTIONS_LIMIT
    assert "too much has been asked" in verdict.reasons[-1].message


def test_answers_are_bounded() -> None:
    server = Server([bytes(30 << 20)])
    judge(policy(), Stores(), request(), many(2), server)
    assert len(server.asked) == 5


# Time


def test_the_last_second_of_a_certificate() -> None:
    end = pki.later(hours=1)
    signed = candidate([pki.issue("leaf", pki.root(), begin=pki.NOW, end=end), pki.root()])
    for now, outcome in (
        (pki.later(seconds=-1), Outcome.UNTRUSTED),
        (pki.NOW, Outcome.TRUSTED),
        (end, Outcome.TRUSTED),
        (pki.later(hours=1, seconds=1), Outcome.UNTRUSTED),
    ):
        assert run(signed, now=now).outcome is outcome
    # After that a time-stamp is asked for, not before.
    later = policy(
        trustStores=["ca:main", "tsa:main"],
        signatureVerification={"level": "strict", "verifyTimestamp": "afterCertExpiry"},
    )
    assert run(signed, now=end, given=later).outcome is Outcome.TRUSTED
    verdict = run(signed, now=pki.later(hours=1, seconds=1), given=later)
    assert verdict.reasons[0].message == "the signature has no time-stamp"


@pytest.mark.parametrize(
    ("moment", "outcome"),
    [
        ("2026-06-01T00:00:00Z", Outcome.TRUSTED),
        ("2026-06-01T02:00:00+02:00", Outcome.TRUSTED),
        ("2026-07-01T00:00:00Z", Outcome.TRUSTED),
        ("2026-07-01T00:00:01Z", Outcome.UNTRUSTED),
        ("2025-12-31T23:59:59Z", Outcome.UNTRUSTED),
    ],
)
def test_an_authority_says_when(moment: str, outcome: Outcome) -> None:
    expired = pki.issue("leaf", pki.root(), end=datetime(2026, 7, 1, tzinfo=UTC))
    signed = candidate(
        [expired, pki.root()],
        protected={
            SCHEME: SIGNING_AUTHORITY,
            SIGNING_TIME: None,
            AUTHENTIC_TIME: moment,
            "crit": [SCHEME, AUTHENTIC_TIME],
        },
    )
    given = policy(trustStores=["signingAuthority:main"])
    assert run(signed, given=given).outcome is outcome
    assert run(signed).reasons[0].check == "authenticity"


def test_time_stamps() -> None:
    expired = pki.issue("leaf", pki.root(), end=pki.later(hours=-1))
    unsigned = candidate([expired, pki.root()])
    assert run(unsigned).reasons[0].check == "authenticTimestamp"
    clock = pki.authority_for_time()
    signature = parse_jws(unsigned.envelope).signature
    import base64

    def stamped(token: bytes) -> Candidate:
        document = json.loads(unsigned.envelope)
        document["header"][TIMESTAMP] = base64.b64encode(token).decode()
        data = json.dumps(document).encode()
        found = pki.manifest(data, str(IMAGE.digest))
        return Candidate(digest_of(found), found, data)

    good = stamped(pki.timestamp(clock, signature))
    given = policy(trustStores=["ca:main", "tsa:main"])
    assert run(good, given=given).outcome is Outcome.TRUSTED
    assert run(good).outcome is Outcome.UNTRUSTED
    late = stamped(pki.timestamp(clock, signature, "20261130233000Z"))
    assert "expired" in run(late, given=given).reasons[0].message
    early = stamped(pki.timestamp(clock, signature, "20251231235959Z"))
    assert run(early, given=given).reasons[0].check == "authenticTimestamp"
    revoked = pki.authority_for_time(extensions=[*_stamping(), pki.points(URL)])
    unsure = stamped(pki.timestamp(revoked, signature))
    assert run(unsure, given=given, answer=Away("x")).outcome is Outcome.UNKNOWN
    revoking = [pki.crl(pki.root(), [revoked.certificate.serial])]
    assert run(unsure, given=given, answer=revoking).outcome is Outcome.UNTRUSTED


def _stamping() -> list[Any]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    return [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True)]


# Values


def test_every_attribute_that_is_understood_is_spelled_once() -> None:
    assert len(envelopes.UNDERSTOOD) == 6
    assert TIMESTAMP not in envelopes.UNDERSTOOD


def test_what_refuses_an_image() -> None:
    digest = Digest("sha256", "0" * 64)
    verdict = Verdict(outcome=Outcome.UNTRUSTED, name="n", digest=digest)
    assert str(verdict.error()) == f"n@{digest}: the policy refuses it"
    accepted = SignatureReport(digest=digest, format="x")
    verdict = Verdict(outcome=Outcome.TRUSTED, name="n", digest=digest, signatures=(accepted,))
    assert verdict.error() is None
    assert verdict.accepted is accepted


def test_under_trio() -> None:
    """The same steps, with everything fetched by tasks."""

    async def main() -> Verdict:
        steps = judging(policy(), Stores(), request())
        waiting = [candidate(content=b"{}"), candidate()]
        given: Any = None
        while True:
            try:
                wish = steps.send(given)
            except StopIteration as end:
                return cast(Verdict, end.value)
            await trio.lowlevel.checkpoint()
            if isinstance(wish, NextCandidate):
                given = waiting.pop(0) if waiting else None
            else:
                given = [GOOD]

    assert trio.run(main).outcome is Outcome.TRUSTED


def test_the_generator_wants_what_it_asks_for() -> None:
    steps = judging(policy(), Stores(), request())
    next(steps)
    with pytest.raises(TypeError):
        steps.send([b""])
    steps = judging(policy(), Stores(), request())
    next(steps)
    assert isinstance(steps.send(candidate()), Question)
    with pytest.raises(TypeError):
        steps.send(candidate())


def test_cryptography_is_imported_when_a_policy_is_in_force() -> None:
    program = """
import sys
import lazyfs.cli.main, lazyfs.mount, lazyfs.image, lazyfs.trust.verdict, lazyfs.trust.questions
import lazyfs.trust.notation.judge, lazyfs.trust.notation.policy, lazyfs.trust.files.notation
assert "cryptography" not in sys.modules, "too early"
import lazyfs.trust.notation.signature
assert "cryptography" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_verdict_takes_little_time() -> None:
    """10 ms a verdict, an image with one signature; this leaves room for a busy machine."""
    found = vectors()
    for case in ("jws-rsa4096", "cose-p521", "jws-tsa-tsa", "rev-ocspdown"):
        found.judge(case)
        began = time.process_time()
        for _ in range(10):
            found.judge(case)
        assert (time.process_time() - began) / 10 < 0.05
