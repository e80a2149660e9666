"""Manifests and indexes on their way: what is accepted, how large, and of which type.  No I/O.

Spec: OCI distribution-spec, "Pulling manifests"; image-spec, media-types.md.
"""

import msgspec

from lazyfs.digest import Digest, digest_of, verify_digest
from lazyfs.oci.manifest import DOCUMENT_TYPES, OCI_INDEX, OCI_MANIFEST
from lazyfs.registry.source import Document

ACCEPT = ", ".join((*DOCUMENT_TYPES, "*/*;q=0.1"))
"""What is asked for; the rest too, so that an artifact is refused by name and not with a 404."""

UNTYPED = frozenset(
    {
        *("", "application/json", "application/octet-stream", "binary/octet-stream"),
        *("text/html", "text/plain"),
    }
)
"""Content types that say nothing about a document; some registries serve manifests so."""


class _Typed(msgspec.Struct, rename="camel"):
    media_type: str | None = None
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()


def receive_document(
    data: bytes, stated: str | None, reference: str | Digest, what: str
) -> Document:
    """Return the document with *data*, verified if it was asked for by digest.

    *stated* is the media type that came along; where it says nothing the document's own counts.
    """
    if isinstance(reference, Digest):
        verify_digest(data, reference, what)
        digest = reference
    else:
        digest = digest_of(data)
    return Document(data, media_type_of(data, stated), digest)


def media_type_of(data: bytes, stated: str | None) -> str:
    """Return the media type of a document: as *stated*, else what it says, else what it holds."""
    media_type = (stated or "").partition(";")[0].strip().lower()
    if media_type not in UNTYPED:
        return media_type
    try:
        typed = msgspec.json.decode(data, type=_Typed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return media_type
    if typed.media_type:
        return typed.media_type
    if bytes(typed.manifests):
        return OCI_INDEX
    return OCI_MANIFEST if bytes(typed.config) else media_type
