"""Certificates of one's own authority (``pki``): chains, purposes, names and times."""

import base64
import ipaddress
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lazyfs.digest import digest_of
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.sigstore.bundle import (
    BUNDLE_TYPE,
    SIGNATURE_PREDICATE,
    STATEMENT_MEDIA_TYPE,
    STATEMENT_TYPE,
    Envelope,
)
from lazyfs.trust.sigstore.candidates import CERTIFICATE, CHAIN, SIGNATURE, Attachment, Bundled
from lazyfs.trust.verdict import Outcome, Verdict
from tests.support.trust.cosign import NOW, candidates, certified, image_digest, judged

DIGEST = image_digest("old-p256")
EMAIL = "a@b.example"
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
Made = tuple[x509.Certificate, Any]


def usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in USAGES})


def alternative(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            x509.RFC822Name(name) if "@" in name
            else x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit()
            else x509.DNSName(name)
            for name in names
        ]
    )  # fmt: skip


CODE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
FOR_CA = (x509.BasicConstraints(ca=True, path_length=None), usage("key_cert_sign"))
FOR_LEAF = (usage("digital_signature"), CODE, alternative(EMAIL))


def made(
    name: str,
    issuer: Made | None = None,
    extensions: tuple[x509.ExtensionType, ...] = FOR_CA,
    *,
    key: Any = None,
    ends: datetime = NOW + timedelta(days=10),
    critical: bool = False,
) -> Made:
    """Return a certificate and its key; without an issuer it signs itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=10))
        .not_valid_after(ends)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


ROOT = made("root")
INTERMEDIATE = made("intermediate", ROOT)
LEAF = made("leaf", INTERMEDIATE, FOR_LEAF)


def pem(*all_made: Made) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each, _ in all_made)


def requirement(
    roots: tuple[Made, ...] = (ROOT,), helpers: tuple[Made, ...] = (), **names: str
) -> dict[str, Any]:
    pki: dict[str, str] = {"caRootsData": base64.b64encode(pem(*roots)).decode()}
    if helpers:
        pki["caIntermediatesData"] = base64.b64encode(pem(*helpers)).decode()
    pki |= names or {"subjectEmail": EMAIL}
    return {"type": "sigstoreSigned", "pki": pki, "signedIdentity": {"type": "matchDigestOnly"}}


def sign(key: Any, data: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        return key.sign(data, PKCS1v15(), hashes.SHA256())
    signature = key.sign(data, ec.ECDSA(hashes.SHA256()))
    assert isinstance(signature, bytes)
    return signature


def attachment(leaf: Made, *chain: Made, digest: object = DIGEST) -> Attachment:
    """Return a signature in the old form with its certificate and chain."""
    document = {
        "critical": {
            "identity": {"docker-reference": "a.example/b"},
            "image": {"docker-manifest-digest": str(digest)},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    data = json.dumps(document).encode()
    noted = {
        SIGNATURE: base64.b64encode(sign(leaf[1], data)).decode(),
        CERTIFICATE: pem(leaf).decode(),
    }
    if chain:
        noted[CHAIN] = pem(*chain).decode()
    return Attachment(digest_of(data), data, noted)


def bundled(leaf: Made, *chain: Made) -> Bundled:
    """Return a signature in the new form with its certificate, or with a whole chain."""
    payload = json.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"digest": {"sha256": DIGEST.hex}}],
            "predicateType": SIGNATURE_PREDICATE,
            "predicate": {},
        }
    ).encode()
    signature = sign(leaf[1], Envelope(STATEMENT_MEDIA_TYPE, payload, b"").signed)
    listed = [
        {"rawBytes": base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode()}
        for each, _ in (leaf, *chain)
    ]
    material: dict[str, Any] = {"certificate": listed[0]}
    if chain:
        material = {"x509CertificateChain": {"certificates": listed}}
    document = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": STATEMENT_MEDIA_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    data = json.dumps(document).encode()
    return Bundled(digest_of(data), data)


def both(leaf: Made, *chain: Made) -> list[Attachment | Bundled]:
    return [attachment(leaf, *chain), bundled(leaf, *chain)]


def verdict_on(
    found: Attachment | Bundled, wanted: dict[str, Any] | None = None, now: datetime = NOW
) -> Verdict:
    verdict = judged(wanted or requirement(), [found], DIGEST, now=now)
    assert verdict.outcome in (Outcome.TRUSTED, Outcome.UNTRUSTED)
    return verdict


def refused(
    found: Attachment | Bundled, message: str, wanted: dict[str, Any] | None = None
) -> None:
    verdict = verdict_on(found, wanted)
    assert verdict.outcome is Outcome.UNTRUSTED
    assert message in verdict.reasons[0].message, verdict.reasons[0].message


def faulty(wanted: dict[str, Any], message: str) -> None:
    """Check that an image is refused because of the policy, for this reason."""
    verdict = judged(wanted, [attachment(LEAF)], DIGEST)
    assert isinstance(verdict.error(), PolicyFault)
    assert re.search(message, verdict.reasons[0].message), verdict.reasons[0].message


@pytest.mark.parametrize("form", [0, 1])
def test_chains(form: int) -> None:
    """An intermediate may come with the signature or with the policy; a root with the policy."""
    alone, helped = both(LEAF)[form], both(LEAF, INTERMEDIATE)[form]
    whole = both(LEAF, INTERMEDIATE, ROOT)[form]
    refused(alone, "candidates exhausted")
    assert verdict_on(helped).is_allowed
    assert verdict_on(whole).is_allowed
    assert verdict_on(alone, requirement(helpers=(INTERMEDIATE,))).is_allowed
    assert verdict_on(helped, requirement(helpers=(INTERMEDIATE,))).is_allowed
    assert verdict_on(whole, requirement((made("other"), ROOT))).is_allowed
    refused(whole, "candidates exhausted", requirement((made("other"),)))
    # The same name is not the same key.
    refused(whole, "candidates exhausted", requirement((made("root"),)))


def test_a_signer_is_named_by_subject_and_email() -> None:
    verdict = verdict_on(attachment(LEAF, INTERMEDIATE))
    assert verdict.signatures[0].signer == "CN=leaf"


def test_the_signature_must_be_the_certificates() -> None:
    other = made("leaf", INTERMEDIATE, FOR_LEAF)
    found = attachment((LEAF[0], other[1]), INTERMEDIATE)
    refused(found, "does not verify with CN=leaf")
    refused(bundled((LEAF[0], other[1]), INTERMEDIATE), "does not verify with CN=leaf")


def test_validity_is_that_of_now() -> None:
    found = attachment(LEAF, INTERMEDIATE)
    for days, is_allowed in [(-11, False), (-9, True), (9, True), (11, False)]:
        assert verdict_on(found, now=NOW + timedelta(days=days)).is_allowed == is_allowed
    short = made("short", ROOT, ends=NOW + timedelta(days=1))
    leaf = made("leaf", short, FOR_LEAF)
    assert verdict_on(attachment(leaf, short)).is_allowed
    assert not verdict_on(attachment(leaf, short), now=NOW + timedelta(days=2)).is_allowed


def test_years_at_the_ends_of_time() -> None:
    far = made("far", ends=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    leaf = made("leaf", far, FOR_LEAF, ends=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert verdict_on(attachment(leaf), requirement((far,))).is_allowed


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ((alternative(EMAIL),), None),  # names no purpose: for any
        ((usage("digital_signature", "key_encipherment"), CODE, alternative(EMAIL)), None),
        ((usage("key_encipherment"), CODE, alternative(EMAIL)), "the key is not for signatures"),
        (
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), alternative(EMAIL)),
            "the certificate is not for signing code",
        ),
        (
            (
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
                alternative(EMAIL),
            ),
            "the certificate is not for signing code",
        ),
        (
            (
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]
                ),
                alternative(EMAIL),
            ),
            None,
        ),
        ((CODE,), "the certificate is for nobody; the policy wants 'a@b.example'"),
        ((CODE, alternative("c@b.example")), "is for 'c@b.example'; the policy wants"),
        ((CODE, alternative("A@B.example")), "is for 'A@B.example'; the policy wants"),
        ((CODE, alternative("b.example")), "is for nobody"),
        ((CODE, alternative("x@y.example", EMAIL)), None),
    ],
)
def test_purposes_and_emails(
    extensions: tuple[x509.ExtensionType, ...], message: str | None
) -> None:
    leaf = made("leaf", INTERMEDIATE, extensions)
    for found in both(leaf, INTERMEDIATE):
        if message is None:
            assert verdict_on(found).is_allowed
        else:
            refused(found, message)


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (("host.example",), "host.example", True),
        (("HOST.example",), "host.EXAMPLE", True),
        (("a.example", "host.example"), "host.example", True),
        (("host.example",), "other.example", False),
        (("*.example",), "host.example", True),
        (("*.example",), "a.host.example", False),
        (("*.host.example",), "host.example", False),
        (("x.example",), "host.example", False),
        (("h*.example",), "host.example", False),
        (("192.0.2.1",), "192.0.2.1", True),
        (("192.0.2.2",), "192.0.2.1", False),
        (("host@x.example",), "x.example", False),
        (("*.0.2.1",), "192.0.2.1", False),
    ],
)
def test_hostnames(names: tuple[str, ...], wanted: str, expected: bool) -> None:
    leaf = made("leaf", INTERMEDIATE, (CODE, alternative(*names)))
    verdict = verdict_on(attachment(leaf, INTERMEDIATE), requirement(subjectHostname=wanted))
    assert verdict.is_allowed is expected


def test_both_names_must_be_there() -> None:
    wanted = requirement(subjectEmail=EMAIL, subjectHostname="host.example")
    for names, expected in [
        ((EMAIL, "host.example"), True),
        ((EMAIL,), False),
        (("host.example",), False),
    ]:
        leaf = made("leaf", INTERMEDIATE, (CODE, alternative(*names)))
        assert verdict_on(attachment(leaf, INTERMEDIATE), wanted).is_allowed is expected


def test_the_common_name_is_no_name() -> None:
    leaf = made(EMAIL, INTERMEDIATE, (CODE,))
    refused(attachment(leaf, INTERMEDIATE), "is for nobody")


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ((), "CA certificate has no basicConstraints"),
        ((x509.BasicConstraints(ca=False, path_length=None),), "cA must be asserted"),
        (
            (x509.BasicConstraints(ca=True, path_length=None), usage("digital_signature")),
            "an issuer's key is not for signing certificates",
        ),
        (
            (*FOR_CA, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
            "an issuer is not for certificates that sign code",
        ),
        (
            (*FOR_CA, x509.NameConstraints([x509.RFC822Name("c.example")], None)),
            "name constraints",
        ),
        (
            (*FOR_CA, x509.NameConstraints(None, [x509.RFC822Name("b.example")])),
            "name constraint",
        ),
    ],
)
def test_issuers_that_may_not_issue(
    extensions: tuple[x509.ExtensionType, ...], message: str
) -> None:
    issuer = made("issuer", ROOT, extensions)
    refused(attachment(made("leaf", issuer, FOR_LEAF), issuer), message)


@pytest.mark.parametrize("purpose", ["CODE_SIGNING", "ANY_EXTENDED_KEY_USAGE"])
def test_issuers_for_code(purpose: str) -> None:
    extension = x509.ExtendedKeyUsage([getattr(ExtendedKeyUsageOID, purpose)])
    issuer = made("issuer", ROOT, (*FOR_CA, extension))
    assert verdict_on(attachment(made("leaf", issuer, FOR_LEAF), issuer)).is_allowed


def test_path_lengths_and_depth() -> None:
    short = made("short", None, (x509.BasicConstraints(ca=True, path_length=0),))
    middle = made("middle", short)
    leaf = made("leaf", middle, FOR_LEAF)
    refused(attachment(leaf, middle), "path length", requirement((short,)))
    chain = [ROOT]
    for number in range(6):
        chain.append(made(f"ca{number}", chain[-1]))
    for depth in (4, 5):
        leaf = made("leaf", chain[depth], FOR_LEAF)
        found = attachment(leaf, *chain[1 : depth + 1])
        assert verdict_on(found).is_allowed == (depth == 4)


def test_unknown_critical_extensions_refuse() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    leaf = made("leaf", INTERMEDIATE, (*FOR_LEAF, unknown), critical=True)
    refused(attachment(leaf, INTERMEDIATE), "critical extension")


def test_serial_numbers_are_positive() -> None:
    (found,) = candidates("new-cert")
    assert isinstance(found, Bundled)
    document = json.loads(found.data)
    certificate = document["verificationMaterial"]["certificate"]
    raw = base64.b64decode(certificate["rawBytes"])
    at = raw.index(b"\x02\x14\x5c")  # the serial number: 20 bytes
    changed = raw[: at + 2] + b"\xdc" + raw[at + 3 :]
    certificate["rawBytes"] = base64.b64encode(changed).decode()
    data = json.dumps(document).encode()
    refused(Bundled(digest_of(data), data), "the serial number of")


def test_weak_keys_are_not_accepted() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    leaf = made("leaf", INTERMEDIATE, FOR_LEAF, key=weak)
    refused(attachment(leaf, INTERMEDIATE), "the key of CN=leaf is not supported")
    strong = rsa.generate_private_key(65537, 2048)
    leaf = made("leaf", INTERMEDIATE, FOR_LEAF, key=strong)
    assert verdict_on(attachment(leaf, INTERMEDIATE)).is_allowed


def test_a_certificate_that_is_its_own_root() -> None:
    """What a single ``openssl req -x509`` makes; it must be an authority to be a root."""
    own = made("own", None, (*FOR_CA[:1], usage("digital_signature", "key_cert_sign"), CODE,
                             alternative(EMAIL)))  # fmt: skip
    assert verdict_on(attachment(own), requirement((own,))).is_allowed
    other = made("own", None, (*FOR_CA[:1], alternative(EMAIL)))
    refused(attachment(other), "not accepted", requirement((own,)))


def test_chains_that_go_round_are_given_up() -> None:
    """Each could have issued each: without a limit there are millions of ways."""
    round_about = made("round")
    chain = [made("round", round_about, key=round_about[1]) for _ in range(8)]
    leaf = made("leaf", round_about, FOR_LEAF)
    began = time.process_time()
    for found in both(leaf, *chain):
        assert not verdict_on(found).is_allowed
    assert time.process_time() - began < 5
    refused(bundled(leaf, *chain, ROOT), "9 certificates beside the signer's, at most 8")
    refused(attachment(leaf, *chain, *chain), "there are more than 8 certificates")


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ({CERTIFICATE: ""}, "there is no certificate, or a broken one"),
        ({CERTIFICATE: "no certificate"}, "there is no certificate, or a broken one"),
        ({CERTIFICATE: pem(LEAF, INTERMEDIATE).decode()}, "has 2 certificates of its signer"),
        (
            {CERTIFICATE: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
            "DER: got tag",
        ),
        ({CERTIFICATE: "x" * 2_000_000}, "longer than"),
        ({CERTIFICATE: "\ud800"}, "there is no certificate, or a broken one"),
        ({CHAIN: "\udc80"}, "there is no certificate, or a broken one"),
        ({CHAIN: "no certificate"}, "there is no certificate, or a broken one"),
        ({CHAIN: pem(LEAF).decode() * 1000}, "there are more than 8 certificates"),
    ],
)
def test_annotations_that_are_no_certificates(noted: dict[str, str], message: str) -> None:
    found = attachment(LEAF, INTERMEDIATE)
    refused(Attachment(found.digest, found.payload, {**found.annotations, **noted}), message)


def test_a_certificate_cut_or_changed_anywhere_is_refused() -> None:
    (found,) = candidates("new-cert")
    assert isinstance(found, Bundled)
    document = json.loads(found.data)
    raw = base64.b64decode(document["verificationMaterial"]["certificate"]["rawBytes"])
    changed = [raw[:end] for end in range(0, len(raw), 7)]
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        changed.append(bytes(flipped))
    made = []
    for each in changed:
        spelled = base64.b64encode(each).decode()
        document["verificationMaterial"]["certificate"]["rawBytes"] = spelled
        data = json.dumps(document).encode()
        made.append(Bundled(digest_of(data), data))
    for start in range(0, len(made), 100):
        verdict = judged(
            certified("release@example.test"), made[start : start + 100], image_digest("new-cert")
        )
        assert verdict.outcome is Outcome.UNTRUSTED


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        (b"no certificates", "caRootsData: there is no certificate, or a broken one"),
        (b"", "caRootsData: there is no certificate, or a broken one"),
        (pem(ROOT)[:-40], "caRootsData: there is no certificate, or a broken one"),
    ],
)
def test_broken_roots_are_the_policys_fault(roots: bytes, message: str) -> None:
    wanted = requirement()
    wanted["pki"]["caRootsData"] = base64.b64encode(roots).decode() or "AA=="
    faulty(wanted, message)


def test_files_of_roots(tmp_path: Path) -> None:
    path = tmp_path / "roots.pem"
    wanted = requirement()
    wanted["pki"] = {"caRootsPath": str(path), "subjectEmail": EMAIL}
    path.write_bytes(b"Subject: CN=root\n" + pem(ROOT))
    assert verdict_on(attachment(LEAF, INTERMEDIATE), wanted).is_allowed
    path.write_bytes(b"\n" * 2_000_000 + pem(ROOT))
    faulty(wanted, r"caRootsPath: .* is longer than")
    wanted = requirement()
    wanted["pki"]["caIntermediatesPath"] = "/nowhere"
    faulty(wanted, "caIntermediatesPath: /nowhere does not exist")
