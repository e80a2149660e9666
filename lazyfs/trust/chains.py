"""Chains of certificates: each issued by the next one, down from an authority.

Spec: RFC 5280, section 6.1, of which this is the part without names and policies; the rules for
authorities are those of the Notary Project (signature-specification.md, "Certificate
Requirements"), which the time-stamping authorities it speaks of follow, too.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from lazyfs.trust.certificates import Certificate, check_issued_by
from lazyfs.trust.errors import BadSignature, Malformed

LENGTH_LIMIT = 10  # certificates of a chain
CHECKS_LIMIT = 64  # signatures tried while a chain is looked for

TIME_STAMPING = "1.3.6.1.5.5.7.3.8"
OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"


class NotAllowed(Malformed):
    """A certificate, or its place in the chain, is not one that the rules allow."""


def check_issuers(chain: Sequence[Certificate]) -> None:
    """Check that each certificate may issue the one before it, and has.  Raises NotAllowed."""
    for below, (certificate, issuer) in enumerate(pairwise(chain)):
        check_link(certificate, issuer, below)


def check_link(certificate: Certificate, issuer: Certificate, below: int) -> None:
    """Check that *issuer* may issue *certificate*, and has.  Raises NotAllowed.

    ``below`` counts the authorities between it and the leaf, for the path length: RFC 5280, section
    6.1.4.
    """
    constraints, usage = issuer.constraints, issuer.usage
    if constraints is None or not constraints.is_authority or not constraints.is_critical:
        raise not_allowed(issuer, "it issues certificates and is not marked as an authority")
    if usage is None or not usage.is_critical or "keyCertSign" not in usage.names:
        raise not_allowed(issuer, "it issues certificates, and its key usage does not allow that")
    if constraints.path_length is not None and constraints.path_length < below:
        raise not_allowed(issuer, f"more than {constraints.path_length} authorities below it")
    try:
        check_issued_by(certificate, issuer)
    except (BadSignature, Malformed) as exc:
        raise not_allowed(certificate, exc.message) from exc


def find_chain(
    leaf: Certificate, pool: Sequence[Certificate], roots: Sequence[Certificate], moment: datetime
) -> tuple[Certificate, ...] | None:
    """Return a chain from *leaf* over certificates of *pool* to one of *roots*, valid at *moment*.

    None if there is none.  Certificates come from whoever sent the signature, in any order and
    number: at most 64 signatures are checked.
    """
    tries = CHECKS_LIMIT
    waiting: list[tuple[Certificate, ...]] = [(leaf,)]
    while waiting:
        chain = waiting.pop()
        last = chain[-1]
        if not last.is_valid_at(moment):
            continue
        if last in roots:
            return chain
        if len(chain) == LENGTH_LIMIT:
            continue
        for issuer in [*pool, *roots]:
            if issuer in chain or issuer.subject.raw != last.issuer.raw:
                continue
            if tries == 0:
                return None
            tries -= 1
            try:
                check_link(last, issuer, len(chain) - 1)
            except NotAllowed:
                continue
            waiting.append((*chain, issuer))
    return None


def not_allowed(certificate: Certificate, text: str) -> NotAllowed:
    """Return the error that says of a certificate what the rules do not allow."""
    return NotAllowed(f"certificate {certificate.who} is not allowed for signing: {text}")
