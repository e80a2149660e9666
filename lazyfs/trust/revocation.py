"""Whether certificates are revoked: what has to be asked, and what the answers mean.

Spec: Notary Project, trust-store-trust-policy.md, "Certificate Revocation Evaluation": OCSP first,
lists where that gives nothing; a certificate that names neither cannot be revoked.  Another address
is tried where one fails, as the specification says and notation 1.3.2 does not.

Nothing is fetched here.  ``check_revocation`` is a generator: it yields a ``Question`` and is sent
the answers, so that the same code runs under trio, in a thread, or on files.
"""

import itertools
from collections.abc import Generator, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from lazyfs.printable import printable
from lazyfs.trust import crl, ocsp
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.questions import Answers, Away, Question

ANSWERS_LIMIT = 16  # documents that answer one question
SHOWN = 120


class Revoked(msgspec.Struct, frozen=True):
    """A certificate of the chain is revoked."""

    certificate: Certificate
    since: datetime

    @property
    def message(self) -> str:
        """One sentence."""
        return f"certificate {self.certificate.who} is revoked since {self.since:%Y-%m-%d %H:%M}Z"


class StatusUnknown(msgspec.Struct, frozen=True):
    """Nothing tells whether a certificate of the chain is revoked."""

    certificate: Certificate
    reason: str

    @property
    def message(self) -> str:
        """One sentence."""
        return f"revocation status of {self.certificate.who} is unknown: {self.reason}"


Asking = Generator[Question, Answers, Revoked | StatusUnknown | None]


def check_revocation(chain: Sequence[Certificate], now: datetime) -> Asking:
    """Ask about all of *chain* but its root, from there down; return what is wrong, or None.

    That one is revoked weighs more than that another's status is unknown.
    """
    unknown = None
    for certificate, issuer in reversed(list(itertools.pairwise(chain))):
        found = yield from _check_one(certificate, issuer, now)
        if isinstance(found, Revoked):
            return found
        unknown = unknown or found
    return unknown


def _check_one(certificate: Certificate, issuer: Certificate, now: datetime) -> Asking:
    unknown = None
    questions = itertools.chain(
        (_question("ocsp", url, certificate, issuer) for url in certificate.ocsp_urls),
        (_question("crl", url, certificate, issuer) for url in certificate.crl_urls),
    )
    for question in questions:
        found: Revoked | str | None
        answers = yield question
        if isinstance(answers, Away):
            found = answers.reason
        elif question.kind == "ocsp":
            found = _by_ocsp(answers, certificate, issuer, now)
        else:
            found = _by_list(answers, certificate, issuer, now)
        if found is None or isinstance(found, Revoked):
            return found
        unknown = unknown or _unknown(certificate, question.url, found)
    return unknown


def _by_ocsp(
    answers: Sequence[bytes], certificate: Certificate, issuer: Certificate, now: datetime
) -> Revoked | str | None:
    """Return that it is revoked, None if it is not, or why nothing is known."""
    reason, is_good = "no answer", False
    for data in answers[:ANSWERS_LIMIT]:
        try:
            status = ocsp.status_of(data, certificate, issuer, now)
        except (Malformed, BadSignature) as exc:
            reason = exc.message
            continue
        if status.state == "revoked":
            return Revoked(certificate, status.since or now)
        if status.state == "unknown":
            reason = "the responder does not know it"
        is_good = is_good or status.state == "good"
    return _too_many(answers) or (None if is_good else reason)


def _by_list(
    answers: Sequence[bytes], certificate: Certificate, issuer: Certificate, now: datetime
) -> Revoked | str | None:
    """Return that it is revoked, None if it is not, or why nothing is known."""
    reason, is_good = "no list", False
    for data in answers[:ANSWERS_LIMIT]:
        try:
            since = crl.revoked_since(data, certificate, issuer, now)
        except (Malformed, BadSignature) as exc:
            reason = exc.message
            continue
        if since is not None:
            return Revoked(certificate, since)
        is_good = True
    return _too_many(answers) or (None if is_good else reason)


def _too_many(answers: Sequence[bytes]) -> str | None:
    """Return why answers that were not all read, any of which may revoke, do not say "good"."""
    if len(answers) <= ANSWERS_LIMIT:
        return None
    return (
        f"there are {len(answers)} answers, and at most {ANSWERS_LIMIT} are read: remove old ones"
    )


def _question(
    kind: Literal["ocsp", "crl"], url: str, certificate: Certificate, issuer: Certificate
) -> Question:
    is_ocsp = kind == "ocsp"
    return Question(
        kind=kind,
        url=url,
        request=ocsp.request(certificate, issuer) if is_ocsp else b"",
        issuer=issuer,
        # A list is the same for all certificates: one question.
        serial=certificate.serial if is_ocsp else 0,
    )


def _unknown(certificate: Certificate, url: str, reason: str) -> StatusUnknown:
    return StatusUnknown(certificate, f"{printable(url, SHOWN)}: {printable(reason, 200)}")
