"""An image judged by a policy.json, from signatures of cosign in both forms.

Spec: containers-policy.json(5), "Policy Requirements": all of the requirements must hold, and for
each one signature is enough.  Nothing is fetched here: the candidates come from outside, perhaps
one by one, and are asked for no longer than it takes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from lazyfs.digest import Digest
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.printable import printable
from lazyfs.trust.sigstore import identity
from lazyfs.trust.sigstore.candidates import Bundled, Candidate, Missing
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
    from lazyfs.trust.sigstore.material import Trusted

CANDIDATES_LIMIT = 100
REASONS_SHOWN = 3


def judge(
    policy: Policy,
    reference: Reference | LayoutReference,
    digest: Digest,
    candidates: Iterable[Candidate | Missing],
    *,
    read: Callable[[str], bytes],
    now: datetime,
    annotations: Mapping[str, str] | None = None,
) -> Verdict:
    """Return what *policy* says of the manifest with *digest*, asked for as *reference*.

    *reference* is the one that the user named, not a mirror's; *now* has a time zone;
    *annotations* are what the signer must have added; *read* returns a file that the policy
    names, or raises OSError.  Signatures that are wrong are passed over:
    whoever may push must not be able to block the good one.  Raises PolicyFault for a requirement
    that lazyfs cannot check, and for a key that cannot be read.
    """
    chosen = requirements_for(policy, reference)
    refuse_unsupported(policy, chosen)
    levels = dict.fromkeys(_name_of(each) for each in chosen.requirements)
    verdict = Verdict(
        outcome=Outcome.SKIPPED,
        name=reference.name,
        digest=digest,
        policy=f"{policy.file}: {chosen.scope}",
        level=", ".join(levels),
    )
    if any(isinstance(each, Reject) for each in chosen.requirements):
        reason = Reason("policy", f"{policy.file} rejects it ({chosen.scope})")
        return _replace(verdict, Outcome.UNTRUSTED, reason)
    needed = [each for each in chosen.requirements if isinstance(each, SigstoreSigned)]
    if not needed:
        return verdict
    # Keys are read before any signature: a broken key is found out whatever the registry has.
    from lazyfs.trust.sigstore.material import load  # noqa: PLC0415

    trusted = [load(policy.file, each, read) for each in needed]
    found = _Found(candidates)
    failures = [
        failure
        for requirement, who in zip(needed, trusted, strict=True)
        if (failure := found.satisfy(requirement, who, reference, digest, now, annotations or {}))
    ]
    verdict = msgspec.structs.replace(verdict, signatures=found.reports())
    if not failures:
        return msgspec.structs.replace(verdict, outcome=Outcome.TRUSTED)
    if found.missing:
        reasons = [Reason("retrieval", each, "unknown") for each in found.missing]
        return _replace(verdict, Outcome.UNKNOWN, *reasons, *failures)
    return _replace(verdict, Outcome.UNTRUSTED, *failures)


class _Found:
    """The candidates, taken as far as they were needed, and what became of each."""

    def __init__(self, candidates: Iterable[Candidate | Missing]) -> None:
        self._rest = iter(candidates)
        self._seen: list[Candidate] = []
        self._results: list[tuple[str | None, Reason | None]] = []
        self.missing: list[str] = []

    def satisfy(
        self,
        requirement: SigstoreSigned,
        trusted: "Trusted",
        reference: Reference | LayoutReference,
        digest: Digest,
        now: datetime,
        annotations: Mapping[str, str],
    ) -> Reason | None:
        """Return None once a candidate meets *requirement*, or why none does."""
        from lazyfs.trust.sigstore import checking  # noqa: PLC0415

        reasons: list[Reason] = []
        for at, candidate in enumerate(self._all()):
            signer = None
            try:
                signed = checking.check(candidate, trusted, digest, now)
                signer = signed.signer
                checking.check_annotations(signed, annotations)
                if not identity.matches(requirement.identity, reference, signed.name):
                    raise checking.Refused("authenticity", _wrong_name(requirement, signed.name))
            except checking.Refused as exc:
                reasons.append(Reason(exc.check, exc.reason))
                self._note(at, signer, reasons[-1])
                continue
            self._note(at, signer, None)
            return None
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

    def _all(self) -> Iterator[Candidate]:
        """Yield the candidates, those that were taken before first."""
        yield from list(self._seen)
        for candidate in self._rest:
            if isinstance(candidate, Missing):
                self.missing.append(candidate.reason)
            elif len(self._seen) >= CANDIDATES_LIMIT:
                self.missing.append(f"it has more than {CANDIDATES_LIMIT} signatures")
                self._rest = iter(())
                return
            else:
                self._seen.append(candidate)
                self._results.append((None, None))
                yield candidate

    def _note(self, at: int, signer: str | None, failure: Reason | None) -> None:
        """Keep what a requirement found; a signature that has met one stays accepted."""
        before, failed = self._results[at]
        if before is not None and failed is None:
            return
        self._results[at] = (signer or before, failure)


def _wrong_name(requirement: SigstoreSigned, name: str | None) -> str:
    wanted = requirement.identity
    if name is None:
        return f"a bundle names no repository; the policy wants {wanted}, not matchDigestOnly"
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
    return "reject" if isinstance(requirement, Reject) else "sigstoreSigned"


def _replace(verdict: Verdict, outcome: Outcome, *reasons: Reason) -> Verdict:
    return msgspec.structs.replace(verdict, outcome=outcome, reasons=reasons)
