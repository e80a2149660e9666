"""Signatures: each scheme takes what it is for, and nothing else."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from lazyfs.trust import der, keys
from lazyfs.trust.errors import BadSignature, Malformed
from tests.support.trust import pki

MESSAGE = b"a message"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EDWARDS = ed25519.Ed25519PrivateKey.generate()
CURVES = [(ec.SECP256R1(), "sha256"), (ec.SECP384R1(), "sha384"), (ec.SECP521R1(), "sha512")]


def spki(key: object) -> bytes:
    data: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


@pytest.mark.parametrize(("curve", "hash_name"), CURVES)
def test_ecdsa_in_both_forms(curve: ec.EllipticCurve, hash_name: str) -> None:
    private = ec.generate_private_key(curve)
    key = keys.load_spki(spki(private.public_key()))
    assert keys.curve_hash(key) == hash_name
    signature = private.sign(MESSAGE, ec.ECDSA(keys.HASHES[hash_name]()))
    raw = pki.sign(private, MESSAGE, hash_name)
    keys.verify_ecdsa_der(key, signature, MESSAGE, hash_name)
    keys.verify_ecdsa_raw(key, raw, MESSAGE, hash_name)
    for check, good in ((keys.verify_ecdsa_der, signature), (keys.verify_ecdsa_raw, raw)):
        other = "sha512" if hash_name == "sha256" else "sha256"
        for bad, message, name in (
            (good, MESSAGE + b"!", hash_name),
            (good, MESSAGE, other),
            (good[:-1], MESSAGE, hash_name),
            (good + b"\0", MESSAGE, hash_name),
            (b"", MESSAGE, hash_name),
            (bytes(len(good)), MESSAGE, hash_name),
        ):
            with pytest.raises((BadSignature, Malformed)):
                check(key, bad, message, name)
    with pytest.raises((BadSignature, Malformed)):
        keys.verify_ecdsa_der(key, raw, MESSAGE, hash_name)
    for size in (0, len(raw) - 1, len(raw) + 1):
        with pytest.raises(BadSignature, match=f"{size} bytes, not {len(raw)}"):
            keys.verify_ecdsa_raw(key, raw[:size].ljust(size, b"\0"), MESSAGE, hash_name)


def test_ecdsa_numbers_out_of_range() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = keys.load_spki(spki(private.public_key()))
    r, s = decode_dss_signature(private.sign(MESSAGE, ec.ECDSA(hashes.SHA256())))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for pair in ((0, s), (r, 0), (r, s + order), (r + order, s), (-r, s), (r, -s)):
        data = der.encode(der.SEQUENCE, *map(der.encode_integer, pair))
        with pytest.raises((BadSignature, Malformed)):
            keys.verify_ecdsa_der(key, data, MESSAGE, "sha256")
    # Of s and its complement both are good: no signature is a name of what it signs.
    keys.verify_ecdsa_der(key, encode_dss_signature(r, order - s), MESSAGE, "sha256")


def test_ecdsa_der_is_strict() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = keys.load_spki(spki(private.public_key()))
    good = private.sign(MESSAGE, ec.ECDSA(hashes.SHA256()))
    padded = der.encode(der.SEQUENCE, b"\x02\x81" + good[3:4] + good[4:])
    longer = der.encode(der.SEQUENCE, good[2:], b"\x05\x00")
    for bad in (padded, longer, b"\x31" + good[1:]):
        with pytest.raises(Malformed):
            keys.verify_ecdsa_der(key, bad, MESSAGE, "sha256")


Sign = Callable[[bytes], bytes]


def pss(salt: int, mask: hashes.HashAlgorithm) -> bytes:
    return RSA.sign(MESSAGE, padding.PSS(padding.MGF1(mask), salt), hashes.SHA256())


def test_rsa() -> None:
    key = keys.load_spki(spki(RSA.public_key()))
    assert keys.curve_hash(key) is None
    good = pss(32, hashes.SHA256())
    old = RSA.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    keys.verify_pss(key, good, MESSAGE, "sha256")
    keys.verify_pkcs1(key, old, MESSAGE, "sha256")
    for bad in (old, pss(20, hashes.SHA256()), pss(32, hashes.SHA512()), good[:-1], b"\0" + good):
        with pytest.raises(BadSignature):
            keys.verify_pss(key, bad, MESSAGE, "sha256")
    for bad in (good, old[:-1], old + b"\0"):
        with pytest.raises(BadSignature):
            keys.verify_pkcs1(key, bad, MESSAGE, "sha256")


def test_ed25519() -> None:
    key = keys.load_spki(spki(EDWARDS.public_key()))
    good = EDWARDS.sign(MESSAGE)
    keys.verify_ed25519(key, good, MESSAGE)
    for bad in (good[:-1], good + b"\0", b"", bytes(64)):
        with pytest.raises(BadSignature):
            keys.verify_ed25519(key, bad, MESSAGE)


@pytest.mark.parametrize("name", ["sha1", "md5", "sha224", "", "SHA256"])
def test_weak_hashes(name: str) -> None:
    key = keys.load_spki(spki(RSA.public_key()))
    with pytest.raises(BadSignature, match="not accepted"):
        keys.verify_pkcs1(key, b"", MESSAGE, name)


def test_a_key_of_another_kind() -> None:
    elliptic = keys.load_spki(spki(ec.generate_private_key(ec.SECP256R1()).public_key()))
    edwards = keys.load_spki(spki(EDWARDS.public_key()))
    modulus = keys.load_spki(spki(RSA.public_key()))
    for key in (edwards, modulus):
        for check in (keys.verify_ecdsa_der, keys.verify_ecdsa_raw):
            with pytest.raises(BadSignature, match="key is not"):
                check(key, bytes(64), MESSAGE, "sha256")
    for key in (edwards, elliptic):
        for check in (keys.verify_pss, keys.verify_pkcs1):
            with pytest.raises(BadSignature, match="key is not"):
                check(key, bytes(256), MESSAGE, "sha256")
    with pytest.raises(BadSignature, match="key is not"):
        keys.verify_ed25519(modulus, bytes(64), MESSAGE)


def test_keys_that_are_not_accepted() -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    bad = [
        spki(small),
        spki(ec.generate_private_key(ec.SECP256K1()).public_key()),
        spki(ed448.Ed448PrivateKey.generate().public_key()),
        spki(dsa.generate_private_key(1024).public_key()),
        spki(RSA.public_key()) + b"\0",
        spki(RSA.public_key())[:-1],
        b"",
        bytes(keys.KEY_LIMIT + 1),
        der.encode(der.SEQUENCE, der.encode(der.NULL)),
        spki(rsa.RSAPublicNumbers((1 << 32) + 1, RSA.public_key().public_numbers().n).public_key()),
    ]
    for data in bad:
        with pytest.raises(Malformed):
            keys.load_spki(data)


def test_keys_as_text() -> None:
    text = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = keys.load_pem(text)
    assert keys.spki_digest(key) == hashlib.sha256(spki(RSA.public_key())).digest()
    with pytest.raises(Malformed, match="longer than"):
        keys.load_pem(text + b"\n" * 100_000)
    for bad in (b"", text.replace(b"PUBLIC", b"PRIVATE"), text[:100]):
        with pytest.raises(Malformed):
            keys.load_pem(bad)
