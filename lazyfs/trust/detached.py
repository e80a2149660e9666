"""Detached signatures made: PKCS#7 without attributes and certificates, as kernels take them.

Spec: RFC 5652, section 5; Linux, Documentation/admin-guide/device-mapper/verity.rst,
``root_hash_sig_key_desc``.  The same bytes as ``openssl smime -sign -nocerts -noattr -binary``.
Importing this module imports cryptography.
"""

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509 import load_der_x509_certificate

from lazyfs.trust.certificates import parse_certificates
from lazyfs.trust.errors import BadSigner, Malformed

KEY_LIMIT = 64 << 10  # bytes of a file with a private key
KEY_BITS = 2048  # at least


def sign_detached(message: bytes, certificate: bytes, key: bytes) -> bytes:
    """Return a signature over *message*, DER; *certificate* and *key* are PEM.

    The key must be RSA with at least 2048 bits: others kernels take only as they were built.
    Raises BadSigner.
    """
    if len(key) > KEY_LIMIT:
        raise BadSigner(f"the private key is longer than {KEY_LIMIT} bytes")
    try:
        private = serialization.load_pem_private_key(key, password=None)
        signer = load_der_x509_certificate(parse_certificates(certificate, 1)[0].raw)
    except (ValueError, TypeError, IndexError, Malformed) as exc:
        raise BadSigner(
            "the signing key or certificate cannot be read",
            hint="both are PEM; the key without a password",
        ) from exc
    if not isinstance(private, rsa.RSAPrivateKey) or private.key_size < KEY_BITS:
        raise BadSigner("the signing key is not RSA with 2048 bits or more")
    if private.public_key() != signer.public_key():
        raise BadSigner("the certificate is not of the signing key")
    return (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(message)
        .add_signer(signer, private, hashes.SHA256())
        .sign(
            serialization.Encoding.DER,
            [
                pkcs7.PKCS7Options.DetachedSignature,
                pkcs7.PKCS7Options.NoAttributes,
                pkcs7.PKCS7Options.NoCerts,
                pkcs7.PKCS7Options.Binary,
            ],
        )
    )
