"""Certificate chains: which certificates may sign, and which may issue them.

Spec: Notary Project, signature-specification.md, "Certificate Requirements".  A chain is complete
and in order, leaf first, and ends in a certificate that issued itself; a single one that did is
legal, and then only the rules for leaves hold.  Stricter than notation 1.3.2 in one point: the
extended usage *any* is refused, as the specification demands.
"""

from collections.abc import Sequence

from lazyfs.trust.certificates import Certificate
from lazyfs.trust.chains import OCSP_SIGNING, TIME_STAMPING, check_issuers, not_allowed
from lazyfs.trust.notation.envelope import algorithm_of

# Extended usages that a signer must not have, even beside others.
FORBIDDEN = {
    "2.5.29.37.0": "any",
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    TIME_STAMPING: "timeStamping",
    OCSP_SIGNING: "OCSPSigning",
}
SIGNERS_ONLY = {"digitalSignature", "contentCommitment"}


def check_chain(chain: Sequence[Certificate]) -> None:
    """Check that *chain* is one, and every certificate of the kind that belongs to its place.

    Validity is not looked at: which moment counts depends on time-stamps.  Raises NotAllowed.
    """
    leaf, root = chain[0], chain[-1]
    if not root.is_self_signed:
        raise not_allowed(root, "the chain does not end in a certificate that issued itself")
    check_issuers(chain)
    if any(each.is_self_signed for each in chain[:-1]):
        raise not_allowed(leaf, "the chain goes on behind its root")
    check_signer(leaf)


def check_signer(leaf: Certificate) -> None:
    """Check that a certificate may sign images.  Raises NotAllowed."""
    if algorithm_of(leaf.key) is None:
        raise not_allowed(
            leaf, "its key is not RSA with 2048, 3072 or 4096 bits, P-256, P-384 or P-521"
        )
    if leaf.is_authority:
        raise not_allowed(leaf, "it is an authority")
    usage = leaf.usage
    if usage is None or not usage.is_critical:
        raise not_allowed(leaf, "its key usage is not there, or not critical")
    if "digitalSignature" not in usage.names:
        raise not_allowed(leaf, "its key usage has no digitalSignature")
    if others := sorted(usage.names - SIGNERS_ONLY):
        raise not_allowed(leaf, f"its key usage has {others[0]}")
    for number in sorted(leaf.extended.names) if leaf.extended is not None else ():
        if number in FORBIDDEN:
            raise not_allowed(leaf, f"its extended key usage has {FORBIDDEN[number]}")
