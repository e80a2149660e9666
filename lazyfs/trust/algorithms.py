"""Signature algorithms as X.509, CRLs, OCSP and CMS name them: by object identifiers.

Spec: RFC 5754 and RFC 4055 (RSA), RFC 5758 (ECDSA), RFC 8410 (Ed25519).  SHA-1 and older hashes
are not accepted anywhere.
"""

import hashlib

from lazyfs.trust import der, keys
from lazyfs.trust.errors import BadSignature, Malformed

DIGESTS = {
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
ECDSA = {
    "1.2.840.10045.4.3.2": "sha256",
    "1.2.840.10045.4.3.3": "sha384",
    "1.2.840.10045.4.3.4": "sha512",
}
RSA = {
    "1.2.840.113549.1.1.11": "sha256",
    "1.2.840.113549.1.1.12": "sha384",
    "1.2.840.113549.1.1.13": "sha512",
}
ED25519 = "1.3.101.112"
PSS, MGF1 = "1.2.840.113549.1.1.10", "1.2.840.113549.1.1.8"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"  # in CMS: PKCS#1 v1.5 with the digest named beside it
WEAK = {
    "1.2.840.113549.1.1.4": "MD5",
    "1.2.840.113549.1.1.5": "SHA-1",
    "1.2.840.10045.4.1": "SHA-1",
    "1.3.14.3.2.26": "SHA-1",
}
NULL = b"\x05\x00"


def digest_name(identifier: der.Value) -> str:
    """Return the hash, named as in hashlib, that an AlgorithmIdentifier names.

    Raises Malformed for any but SHA-256, SHA-384 and SHA-512.
    """
    kind, parameters = _split(identifier)
    if kind not in DIGESTS or parameters not in (b"", NULL):
        raise Malformed(f"the hash {WEAK.get(kind, kind)} is not accepted")
    return DIGESTS[kind]


def check_signature(
    key: keys.PublicKey,
    identifier: der.Value,
    signature: bytes,
    message: bytes,
    digest: str | None = None,
) -> None:
    """Check a signature whose algorithm an AlgorithmIdentifier names.

    ``digest`` is the hash that CMS names beside it, and that must be the same.  Raises
    BadSignature, Malformed for an algorithm that is not accepted.
    """
    kind, parameters = _split(identifier)
    if kind == RSA_ENCRYPTION and digest is not None and parameters in (b"", NULL):
        keys.verify_pkcs1(key, signature, message, digest)
        return
    if kind == ED25519 and not parameters:
        keys.verify_ed25519(key, signature, message)
        return
    if kind in ECDSA and not parameters:
        chosen, verify = ECDSA[kind], keys.verify_ecdsa_der
    elif kind in RSA and parameters in (b"", NULL):
        chosen, verify = RSA[kind], keys.verify_pkcs1
    elif kind == PSS:
        chosen, verify = _pss_hash(parameters), keys.verify_pss
    else:
        raise Malformed(f"the signature algorithm {WEAK.get(kind, kind)} is not accepted")
    if digest is not None and digest != chosen:
        raise BadSignature(f"the signature is made with {chosen}, and {digest} is named beside it")
    verify(key, signature, message, chosen)


def _split(identifier: der.Value) -> tuple[str, bytes]:
    """Return an AlgorithmIdentifier's algorithm, and its parameters as DER (perhaps empty)."""
    if identifier.tag != der.SEQUENCE:
        raise Malformed("an algorithm identifier is not a sequence")
    parts = identifier.parts()
    kind = parts.take(der.OID).oid()
    parameters = b"" if parts.is_empty() else parts.take().raw
    parts.end()
    return kind, parameters


def _pss_hash(parameters: bytes) -> str:
    """Return the hash of RSASSA-PSS-params, which must be used throughout.  RFC 4055, 3.1."""
    parts = der.read(parameters, limit=256).parts()
    chosen = digest_name(_only(parts.take(der.context(0))))
    kind, inner = _split(_only(parts.take(der.context(1))))
    length = _only(parts.take(der.context(2))).integer()
    if (trailer := parts.optional(der.context(3))) is not None and _only(trailer).integer() != 1:
        raise Malformed("a PSS signature has an unknown trailer")
    parts.end()
    same = kind == MGF1 and digest_name(der.read(inner, limit=64)) == chosen
    if not same or length != hashlib.new(chosen).digest_size:
        raise Malformed("a PSS signature has parameters that are not accepted")
    return chosen


def _only(value: der.Value) -> der.Value:
    parts = value.parts()
    inner = parts.take()
    parts.end()
    return inner
