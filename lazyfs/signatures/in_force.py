"""The way in: whether an image is judged at all, and by whom."""

from typing import TYPE_CHECKING

from lazyfs.registry.config.access import AccessOptions
from lazyfs.signatures.policies import policies_in_force

if TYPE_CHECKING:
    from lazyfs.signatures.judge import Judge


def judge_of(access: AccessOptions) -> "Judge | None":
    """Return the judge of what *access* reaches, None where no policy is in force.

    Raises PolicyFault.  Nothing of what judging needs is imported without a policy.
    """
    policies = policies_in_force(access.trust, access.environment)
    if not policies:
        return None
    from lazyfs.signatures.judge import Judge  # noqa: PLC0415
    from lazyfs.signatures.rules import load_rules  # noqa: PLC0415

    return Judge([load_rules(policy) for policy in policies], access)
