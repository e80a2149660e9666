"""Algorithms by their identifiers: what is named must be what was used."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from lazyfs.trust import der
from lazyfs.trust.algorithms import check_signature, digest_name
from lazyfs.trust.errors import BadSignature, Malformed

MESSAGE = b"a message"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ELLIPTIC = ec.generate_private_key(ec.SECP256R1())
OLD = RSA.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
NEW = RSA.sign(MESSAGE, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
CURVE = ELLIPTIC.sign(MESSAGE, ec.ECDSA(hashes.SHA256()))

NULL = der.encode(der.NULL)
SHA1, SHA256, SHA384 = (
    bytes.fromhex(text)
    for text in ("06052b0e03021a", "0609608648016503040201", "0609608648016503040202")
)
SHA256_RSA, PSS, MGF1, PLAIN_RSA = (
    bytes.fromhex(f"06092a864886f70d0101{last}") for last in ("0b", "0a", "08", "01")
)
SHA256_ECDSA = bytes.fromhex("06082a8648ce3d040302")


def identifier(*parts: bytes, tag: int = der.SEQUENCE) -> der.Value:
    return der.read(der.encode(tag, *parts), None)


def pss(
    hashed: bytes = SHA256, mask: bytes = SHA256, salt: int = 32, trailer: int | None = None
) -> der.Value:
    parts = [
        der.encode(der.context(0), der.encode(der.SEQUENCE, hashed, NULL)),
        der.encode(
            der.context(1), der.encode(der.SEQUENCE, MGF1, der.encode(der.SEQUENCE, mask, NULL))
        ),
        der.encode(der.context(2), der.encode_integer(salt)),
    ]
    if trailer is not None:
        parts.append(der.encode(der.context(3), der.encode_integer(trailer)))
    return identifier(PSS, der.encode(der.SEQUENCE, *parts))


def test_what_is_accepted() -> None:
    check_signature(RSA.public_key(), identifier(SHA256_RSA, NULL), OLD, MESSAGE)
    check_signature(RSA.public_key(), identifier(SHA256_RSA), OLD, MESSAGE)
    check_signature(RSA.public_key(), identifier(PLAIN_RSA, NULL), OLD, MESSAGE, "sha256")
    check_signature(RSA.public_key(), pss(), NEW, MESSAGE)
    check_signature(RSA.public_key(), pss(trailer=1), NEW, MESSAGE, "sha256")
    check_signature(ELLIPTIC.public_key(), identifier(SHA256_ECDSA), CURVE, MESSAGE, "sha256")


def test_the_signature_itself() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    signed = edwards.sign(MESSAGE)
    curve = identifier(bytes.fromhex("06032b6570"))
    check_signature(edwards.public_key(), curve, signed, MESSAGE)
    for key, named, signature, digest in (
        (RSA, identifier(SHA256_RSA, NULL), OLD, None),
        (RSA, identifier(PLAIN_RSA, NULL), OLD, "sha256"),
        (RSA, pss(), NEW, None),
        (RSA, pss(), OLD, None),
        (ELLIPTIC, identifier(SHA256_ECDSA), CURVE, None),
        (edwards, curve, signed, None),
    ):
        with pytest.raises(BadSignature):
            check_signature(key.public_key(), named, signature, MESSAGE + b"!", digest)


@pytest.mark.parametrize("where", range(4))
def test_something_more_among_the_parameters(where: int) -> None:
    kind, parameters = pss().parts()
    pieces = [each.raw for each in parameters.parts()]
    if where == 3:
        pieces.append(NULL)
    else:
        inner = der.read(pieces[where], None)
        pieces[where] = der.encode(inner.tag, inner.body, NULL)
    named = identifier(kind.raw, der.encode(der.SEQUENCE, *pieces))
    with pytest.raises(Malformed, match="behind"):
        check_signature(RSA.public_key(), named, NEW, MESSAGE)


@pytest.mark.parametrize(
    ("named", "signature"),
    [
        # Nothing says which hash; parameters where there are none; a set instead of a sequence.
        (identifier(PLAIN_RSA, NULL), OLD),
        (identifier(SHA256_RSA, NULL, NULL), OLD),
        (identifier(SHA256_RSA, der.encode(der.SEQUENCE)), OLD),
        (identifier(SHA256_RSA, NULL, tag=der.SET), OLD),
        (identifier(PSS), NEW),
        (pss(salt=20), NEW),
        (pss(trailer=2), NEW),
        (pss(mask=SHA384), NEW),
        (pss(hashed=SHA1, mask=SHA1), NEW),
        (identifier(SHA256_ECDSA, NULL), CURVE),
        (identifier(SHA256), OLD),
    ],
    ids=range(11),
)
def test_what_is_not(named: der.Value, signature: bytes) -> None:
    key = ELLIPTIC if signature == CURVE else RSA
    with pytest.raises(Malformed):
        check_signature(key.public_key(), named, signature, MESSAGE)


def test_the_hash_beside_it_must_be_the_same() -> None:
    with pytest.raises(BadSignature, match="beside"):
        check_signature(RSA.public_key(), identifier(SHA256_RSA, NULL), OLD, MESSAGE, "sha384")


def test_hashes() -> None:
    assert digest_name(identifier(SHA256)) == "sha256"
    assert digest_name(identifier(SHA384, NULL)) == "sha384"
    for bad in (identifier(SHA1), identifier(SHA256, der.encode_integer(1)), identifier(PSS)):
        with pytest.raises(Malformed, match="not accepted"):
            digest_name(bad)
