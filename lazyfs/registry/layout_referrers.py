"""Referrers in an image layout: entries of its index whose manifests name a subject.

A layout has no list of its own.  Tools add the manifest of a signature to ``index.json`` as an
entry without a tag; some keep the index of the referrers tag schema as well.

Spec: OCI image-spec, image-layout.md, "index.json file"; distribution-spec, "Referrers Tag Schema".
"""

from collections.abc import Callable, Iterable

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, NotFound
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_INDEX, Index, Manifest, decode_manifest
from lazyfs.registry.answers.referrers import ENTRY_LIMIT, Referrers, Support, choose, tag_of
from lazyfs.registry.layout_files import Listed

MANIFEST_LIMIT = 1 << 20
"""Bytes of a manifest that is looked into; those of signatures have a few hundred."""


def referrers_in(
    listed: Iterable[Listed],
    read: Callable[[Digest], bytes],
    subject: Digest,
    artifact_type: str | None,
) -> Referrers:
    """Return what refers to *subject*; *read* returns a manifest's bytes, verified.

    A manifest that is not there, or is none, refers to nothing.  Raises what *read* raises besides.
    """
    found: dict[Digest, Descriptor] = {}
    tag = tag_of(subject)
    for entry in listed:
        digest = parse_digest(entry.digest)
        is_list = entry.media_type == OCI_INDEX and entry.is_named(tag)
        if digest == subject or entry.size > MANIFEST_LIMIT or not (is_list or entry.is_manifest):
            continue
        try:
            document = decode_manifest(read(digest), entry.media_type)
        except (FormatError, NotFound):
            continue
        if is_list and isinstance(document, Index):
            found |= {each.digest: each for each in document.manifests}
        elif isinstance(document, Manifest) and _refers(document, subject):
            kind = document.artifact_type or document.config.media_type
            found[digest] = Descriptor(entry.media_type, digest, entry.size, artifact_type=kind)
    chosen = choose(found.values(), artifact_type)
    return Referrers(tuple(chosen[:ENTRY_LIMIT]), Support.API, len(chosen) > ENTRY_LIMIT)


def _refers(manifest: Manifest, subject: Digest) -> bool:
    return manifest.subject is not None and manifest.subject.digest == subject
