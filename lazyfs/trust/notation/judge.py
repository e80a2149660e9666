"""An image judged by a trust policy: the way in.

Spec: Notary Project, trust-store-trust-policy.md, "Signature Verification".  One good signature
among many is enough, and none can stand in the way of another: a malformed one is passed over,
where notation 1.3.2 gives up.

Nothing is fetched here.  ``judging`` is a generator that yields what it has to know: the next
signature, or an answer about revocation.  ``judge`` runs it on iterators and a source.
Cryptography is imported with the first signature, not with this module.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from lazyfs.printable import printable
from lazyfs.trust.errors import Malformed
from lazyfs.trust.notation.policy import Policy, Statement, fold_scope
from lazyfs.trust.questions import Answers, Away, Question, RevocationSource
from lazyfs.trust.request import SIGNATURES_LIMIT, NextCandidate, Request, Unfetched
from lazyfs.trust.verdict import Outcome, Reason, SignatureReport, Verdict

if TYPE_CHECKING:
    from lazyfs.trust.notation.artifact import Candidate
    from lazyfs.trust.notation.signature import Measure
    from lazyfs.trust.notation.stores import StoreFiles

QUESTIONS_LIMIT = 64  # about revocation, for one image
ANSWERS_LIMIT = 128 << 20  # bytes of answers; the one that goes beyond still counts
# The order of checks.  A signature that failed late says more than one that failed early.
ORDER = (
    "retrieval", "integrity", "plugin", "authenticity", "expiry", "authenticTimestamp",
    "revocation", "payload", "metadata",
)  # fmt: skip

# What is yielded, and what is sent for it.
Wish: TypeAlias = "NextCandidate | Question"
Given: TypeAlias = "Candidate | Unfetched | Answers | None"


def judge(
    policy: Policy,
    stores: "StoreFiles",
    request: Request,
    candidates: "Iterable[Candidate | Unfetched]",
    revocation: RevocationSource | None,
) -> Verdict:
    """Return what *policy* says of an image.

    *candidates* are taken one by one, until one is good.  Without a source nothing is known of
    revocation.  Raises nothing but what the iterator and the source raise.
    """
    waiting = iter(candidates)
    steps = judging(policy, stores, request)
    given: Given = None
    while True:
        try:
            wish = steps.send(given)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict
        if isinstance(wish, NextCandidate):
            given = next(waiting, None)
        elif revocation is None:
            given = Away("no source of revocation answers")
        else:
            given = revocation.answers(wish)


def judging(
    policy: Policy, stores: "StoreFiles", request: Request
) -> Generator[Wish, Given, Verdict]:
    """Judge an image; yield what has to be known and be sent it.

    For NextCandidate that is a Candidate, Unfetched, or None at the end; for a Question, Answers.
    """
    scope = fold_scope(request.reference.name)
    statement = policy.statement_for(scope)
    if statement is None:
        reason = Reason("policy", f"no statement of {policy.file} is for {printable(scope, 200)}")
        return _verdict(request, Outcome.UNTRUSTED, None, reasons=(reason,))
    if statement.level == "skip":
        return _verdict(request, Outcome.SKIPPED, statement)
    from lazyfs.trust.notation.artifact import Candidate
    from lazyfs.trust.notation.signature import Measure
    from lazyfs.trust.notation.stores import TrustStores

    measure = Measure(
        statement=statement,
        stores=TrustStores(stores),
        image=request.image,
        metadata=request.metadata,
        now=request.now,
    )
    reports: list[SignatureReport] = []
    reasons: list[Reason] = []
    asked = _Asked()
    for _ in range(SIGNATURES_LIMIT):
        candidate = yield NextCandidate()
        if candidate is None:
            break
        if isinstance(candidate, Unfetched):
            text = f"{candidate.digest or 'the list of signatures'}: {candidate.reason}"
            reasons.append(Reason("retrieval", f"cannot fetch {printable(text, 300)}", "unknown"))
            continue
        if not isinstance(candidate, Candidate):
            raise TypeError("a wish for a candidate was given something else")
        report = yield from _judge_candidate(candidate, measure, asked)
        if report is None:
            continue
        reports.append(report)
        if report.failure is None:
            return _verdict(request, Outcome.TRUSTED, statement, reports=tuple(reports))
        reasons.append(report.failure)
    else:
        if (yield NextCandidate()) is not None:
            text = f"none of the first {SIGNATURES_LIMIT} signatures is good, and there are more"
            reasons.append(Reason("retrieval", text, "unknown"))
    return _refuse(request, statement, reports, reasons)


def _judge_candidate(
    candidate: "Candidate", measure: "Measure", asked: "_Asked"
) -> Generator[Wish, Given, SignatureReport | None]:
    """Return what is to be said of a candidate; None if it is no signature of the image."""
    from lazyfs.trust.notation.artifact import read_envelope, wanted_envelope
    from lazyfs.trust.notation.signature import judge_signature

    digest = candidate.digest
    try:
        wanted = wanted_envelope(digest, candidate.manifest, measure.image.digest)
        if wanted is None:
            return None
        envelope = read_envelope(wanted, candidate.envelope)
    except Malformed as exc:
        failure = Reason("integrity", f"signature {digest} is malformed: {exc.message}")
        return SignatureReport(digest=digest, format="notation", failure=failure)
    steps = judge_signature(digest, envelope, measure)
    answers = None
    while True:
        try:
            question = steps.send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            report: SignatureReport = end.value
            return report
        answers = yield from asked.ask(question)


class _Asked:
    """What has been asked about revocation for one image: each question once, and not without end.

    Whoever may push signatures chooses how many there are.
    """

    def __init__(self) -> None:
        self.answers: dict[Question, Answers] = {}
        self.size = 0

    def ask(self, question: Question) -> Generator[Wish, Given, Answers]:
        """Return the answers to *question*."""
        if question in self.answers:
            return self.answers[question]
        if len(self.answers) >= QUESTIONS_LIMIT or self.size > ANSWERS_LIMIT:
            return Away("too much has been asked about the revocation of this image's signers")
        given = yield question
        if not isinstance(given, Away | Sequence):
            raise TypeError("a question was given something else than answers")
        if not isinstance(given, Away):
            self.size += sum(map(len, given))
        self.answers[question] = given
        return given


def _refuse(
    request: Request,
    statement: Statement,
    reports: Sequence[SignatureReport],
    reasons: Sequence[Reason],
) -> Verdict:
    if not reasons:
        text = f"no signature found; policy {printable(statement.name, 80)} requires one"
        if statement.identities is not None:
            wanted = "; ".join(map(str, statement.identities[:3])) or "an identity of unknown kind"
            text += f" by {wanted}"
        return _verdict(request, Outcome.UNTRUSTED, statement, reasons=(Reason("signature", text),))
    is_unknown = any(reason.kind == "unknown" for reason in reasons)
    kinds = ("unknown", "policy", "untrusted") if is_unknown else ("policy", "untrusted")
    ordered = sorted(reasons, key=lambda reason: (kinds.index(reason.kind), -_progress(reason)))
    return _verdict(
        request,
        Outcome.UNKNOWN if is_unknown else Outcome.UNTRUSTED,
        statement,
        reasons=tuple(ordered),
        reports=tuple(reports),
    )


def _progress(reason: Reason) -> int:
    return ORDER.index(reason.check) if reason.check in ORDER else -1


def _verdict(
    request: Request,
    outcome: Outcome,
    statement: Statement | None,
    *,
    reasons: tuple[Reason, ...] = (),
    reports: tuple[SignatureReport, ...] = (),
) -> Verdict:
    return Verdict(
        outcome=outcome,
        name=request.reference.name,
        digest=request.image.digest,
        policy=statement.name if statement is not None else "",
        level=statement.level if statement is not None else "",
        reasons=reasons,
        signatures=reports,
    )
