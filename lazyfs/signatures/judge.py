"""An image judged by the policies in force, before anything of it can be read.

What is signed may be the image's manifest or the index that leads to it: the index's digest vouches
for all that it lists.  Signatures that were good before are judged first, from the store, so that
an image that was mounted needs no request for them.  What is judged is the repository that the user
asked for, whichever mirror serves it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio
from msgspec.structs import replace

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import StoreError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.registry.source import AccessOptions, Document
from lazyfs.signatures.find import ATTEMPTS, Found, find_signatures
from lazyfs.signatures.policies import PolicyFile
from lazyfs.signatures.revocation import Authorities
from lazyfs.store.paths import Store
from lazyfs.store.signatures import load_newest, load_signatures, save_newest, save_signatures
from lazyfs.trust.candidate import Candidate
from lazyfs.trust.errors import CannotTell, Untrusted
from lazyfs.trust.options import TRUSTED, TrustOptions, TrustRecord

if TYPE_CHECKING:
    from lazyfs.signatures.rules import Rules
    from lazyfs.trust.verdict import Verdict

log = logging.getLogger(__name__)

DAY = 86400
KEPT_LIMIT = 4
"""Manifests of signatures that are kept of one subject; each policy in force has one."""
Clock = Callable[[], datetime]


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Judge:
    """Judges images by *rules*, all of which must be met."""

    def __init__(
        self,
        rules: "Sequence[Rules]",
        access: AccessOptions,
        clock: Clock = now,
        *,
        judged_as: Reference | LayoutReference | None = None,
    ) -> None:
        """*judged_as* is the name that policies are about where it is not the one asked for."""
        self._rules = rules
        self._access = access
        self._clock = clock
        self._judged_as = judged_as

    async def image(
        self, store: Store | None, origin: Origin, subjects: Sequence[Document], *, is_image: bool
    ) -> TrustRecord:
        """Return what is found of an image, of which any of *subjects* may be signed.

        With *is_image* False it is something beside an image, whose age is of no interest.  Raises
        Untrusted, CannotTell, PolicyFault.
        """
        records = []
        for rules in self._rules:
            verdict, candidates, _ = await self.by(rules, store, origin, subjects, is_aged=is_image)
            error = verdict.error()
            if error is not None:
                raise error
            for reason in verdict.warnings:
                log.warning("%s: %s", verdict.name, reason.message)
            carrier = carrier_of(verdict, candidates)
            records.append(record_of(rules.policy, verdict, carrier, self._clock()))
        record = merged(records)
        if is_image and record.verdict == TRUSTED:
            check_age(record, self._access.trust.max_age, self._clock(), str(origin.reference))
            record = self._with_newest(store, origin.reference, record)
        return record

    async def by(
        self,
        rules: "Rules",
        store: Store | None,
        origin: Origin,
        subjects: Sequence[Document],
        *,
        is_aged: bool = False,
    ) -> "tuple[Verdict, Sequence[Candidate], Mapping[str, str]]":
        """Return what one policy says, by which candidates, and what could not be read.

        The last is the digest of a manifest → the reason.  With *is_aged* the newest signature
        counts if the options ask for an age: an image may be signed again.  Raises PolicyFault.
        """
        asked = Authorities(
            *(store, self._access.environment, self._clock()),
            is_offline=self._access.is_offline,
        )
        name = origin.reference if self._judged_as is None else self._judged_as
        case = Case(rules, name, self._access.trust, asked, self._clock())
        try:
            first = case.without_signatures(subjects[0])
            if first.is_allowed or first.reasons[0].check == "policy":
                return first, (), {}
            is_aged = is_aged and self._access.trust.has_age
            known: tuple[Verdict, Sequence[Candidate]] | None = None
            for subject in subjects:
                kept = [] if store is None else load_signatures(store, subject.digest)
                verdict = await case.judge(subject, kept) if kept else first
                if verdict.is_allowed:
                    if not is_aged or self._is_recent(store, origin.reference, verdict):
                        return verdict, kept, {}
                    known = known or (verdict, kept)
            verdict, candidates, malformed = await self._by_asking(
                case, origin, subjects, first, is_aged=is_aged
            )
            if known is not None and not (verdict.is_allowed and is_newer(verdict, known[0])):
                return *known, malformed
            carrier = carrier_of(verdict, candidates) if verdict.is_allowed else None
            if store is not None and carrier is not None:
                _keep(store, verdict.digest, carrier)
            return verdict, candidates, malformed
        finally:
            await asked.aclose()

    async def _by_asking(
        self,
        case: "Case",
        origin: Origin,
        subjects: Sequence[Document],
        first: "Verdict",
        *,
        is_aged: bool,
    ) -> "tuple[Verdict, Sequence[Candidate], Mapping[str, str]]":
        """Return what a policy says of the signatures that a registry, or a layout, has."""
        if origin.is_offline and origin.kind == "registry":
            return doubtful(first, ["--offline asks no registry, and no signature is kept"]), (), {}
        found: dict[Digest, Found] = {}

        async def find(digest: Digest) -> None:
            found[digest] = await find_signatures(
                origin.source, digest, has_tags=case.rules.has_tags
            )

        async with trio.open_nursery() as nursery:
            for subject in subjects:
                nursery.start_soon(find, subject.digest)
        malformed = {name: why for each in found.values() for name, why in each.malformed.items()}
        refusals = []
        newest: tuple[Verdict, Sequence[Candidate]] | None = None
        for subject in subjects:
            candidates = found[subject.digest].candidates
            verdict = await case.judge(subject, candidates)
            if verdict.is_allowed:
                if not is_aged:
                    return verdict, candidates, malformed
                verdict = await case.newest(subject, candidates, verdict)
                if newest is None or is_newer(verdict, newest[0]):
                    newest = verdict, candidates
            refusals.append(verdict)
        if newest is not None:
            return *newest, malformed
        troubles = [text for each in found.values() for text in each.troubles]
        for verdict in refusals:
            if verdict.outcome == "unknown":
                return verdict, (), malformed
        # The one that had signatures has more to say than the one that had none.
        verdict = max(refusals, key=lambda each: len(each.signatures))
        return (doubtful(verdict, troubles) if troubles else verdict), (), malformed

    def _is_recent(
        self, store: Store | None, reference: Reference | LayoutReference, verdict: "Verdict"
    ) -> bool:
        """Say whether a signature that is kept is new enough for what the options ask."""
        signed_at = None if verdict.accepted is None else verdict.accepted.signed_at
        if signed_at is None:
            return False
        limit = self._access.trust.max_age
        if limit is not None and (self._clock() - signed_at).total_seconds() > limit:
            return False
        if store is None or isinstance(reference, LayoutReference) or reference.digest:
            return True
        known = load_newest(store, newest_name(reference))
        return known is None or rfc3339(signed_at) >= known.signed_at

    def _with_newest(
        self, store: Store | None, reference: Reference | LayoutReference, record: TrustRecord
    ) -> TrustRecord:
        """Compare with the newest signature that the same tag had, and remember this one if newer.

        Raises Untrusted for an older one where that is wanted.
        """
        is_required = self._access.trust.is_newer_required
        if isinstance(reference, LayoutReference) or reference.digest:
            return record
        if store is None:
            if is_required:
                raise CannotTell(f"{reference}: without a cache no older signature is known")
            return record
        if record.signed_at is None:
            if is_required:
                raise Untrusted(f"{reference}: its signature does not say when it was made")
            return record
        name = newest_name(reference)
        known = load_newest(store, name)
        if known is not None and record.signed_at < known.signed_at:
            said = (
                f"{reference}: signed at {record.signed_at}; a newer signature, of "
                f"{known.signed_at}, was seen before, of {known.digest}"
            )
            if is_required:
                raise Untrusted(
                    said, hint="somebody put an older image back; without --require-newer it goes"
                )
            log.warning("%s", said)
            return replace(record, warnings=(*record.warnings, said))
        if known is None or known.signed_at < record.signed_at:
            try:
                save_newest(store, name, record.signed_at, record.subject or "")
            except StoreError as error:
                log.warning("%s", error.message)
        return record


class Case:
    """One image before one policy."""

    def __init__(
        self,
        rules: "Rules",
        reference: Reference | LayoutReference,
        options: TrustOptions,
        asked: Authorities,
        time: datetime,
    ) -> None:
        self.rules = rules
        self._reference = reference
        self._options = options
        self._asked = asked
        self._time = time

    async def judge(self, subject: Document, candidates: Sequence[Candidate]) -> "Verdict":
        """Return the verdict, worked out in a thread: it may ask about revocation."""
        return await trio.to_thread.run_sync(self._judge, subject, candidates)

    async def newest(
        self, subject: Document, candidates: Sequence[Candidate], verdict: "Verdict"
    ) -> "Verdict":
        """Return the verdict by the newest of the signatures that the policy accepts.

        *verdict* is that by the first.  Each that was accepted is left out in turn.
        """
        best, left = verdict, list(candidates)
        for _ in range(ATTEMPTS):
            carrier = carrier_of(verdict, left)
            if verdict.accepted is None or carrier is None:
                break
            accepted = str(verdict.accepted.digest)
            left.remove(carrier)
            others = {name: data for name, data in carrier.blobs.items() if name != accepted}
            if accepted in carrier.blobs and others:  # a manifest of cosign's has all under its tag
                left.append(replace(carrier, blobs=others))
            verdict = await self.judge(subject, left)
            if not verdict.is_allowed:
                break
            if is_newer(verdict, best):
                best = verdict
        return best

    def without_signatures(self, subject: Document) -> "Verdict":
        """Return the verdict on what nobody signed, which asks about nothing and is soon there."""
        return self._judge(subject, ())

    def _judge(self, subject: Document, candidates: Sequence[Candidate]) -> "Verdict":
        options = self._options
        return self.rules.judge(
            self._reference, subject, candidates, options.revocation, self._asked, self._time
        )


def doubtful(verdict: "Verdict", troubles: Sequence[str]) -> "Verdict":
    """Return a refusal that may be wrong, since not all could be looked at, as that."""
    from lazyfs.trust.verdict import Outcome, Reason  # noqa: PLC0415

    reasons = tuple(Reason("retrieval", text, "unknown") for text in troubles)
    return replace(verdict, outcome=Outcome.UNKNOWN, reasons=(*reasons, *verdict.reasons))


def is_newer(verdict: "Verdict", other: "Verdict") -> bool:
    """Say whether the signature accepted by *verdict* is known to be newer than that by *other*."""
    made, before = (
        None if each.accepted is None else each.accepted.signed_at for each in (verdict, other)
    )
    return made is not None and (before is None or made > before)


def newest_name(reference: Reference) -> str:
    """Return by which name the newest signature of a tag is kept."""
    return f"{reference.name}:{reference.tag}"


def check_age(record: TrustRecord, limit: float | None, time: datetime, name: str) -> None:
    """Raise Untrusted for a signature older than *limit*, in seconds, or of unknown age."""
    if limit is None:
        return
    if record.signed_at is None:
        raise Untrusted(f"{name}: its signature does not say when it was made")
    age = (time - datetime.fromisoformat(record.signed_at)).total_seconds()
    if age > limit:
        raise Untrusted(
            f"{name}: signed at {record.signed_at}, {age / DAY:.1f} days ago; "
            f"at most {limit / DAY:.1f} days are allowed"
        )


def carrier_of(verdict: "Verdict", candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the manifest that has the signature which was accepted, None where none was."""
    if verdict.accepted is None:
        return None
    name = str(verdict.accepted.digest)
    return next((each for each in candidates if name in (each.digest, *each.blobs)), None)


def record_of(
    policy: PolicyFile, verdict: "Verdict", carrier: Candidate | None, time: datetime
) -> TrustRecord:
    """Return what is kept of a verdict that allows the image; *carrier* has the signature."""
    accepted = verdict.accepted
    rule = f"{policy.path}: {verdict.policy}" if verdict.policy else str(policy.path)
    record = TrustRecord(
        verdict=str(verdict.outcome),
        policy=rule,
        policy_files={str(policy.path): str(digest_of(policy.data))},
        judged_at=rfc3339(time),
        level=verdict.level or None,
    )
    if accepted is None:
        return record
    envelope = str(accepted.digest)
    if carrier is not None and envelope == carrier.digest and len(carrier.blobs) == 1:
        (envelope,) = carrier.blobs
    return replace(
        record,
        subject=str(verdict.digest),
        signer=accepted.signer,
        signature=envelope,
        format=accepted.format,
        signed_at=None if accepted.signed_at is None else rfc3339(accepted.signed_at),
        warnings=tuple(reason.message for reason in verdict.warnings),
    )


def merged(records: Sequence[TrustRecord]) -> TrustRecord:
    """Return one record for several policies that all allow an image: the one that says most."""
    chosen = next((each for each in records if each.verdict == TRUSTED), records[0])
    return replace(
        chosen,
        policy="; ".join(each.policy for each in records),
        policy_files={path: text for each in records for path, text in each.policy_files.items()},
        warnings=tuple(text for each in records for text in each.warnings),
    )


def rfc3339(time: datetime) -> str:
    """Return a time in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _keep(store: Store, subject: Digest, carrier: Candidate) -> None:
    """Keep the signature that was accepted for the next time, beside another policy's."""
    others = [each for each in load_signatures(store, subject) if each.digest != carrier.digest]
    try:
        save_signatures(store, subject, [carrier, *others][:KEPT_LIMIT])
    except StoreError as error:
        log.debug("%s", error.message)
