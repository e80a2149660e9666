"""Public keys, and signatures checked with them.

Each function checks one scheme and raises BadSignature; none guesses the scheme from the bytes.
Hashes are named as in hashlib.  Importing this module imports cryptography (some 60 ms): import it
inside the function that needs it, once a policy is in force.
"""

import hashlib
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from lazyfs.trust import der
from lazyfs.trust.errors import BadSignature, Malformed

KEY_LIMIT = 8192  # bytes of a SubjectPublicKeyInfo, as DER; as PEM twice that
RSA_BITS = (2048, 8192)  # beyond that a check takes too long
EXPONENT_LIMIT = 1 << 32  # of RSA: larger ones only make checks slow

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
# Curve → bytes of a coordinate, and the hash that belongs to it (RFC 7518, section 3.4).
CURVES = {"secp256r1": (32, "sha256"), "secp384r1": (48, "sha384"), "secp521r1": (66, "sha512")}


def load_spki(data: bytes) -> PublicKey:
    """Return the key in a SubjectPublicKeyInfo (RFC 5280, section 4.1) as DER.  Raises Malformed.

    Keys are on P-256, P-384 or P-521, RSA with 2048 to 8192 bits, or Ed25519.
    """
    der.read(data, limit=KEY_LIMIT)
    try:
        return accepted(serialization.load_der_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise Malformed("the public key cannot be read") from exc


def load_pem(data: bytes) -> PublicKey:
    """Return the key in a PEM file (RFC 7468, section 13: ``PUBLIC KEY``).  Raises Malformed."""
    if len(data) > 2 * KEY_LIMIT:
        raise Malformed(f"the public key is longer than {2 * KEY_LIMIT} bytes")
    try:
        return accepted(serialization.load_pem_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise Malformed("the public key cannot be read") from exc


def accepted(key: object) -> PublicKey:
    """Return *key* if it is of a kind and size that ``load_spki`` accepts.  Raises Malformed."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            raise Malformed(f"a key on the curve {key.curve.name} is not supported")
    elif isinstance(key, rsa.RSAPublicKey):
        if not RSA_BITS[0] <= key.key_size <= RSA_BITS[1]:
            raise Malformed(f"an RSA key of {key.key_size} bits is not supported")
        if key.public_numbers().e > EXPONENT_LIMIT:
            raise Malformed("an RSA key with so large an exponent is not supported")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise Malformed("a key of this kind is not supported")
    return key


def spki_of(key: PublicKey) -> bytes:
    """Return a key's SubjectPublicKeyInfo as DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def spki_digest(key: PublicKey) -> bytes:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo: what hints and fingerprints carry."""
    return hashlib.sha256(spki_of(key)).digest()


def curve_hash(key: PublicKey) -> str | None:
    """Return the hash that belongs to an elliptic key's curve; None for other keys."""
    return CURVES[key.curve.name][1] if isinstance(key, ec.EllipticCurvePublicKey) else None


def verify_ecdsa_der(key: PublicKey, signature: bytes, message: bytes, hash_name: str) -> None:
    """Check an ECDSA signature in the form of X.509 and CMS: a SEQUENCE of r and s.

    Spec: RFC 3279, section 2.2.3.  Raises BadSignature, and Malformed for what is not DER.
    """
    curve = _expect_ec(key)
    parts = der.read(signature, limit=2 * CURVES[curve.curve.name][0] + 16).parts()
    r, s = parts.take().integer(), parts.take().integer()
    parts.end()
    _check_ecdsa(curve, r, s, message, hash_name)


def verify_ecdsa_raw(key: PublicKey, signature: bytes, message: bytes, hash_name: str) -> None:
    """Check an ECDSA signature in the form of JWS and COSE: r and s side by side.

    Spec: RFC 7518, section 3.4; RFC 9053, section 2.1.  Raises BadSignature.
    """
    curve = _expect_ec(key)
    size = CURVES[curve.curve.name][0]
    if len(signature) != 2 * size:
        raise BadSignature(f"the signature does not verify: {len(signature)} bytes, not {2 * size}")
    r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
    _check_ecdsa(curve, r, s, message, hash_name)


def verify_pss(key: PublicKey, signature: bytes, message: bytes, hash_name: str) -> None:
    """Check an RSASSA-PSS signature: MGF1 with the same hash, a salt as long as the hash.

    Spec: RFC 7518, section 3.5; RFC 8230, section 2.  Raises BadSignature.
    """
    chosen = _hash(hash_name)
    scheme = padding.PSS(padding.MGF1(chosen), chosen.digest_size)
    _check_rsa(key, signature, message, scheme, chosen)


def verify_pkcs1(key: PublicKey, signature: bytes, message: bytes, hash_name: str) -> None:
    """Check an RSASSA-PKCS1-v1_5 signature (RFC 8017, section 8.2).  Raises BadSignature."""
    _check_rsa(key, signature, message, padding.PKCS1v15(), _hash(hash_name))


def verify_ed25519(key: PublicKey, signature: bytes, message: bytes) -> None:
    """Check a plain Ed25519 signature (RFC 8032, section 5.1.7).  Raises BadSignature."""
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadSignature("the signature does not verify: the key is not an Ed25519 key")
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise BadSignature("the signature does not verify") from None


def _expect_ec(key: PublicKey) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise BadSignature("the signature does not verify: the key is not on a known curve")
    return key


def _check_ecdsa(
    key: ec.EllipticCurvePublicKey, r: int, s: int, message: bytes, hash_name: str
) -> None:
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(_hash(hash_name)))
    except (InvalidSignature, ValueError):
        raise BadSignature("the signature does not verify") from None


def _check_rsa(
    key: PublicKey,
    signature: bytes,
    message: bytes,
    scheme: padding.AsymmetricPadding,
    chosen: hashes.HashAlgorithm,
) -> None:
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadSignature("the signature does not verify: the key is not an RSA key")
    try:
        key.verify(signature, message, scheme, chosen)
    except (InvalidSignature, ValueError):
        raise BadSignature("the signature does not verify") from None


def _hash(name: str) -> hashes.HashAlgorithm:
    if name not in HASHES:
        raise BadSignature(f"the signature does not verify: {name} is not accepted")
    return HASHES[name]()
