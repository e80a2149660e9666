"""Payloads, bundles and their manifests that others wrote to be misunderstood."""

import base64
import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.digest import Digest, digest_of
from lazyfs.trust.errors import Malformed
from lazyfs.trust.sigstore.bundle import (
    BUNDLE_LIMIT,
    BUNDLE_TYPE,
    SIGNATURE_PREDICATE,
    STATEMENT_MEDIA_TYPE,
    STATEMENT_TYPE,
    Envelope,
    parse_bundle,
    parse_statement,
)
from lazyfs.trust.sigstore.candidates import CERTIFICATE, CHAIN, SIGNATURE, Attachment, Bundled
from lazyfs.trust.sigstore.payload import PAYLOAD_LIMIT, parse_payload
from lazyfs.trust.verdict import Outcome, Verdict
from tests.support.trust.cosign import candidates, image_digest, judged, signed_by
from tests.trust.fuzz import feed, mutations
from tests.trust.sigstore import fuzz_sigstore

P256 = signed_by("p256")
DIGEST = image_digest("old-p256")
KEY = ec.generate_private_key(ec.SECP256R1())
OWN = {
    "type": "sigstoreSigned",
    "keyData": base64.b64encode(
        KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).decode(),
    "signedIdentity": {"type": "matchDigestOnly"},
}


def own_key(public: Any) -> dict[str, Any]:
    """Return a requirement for a key of these tests."""
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {**OWN, "keyData": base64.b64encode(pem).decode()}


def sign(message: bytes) -> bytes:
    return KEY.sign(message, ec.ECDSA(hashes.SHA256()))


def payload(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "critical": {
            "identity": {"docker-reference": "a.example/b:1"},
            "image": {"docker-manifest-digest": str(DIGEST)},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    return {**document, **changes}


def critical(**changes: Any) -> dict[str, Any]:
    return payload(critical={**payload()["critical"], **changes})


def attachment(data: bytes, signature: bytes | None = None) -> Attachment:
    """Return a payload that is signed, whatever is in it."""
    noted = base64.b64encode(sign(data) if signature is None else signature).decode()
    return Attachment(digest_of(data), data, {SIGNATURE: noted})


def statement(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"digest": {"sha256": DIGEST.hex}, "annotations": {}}],
        "predicateType": SIGNATURE_PREDICATE,
        "predicate": {},
    }
    return {**document, **changes}


def envelope(data: bytes, kind: str = STATEMENT_MEDIA_TYPE, **changes: Any) -> dict[str, Any]:
    """Return an envelope that is signed, whatever is in it."""
    signature = sign(Envelope(kind, data, b"").signed)
    document = {
        "payload": base64.b64encode(data).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return {**document, **changes}


def bundle(found: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    document = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": ""}},
        "dsseEnvelope": found or envelope(json.dumps(statement()).encode()),
    }
    return {**document, **changes}


def bundled(document: Any) -> Bundled:
    data = json.dumps(document).encode()
    return Bundled(digest_of(data), data)


def verdict_on(found: Attachment | Bundled, digest: Digest = DIGEST) -> Verdict:
    verdict = judged(OWN, [found], digest)
    assert verdict.outcome in (Outcome.TRUSTED, Outcome.UNTRUSTED)
    return verdict


def refused(found: Attachment | Bundled, message: str) -> None:
    verdict = verdict_on(found)
    assert verdict.outcome is Outcome.UNTRUSTED
    assert message in verdict.reasons[0].message, verdict.reasons[0].message


def test_what_is_made_here_is_good() -> None:
    assert verdict_on(attachment(json.dumps(payload()).encode())).is_allowed
    assert verdict_on(bundled(bundle())).is_allowed


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (payload(x=1), "the payload has an unknown member 'x'"),
        ({"critical": payload()["critical"]}, "the payload has no optional"),
        (payload(optional=[]), "the payload's optional is not an object"),
        (payload(critical=None), "the payload's critical is not an object"),
        (critical(x=1), "the payload's critical has an unknown member 'x'"),
        (critical(type="atomic container signature"), "type is 'atomic container signature', not"),
        (critical(type=None), "the payload's type is not text"),
        (critical(image={}), "the payload's image has no docker-manifest-digest"),
        (critical(image={"docker-manifest-digest": "sha256:1"}), "is not a digest"),
        (critical(image={"docker-manifest-digest": 1}), "the payload's digest is not text"),
        (
            critical(image={"docker-manifest-digest": str(DIGEST), "Docker-manifest-digest": "x"}),
            "the payload's image has an unknown member",
        ),
        (critical(identity={"docker-reference": 1}), "docker-reference is not text"),
        (critical(identity={"docker-reference": "x", "y": 1}), "identity has an unknown member"),
        (critical(identity={"Docker-Reference": "x"}), "identity has no docker-reference"),
        (critical(image={"docker-manifest-digest": "sha256:" + "0" * 64}), "it is for sha256:0000"),
        (critical(image={"docker-manifest-digest": f"SHA256:{DIGEST.hex}"}), "is not a digest"),
        (
            critical(image={"docker-manifest-digest": f"sha256:{DIGEST.hex.upper()}"}),
            "is not a digest",
        ),
        ([], "the payload is not a JSON object"),
    ],
)
def test_payloads_that_are_signed_and_not_right(document: Any, message: str) -> None:
    refused(attachment(json.dumps(document).encode()), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{}{}", "is not valid JSON"),
        (json.dumps(payload()).encode() + b" x", "is not valid JSON"),
        (
            json.dumps(payload()).encode().replace(b'{"crit', b'{"optional":{},"crit'),
            "occurs twice",
        ),
        (
            json.dumps(payload()).encode().replace(b'"type"', b'"type":"x","typ\\u0065"'),
            "occurs twice",
        ),
        (json.dumps(payload(optional={"x": 1})).encode().replace(b"1}", b"NaN}"), "is not JSON"),
        (json.dumps(payload(optional={"x": "\ud800"})).encode(), "unpaired surrogate"),
        (b'{"optional":' + b"[" * 5000, "levels deep"),
        (b" " * PAYLOAD_LIMIT + b"{}", "is longer than"),
        (b'{"optional":"\xff"}', "is not UTF-8"),
    ],
)
def test_payloads_that_are_signed_and_no_document(data: bytes, message: str) -> None:
    refused(attachment(data), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 1}, "the bundle has an unknown member 'x'"),
        (
            {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.2"},
            "mediaType is 'app",
        ),
        ({"mediaType": None}, "the bundle's mediaType is None"),
        ({"verificationMaterial": None}, "verificationMaterial is not an object"),
        ({"verificationMaterial": {}}, "has not exactly one of publicKey, certificate, x509"),
        (
            {"verificationMaterial": {"publicKey": {}, "certificate": {"rawBytes": "AAAA"}}},
            "has not exactly one of publicKey",
        ),
        ({"verificationMaterial": {"publicKey": {"hint": 1}}}, "hint is not text"),
        ({"verificationMaterial": {"publicKey": {"key": 1}}}, "unknown member 'key'"),
        ({"verificationMaterial": {"publicKey": {}, "x": 1}}, "unknown member 'x'"),
        ({"verificationMaterial": {"certificate": {}}}, "certificate has no rawBytes"),
        ({"verificationMaterial": {"certificate": {"rawBytes": "A"}}}, "is not base64"),
        ({"verificationMaterial": {"x509CertificateChain": {"certificates": []}}}, "1 to 10 cert"),
        (
            {
                "verificationMaterial": {
                    "x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}] * 1000}
                }
            },
            "1 to 10 certificates",
        ),
        ({"messageSignature": {}}, "does not hold one DSSE envelope"),
        ({"dsseEnvelope": []}, "the envelope is not an object"),
    ],
)
def test_bundles_that_are_not_right(change: dict[str, Any], message: str) -> None:
    refused(bundled(bundle(**change)), message)


def test_bundles_without_an_envelope() -> None:
    document = bundle(messageSignature={"signature": "AAAA"})
    del document["dsseEnvelope"]
    refused(bundled(document), "does not hold one DSSE envelope")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signatures": []}, "the envelope has not exactly one signature"),
        ({"signatures": [{"sig": "AAAA"}] * 2}, "the envelope has not exactly one signature"),
        ({"signatures": [{"sig": "AAAA", "cert": "x"}]}, "unknown member 'cert'"),
        ({"signatures": [{"sig": "AAA"}]}, "the envelope's signature is not base64"),
        ({"signatures": ["AAAA"]}, "the envelope's signature is not an object"),
        ({"payload": 1}, "the envelope's payload is not text"),
        ({"payload": "e30"}, "the envelope's payload is not base64"),
        ({"payload": "e31="}, "the envelope's payload is not base64"),  # bits that say nothing
        ({"payload": "e30= "}, "the envelope's payload is not base64"),
        ({"payloadType": None}, "the envelope's payloadType is not text"),
        ({"payloadType": "application/json"}, "it does not verify"),
        ({"x": 1}, "the envelope has an unknown member 'x'"),
    ],
)
def test_envelopes_that_are_not_right(change: dict[str, Any], message: str) -> None:
    refused(bundled(bundle(envelope(json.dumps(statement()).encode(), **change))), message)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (statement(predicateType="https://slsa.dev/provenance/v1"), "it is an attestation"),
        (statement(predicateType="https://sigstore.dev/cosign/sign/v1/"), "it is an attestation"),
        (statement(predicateType=""), "it is an attestation"),
        (statement(_type="https://in-toto.io/Statement/v0.1"), "it is a statement of type"),
        (statement(subject=[]), "the statement is not about 1 to 100 subjects"),
        (statement(subject=statement()["subject"] * 101), "not about 1 to 100 subjects"),
        (statement(subject={}), "the statement is not about 1 to 100 subjects"),
        (statement(subject=[{}]), "the statement's subject has no digest"),
        (statement(subject=[{"digest": []}]), "the subject's digest is not an object"),
        (statement(subject=[{"digest": {"sha256": 1}}]), "the subject's digest is not text"),
        (statement(subject=[{"digest": {"sha256": DIGEST.hex.upper()}}]), "is not one of sha256"),
        (statement(subject=[{"digest": {"sha256": DIGEST.hex[1:]}}]), "is not one of sha256"),
        (statement(subject=[{"digest": {"sha256": "0" * 64}}]), "it is for '0000"),
        (statement(subject=[{"digest": {"gitCommit": DIGEST.hex}}]), "it is for 'other content'"),
        (statement(subject=[{"digest": {}}]), "it is for 'other content'"),
        (
            statement(subject=[{"digest": {"sha256": DIGEST.hex}, "annotations": []}]),
            "the subject's annotations is not an object",
        ),
        ([], "the statement is not a JSON object"),
    ],
)
def test_statements_that_are_signed_and_not_right(document: Any, message: str) -> None:
    refused(bundled(bundle(envelope(json.dumps(document).encode()))), message)


@pytest.mark.parametrize("name", ["_type", "subject", "predicateType"])
def test_statements_that_spell_a_name_otherwise(name: str) -> None:
    """Go's reader takes PredicateType for predicateType; a reader who minds must not."""
    document = statement()
    document[name.upper()] = document.pop(name)
    refused(bundled(bundle(envelope(json.dumps(document).encode()))), f"has no {name}")
    data = json.dumps(statement()).encode().replace(b'{"_type"', b'{"predicateType":"x","_type"')
    refused(bundled(bundle(envelope(data))), "occurs twice")


def test_other_things_that_are_signed() -> None:
    data = json.dumps(statement()).encode()
    refused(bundled(bundle(envelope(data, "application/json"))), "it signs 'application/json'")
    # What is signed in one form does not count in the other.
    refused(bundled(bundle(envelope(json.dumps(payload()).encode()))), "the statement has no _type")
    refused(attachment(data), "the payload has no critical")
    bare = {**envelope(data), "signatures": [{"sig": base64.b64encode(sign(data)).decode()}]}
    refused(bundled(bundle(bare)), "it does not verify")


def test_one_subject_of_several_is_enough() -> None:
    subjects = [{"digest": {"sha256": "0" * 64}}, {"name": "x", "digest": {"sha256": DIGEST.hex}}]
    data = json.dumps(statement(subject=subjects, unknown=1)).encode()
    assert verdict_on(bundled(bundle(envelope(data)))).is_allowed
    other = Digest("sha512", "0" * 128)
    subjects = [{"digest": {"sha256": DIGEST.hex, "sha512": other.hex}}]
    data = json.dumps(statement(subject=subjects)).encode()
    assert verdict_on(bundled(bundle(envelope(data))), other).is_allowed


def test_base64_of_envelopes_may_be_url_safe() -> None:
    """DSSE, protocol.md: verifiers accept both alphabets."""
    data = json.dumps(statement(note="\u00ff\u00bf???>>>")).encode()
    made = envelope(data)
    made["payload"] = base64.urlsafe_b64encode(data).decode()
    assert verdict_on(bundled(bundle(made))).is_allowed


def test_base64_may_stand_on_lines() -> None:
    """As the program base64 writes it, for who signs without cosign and attaches the signature."""
    data = json.dumps(payload()).encode()
    noted = base64.encodebytes(sign(data)).decode().replace("\n", "\r\n")
    assert verdict_on(Attachment(digest_of(data), data, {SIGNATURE: noted})).is_allowed


def test_hints_prove_nothing() -> None:
    for hint in ("", "x" * 1000, "Ive5b4nuhHqDjDn/inGuJNXihxZbqL73fRDCSjrS4Zc="):
        document = bundle(verificationMaterial={"publicKey": {"hint": hint}})
        assert verdict_on(bundled(document)).is_allowed
    good = json.loads(candidates("new-p256")[0].data)  # type: ignore[union-attr]
    good["verificationMaterial"]["publicKey"]["hint"] = "x"
    assert judged(P256, [bundled(good)], image_digest("new-p256")).is_allowed


def test_entries_of_a_log_are_no_fault() -> None:
    material = {"publicKey": {}, "tlogEntries": [{"x": 1}], "timestampVerificationData": {"x": 1}}
    assert verdict_on(bundled(bundle(verificationMaterial=material))).is_allowed


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({}, "no annotation dev.cosignproject.cosign/signature"),
        ({SIGNATURE: ""}, "does not verify"),
        ({SIGNATURE: "A"}, "the signature is not base64"),
        ({SIGNATURE: " AAAA"}, "the signature is not base64"),
        ({SIGNATURE: "-_-_"}, "the signature is not base64"),
        ({SIGNATURE: "A" * 4_000_000}, "does not verify"),
        ({SIGNATURE: "\u00e9AAA"}, "the signature is not base64"),
        ({SIGNATURE: "\ud800AAA"}, "the signature is not base64"),
    ],
)
def test_annotations_of_a_payload(annotations: dict[str, str], message: str) -> None:
    data = json.dumps(payload()).encode()
    refused(Attachment(digest_of(data), data, annotations), message)


def test_a_certificate_beside_a_key_is_not_read() -> None:
    data = json.dumps(payload()).encode()
    found = attachment(data)
    noted = {**found.annotations, CERTIFICATE: "broken", CHAIN: "broken"}
    assert verdict_on(msgspec.structs.replace(found, annotations=noted)).is_allowed


def rsa_sign(key: rsa.RSAPrivateKey, message: bytes, chosen: hashes.HashAlgorithm) -> bytes:
    return key.sign(message, padding.PKCS1v15(), chosen)


@pytest.mark.parametrize("form", ["payload", "bundle"])
@pytest.mark.parametrize("kind", ["P-256", "P-384", "P-521", "RSA", "Ed25519"])
@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
def test_hashes_by_form_and_key(form: str, kind: str, name: str) -> None:
    """SHA-256 for every key in the old form; in the new one the curve's, SHA-256 for RSA."""
    chosen = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[name]
    make: dict[str, Callable[[], Any]] = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    key = make[kind]()
    data = json.dumps(payload() if form == "payload" else statement()).encode()
    message = data if form == "payload" else Envelope(STATEMENT_MEDIA_TYPE, data, b"").signed
    if kind == "Ed25519":
        signature = key.sign(message)
    elif kind == "RSA":
        signature = rsa_sign(key, message, chosen)
    else:
        signature = key.sign(message, ec.ECDSA(chosen))
    found: Attachment | Bundled = attachment(data, signature)
    if form == "bundle":
        sig = [{"sig": base64.b64encode(signature).decode()}]
        found = bundled(bundle(envelope(data, signatures=sig)))
    wanted = {"P-384": "sha384", "P-521": "sha512", "Ed25519": name}.get(kind, "sha256")
    if form == "payload" and kind != "Ed25519":
        wanted = "sha256"
    verdict = judged(own_key(key.public_key()), [found], DIGEST)
    assert verdict.is_allowed == (name == wanted)


def test_rsa_pss_is_not_what_cosign_makes() -> None:
    key = rsa.generate_private_key(65537, 2048)
    data = json.dumps(payload()).encode()
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    found = attachment(data, key.sign(data, scheme, hashes.SHA256()))
    assert not judged(own_key(key.public_key()), [found], DIGEST).is_allowed


def good_bundle() -> bytes:
    (found,) = candidates("new-p256")
    assert isinstance(found, Bundled)
    return found.data


def good_payload() -> Attachment:
    (found,) = candidates("old-p256")
    assert isinstance(found, Attachment)
    return found


def test_a_bundle_cut_anywhere_is_malformed() -> None:
    data = good_bundle()
    for end in range(len(data)):
        with pytest.raises(Malformed):
            parse_bundle(data[:end])
    statement = parse_bundle(data).envelope.payload
    for end in range(len(statement)):
        with pytest.raises(Malformed):
            parse_statement(statement[:end])


def test_a_payload_cut_anywhere_is_malformed() -> None:
    data = good_payload().payload
    for end in range(len(data)):
        with pytest.raises(Malformed):
            parse_payload(data[:end])


def test_every_flipped_bit_of_a_payload_is_noticed() -> None:
    good = good_payload()
    changed = []
    for at in range(len(good.payload)):
        data = bytearray(good.payload)
        data[at] ^= 1 << at % 8
        changed.append(msgspec.structs.replace(good, payload=bytes(data)))
    for start in range(0, len(changed), 100):
        verdict = judged(P256, changed[start : start + 100], DIGEST)
        assert verdict.outcome is Outcome.UNTRUSTED


def test_documents_that_are_too_long() -> None:
    with pytest.raises(Malformed, match="longer than"):
        parse_bundle(good_bundle() + b" " * BUNDLE_LIMIT)
    with pytest.raises(Malformed, match="longer than"):
        parse_payload(good_payload().payload + b" " * PAYLOAD_LIMIT)


def test_a_hundred_large_candidates_take_seconds_at_most() -> None:
    data = good_bundle()
    large = data + b" " * (BUNDLE_LIMIT - len(data))
    found = [Bundled(digest_of(large), large)] * 100
    began = time.process_time()
    assert judged(P256, found, image_digest("old-p256")).outcome is Outcome.UNTRUSTED
    assert time.process_time() - began < 20


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_documents_are_refused_or_read(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([good_bundle(), good_payload().payload]))
    at = data.draw(st.integers(0, len(whole)))
    put = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"{", b"[]", b'"x":1,'])))
    damaged = whole[:at] + put + whole[at + data.draw(st.integers(0, 6)) :]
    for parse in (parse_bundle, parse_payload, parse_statement):
        with contextlib.suppress(Malformed):
            parse(damaged)
    if damaged != whole:
        found = Bundled(digest_of(damaged), damaged)
        verdict = judged(P256, [found], image_digest("new-p256"))
        if verdict.is_allowed:  # then what is signed is as it was
            assert parse_bundle(damaged).envelope == parse_bundle(good_bundle()).envelope


@pytest.mark.parametrize("name", fuzz_sigstore.READERS)
def test_the_fuzzer_finds_nothing_at_once(name: str) -> None:
    reader = fuzz_sigstore.READERS[name]()
    seeds = list(reader.seeds())
    changed = itertools.islice(mutations(seeds, random.Random(7)), 40)
    for data in (*seeds, *changed):
        feed(reader, data)
