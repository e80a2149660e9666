"""The root filesystems of sandboxes: found by reference or by digest, mounted, and let go of.

A tag is resolved for a fresh run only, once; everything afterwards is by digest.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from msgspec import UNSET
from msgspec.structs import replace

from lazyfs.digest import Digest, parse_digest
from lazyfs.documents.errors import PlatformMismatch
from lazyfs.documents.manifest import Image, Layer, Platform
from lazyfs.errors import LazyfsError, StoreError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.offline import last_known
from lazyfs.image.prepare import Prepared, Request, prepare, wanted_platform
from lazyfs.image.profiled import WrongImage, check_profile
from lazyfs.image.resolve import Resolver
from lazyfs.interrupts import run_trio
from lazyfs.oci.platforms import parse_platform
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.sandbox.bases import Base
from lazyfs.service.configs import config_of
from lazyfs.service.mounts import NodeMounts
from lazyfs.service.obtain import obtain_all
from lazyfs.service.processes.mount_command import MountCommand
from lazyfs.service.reasons import reason_of, unresolvable
from lazyfs.store.paths import Store, open_store
from lazyfs.store.profiles import (
    BadProfile,
    decode_profile,
    load_profile,
    save_profile,
)

log = logging.getLogger(__name__)

Config = dict[str, Any]


class ImageBases(NodeMounts):
    """Joins registries, store and mounts (``lazyfs.sandbox.bases.Bases``).

    *cache_dir* is the store, *runtime* the directory of the mounts' records; *mount* makes one.
    *rehash*: what is here of recorded images is hashed although it was before.
    """

    def __init__(
        self,
        cache_dir: Path,
        runtime: Path,
        access: AccessOptions,
        mount: MountCommand,
        *,
        rehash: bool = False,
    ) -> None:
        super().__init__(runtime, cache_dir)
        self._cache_dir = cache_dir
        self._access = access
        self._mount = mount
        self._rehash = rehash

    def resolve(
        self, wanted: Mapping[str, str], *, platform: str | None, pull: str
    ) -> dict[str, Base]:
        """Return the bases of a fresh run: container's name → reference, in; each asked once.

        Raises TemplateInvalid, TagUnresolvable, BaseUnavailable, BaseCorrupt, PlatformMismatch.
        """
        references = {text: _reference(text) for text in sorted(set(wanted.values()))}
        # What is spelled in two ways is one reference, and asked for once.
        meant = {str(reference): text for text, reference in references.items()}
        found = run_trio(partial(self._resolve_all, references, meant, platform, pull))
        bases = {}
        for name, text in wanted.items():
            prepared, config = found[str(references[text])]
            bases[name] = _base(name, text, references[text], prepared, config)
        return bases

    async def _resolve_all(
        self,
        references: Mapping[str, Reference | LayoutReference],
        meant: Mapping[str, str],
        platform: str | None,
        pull: str,
    ) -> dict[str, tuple[Prepared, Config]]:
        found: dict[str, tuple[Prepared, Config]] = {}
        errors: dict[str, LazyfsError] = {}

        async def resolve(meaning: str, text: str) -> None:
            try:
                found[meaning] = await self._resolve(references[text], text, platform, pull)
            except LazyfsError as exc:
                errors[text] = exc

        async with trio.open_nursery() as nursery:
            for meaning, text in meant.items():
                nursery.start_soon(resolve, meaning, text)
        if errors:
            raise errors[min(errors)]
        return found

    async def _resolve(
        self,
        reference: Reference | LayoutReference,
        text: str,
        platform: str | None,
        pull: str,
    ) -> tuple[Prepared, Config]:
        asked, is_tag = str(reference), reference.digest is None
        if is_tag and isinstance(reference, Reference) and pull != "always":
            known = self._last_known(reference, platform)
            if known is not None:
                asked, is_tag = f"{reference.name}@{known}", False
            elif pull == "never":
                raise unresolvable(text, "--pull never, and the tag was not resolved here before")
        resolved: list[str] = []
        try:
            # What policies ask of the tag is asked of what it meant here before, too.
            judged_as = None if asked == str(reference) else str(reference)
            request = Request(asked, platform, self._cache_dir, self._access, judged_as=judged_as)
            prepared = await prepare(request, resolved.append)
            config = await config_of(prepared, self._access)
        except LazyfsError as exc:
            raise reason_of(exc, text, is_tag=is_tag and not resolved) from exc
        wanted, got = wanted_platform(platform), parse_platform(prepared.image.platform)
        if (got.os, got.architecture) != (wanted.os, wanted.architecture):
            raise PlatformMismatch(
                f"image {text} is for {got}, not for {wanted}",
                details={"image": text, "platform": str(got), "wanted": str(wanted)},
            )
        return prepared, config

    def _last_known(self, reference: Reference, platform: str | None) -> Digest | None:
        store = open_store(self._cache_dir)
        return None if store is None else last_known(store, reference, wanted_platform(platform))

    def obtain(
        self, images: Sequence[Image], *, embedded: Path | None, allow_partial: bool
    ) -> dict[str, Base]:
        """Return the bases of recorded images, by digest only: cache, embedded, registry, hints.

        Raises BaseUnavailable, which lists each source with its answer, and BaseCorrupt.
        """
        work = partial(
            obtain_all,
            self._cache_dir,
            self._access,
            images,
            embedded,
            allow_partial,
            rehash=self._rehash,
            runtime=self._records,
        )
        found = run_trio(work)
        bases = {}
        for image in images:
            obtained = found[image.manifest_digest]
            bases[image.name] = Base(
                image=image,
                config=obtained.config,
                mount_ref=obtained.prepared.resolved,
                note=obtained.note,
                prepared=_encoded(obtained.prepared),
            )
        return bases

    def ready(self) -> AbstractContextManager[None]:
        """Be ready to mount at once, within the block; see ``MountCommand.ready``."""
        return self._mount.ready()

    def give_up(self) -> None:
        """Undo mounts that are in the making, in other threads, where an error is raised then."""
        self._mount.give_up()

    def mount(self, base: Base, directory: Path) -> None:
        """Mount *base* on *directory*, which exists; return when the mount is live."""
        try:
            self._mount(base.mount_ref, directory, base.image.original_ref, base.prepared)
        except LazyfsError as exc:
            raise reason_of(exc, base.image.original_ref) from exc

    def add_profile(self, manifest_digest: str, data: bytes) -> None:
        """Keep a profile that a snapshot brought, unless there is one; a useless one is left out.

        The one that is here was recorded by a mount of this machine, and may know more.
        """
        digest = parse_digest(manifest_digest)
        try:
            store = Store(self._cache_dir)
            if load_profile(store, digest) is not None:
                return
            given = decode_profile(data)
            check_profile(store, given, digest)
            save_profile(store, digest, given)
        except (BadProfile, WrongImage, StoreError) as exc:
            log.info("profile of %s: %s", manifest_digest, exc.message)

    def drift(self, images: Sequence[Image]) -> dict[str, str]:
        """Return for each container whose tag now names another manifest that one's digest.

        A tag that cannot be asked for is warned of, and left out.
        """
        now = run_trio(self._now, {image.original_ref: image for image in images})
        return {
            image.name: now[image.original_ref]
            for image in images
            if now.get(image.original_ref, image.manifest_digest) != image.manifest_digest
        }

    async def _now(self, images: Mapping[str, Image]) -> dict[str, str]:
        found: dict[str, str] = {}

        async def ask(text: str, image: Image) -> None:
            try:
                reference = parse_reference(text)
                if reference.digest is not None:
                    return
                origin = Origin(reference, self._access)
                try:
                    resolver = Resolver(Store(self._cache_dir), origin)
                    platform = parse_platform(str(image.platform))
                    resolved = await resolver.resolve(reference.identifier, platform)
                    found[text] = str(resolved.document.digest)
                finally:
                    await origin.aclose()
            except LazyfsError as exc:
                log.warning("%s: cannot resolve the tag again: %s", text, exc.message)

        async with trio.open_nursery() as nursery:
            for text, image in images.items():
                nursery.start_soon(ask, text, image)
        return found


def _reference(text: str) -> Reference | LayoutReference:
    """Return what *text* names; a layout by its absolute path, which is recorded."""
    try:
        reference = parse_reference(text)
    except LazyfsError as exc:
        raise reason_of(exc, text) from exc
    if isinstance(reference, LayoutReference):
        return replace(reference, path=os.path.abspath(reference.path))
    return reference


def _base(
    name: str,
    text: str,
    reference: Reference | LayoutReference,
    prepared: Prepared,
    config: Config,
) -> Base:
    """Return the base of the container *name*, whose user wrote *text*."""
    record = prepared.image
    platform = parse_platform(record.platform)
    image = Image(
        name=name,
        original_ref=text,
        resolved_ref=prepared.resolved,
        pinned=reference.digest is not None,
        platform=Platform(
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant or UNSET,
        ),
        index_digest=prepared.index_digest,
        manifest_digest=record.manifest_digest,
        manifest_media_type=record.manifest_media_type,
        config_digest=record.config_digest,
        layers=tuple(
            Layer(layer.digest, layer.diff_id, layer.media_type, layer.size)
            for layer in record.layers
        ),
        resolved_at=prepared.resolved_at,
        source="xattr+record",
    )
    note = None
    if reference.digest is not None and reference.tag is not None:
        note = f"{name}: the tag {reference.tag} is ignored, since a digest is given"
    return Base(
        image=image,
        config=config,
        mount_ref=prepared.resolved,
        note=note,
        prepared=_encoded(prepared),
    )


def _encoded(prepared: Prepared) -> bytes | None:
    """Return what a mount can begin with; a folder in memory belongs to who has made it."""
    return None if prepared.is_volatile else prepared.encode()
