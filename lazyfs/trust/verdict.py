"""What came of judging an image by a policy, whatever kind of signatures the policy is about.

A verdict is four-valued.  *Untrusted* and *unknown* are kept apart: the first is the publisher's
doing, or somebody else's, and asking again does not help; the second is a server that is away or an
answer that is out of date.
"""

import enum
from datetime import datetime
from typing import Literal

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError
from lazyfs.trust.errors import CannotTell, PolicyFault, Untrusted


class Outcome(enum.StrEnum):
    """What the policy says of an image."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


Kind = Literal["untrusted", "unknown", "policy"]
"""Whose fault a failure is: the signature's, nobody's who is here, or the administrator's."""


class Reason(msgspec.Struct, frozen=True):
    """Why something failed: the check's name, and one sentence for people.

    ``check`` is one of ``policy`` (no rule applies), ``signature`` (none was found), ``retrieval``,
    ``integrity``, ``plugin``, ``authenticity``, ``authenticTimestamp``, ``expiry``, ``revocation``,
    ``payload`` (signed is something else) and ``metadata``.
    """

    check: str
    message: str
    kind: Kind = "untrusted"


class SignatureReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one signature.

    ``digest`` is that of the artifact that carries it, ``format`` as in ``notation/jws``;
    ``signer`` the subject of the certificate (RFC 4514) or what names the key, once the signature
    is known to be made with it.  ``failure`` is None for an accepted one; ``warnings`` are checks
    that failed and that the policy only logs.  ``signed_at``, in UTC, is when it was made: by a
    time stamp if there is one, or else what the signer says; None where nothing says it.
    """

    digest: Digest
    format: str
    signer: str | None = None
    failure: Reason | None = None
    warnings: tuple[Reason, ...] = ()
    signed_at: datetime | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy says of an image.

    ``policy`` names the rule that was applied, ``level`` how strict it is; both are empty where
    none applies.  ``reasons`` say why the image is not trusted, the most telling first;
    ``accepted`` is the signature that made it so.
    """

    outcome: Outcome
    name: str
    digest: Digest
    policy: str = ""
    level: str = ""
    reasons: tuple[Reason, ...] = ()
    signatures: tuple[SignatureReport, ...] = ()

    @property
    def is_allowed(self) -> bool:
        """Whether the image may be used: trusted, or the policy asks for nothing."""
        return self.outcome in (Outcome.TRUSTED, Outcome.SKIPPED)

    @property
    def accepted(self) -> SignatureReport | None:
        """The signature that the image is trusted for; None if there is none."""
        if self.outcome is not Outcome.TRUSTED:
            return None
        return next((each for each in self.signatures if each.failure is None), None)

    @property
    def warnings(self) -> tuple[Reason, ...]:
        """What failed in the accepted signature and is only logged by the policy."""
        return self.accepted.warnings if self.accepted is not None else ()

    def error(self) -> LazyfsError | None:
        """Return what refuses the image: Untrusted, CannotTell, PolicyFault; None if allowed."""
        if self.is_allowed:
            return None
        reason = self.reasons[0] if self.reasons else Reason("policy", "the policy refuses it")
        message = f"{self.name}@{self.digest}: {reason.message}"
        if self.outcome is Outcome.UNKNOWN:
            return CannotTell(f"cannot tell whether to trust {message}")
        if reason.kind == "policy":
            return PolicyFault(message)
        return Untrusted(message)
