"""Signatures over roots in the form that the kernel takes: detached PKCS#7 without attributes.

Spec: RFC 5652, section 5; Linux, drivers/md/dm-verity-verify-sig.c and
Documentation/filesystems/fsverity.rst.  What is signed of a dm-verity root is its hexadecimal text,
in lower case and without a line end; of an fs-verity digest it is a structure (fsverity.py).

Who signed is named by issuer and serial number, and is one of the certificates that the caller
trusts, or nobody.  Certificates inside a signature are for others, and ignored.  Importing this
module imports cryptography.
"""

from collections.abc import Sequence

from lazyfs.trust import der
from lazyfs.trust.algorithms import PSS, check_signature
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.cms import parse_signed_data
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.verity.errors import BadRootSignature

DATA = "1.2.840.113549.1.7.1"


def signed_text(root: bytes) -> bytes:
    """Return what is signed of a dm-verity root."""
    return root.hex().encode()


def check_root_signature(
    data: bytes, message: bytes, trusted: Sequence[Certificate]
) -> Certificate:
    """Return which of the *trusted* certificates made the signature in *data* over *message*.

    Raises BadRootSignature for a signature of anybody else, or of another form than the kernel's:
    with signed attributes, several signers, the message inside, or SHA-1; not in DER, or with
    something behind it.
    """
    try:
        found = parse_signed_data(data)
    except Malformed as exc:
        raise BadRootSignature(f"the signature over the root is malformed: {exc.message}") from exc
    if found.content_type != DATA or found.content is not None:
        raise BadRootSignature("the signature over the root is not detached from what it signs")
    if len(found.signers) != 1:
        raise BadRootSignature(f"the signature over the root has {len(found.signers)} signers")
    (signer,) = found.signers
    if signer.attributes is not None:
        raise BadRootSignature("the signature over the root has signed attributes")
    if signer.algorithm.parts().take(der.OID).oid() == PSS:
        raise BadRootSignature("the signature over the root is RSA-PSS, which kernels do not take")
    reason = "nobody who is trusted has made it"
    for certificate in trusted:
        if not signer.is_by(certificate) or certificate.key is None:
            continue
        try:
            check_signature(
                certificate.key, signer.algorithm, signer.signature, message, digest=signer.digest
            )
        except (BadSignature, Malformed) as exc:
            reason = exc.message
            continue
        return certificate
    raise BadRootSignature(f"the signature over the root is not accepted: {reason}")
