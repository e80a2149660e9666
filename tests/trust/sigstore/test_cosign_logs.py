"""Entries of a transparency log, and certificates of a Sigstore service that count by them."""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from lazyfs.digest import digest_of
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.sigstore.candidates import ENTRY, SIGNATURE, Attachment, Bundled
from lazyfs.trust.sigstore.rekor import parse_annotation, parse_entries
from lazyfs.trust.verdict import Outcome
from tests.support.trust.cosign import NOW, image_digest, judged
from tests.trust.sigstore.test_cosign_certificates import (
    CODE,
    EMAIL,
    FOR_CA,
    Made,
    alternative,
    attachment,
    bundled,
    made,
    pem,
    usage,
)

DIGEST = image_digest("old-p256")
LOG, OTHER_LOG = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ISSUER = "https://login.example"
OIDS = [x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}") for number in (1, 8)]
V1 = x509.UnrecognizedExtension(OIDS[0], ISSUER.encode())
V2 = x509.UnrecognizedExtension(OIDS[1], b"\x0c" + bytes([len(ISSUER)]) + ISSUER.encode())
ROOT = made("fulcio", None, FOR_CA, ends=NOW + timedelta(days=3000))
FOR_LOGIN = (usage("digital_signature"), CODE, alternative(EMAIL), V1, V2)
# Short-lived, as a service's are: seen by the log while valid, and long expired.
LEAF = made("", ROOT, FOR_LOGIN, ends=NOW + timedelta(minutes=10))
KEY: Made = made("key", None, (*FOR_CA, alternative(EMAIL)))
LATER = NOW + timedelta(days=1000)


def public(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def by_key(**changes: Any) -> dict[str, Any]:
    """Return a requirement for the key KEY, seen by LOG."""
    return {
        "type": "sigstoreSigned",
        "keyData": b64(public(KEY[1])),
        "rekorPublicKeyData": b64(public(LOG)),
        "signedIdentity": {"type": "matchDigestOnly"},
        **changes,
    }


def by_login(root: Made = ROOT, **changes: str) -> dict[str, Any]:
    """Return a requirement for a certificate of the service, seen by LOG."""
    requirement = by_key()
    del requirement["keyData"]
    requirement["fulcio"] = {
        "caData": b64(pem(root)),
        "oidcIssuer": ISSUER,
        "subjectEmail": EMAIL,
        **changes,
    }
    return requirement


def hashed(data: bytes, **changes: str) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest(), **changes}


def record(signature: str, signer: bytes, data: bytes) -> dict[str, Any]:
    """Return the body of an entry for an old signature; ``signer`` is PEM."""
    return {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": hashed(data)},
            "signature": {"content": signature, "publicKey": {"content": b64(signer)}},
        },
    }


def promised(body: dict[str, Any], moment: datetime = NOW, log: Any = LOG) -> dict[str, Any]:
    """Return an entry, signed by the log, as the old form has it."""
    payload = {
        "body": b64(json.dumps(body).encode()),
        "integratedTime": int(moment.timestamp()),
        "logID": hashlib.sha256(public(log)).hexdigest(),
        "logIndex": 42,
    }
    text = json.dumps(payload, separators=(",", ":"), sort_keys=True)
    promise = log.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    return {"SignedEntryTimestamp": b64(promise), "Payload": payload}


def with_entry(found: Attachment, entry: object) -> Attachment:
    noted = {**found.annotations, ENTRY: entry if isinstance(entry, str) else json.dumps(entry)}
    return msgspec.structs.replace(found, annotations=noted)


def old(
    signer: Made = KEY,
    *,
    moment: datetime = NOW,
    log: Any = LOG,
    named: bytes | None = None,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Attachment:
    """Return an old signature with its entry; *named* is whom the entry calls the signer."""
    found = attachment(signer)
    if signer is KEY:
        noted = {SIGNATURE: found.annotations[SIGNATURE]}
        found = msgspec.structs.replace(found, annotations=noted)
    if named is None:
        named = public(signer[1]) if signer is KEY else pem(signer)
    body = record(found.annotations[SIGNATURE], named, found.payload)
    if change is not None:
        change(body)
    return with_entry(found, promised(body, moment, log))


def new(
    signer: Made = KEY,
    *,
    moment: datetime = NOW,
    log: Any = LOG,
    change: Callable[[dict[str, Any]], object] | None = None,
    **changes: Any,
) -> Bundled:
    """Return a bundle with an entry for its envelope."""
    document = json.loads(bundled(signer).data)
    material = document["verificationMaterial"]
    named = pem(signer)
    if signer is KEY:
        del material["certificate"]
        material["publicKey"], named = {"hint": ""}, public(signer[1])
    envelope = document["dsseEnvelope"]
    body = {
        "apiVersion": "0.0.1",
        "kind": "dsse",
        "spec": {
            "envelopeHash": hashed(b"whatever"),
            "payloadHash": hashed(base64.b64decode(envelope["payload"])),
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": b64(named)}],
        },
    }
    if change is not None:
        change(body)
    entry = promised(body, moment, log)
    payload = entry["Payload"]
    listed = {
        "logIndex": str(payload["logIndex"]),
        "logId": {"keyId": b64(bytes.fromhex(payload["logID"]))},
        "kindVersion": {"kind": "dsse", "version": "0.0.1"},
        "integratedTime": str(payload["integratedTime"]),
        "inclusionPromise": {"signedEntryTimestamp": entry["SignedEntryTimestamp"]},
        "inclusionProof": {},
        "canonicalizedBody": payload["body"],
        **changes,
    }
    material["tlogEntries"] = [{k: v for k, v in listed.items() if v is not None}]
    data = json.dumps(document).encode()
    return Bundled(digest_of(data), data)


def allowed(found: Attachment | Bundled, wanted: dict[str, Any], now: datetime = LATER) -> bool:
    return judged(wanted, [found], DIGEST, now=now).is_allowed


def refused(found: Attachment | Bundled, wanted: dict[str, Any], message: str) -> None:
    verdict = judged(wanted, [found], DIGEST, now=LATER)
    assert verdict.outcome is Outcome.UNTRUSTED
    assert message in verdict.reasons[0].message, verdict.reasons[0].message


@pytest.mark.parametrize("make", [old, new])
def test_keys_and_logs(make: Callable[..., Any]) -> None:
    assert allowed(make(), by_key())
    several = by_key(rekorPublicKeyDatas=[b64(public(OTHER_LOG)), b64(public(LOG))])
    del several["rekorPublicKeyData"]
    assert allowed(make(), several)
    keys = by_key(keyDatas=[b64(public(OTHER_LOG)), b64(public(KEY[1]))])
    del keys["keyData"]
    assert allowed(make(), keys)
    refused(make(log=OTHER_LOG), by_key(), "is not signed by a log that the policy names")
    refused(make(), by_key(keyData=b64(public(LOG))), "seen it signed with another key")


@pytest.mark.parametrize("make", [old, new])
def test_certificates_count_when_the_log_saw_them(make: Callable[..., Any]) -> None:
    """Long expired now, and valid at the moment that the log has signed."""
    verdict = judged(by_login(), [make(LEAF)], DIGEST, now=LATER)
    assert verdict.accepted is not None
    assert verdict.accepted.signer == EMAIL  # its subject is empty
    late = make(LEAF, moment=NOW + timedelta(minutes=11))
    refused(late, by_login(), "not valid at validation time")
    refused(make(LEAF, log=OTHER_LOG), by_login(), "is not signed by a log")
    refused(make(LEAF), by_login(made("fulcio")), "candidates exhausted")
    refused(make(LEAF), by_login(subjectEmail="c@b.example"), "the policy wants 'c@b.example'")
    refused(make(LEAF), by_login(oidcIssuer="https://x"), "confirmed by 'https://login.example'")
    refused(make(), by_login(), "it was not made with a certificate")


def test_without_an_entry() -> None:
    message = "it has no entry of a transparency log"
    refused(attachment(KEY), by_key(), message)
    refused(attachment(LEAF), by_login(), message)
    refused(bundled(LEAF), by_login(), message)
    # The second version of Rekor signs no timestamps.
    refused(new(inclusionPromise=None), by_key(), message)


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ((V1,), None),
        ((V2,), None),
        ((), "confirmed by nobody"),
        (
            (V1, x509.UnrecognizedExtension(OIDS[1], b"\x0c\x09https://x")),
            "two issuers of logins",
        ),
        ((x509.UnrecognizedExtension(OIDS[1], ISSUER.encode()),), "DER: got tag"),
        ((x509.UnrecognizedExtension(OIDS[1], V2.value + b"\0"),), "something stands behind"),
        ((x509.UnrecognizedExtension(OIDS[0], b"\xff"),), "cannot be read"),
    ],
)
def test_issuers_of_logins(extensions: tuple[x509.ExtensionType, ...], message: str | None) -> None:
    leaf = made("", ROOT, (*FOR_LOGIN[:3], *extensions))
    if message is None:
        assert allowed(old(leaf), by_login())
    else:
        refused(old(leaf), by_login(), message)


def set_to(*steps: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a member in a body."""

    def change(body: dict[str, Any]) -> None:
        for step in steps[:-1]:
            body = body[step]
        body[steps[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("kind", value="rekord"), "the entry of the log is of the kind 'rekord' '0.0.1'"),
        (set_to("apiVersion", value="0.0.2"), "of the kind 'hashedrekord' '0.0.2'"),
        (set_to("spec", "data", "hash", value=hashed(b"x")), "is about another signature"),
        (set_to("spec", "data", "hash", "algorithm", value="sha512"), "a digest of 'sha512'"),
        (set_to("spec", "signature", "content", value="AAAA"), "is about another signature"),
        (set_to("spec", "signature", "content", value="A"), "is not base64"),
        (set_to("spec", "signature", "publicKey", value={}), "has no content"),
        (set_to("spec", "signature", "publicKey", value={"content": "AAAA"}), "names no key"),
        (set_to("spec", "data", value=[]), "is not an object"),
        (set_to("x", value=1), "unknown member 'x'"),
    ],
)
def test_what_a_log_has_signed_must_be_about_it(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    refused(old(change=change), by_key(), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("spec", "signatures", value=[]), "has not exactly one signature"),
        (set_to("spec", "signatures", value=[{}, {}]), "has not exactly one signature"),
        (set_to("spec", "signatures", value=[{}]), "has no signature"),
        (set_to("spec", "payloadHash", value=hashed(b"x")), "is about another signature"),
        (set_to("kind", value="intoto"), "of the kind 'intoto' '0.0.1'"),
    ],
)
def test_what_a_log_has_signed_must_be_about_the_bundle(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    refused(new(change=change), by_key(), message)


def test_the_certificate_must_be_the_logged_one() -> None:
    """Else a signature that was logged for one login would count for another of the same key."""
    twin = made("", ROOT, FOR_LOGIN, key=LEAF[1])
    refused(old(LEAF, named=pem(twin)), by_login(), "seen it signed with another certificate")
    refused(old(LEAF, named=public(LEAF[1])), by_login(), "signed with another certificate")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("body", b64(b"{}")),
        ("integratedTime", int(NOW.timestamp()) + 1),
        ("logIndex", 43),
        ("logID", "0" * 64),
    ],
)
def test_all_of_an_entry_is_signed(name: str, value: Any) -> None:
    found = old()
    entry = json.loads(found.annotations[ENTRY])
    entry["Payload"][name] = value
    refused(with_entry(found, entry), by_key(), "is not signed by a log")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("\ud800", "is not UTF-8"),
        ({"Payload": {}}, "has no SignedEntryTimestamp"),
        ({"SignedEntryTimestamp": "AAAA", "Payload": {}, "x": 1}, "unknown member 'x'"),
        ({"SignedEntryTimestamp": "AAAA", "Payload": {}}, "has no body"),
        (" " * 2_000_000, "is longer than"),
    ],
)
def test_entries_that_are_not_right(entry: Any, message: str) -> None:
    refused(with_entry(attachment(KEY), entry), by_key(), message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("integratedTime", -1, "integratedTime is not a possible number"),
        ("integratedTime", 1 << 60, "integratedTime is not a possible number"),
        ("integratedTime", True, "integratedTime is not a possible number"),
        ("integratedTime", 1.5, "integratedTime is not a possible number"),
        ("integratedTime", "1" * 5000, "integratedTime is not a possible number"),
        ("logIndex", None, "logIndex is not a possible number"),
        ("logID", "x", "the log's name is not 32 bytes"),
        ("logID", "A" * 64, "the log's name is not 32 bytes"),
        ("logID", 1, "logID is not text"),
        ("body", "?", "is not base64"),
        ("more", 1, "unknown member 'more'"),
    ],
)
def test_values_in_entries(name: str, value: Any, message: str) -> None:
    entry = json.loads(old().annotations[ENTRY])
    entry["Payload"][name] = value
    with pytest.raises(Malformed, match=message):
        parse_annotation(json.dumps(entry))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logId": {"keyId": b64(b"x")}}, "the log's name is not 32 bytes"),
        ({"logId": None}, "has no logId"),
        ({"integratedTime": None}, "integratedTime is not a possible number"),
        ({"logIndex": "-1"}, "logIndex is not a possible number"),
        ({"inclusionPromise": {}}, "has no signedEntryTimestamp"),
        ({"canonicalizedBody": 1}, "its body is not text"),
    ],
)
def test_entries_of_bundles_that_are_not_right(change: dict[str, Any], message: str) -> None:
    refused(new(**change), by_key(), message)


def test_lists_of_entries() -> None:
    for wrong in ({}, "x", [{}] * 11, None):
        with pytest.raises(Malformed, match="are not a list of at most 10"):
            parse_entries(wrong)
    assert parse_entries([]) == []


def test_one_good_entry_of_several_is_enough() -> None:
    good, strange = json.loads(new().data), json.loads(new(log=OTHER_LOG).data)
    entries = good["verificationMaterial"]["tlogEntries"]
    entries[:0] = strange["verificationMaterial"]["tlogEntries"]
    data = json.dumps(good).encode()
    assert len(entries) == 2
    assert allowed(Bundled(digest_of(data), data), by_key())


def test_an_entry_cut_anywhere_is_malformed() -> None:
    text = old().annotations[ENTRY]
    for end in range(len(text)):
        with pytest.raises(Malformed):
            parse_annotation(text[:end])


def test_keys_of_logs_are_elliptic() -> None:
    key = rsa.generate_private_key(65537, 2048)
    wanted = by_key(rekorPublicKeyData=b64(public(key)))
    verdict = judged(wanted, [old()], DIGEST)
    assert isinstance(verdict.error(), PolicyFault)
    assert "rekorPublicKeyData: the key of a log is not an elliptic one" in str(verdict.error())


def test_a_log_is_asked_for_only_where_the_policy_names_one() -> None:
    wanted = by_key()
    del wanted["rekorPublicKeyData"]
    assert allowed(with_entry(attachment(KEY), "broken"), wanted)
