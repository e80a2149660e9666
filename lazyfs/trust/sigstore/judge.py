"""An image judged by a policy.json, from signatures of cosign in both forms: the way in.

Spec: containers-policy.json(5), "Policy Requirements": all of the requirements must hold, and for
each one signature is enough.  Signatures that are wrong are passed over: whoever may push must not
be able to block the good one.

Nothing is fetched here.  ``judging`` is a generator that yields a wish for the next signature, as
long as it takes; ``judge`` runs it on an iterator.  Cryptography is imported once a requirement
asks for signatures, not with this module.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from lazyfs.printable import printable
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.request import SIGNATURES_LIMIT, NextCandidate, Request, Unfetched
from lazyfs.trust.sigstore import identity
from lazyfs.trust.sigstore.candidates import Attachment, Bundled, Candidate
from lazyfs.trust.sigstore.policy import (
    AcceptAnything,
    Policy,
    Reject,
    SigstoreSigned,
    refuse_unsupported,
    requirements_for,
)
from lazyfs.trust.verdict import Outcome, Reason, SignatureReport, Verdict

if TYPE_CHECKING:
    from lazyfs.trust.sigstore.material import PolicyFiles, Trusted

REASONS_SHOWN = 3

Given: TypeAlias = Candidate | Unfetched | None
Steps: TypeAlias = Generator[NextCandidate, Given, "Verdict"]


def judge(
    policy: Policy,
    files: "PolicyFiles",
    request: Request,
    candidates: Iterable[Candidate | Unfetched],
) -> Verdict:
    """Return what *policy* says of an image.

    *files* are those that the policy names; *candidates* are taken one by one, until the policy is
    content.  Raises nothing but what the iterator raises, and ValueError for a layout whose
    directory is not absolute (and it should have no links in it: scopes are compared as text).
    """
    waiting = iter(candidates)
    steps = judging(policy, files, request)
    given: Given = None
    while True:
        try:
            steps.send(given)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict
        given = next(waiting, None)


def judging(policy: Policy, files: "PolicyFiles", request: Request) -> Steps:
    """Judge an image; yield NextCandidate and be sent a Candidate, Unfetched, or None at the end.

    A requirement that lazyfs cannot check, or a key that cannot be read, is the policy's fault: the
    image is not trusted, and the reason is of the kind ``policy``.
    """
    chosen = requirements_for(policy, request.reference)
    verdict = Verdict(
        outcome=Outcome.SKIPPED,
        name=request.reference.name,
        digest=request.image.digest,
        policy=f"{policy.file}: {chosen.scope}",
        level=", ".join(dict.fromkeys(_name_of(each) for each in chosen.requirements)),
    )
    needed = [each for each in chosen.requirements if isinstance(each, SigstoreSigned)]
    try:
        refuse_unsupported(policy, chosen)
        if any(isinstance(each, Reject) for each in chosen.requirements):
            reason = Reason("policy", f"{policy.file} rejects it ({chosen.scope})")
            return _with(verdict, Outcome.UNTRUSTED, reason)
        if not needed:
            return verdict
        from lazyfs.trust.sigstore.material import load

        # Before any signature: a broken key is found out whatever the registry has.
        trusted = [load(policy.file, each, files) for each in needed]
    except PolicyFault as exc:
        return _with(verdict, Outcome.UNTRUSTED, Reason("policy", exc.message, "policy"))
    found = _Found(request)
    failures = []
    for requirement, who in zip(needed, trusted, strict=True):
        failure = yield from found.satisfy(requirement, who)
        if failure is not None:
            failures.append(failure)
    verdict = msgspec.structs.replace(verdict, signatures=found.reports())
    if not failures:
        return msgspec.structs.replace(verdict, outcome=Outcome.TRUSTED)
    if found.missing:
        return _with(verdict, Outcome.UNKNOWN, *found.missing, *failures)
    return _with(verdict, Outcome.UNTRUSTED, *failures)


class _Found:
    """The candidates, taken as far as they were needed, and what became of each."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._seen: list[Candidate] = []
        self._results: list[tuple[str | None, Reason | None]] = []
        self._is_all = False
        self.missing: list[Reason] = []

    def satisfy(
        self, requirement: SigstoreSigned, trusted: "Trusted"
    ) -> Generator[NextCandidate, Given, Reason | None]:
        """Return None once a candidate meets *requirement*, or why none does."""
        reasons: list[Reason] = []
        at = 0
        while at < len(self._seen) or (yield from self._take()):
            signer, failure = self._check(self._seen[at], requirement, trusted)
            self._note(at, signer, failure)
            if failure is None:
                return None
            reasons.append(failure)
            at += 1
        return _summary(requirement, reasons)

    def reports(self) -> tuple[SignatureReport, ...]:
        """Return what is known of each candidate that was looked at."""
        return tuple(
            SignatureReport(
                digest=candidate.digest,
                format="cosign/bundle" if isinstance(candidate, Bundled) else "cosign/payload",
                signer=signer,
                failure=failure,
            )
            for candidate, (signer, failure) in zip(self._seen, self._results, strict=True)
        )

    def _take(self) -> Generator[NextCandidate, Given, bool]:
        """Wish for one more candidate; return whether there was one."""
        while not self._is_all:
            given = yield NextCandidate()
            if given is None:
                self._is_all = True
            elif isinstance(given, Unfetched):
                text = f"{given.digest or 'the list of signatures'}: {given.reason}"
                reason = Reason("retrieval", f"cannot fetch {printable(text, 300)}", "unknown")
                self.missing.append(reason)
                # Of those, too, there can be any number.
                self._is_all = len(self.missing) >= SIGNATURES_LIMIT
            elif not isinstance(given, Attachment | Bundled):
                raise TypeError("a wish for a candidate was given something else")
            elif len(self._seen) >= SIGNATURES_LIMIT:
                text = (
                    f"none of the first {SIGNATURES_LIMIT} signatures is good, and there are more"
                )
                self.missing.append(Reason("retrieval", text, "unknown"))
                self._is_all = True
            else:
                self._seen.append(given)
                self._results.append((None, None))
                return True
        return False

    def _check(
        self, candidate: Candidate, requirement: SigstoreSigned, trusted: "Trusted"
    ) -> tuple[str | None, Reason | None]:
        """Return who has signed, and why that is not enough."""
        from lazyfs.trust.sigstore import checking

        request = self._request
        signer = None
        try:
            signed = checking.check(candidate, trusted, request.image.digest, request.now)
            signer = signed.signer
            checking.check_annotations(signed, request.metadata)
            if not identity.matches(requirement.identity, request.reference, signed.name):
                raise checking.Refused("authenticity", _wrong_name(requirement, signed.name))
        except checking.Refused as exc:
            return signer, Reason(exc.check, exc.reason)
        return signer, None

    def _note(self, at: int, signer: str | None, failure: Reason | None) -> None:
        """Keep what a requirement found; a signature that has met one stays accepted."""
        before, failed = self._results[at]
        if before is None or failed is not None:
            self._results[at] = (signer or before, failure)


def _wrong_name(requirement: SigstoreSigned, name: str | None) -> str:
    wanted = requirement.identity
    if name is None:
        return f"a bundle names no repository, and {wanted} asks for one; see matchDigestOnly"
    return f"it is for the name {printable(name, 200)}; the policy wants {wanted}"


def _summary(requirement: SigstoreSigned, reasons: Sequence[Reason]) -> Reason:
    """Return one reason out of those why each candidate fails."""
    if not reasons:
        return Reason("signature", f"no signature found; {requirement.place} requires one")
    texts = list(dict.fromkeys(each.message for each in reasons))
    rest = "" if len(texts) <= REASONS_SHOWN else f"; and {len(texts) - REASONS_SHOWN} more"
    told = "; ".join(texts[:REASONS_SHOWN]) + rest
    count = len(reasons)
    begin = "its signature is not accepted" if count == 1 else f"none of {count} is accepted"
    return Reason(reasons[0].check, f"{begin} by {requirement.place}: {told}")


def _name_of(requirement: object) -> str:
    if isinstance(requirement, AcceptAnything):
        return "insecureAcceptAnything"
    if isinstance(requirement, Reject):
        return "reject"
    return "sigstoreSigned" if isinstance(requirement, SigstoreSigned) else "unsupported"


def _with(verdict: Verdict, outcome: Outcome, *reasons: Reason) -> Verdict:
    return msgspec.structs.replace(verdict, outcome=outcome, reasons=reasons)
