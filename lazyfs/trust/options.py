"""Whom to believe: what a user may say about it, and what a verdict leaves behind."""

import msgspec

OFF = "off"
DEFAULT = "default"
ONLINE = "online"

TRUSTED = "trusted"
SKIPPED = "skipped"


class TrustOptions(msgspec.Struct, frozen=True):
    """By which policy images are judged, and with what.

    *policy* is ``off``, ``default`` (where notation and podman keep theirs) or a file's absolute
    path; None means what the environment says, or else the machine's own policy.  *trust_store* is
    a directory of certificates as notation has it; None means beside the policy.  *revocation* is
    ``online``, ``off`` or the absolute path of a directory of CRLs and OCSP answers.
    *max_age* is how old a signature may be, in seconds.
    """

    policy: str | None = None
    trust_store: str | None = None
    revocation: str = ONLINE
    is_newer_required: bool = False
    max_age: float | None = None

    @property
    def has_age(self) -> bool:
        """Whether it matters when a signature was made."""
        return self.is_newer_required or self.max_age is not None


class TrustRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What was found out about an image: kept by its mount, and by snapshots of it.

    *verdict* is ``trusted`` or ``skipped``; an image of which anything else was found is not
    mounted.  *policy* names the file and the statement or scope of it that counted, *policy_files*
    the digest of each such file by its path.  *signature* is
    the digest of the envelope, *subject* of the manifest or index that was signed.  Times are
    RFC 3339, UTC.
    """

    verdict: str
    policy: str
    policy_files: dict[str, str]
    judged_at: str
    level: str | None = None
    subject: str | None = None
    signer: str | None = None
    signature: str | None = None
    format: str | None = None
    signed_at: str | None = None
    warnings: tuple[str, ...] = ()
