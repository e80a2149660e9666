"""Referrers: manifests that name another one as their subject.  No I/O here.

Spec: OCI distribution-spec, "Listing Referrers" and "Referrers Tag Schema".  Who can push can add
referrers: a list is for finding, never for trusting.
"""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import msgspec

from lazyfs.digest import BadDigest, Digest, parse_digest
from lazyfs.errors import FormatError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCUMENT_LIMIT, OCI_INDEX, Index, decode_manifest
from lazyfs.registry.config.errors import BadAnswer, TooLarge

PAGE_LIMIT = 16
SIZE_LIMIT = 4 << 20
ENTRY_LIMIT = 1000


class Support(Enum):
    """How a registry answered: its API, the tag that stands for it, or neither is there."""

    API = "api"
    TAG = "tag"
    NONE = "none"


class Referrers(msgspec.Struct, frozen=True):
    """What refers to a manifest.

    ``support`` tells an empty list of the API, which means "none", from a registry without the API
    and without the tag, which means "none that could be found".  Where the registry does not
    answer there is an exception instead.  ``is_truncated``: there are more than are looked at.
    """

    found: tuple[Descriptor, ...]
    support: Support
    is_truncated: bool = False


def tag_of(digest: Digest) -> str:
    """Return the tag under which the referrers of *digest* are listed where there is no API."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def decode_page(data: bytes, media_type: str | None, what: str) -> Index:
    """Return one page of referrers, or raise BadAnswer: another document tells nothing."""
    try:
        page = decode_manifest(_without_bad_entries(data), media_type)
    except FormatError as error:
        raise BadAnswer(f"{what}: {error.message}") from error
    if not isinstance(page, Index) or page.media_type != OCI_INDEX:
        raise BadAnswer(f"{what}: got media type {page.media_type}, expected {OCI_INDEX}")
    return page


def _without_bad_entries(data: bytes) -> bytes:
    """Return a list without the entries that are no descriptors: they hide none of the others."""
    try:
        document = msgspec.json.decode(data, type=_Listed)
        entries = [each for each in document.manifests or () if _is_descriptor(each)]
        if not entries or len(entries) == len(document.manifests or ()):
            return data  # a list of nothing but bad entries says nothing, not that there are none
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return data  # whoever decodes it says what is wrong
    return msgspec.json.encode(raw | {"manifests": entries})


def _is_descriptor(entry: msgspec.Raw) -> bool:
    one = b'{"schemaVersion":2,"mediaType":"%s","manifests":[%s]}' % (OCI_INDEX.encode(), entry)
    try:
        decode_manifest(one, OCI_INDEX)
    except FormatError:
        return False
    return True


def choose(descriptors: Iterable[Descriptor], artifact_type: str | None) -> list[Descriptor]:
    """Return those of *artifact_type*; registries need not filter, and some say they did."""
    return [
        each for each in descriptors if artifact_type is None or each.artifact_type == artifact_type
    ]


class _Listed(msgspec.Struct):
    manifests: list[msgspec.Raw] | None = None


class _Described(msgspec.Struct, rename="camel"):
    digest: str = ""
    media_type: str = ""


class _Pushed(msgspec.Struct, rename="camel"):
    subject: _Described | None = None
    artifact_type: str | None = None
    config: _Described | None = None
    annotations: dict[str, str] | None = None


class Referrer(msgspec.Struct, frozen=True):
    """A manifest that is pushed, as its subject's list names it."""

    subject: Digest
    digest: Digest
    descriptor: dict[str, Any]


def referrer_of(data: bytes, media_type: str, digest: Digest) -> Referrer | None:
    """Return how a manifest with a subject is listed; None for one without, or no manifest."""
    try:
        pushed = msgspec.json.decode(data, type=_Pushed)
        if pushed.subject is None:
            return None
        subject = parse_digest(pushed.subject.digest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadDigest):
        return None
    descriptor: dict[str, Any] = {
        "mediaType": media_type,
        "digest": str(digest),
        "size": len(data),
    }
    artifact_type = pushed.artifact_type or (pushed.config and pushed.config.media_type)
    if artifact_type:
        descriptor["artifactType"] = artifact_type
    if pushed.annotations:
        descriptor["annotations"] = pushed.annotations
    return Referrer(subject, digest, descriptor)


def lists(data: bytes, digest: Digest) -> bool:
    """Say whether an index lists *digest*."""
    return any(each.digest == digest for each in decode_page(data, None, "referrers").manifests)


def add_referrer(data: bytes | None, referrer: Referrer) -> bytes:
    """Return the index in *data* (None: an empty one) with one more entry; the rest is kept."""
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if data is not None:
        decode_page(data, None, "referrers")
        document = msgspec.json.decode(data)
    manifests = document.get("manifests") or []
    document["manifests"] = [*manifests, referrer.descriptor]
    encoded = msgspec.json.encode(document)
    if len(encoded) > DOCUMENT_LIMIT:
        raise TooLarge(
            f"referrers of {referrer.subject}: got {len(encoded)} bytes, "
            f"expected at most {DOCUMENT_LIMIT}"
        )
    return encoded
