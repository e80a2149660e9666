"""What is to be judged, and how whoever judges asks for signatures one by one."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from lazyfs.digest import Digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import LayoutReference, Reference

SIGNATURES_LIMIT = 100  # tried for one image, as in notation


class NextCandidate(msgspec.Struct, frozen=True):
    """A wish: the next signature, Unfetched, or None when there are no more."""


class Unfetched(msgspec.Struct, frozen=True):
    """A signature, or the list of them (``digest`` is None), that could not be fetched."""

    digest: Digest | None
    reason: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be judged.

    ``reference`` names the repository that the user asked for, not the mirror that served it;
    ``image`` is the resolved manifest; ``metadata`` are annotations that must be signed.  ``now``
    has a time zone.
    """

    reference: Reference | LayoutReference
    image: Descriptor
    now: datetime
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
