"""Finding what was signed over a manifest: referrers, and cosign's tags.

Who can push can add referrers, so what is found here is not believed.  One that is malformed, or of
another kind, is passed over: it must not hide the good one beside it.  What could not be fetched is
remembered, since then nobody can tell whether the good one was among it.

Spec: OCI distribution-spec, "Listing Referrers"; Notary Project, signature-specification.md,
"Storage"; cosign, "Signature Spec" and "Bundle Spec".
"""

from collections.abc import Awaitable, Callable

import msgspec
import trio

from lazyfs.digest import Digest
from lazyfs.errors import FormatError, LazyfsError, NotFound, UsageError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, decode_manifest
from lazyfs.registry.answers.referrers import tag_of
from lazyfs.registry.config.errors import TooLarge
from lazyfs.registry.source import Source
from lazyfs.trust.candidate import Candidate

NOTATION = "application/vnd.cncf.notary.signature"
BUNDLE = "application/vnd.dev.sigstore.bundle"
"""Media types begin with it: ``…bundle.v0.3+json``."""
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"

ATTEMPTS = 64
"""Manifests that are looked at, for one subject."""
AT_ONCE = 8
BLOB_LIMIT = 1 << 20
"""Bytes of an envelope, a bundle, or a payload."""
LAYER_LIMIT = 64
"""Signatures in one manifest of cosign's older form."""


class Found(msgspec.Struct):
    """What was found of one subject.

    ``troubles``: what may hide more, a sentence each.  ``malformed``: digests of what is listed as
    a signature and cannot be read, with the reason.
    """

    candidates: list[Candidate] = msgspec.field(default_factory=list)
    troubles: list[str] = msgspec.field(default_factory=list)
    malformed: dict[str, str] = msgspec.field(default_factory=dict)


async def find_signatures(source: Source, subject: Digest, *, has_tags: bool) -> Found:
    """Return what may be signatures of *subject*; with *has_tags* also those under cosign's tags.

    What a registry does wrong is among the troubles.  Raises UsageError only: how registries are
    reached is configured wrongly.
    """
    search = _Search(source, subject)
    errors: list[UsageError] = []

    async def attempt(step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except UsageError as error:
            errors.append(error)  # raised below: the nursery would wrap it in a group

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, search.by_referrers)
        if has_tags:
            nursery.start_soon(attempt, search.by_tag)
    if errors:
        raise errors[0]
    search.found.candidates.sort(key=lambda each: each.digest)
    return search.found


def is_signature_type(text: str) -> bool:
    """Say whether *text*, an artifact's type, is of a signature that can be judged."""
    return text == NOTATION or text.startswith(BUNDLE)


def likelihood(entry: Descriptor) -> int:
    """Sort what a list calls a signature before what it does not name, and that before the rest."""
    if is_signature_type(entry.artifact_type or ""):
        return 0
    return 1 if not entry.artifact_type else 2


class _Search:
    """One search; its steps run side by side."""

    def __init__(self, source: Source, subject: Digest) -> None:
        self.found = Found()
        self._source = source
        self._subject = subject
        self._limiter = trio.CapacityLimiter(AT_ONCE)

    async def by_referrers(self) -> None:
        try:
            listed = await self._source.fetch_referrers(self._subject)
        except UsageError:
            raise
        except LazyfsError as error:
            self.found.troubles.append(f"signatures could not be listed: {error.message}")
            return
        likely = sorted(listed.found, key=likelihood)
        if listed.is_truncated or len(likely) > ATTEMPTS:
            self.found.troubles.append(
                f"{self._subject} has more referrers than are looked at: {ATTEMPTS}"
            )
        async with trio.open_nursery() as nursery:
            for entry in likely[:ATTEMPTS]:
                nursery.start_soon(self._look, entry.digest)

    async def by_tag(self) -> None:
        await self._look(f"{tag_of(self._subject)}.sig")

    async def _look(self, name: Digest | str) -> None:
        """Add what a manifest has.  One under a tag names no subject, and need not be there."""
        async with self._limiter:
            try:
                candidate = await self._fetch(name)
            except NotFound as error:
                if isinstance(name, Digest):  # listed, and gone
                    self.found.troubles.append(error.message)
            except TooLarge as error:  # it may be a good one: whoever reads more could tell
                self.found.troubles.append(error.message)
            except FormatError as error:
                self.found.malformed[str(name)] = error.message
            except LazyfsError as error:
                self.found.troubles.append(error.message)
            else:
                if candidate is not None:
                    self.found.candidates.append(candidate)

    async def _fetch(self, name: Digest | str) -> Candidate | None:
        document = await self._source.fetch_manifest(name)
        manifest = decode_manifest(document.data, document.media_type)
        if not isinstance(manifest, Manifest):
            return None
        is_tagged = not isinstance(name, Digest)
        kind = manifest.artifact_type or manifest.config.media_type
        subject = None if manifest.subject is None else manifest.subject.digest
        if not is_tagged and not (is_signature_type(kind) and subject == self._subject):
            return None
        layers = [layer for layer in manifest.layers if not is_tagged or layer.media_type == SIMPLE]
        if len(layers) > LAYER_LIMIT:
            raise TooLarge(f"{document.digest} has more than {LAYER_LIMIT} signatures")
        if not is_tagged and len(layers) != 1:  # before any is fetched: anybody can list many
            raise FormatError(f"{document.digest} has {len(layers)} layers; a signature has one")
        blobs = {}
        for layer in layers:
            blobs[str(layer.digest)] = await self._source.fetch_blob(layer, limit=BLOB_LIMIT)
        return Candidate(str(document.digest), document.data, kind, blobs, is_tagged)
