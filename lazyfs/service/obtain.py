"""Recorded images, found by digest: in the cache, an embedded layout, their registry, elsewhere.

A tag is never asked for, and nothing stands in for a digest that cannot be had.  That every layer
can be had is seen before anything is mounted, although most of it is fetched later: a sandbox must
not find out in the middle of its work.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.documents.errors import BaseCorrupt, BaseUnavailable
from lazyfs.documents.manifest import Image
from lazyfs.errors import LazyfsError, VerificationFailed
from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.service.configs import config_of
from lazyfs.service.dropped import tell_mounts
from lazyfs.service.reasons import not_available
from lazyfs.store.completeness import Survey, survey_layer
from lazyfs.store.images import LayerRecord
from lazyfs.store.paths import Store
from lazyfs.trust.errors import TRUST_ERRORS, PolicyFault

log = logging.getLogger(__name__)

Config = dict[str, Any]
Answer = dict[str, Any]


class Obtained(msgspec.Struct, frozen=True):
    """An image that can be mounted: ``note`` is said to the user."""

    prepared: Prepared
    config: Config
    note: str | None = None


async def obtain_all(
    cache_dir: Path,
    access: AccessOptions,
    images: Sequence[Image],
    embedded: Path | None,
    allow_partial: bool,
    rehash: bool = False,
    runtime: Path | None = None,
) -> dict[str, Obtained]:
    """Find each image, side by side; by manifest digest.  Raises BaseUnavailable, BaseCorrupt.

    *rehash*: what is here is hashed although it was before.  The mounts whose records are in
    *runtime* are told of what is dropped then.
    """
    found: dict[str, Obtained] = {}
    errors: dict[str, LazyfsError] = {}

    async def search(image: Image) -> None:
        try:
            one = _Search(cache_dir, access, image, embedded, rehash=rehash, runtime=runtime)
            found[image.manifest_digest] = await one.run(allow_partial=allow_partial)
        except LazyfsError as exc:
            errors[image.name] = exc

    async with trio.open_nursery() as nursery:
        for image in {each.manifest_digest: each for each in images}.values():
            nursery.start_soon(search, image)
    if errors:
        raise errors[min(errors)]
    return found


class _Search:
    def __init__(
        self,
        cache_dir: Path,
        access: AccessOptions,
        image: Image,
        embedded: Path | None,
        *,
        rehash: bool,
        runtime: Path | None,
    ) -> None:
        self._cache_dir = cache_dir
        self._access = access
        self._image = image
        self._embedded = embedded
        self._rehash = rehash
        self._runtime = runtime
        self._answers: list[Answer] = []

    async def run(self, *, allow_partial: bool) -> Obtained:
        """Return the image from the first source that has all of it."""
        kept: Obtained | None = None
        missing: list[LayerRecord] | None = None
        offline = replace(self._access, is_offline=True)
        try:
            kept = await self._prepared(self._name, offline)
            missing = await self._missing(kept.prepared)
            if not missing:
                return kept
            total = len(kept.prepared.image.layers)
            self._note("cache", f"{len(missing)} of {total} layers are incomplete here")
        except PolicyFault:
            raise
        except LazyfsError as exc:
            self._note("cache", exc)
        for label, name in self._sources():
            try:
                found = await self._prepared(name, self._access)
                if missing is None:
                    missing = await self._missing(found.prepared)
                await self._check_source(name, missing)
                return found
            except TRUST_ERRORS:
                raise  # the same signatures are judged, wherever the bytes come from
            except LazyfsError as exc:
                self._note(label, exc)
        if kept is None or not allow_partial:
            raise not_available(self._image, self._answers)
        note = (
            f"{self._image.original_ref}: parts of it are not in the cache, and no source has them"
        )
        return replace(kept, note=note)

    @property
    def _name(self) -> str:
        return self._image.resolved_ref.partition("@")[0]

    def _sources(self) -> list[tuple[str, str]]:
        """Return where to ask: what it is called, and the repository."""
        hints = self._image.hints if isinstance(self._image.hints, tuple) else ()
        sources = [] if self._embedded is None else [("embedded", f"oci:{self._embedded}")]
        sources.append((f"registry {self._name}", self._name))
        for hint in hints:
            name = hint.partition("@")[0]
            sources.append((f"hint {name}", name))
        return sources

    def _note(self, source: str, answer: LazyfsError | str) -> None:
        if isinstance(answer, LazyfsError):
            said, code = answer.message, answer.code
            is_corrupt = isinstance(answer, VerificationFailed | BaseCorrupt)
        else:
            said, code, is_corrupt = answer, None, False
        self._answers.append(
            {"source": source, "answer": said, "code": code, "corrupt": is_corrupt}
        )

    async def _prepared(self, name: str, access: AccessOptions) -> Obtained:
        """Return the image, its documents and tables from the store or else from *name*."""
        wanted = self._image.manifest_digest
        request = Request(
            f"{name}@{wanted}",
            str(self._image.platform),
            self._cache_dir,
            access,
            index_digest=self._image.index_digest,
            judged_as=f"{self._name}@{wanted}",
        )
        prepared = await prepare(request)
        if prepared.image.manifest_digest != wanted:
            raise BaseUnavailable(f"{wanted} is an index, not the manifest of one platform")
        return Obtained(prepared, await config_of(prepared, access))

    async def _missing(self, prepared: Prepared) -> list[LayerRecord]:
        """Return the layers that are not all here, after hashing what changed since it was."""
        if prepared.is_volatile:
            return list(prepared.image.layers)
        store = Store(Path(prepared.store_dir))
        surveys: dict[str, Survey | None] = {}

        async def look(toc_digest: str) -> None:
            work = partial(survey_layer, store, parse_digest(toc_digest), rehash=self._rehash)
            surveys[toc_digest] = await trio.to_thread.run_sync(work)

        try:
            async with trio.open_nursery() as nursery:
                for toc_digest in {layer.toc_digest for layer in prepared.image.layers}:
                    nursery.start_soon(look, toc_digest)
        finally:  # also where it is broken off: what was dropped will not be found again
            with trio.CancelScope(shield=True):
                await self._tell(store, surveys)
        complete = {name for name, survey in surveys.items() if survey and survey.is_complete}
        return [layer for layer in prepared.image.layers if layer.toc_digest not in complete]

    async def _tell(self, store: Store, surveys: Mapping[str, Survey | None]) -> None:
        """Tell live mounts of what was found to be damaged, and dropped."""
        for toc_digest, survey in surveys.items():
            if survey is not None and survey.rotten:
                log.warning("layer %s: %d stored chunks were damaged", toc_digest, survey.rotten)
                if self._runtime is not None:
                    rotten = {parse_digest(toc_digest).hex: None}
                    tell = partial(tell_mounts, self._runtime, store.root, rotten)
                    await trio.to_thread.run_sync(tell)

    async def _check_source(self, name: str, layers: Sequence[LayerRecord]) -> None:
        """See that a source has the blobs: it is asked for a byte of each."""
        origin = Origin(parse_reference(f"{name}@{self._image.manifest_digest}"), self._access)
        errors: dict[str, LazyfsError] = {}

        async def ask(layer: LayerRecord) -> None:
            blob = Descriptor(layer.media_type, parse_digest(layer.digest), layer.size)
            try:
                async with origin.source.open_range(blob, 0, min(1, blob.size)) as body:
                    async for _ in body:
                        pass
            except LazyfsError as exc:
                errors[layer.digest] = exc

        try:
            async with trio.open_nursery() as nursery:
                for layer in {each.digest: each for each in layers}.values():
                    nursery.start_soon(ask, layer)
        finally:
            await origin.aclose()
        if errors:
            digest, error = min(errors.items())
            raise type(error)(f"layer {digest}: {error.message}", hint=error.hint)
