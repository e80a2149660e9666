"""Options for whom to believe: by which policy images are judged, and with what."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.trust.options import TrustOptions

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

WORDS = ("default", "off")
MODES = ("online", "off")

OPTIONS = (
    click.option(
        "--policy",
        metavar="FILE|default|off",
        help="Trust policy that the image must meet: notation's trustpolicy.json or containers' "
        "policy.json; default: wherever these tools keep theirs.  [default: $LAZYFS_POLICY, else "
        "/etc/lazyfs/policy.json if it exists, else off]",
    ),
    click.option(
        "--trust-store",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Directory of certificates, as notation keeps it.  [default: truststore beside the "
        "policy]",
    ),
    click.option(
        "--revocation",
        default="online",
        show_default=True,
        metavar="online|off|DIR",
        help="Where to find out whether a certificate was revoked: ask its issuer, do not, or "
        "look into a directory of CRLs and OCSP answers.",
    ),
    click.option(
        "--require-newer",
        is_flag=True,
        help="Refuse an image whose signature is older than one seen before for the same tag.",
    ),
    click.option(
        "--max-signature-age",
        metavar="TIME",
        help="Refuse signatures older than this: 30d, 12h.",
    ),
)


JUDGING = OPTIONS[:3]


def judging_options(function: Decorated) -> Decorated:
    """Add the options that say by which policy something is judged, as parameters of their own."""
    decorated: Any = function
    for option in reversed(JUDGING):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def trust_options(function: Decorated) -> Decorated:
    """Add the options; they become part of the parameter *access* of ``access_options``."""

    @functools.wraps(function)
    def command(
        *args: Any,
        policy: str | None,
        trust_store: Path | None,
        revocation: str,
        require_newer: bool,
        max_signature_age: str | None,
        access: Any,
        **rest: Any,
    ) -> Any:
        from msgspec.structs import replace

        trust = parse_trust(policy, trust_store, revocation, require_newer, max_signature_age)
        return function(*args, access=replace(access, trust=trust), **rest)

    decorated: Any = command
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def parse_trust(
    policy: str | None,
    trust_store: Path | None,
    revocation: str,
    is_newer_required: bool,
    max_age: str | None,
) -> "TrustOptions":
    """Return what the options mean, paths made absolute; raises UsageError."""
    from lazyfs.cli.quantities import parse_duration
    from lazyfs.trust.options import TrustOptions

    if policy == "off" and (trust_store or is_newer_required or max_age):
        raise UsageError(
            "--policy off cannot be combined with --trust-store, --require-newer or "
            "--max-signature-age: nothing is judged"
        )
    return TrustOptions(
        policy=policy if policy is None or policy in WORDS else str(Path(policy).absolute()),
        trust_store=None if trust_store is None else str(trust_store.absolute()),
        revocation=revocation if revocation in MODES else str(Path(revocation).absolute()),
        is_newer_required=is_newer_required,
        max_age=None if max_age is None else parse_duration(max_age),
    )
