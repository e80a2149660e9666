"""Publishers for tests: one who signs as notation does, and one who signs as cosign does.

Keys are made for the test and thrown away.  What is pushed has the form of the real tools' (their
own signatures are in tests/fixtures/trust).
"""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.support.formats.images import sha256
from tests.support.registries.registry import FakeRegistry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
NOTATION = "application/vnd.cncf.notary.signature"
JWS = "application/jose+json"
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNED_AT = "2026-06-01T00:00:00Z"


def described(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    """Return a descriptor of *data*."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _push(
    registry: FakeRegistry,
    name: str,
    blobs: Sequence[bytes],
    manifest: dict[str, Any],
    tag: str | None = None,
) -> str:
    for data in blobs:
        registry.put_blob(name, data)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, **manifest}
    return registry.content.put_manifest(name, _json(document), OCI_MANIFEST, tag)


class Cosigner:
    """Somebody with a key, who signs with cosign."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public_key(self) -> bytes:
        """The key's PEM."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def policy(self, folder: Path, *scopes: str, default: str = "reject", **members: Any) -> Path:
        """Write containers' policy that wants this key for *scopes*, and return its path."""
        key = folder / "cosign.pub"
        key.write_bytes(self.public_key)
        wanted = {"type": "sigstoreSigned", "keyPath": str(key), **members}
        document: dict[str, Any] = {"default": [{"type": default}]}
        document["transports"] = {"docker": {scope: [wanted] for scope in scopes}}
        path = folder / "policy.json"
        path.write_bytes(_json(document))
        return path

    def _sign(self, data: bytes) -> str:
        return base64.b64encode(self.key.sign(data, ec.ECDSA(hashes.SHA256()))).decode()

    def sign(self, registry: FakeRegistry, name: str, digest: str, *, identity: str) -> str:
        """Push a signature in the older form, under its tag; return its manifest's digest."""
        payload = _json(
            {
                "critical": {
                    "identity": {"docker-reference": identity},
                    "image": {"docker-manifest-digest": digest},
                    "type": "cosign container image signature",
                },
                "optional": None,
            }
        )
        config = b"{}"
        annotations = {"dev.cosignproject.cosign/signature": self._sign(payload)}
        manifest = {
            "config": described(OCI_CONFIG, config),
            "layers": [described(SIMPLE, payload, annotations=annotations)],
        }
        tag = f"{digest.replace(':', '-')}.sig"
        return _push(registry, name, [config, payload], manifest, tag)

    def bundle(self, registry: FakeRegistry, name: str, subject: dict[str, Any]) -> str:
        """Push a signature in the newer form, as a referrer; return its manifest's digest."""
        statement = _json(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"digest": {"sha256": subject["digest"].partition(":")[2]}}],
                "predicateType": "https://sigstore.dev/cosign/sign/v1",
                "predicate": {},
            }
        )
        kind = "application/vnd.in-toto+json"
        signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(statement), statement)
        data = _json(
            {
                "mediaType": BUNDLE,
                "verificationMaterial": {"publicKey": {"hint": ""}},
                "dsseEnvelope": {
                    "payload": base64.b64encode(statement).decode(),
                    "payloadType": kind,
                    "signatures": [{"sig": self._sign(signed)}],
                },
            }
        )
        config = b"{}"
        manifest = {
            "artifactType": BUNDLE,
            "config": described("application/vnd.oci.empty.v1+json", config),
            "layers": [described(BUNDLE, data)],
            "subject": subject,
        }
        return _push(registry, name, [config, data], manifest)


class Notary:
    """A publisher with a certificate of their own authority, who signs with notation.

    *crl* is the URL of the authority's revocation list, named in the certificate.
    """

    def __init__(self, name: str = "Publisher", *, crl: str | None = None) -> None:
        self._authority = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        root_name = _name(f"{name} Root")
        self.root = self._certificate(root_name, root_name, self._authority, is_authority=True)
        self.leaf = self._certificate(_name(name), root_name, self._key, crl=crl)

    def _certificate(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        is_authority: bool = False,
        crl: str | None = None,
    ) -> x509.Certificate:
        usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment"),
                *("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
                *("encipher_only", "decipher_only"),
            ),
            False,
        )
        for each in ("key_cert_sign", "crl_sign") if is_authority else ("digital_signature",):
            usage[each] = True
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2056, 1, 1, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
        )
        if crl is not None:
            point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl)], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        return builder.sign(self._authority, hashes.SHA256())

    def revocations(self, *, is_revoked: bool, now: datetime | None = None) -> bytes:
        """Return the authority's revocation list, DER; it is valid for a day around *now*."""
        now = now or datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.root.subject)
            .last_update(now - timedelta(hours=12))
            .next_update(now + timedelta(hours=12))
        )
        if is_revoked:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(self.leaf.serial_number)
                .revocation_date(now - timedelta(hours=1))
                .build()
            )
            builder = builder.add_revoked_certificate(entry)
        number = x509.CRLNumber(1)
        builder = builder.add_extension(number, critical=False)
        crl = builder.sign(self._authority, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.DER)

    def policy(self, folder: Path, *scopes: str, level: str = "strict") -> Path:
        """Write notation's policy and trust store that want this publisher; return its path."""
        store = folder / "truststore/x509/ca/publisher"
        store.mkdir(parents=True, exist_ok=True)
        (store / "root.crt").write_bytes(self.root.public_bytes(serialization.Encoding.PEM))
        statement = {
            "name": "publisher",
            "registryScopes": list(scopes),
            "signatureVerification": {"level": level},
            "trustStores": ["ca:publisher"],
            "trustedIdentities": ["*"],
        }
        path = folder / "trustpolicy.json"
        path.write_bytes(_json({"version": "1.0", "trustPolicies": [statement]}))
        return path

    def envelope(self, subject: dict[str, Any], signed_at: str = SIGNED_AT) -> bytes:
        """Return a JWS envelope over *subject*, a descriptor."""
        target = {key: subject[key] for key in ("mediaType", "digest", "size")}
        scheme = "io.cncf.notary.signingScheme"
        protected = {
            "alg": "ES256",
            "crit": [scheme],
            "cty": "application/vnd.cncf.notary.payload.v1+json",
            scheme: "notary.x509",
            "io.cncf.notary.signingTime": signed_at,
        }
        head = _base64url(_json(protected))
        payload = _base64url(_json({"targetArtifact": target}))
        r, s = decode_dss_signature(
            self._key.sign(f"{head}.{payload}".encode(), ec.ECDSA(hashes.SHA256()))
        )
        chain = [
            base64.b64encode(each.public_bytes(serialization.Encoding.DER)).decode()
            for each in (self.leaf, self.root)
        ]
        return _json(
            {
                "payload": payload,
                "protected": head,
                "header": {"x5c": chain, "io.cncf.notary.signingAgent": "test"},
                "signature": _base64url(r.to_bytes(32) + s.to_bytes(32)),
            }
        )

    def sign(
        self,
        registry: FakeRegistry,
        name: str,
        subject: dict[str, Any],
        signed_at: str = SIGNED_AT,
    ) -> str:
        """Push a signature over *subject* as a referrer; return its manifest's digest."""
        data, config = self.envelope(subject, signed_at), b"{}"
        manifest = {
            "config": described(NOTATION, config),
            "layers": [described(JWS, data)],
            "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
        }
        return _push(registry, name, [config, data], manifest)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Berlin"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
