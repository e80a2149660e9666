"""signedIdentity: whether the name that was signed is the name that was asked for.

Spec: containers-policy.json(5), "signedBy"; the rules where the page is silent are those of
containers/image, policy_reference_match.go.  Names are compared in full: ``docker.io/library/x``.

A Sigstore bundle signs no name at all (``signed`` is None).  No rule of containers/image can be
met without one, so there is one of our own for those who want no more than the digest.
"""

from typing import Literal, TypeAlias

import msgspec

from lazyfs.oci.reference import (
    DEFAULT_TAG,
    BadReference,
    LayoutReference,
    Reference,
    parse_reference,
)

Kind: TypeAlias = Literal[
    "matchExact",
    "matchRepoDigestOrExact",
    "matchRepository",
    "exactReference",
    "exactRepository",
    "remapIdentity",
    "matchDigestOnly",
]
NAME_LIMIT = 1024  # characters of a signed name


class Identity(msgspec.Struct, frozen=True):
    """A signedIdentity.  ``name`` is what exactReference and exactRepository state.

    ``prefix`` becomes ``signed_prefix`` for remapIdentity.
    """

    kind: Kind = "matchRepoDigestOrExact"
    name: str = ""
    prefix: str = ""
    signed_prefix: str = ""

    def __str__(self) -> str:
        if self.kind == "remapIdentity":
            return f"{self.kind} {self.prefix} -> {self.signed_prefix}"
        return f"{self.kind} {self.name}".strip()


class Name(msgspec.Struct, frozen=True):
    """A name as others state it: a repository, and a tag or a digest or both or nothing."""

    repository: str
    tag: str | None
    digest: str | None

    @property
    def is_bare(self) -> bool:
        """Whether it is only a repository."""
        return self.tag is None and self.digest is None


def parse_name(text: str) -> Name:
    """Return the name that *text* states, without ``latest`` where it states no tag.

    Raises BadReference.
    """
    if len(text) > NAME_LIMIT or text.startswith(("docker://", "oci:")):
        raise BadReference(f"{text[:100]!r} is not the name of an image in a registry")
    reference = parse_reference(text)
    assert isinstance(reference, Reference)
    stated = ":" in text.partition("@")[0].rpartition("/")[2]
    return Name(
        reference.name,
        reference.tag if stated else None,
        None if reference.digest is None else str(reference.digest),
    )


def matches(identity: Identity, requested: Reference | LayoutReference, signed: str | None) -> bool:
    """Say whether *signed*, the name in a signature, is what *identity* wants for *requested*.

    A requested image with a digest counts as named by its digest, whatever tag stands beside it.
    """
    if identity.kind == "matchDigestOnly":
        return True
    if signed is None:
        return False
    try:
        name = parse_name(signed)
        wanted = _wanted(identity, requested)
    except BadReference:
        return False
    if wanted is None:
        return False
    match identity.kind:
        case "matchRepository" | "exactRepository":
            return name.repository == wanted.repository
        case "matchExact" | "exactReference":
            return name == wanted and not name.is_bare
        case _:
            if wanted.tag is None:
                return name.repository == wanted.repository and not name.is_bare
            return name == wanted


def _wanted(identity: Identity, requested: Reference | LayoutReference) -> Name | None:
    """Return the name to compare with; None: the request has none.  Raises BadReference."""
    if identity.kind in ("exactReference", "exactRepository"):
        return parse_name(identity.name)
    if isinstance(requested, LayoutReference):
        return None
    if requested.digest is not None:
        wanted = Name(requested.name, None, str(requested.digest))
    else:
        wanted = Name(requested.name, requested.tag or DEFAULT_TAG, None)
    if identity.kind != "remapIdentity":
        return wanted
    before, after = identity.prefix, identity.signed_prefix
    if wanted.repository != before and not wanted.repository.startswith(f"{before}/"):
        return wanted
    # Signed names are read in full, so what is no full name after all matches none.
    return Name(after + wanted.repository.removeprefix(before), wanted.tag, wanted.digest)
