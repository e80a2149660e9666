"""policy.json as a value: which requirements hold for which images.

Spec: containers-policy.json(5).  ``policy_reading.py`` makes these from a file.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.printable import printable
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.sigstore.identity import Identity
from lazyfs.trust.sigstore.scopes import scopes_of, transport_of


class Material(msgspec.Struct, frozen=True):
    """A key or certificates: the path of a file, or the bytes themselves.

    ``place`` says where the policy states it.
    """

    place: str
    path: str | None = None
    data: bytes | None = None


class Pki(msgspec.Struct, frozen=True):
    """Certificates of one's own authority: who issues them, and to whom."""

    roots: Material
    intermediates: Material | None = None
    email: str | None = None
    hostname: str | None = None


class Fulcio(msgspec.Struct, frozen=True):
    """Certificates of a Sigstore service: whose they are, and by which login."""

    authority: Material
    issuer: str
    email: str


class AcceptAnything(msgspec.Struct, frozen=True):
    """``insecureAcceptAnything``: nothing is asked for."""


class Reject(msgspec.Struct, frozen=True):
    """``reject``: no image is accepted."""


class SigstoreSigned(msgspec.Struct, frozen=True):
    """``sigstoreSigned``: a signature by one of the keys, or with a certificate.

    With ``logs``, keys of transparency logs, one of them must have seen it.
    """

    place: str
    identity: Identity
    keys: tuple[Material, ...] = ()
    pki: Pki | None = None
    fulcio: Fulcio | None = None
    logs: tuple[Material, ...] = ()


class Unsupported(msgspec.Struct, frozen=True):
    """A requirement that containers/image knows and lazyfs cannot check."""

    place: str
    what: str


Requirement: TypeAlias = AcceptAnything | Reject | SigstoreSigned | Unsupported


class Chosen(msgspec.Struct, frozen=True):
    """The requirements for one image, and where the policy states them."""

    scope: str
    requirements: tuple[Requirement, ...]


class Policy(msgspec.Struct, frozen=True):
    """A policy.  ``transports`` is transport → scope → requirements, of which all must hold.

    ``file`` is for messages; ``warnings`` name what is valid and has no effect.
    """

    file: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]] = {}
    warnings: tuple[str, ...] = ()


def requirements_for(policy: Policy, reference: Reference | LayoutReference) -> Chosen:
    """Return what *policy* requires of *reference*: the most specific scope that it lists."""
    transport = transport_of(reference)
    if isinstance(reference, LayoutReference) and not reference.path.startswith("/"):
        raise ValueError("the directory of a layout must be absolute to be looked up")
    scopes = policy.transports.get(transport, {})
    for scope in (*scopes_of(reference), ""):
        if scope in scopes:
            shown = printable(scope, 300)
            return Chosen(f'transports.{transport}["{shown}"]', scopes[scope])
    return Chosen("default", policy.default)


def refuse_unsupported(policy: Policy, chosen: Chosen) -> None:
    """Raise PolicyFault for the first requirement that lazyfs cannot check."""
    for requirement in chosen.requirements:
        if isinstance(requirement, Unsupported):
            raise PolicyFault(
                f"{policy.file}: {requirement.place}: {requirement.what} is not supported",
                hint="lazyfs checks reject, insecureAcceptAnything and sigstoreSigned",
            )
