"""An image judged without being mounted: what every policy in force says of it, and why."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.resolve import find_manifest, platform_by
from lazyfs.oci.manifest import Index, decode_manifest
from lazyfs.oci.platforms import NoPlatform, Platform
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference
from lazyfs.registry.source import AccessOptions, Document
from lazyfs.signatures.judge import Judge
from lazyfs.signatures.rules import Rules
from lazyfs.trust.verdict import Verdict


class Opinion(msgspec.Struct, frozen=True):
    """What one policy says.  ``malformed``: digest of a manifest → why it cannot be read."""

    path: str
    verdict: Verdict
    malformed: Mapping[str, str]


async def judge_reference(
    text: str,
    platform: Platform,
    access: AccessOptions,
    rules: Sequence[Rules],
    time: datetime,
    judged_as: Reference | LayoutReference | None,
) -> tuple[str, list[Opinion]]:
    """Return what the reference *text* resolves to, and the opinion of each of *rules*.

    *time* is when: signatures and certificates are judged as of then.  Nothing that was found
    before is used.  Raises what resolving raises, and PolicyFault.
    """
    origin = Origin(parse_reference(text), access)
    try:
        subjects = await _subjects(origin, platform)
        judge = Judge(rules, access, lambda: time, judged_as=judged_as)
        opinions = []
        for each in rules:
            verdict, _, malformed = await judge.by(each, None, origin, subjects)
            opinions.append(Opinion(str(each.policy.path), verdict, malformed))
        return f"{origin.repository}@{subjects[0].digest}", opinions
    finally:
        await origin.aclose()


async def _subjects(origin: Origin, platform: Platform) -> list[Document]:
    """Return what may be signed: what the reference names, and of an index its image."""
    fetch = origin.source.fetch_manifest
    named = await fetch(origin.reference.identifier)
    if not isinstance(decode_manifest(named.data, named.media_type), Index):
        return [named]
    try:
        _, chosen = await find_manifest(fetch, platform_by(origin.source), named, platform)
    except NoPlatform:
        return [named]
    return [named, chosen]
