"""One signature, judged by one statement of a policy: the checks in their order.

Spec: Notary Project, trust-store-trust-policy.md, "Signature Verification".  Integrity and payload
are always enforced; what the others do is the statement's choice.
"""

from collections.abc import Generator, Mapping, Sequence
from datetime import datetime

import msgspec

from lazyfs.digest import Digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.printable import printable
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.errors import BadSignature, Malformed, PolicyFault
from lazyfs.trust.notation.chain import check_chain
from lazyfs.trust.notation.envelope import Envelope, Target
from lazyfs.trust.notation.identities import identity_of
from lazyfs.trust.notation.policy import Statement, StoreKind
from lazyfs.trust.notation.stores import TrustStores
from lazyfs.trust.questions import Answers, Question
from lazyfs.trust.revocation import Revoked, StatusUnknown, check_revocation
from lazyfs.trust.timestamp import Timestamp, verify_token
from lazyfs.trust.verdict import Kind, Reason, SignatureReport

Judging = Generator[Question, Answers, SignatureReport]


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What signatures are judged by: statement, stores, the image, the clock.

    ``metadata`` are annotations that must be signed with the image.
    """

    statement: Statement
    stores: TrustStores
    image: Descriptor
    metadata: Mapping[str, str]
    now: datetime


class _Failed(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.message)
        self.reason = reason


def judge_signature(digest: Digest, envelope: Envelope, measure: Measure) -> Judging:
    """Judge one signature; *digest* is that of its manifest.  Raises nothing."""
    checks = _Checks(digest, envelope, measure)
    failure = None
    try:
        yield from checks.run()
    except _Failed as exc:
        failure = exc.reason
    return SignatureReport(
        digest=digest,
        format=envelope.format,
        signer=checks.signer,
        failure=failure,
        warnings=tuple(checks.warnings),
    )


class _Checks:
    def __init__(self, digest: Digest, envelope: Envelope, measure: Measure) -> None:
        self.digest = digest
        self.envelope = envelope
        self.measure = measure
        self.statement = measure.statement
        self.warnings: list[Reason] = []
        self.signer: str | None = None
        self.unknown: Reason | None = None

    def run(self) -> Generator[Question, Answers, None]:
        """Make all checks; raise _Failed for the first that is enforced and fails."""
        self.check_integrity()
        self.signer = self.envelope.leaf.who
        if self.envelope.plugin is not None:
            name = printable(self.envelope.plugin, 60)
            self.fail("plugin", f"the signature asks for the verification plugin {name!r}")
        is_authentic = self.check_authenticity()
        self.check_expiry()
        yield from self.check_times()
        yield from self.check_revocation(is_authentic)
        self.check_payload(self.envelope.target)
        if self.unknown is not None:
            raise _Failed(self.unknown)

    def fail(self, check: str, message: str, kind: Kind = "untrusted") -> None:
        """Do about a failed check what the statement says."""
        reason = Reason(check, message, kind)
        action = self.statement.actions.get(check, "enforce")
        if action == "log":
            self.warnings.append(reason)
        elif action == "enforce" and kind == "unknown":
            # A later check may still show that this signature is none for this image.
            self.unknown = self.unknown or reason
        elif action == "enforce":
            raise _Failed(reason)

    def check_integrity(self) -> None:
        try:
            check_chain(self.envelope.chain)
        except Malformed as exc:
            self.fail("integrity", exc.message)
        try:
            self.envelope.verify()
        except (Malformed, BadSignature) as exc:
            self.fail("integrity", f"signature {self.digest} is broken: {exc.message}")

    def check_authenticity(self) -> bool:
        """Check who signed; return whether that is somebody whom the policy trusts."""
        before = len(self.warnings)
        kind: StoreKind = "signingAuthority" if self.envelope.is_by_authority else "ca"
        trusted = self.load(kind, "authenticity")
        if trusted is not None:
            self.check_trusted(kind, trusted)
        if len(self.warnings) == before:
            self.check_identity(self.envelope.leaf)
        return len(self.warnings) == before

    def load(self, kind: StoreKind, check: str) -> Sequence[Certificate] | None:
        try:
            return self.measure.stores.certificates(self.statement.stores, kind)
        except PolicyFault as exc:
            self.fail(check, exc.message, "policy")
            return None

    def check_trusted(self, kind: StoreKind, trusted: Sequence[Certificate]) -> None:
        names = ", ".join(str(store) for store in self.statement.stores if store.kind == kind)
        if not names:
            self.fail("authenticity", f"the policy names no trust store of type {kind}")
        elif not set(self.envelope.chain) & set(trusted):
            root = self.envelope.chain[-1]
            self.fail(
                "authenticity",
                f"the chain ends in {root.who} (sha256 {root.thumbprint}), and none of it is in"
                f" trust store {names}",
            )

    def check_identity(self, leaf: Certificate) -> None:
        identities = self.statement.identities
        if identities is None:
            return
        try:
            subject = identity_of(leaf.subject)
        except Malformed as exc:
            self.fail("authenticity", f"signed by {leaf.who}: {exc.message}")
            return
        if not any(each.covers(subject) for each in identities):
            wanted = "; ".join(map(str, identities[:3])) or "no identity that lazyfs knows"
            self.fail("authenticity", f"signed by {leaf.who}; the policy wants {wanted}")

    def check_expiry(self) -> None:
        expiry = self.envelope.expiry
        if expiry is not None and self.measure.now >= expiry:
            self.fail("expiry", f"the signature expired on {_day(expiry)}")

    def check_times(self) -> Generator[Question, Answers, None]:
        """Check that the certificates were valid when it was signed.  "Authentic Timestamp"."""
        now, chain = self.measure.now, self.envelope.chain
        if self.envelope.is_by_authority:
            self.check_valid(self.envelope.signing_time, self.envelope.signing_time, "")
            return
        has_store = any(store.kind == "tsa" for store in self.statement.stores)
        is_expired = any(now > each.not_after for each in chain)
        if not has_store or not (self.statement.always_timestamp or is_expired):
            self.check_valid(now, now, ", and there is no trusted time-stamp")
            return
        stamp = self.read_timestamp()
        if stamp is None:
            return
        self.check_valid(stamp.earliest, stamp.latest, " at the time of the time-stamp")
        if self.statement.actions.get("revocation") != "skip":
            yield from self.ask("revocation", stamp.chain)

    def read_timestamp(self) -> Timestamp | None:
        check = "authenticTimestamp"
        roots = self.load("tsa", check)
        if roots is None:
            return None
        if self.envelope.timestamp is None:
            self.fail(check, "the signature has no time-stamp")
            return None
        try:
            return verify_token(self.envelope.timestamp, self.envelope.signature, roots)
        except (Malformed, BadSignature) as exc:
            self.fail(check, exc.message)
            return None

    def check_valid(self, earliest: datetime, latest: datetime, circumstance: str) -> None:
        for certificate in self.envelope.chain:
            if latest > certificate.not_after:
                text = f"expired on {_day(certificate.not_after)}"
            elif earliest < certificate.not_before:
                text = f"is valid from {_day(certificate.not_before)}"
            else:
                continue
            message = f"certificate {certificate.who} {text}{circumstance}"
            self.fail("authenticTimestamp", message)
            return

    def check_revocation(self, is_authentic: bool) -> Generator[Question, Answers, None]:
        action = self.statement.actions.get("revocation", "enforce")
        if action == "skip":
            return
        if action == "log" and not is_authentic:
            # Whoever made up these certificates chose the addresses in them, too.
            self.fail("revocation", "not looked at: the signer is not trusted", "unknown")
            return
        yield from self.ask("revocation", self.envelope.chain)

    def ask(self, check: str, chain: Sequence[Certificate]) -> Generator[Question, Answers, None]:
        found = yield from check_revocation(chain, self.measure.now)
        if isinstance(found, Revoked):
            self.fail(check, found.message)
        elif isinstance(found, StatusUnknown):
            self.fail(check, found.message, "unknown")

    def check_payload(self, target: Target) -> None:
        image = self.measure.image
        if target.digest != image.digest:
            self.fail("payload", f"the signature is for {target.digest}")
        if (target.media_type, target.size) != (image.media_type, image.size):
            kind = printable(target.media_type, 80)
            self.fail("payload", f"the signature is for {kind} of {target.size} bytes")
        for name, value in self.measure.metadata.items():
            if target.annotations.get(name) != value:
                self.fail("metadata", f"{printable(name, 80)} is not signed with the wanted value")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"
