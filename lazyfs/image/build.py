"""An image that is not here, built: its TOCs fetched, and merged into the rootfs index."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import trio
from msgspec.structs import replace

from lazyfs.digest import Digest
from lazyfs.fetch.origins.early import Foreseen, ForeseenLayer
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.tocs.claims import Claims
from lazyfs.image.identity import image_attributes
from lazyfs.image.layers.budget import Budget
from lazyfs.image.layers.plain import PlainOptions, is_plain
from lazyfs.image.layers.tocs import LoadedToc, layer_claims, load_tocs
from lazyfs.image.resolve import Resolver
from lazyfs.image.together import run_all
from lazyfs.oci.config import ImageConfig
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.store.images import ImageRecord, LayerRecord, save_image
from lazyfs.store.paths import Store

if TYPE_CHECKING:
    from lazyfs.formats.layer_index import LayerIndex
    from lazyfs.signatures.judge import Judge

Foresee = Callable[[Foreseen], None]


class ImageBuilder(msgspec.Struct, frozen=True, kw_only=True):
    """Builds the rootfs index of one image, asked for as *reference*.

    *verify* and *plain* are as in ``prepare.Request``; *judge* decides which indexes of plain
    layers are believed that nobody has pinned.
    """

    reference: str
    verify: str
    plain: PlainOptions
    store: Store
    is_volatile: bool
    origin: Origin
    resolver: Resolver
    foresee: Foresee
    judge: "Judge | None"

    async def build(self, manifest: Manifest, digest: Digest) -> ImageRecord:
        """Return the record of the image of *manifest*; the store has all of it then."""
        # Says what is wrong before anything is fetched.
        claims = [layer_claims(layer, "blob") for layer in manifest.layers]
        if self.origin.kind == "registry":
            self.foresee(
                Foreseen(
                    self.reference,
                    self.origin.repository,
                    str(digest),
                    tuple(map(_foreseen, manifest.layers, claims)),
                    str(self.store.root),
                )
            )
        config, loaded = await self._fetch_all(manifest, digest)
        tocs = [each.toc for each in loaded]
        record = ImageRecord(
            manifest_digest=str(digest),
            manifest_media_type=manifest.media_type,
            config_digest=str(manifest.config.digest),
            platform=str(config.platform),
            layers=tuple(
                _layer_record(*facts)
                for facts in zip(manifest.layers, config.diff_ids, loaded, strict=True)
            ),
        )
        built = build_index(
            tocs,
            root_xattrs=image_attributes(record),
            device_tags=[toc.digest.hex[:64] for toc in tocs],
        )
        return save_image(self.store, record, built.image, built.provenance)

    def _is_plain(self, layer: Descriptor) -> bool:
        return self.verify != "blob" and is_plain(layer)

    async def _fetch_pinned(
        self, manifest: Manifest, digest: Digest, numbers: list[int]
    ) -> "tuple[PlainOptions, dict[Digest, LayerIndex]]":
        """Return what an index has of the layers *numbers*, as far as it is needed, and which.

        It is the one that the user pinned, or else one that is signed as the policy wants it.
        """
        options = self.plain
        layers = [manifest.layers[n] for n in numbers]
        if options.pinned is None and self.judge is not None:
            from lazyfs.image.layers.plain_layers import signed_index  # noqa: PLC0415

            pinned = await signed_index(self.judge, self.store, self.origin, digest, layers)
            options = replace(options, pinned=pinned)
        if options.pinned is None:
            return options, {}
        from lazyfs.image.layers.plain_layers import fetch_pinned  # noqa: PLC0415

        found = await fetch_pinned(self.store, self.origin, digest, layers, options.pinned)
        return options, found

    async def _fetch_all(
        self, manifest: Manifest, digest: Digest
    ) -> tuple[ImageConfig, list[LoadedToc]]:
        """Fetch the config, the TOCs and a pinned index side by side, then the plain layers.

        A layer whose TOC cannot be had is as good as a plain one.
        """
        found: dict[int, LoadedToc] = {}
        configs: list[ImageConfig] = []
        lost: list[Descriptor] = []
        indexes: dict[Digest, LayerIndex] = {}
        options = self.plain
        has_indexes = trio.Event()
        plain = [n for n, layer in enumerate(manifest.layers) if self._is_plain(layer)]
        lazy = [n for n in range(len(manifest.layers)) if n not in set(plain)]
        budget = Budget(self.origin.environment)

        async def fetch_indexes() -> None:
            nonlocal options
            if plain:
                options, had = await self._fetch_pinned(manifest, digest, plain)
                indexes.update(had)
            has_indexes.set()

        async def fetch_config() -> None:
            configs.append(await self.resolver.config(manifest))
            await has_indexes.wait()
            await fetch_plain(plain)

        async def fetch_plain(numbers: list[int]) -> None:
            if not numbers:
                return
            # Imported here: most images have no such layer.
            from lazyfs.image.layers.plain_layers import load_plain  # noqa: PLC0415

            pairs = [(manifest.layers[n], configs[0].diff_ids[n]) for n in numbers]
            is_stored = not self.is_volatile
            loaded = await load_plain(
                self.store, self.origin, pairs, indexes, options, budget, is_stored=is_stored
            )
            found.update(zip(numbers, loaded, strict=True))

        async def fetch_tocs() -> None:
            layers = [manifest.layers[n] for n in lazy]
            verify = self.verify
            loaded = await load_tocs(
                self.store, self.origin, layers, verify=verify, lost=lost, budget=budget
            )
            had = [n for n in lazy if manifest.layers[n] not in lost]
            found.update(zip(had, loaded, strict=True))

        await run_all(fetch_config, fetch_tocs, fetch_indexes)
        others = [n for n in lazy if manifest.layers[n] in lost]
        if others:
            options, more = await self._fetch_pinned(manifest, digest, others)
            indexes.update(more)
            await fetch_plain(others)
        return configs[0], [found[n] for n in range(len(manifest.layers))]


def _foreseen(layer: Descriptor, claims: Claims) -> ForeseenLayer | None:
    if claims.key is None:
        return None
    return ForeseenLayer(layer.media_type, str(layer.digest), layer.size, str(claims.key))


def _layer_record(layer: Descriptor, diff_id: Digest, loaded: LoadedToc) -> LayerRecord:
    return LayerRecord(
        digest=str(layer.digest),
        size=layer.size,
        media_type=layer.media_type,
        diff_id=str(diff_id),
        toc_digest=str(loaded.toc.digest),
        format=loaded.format.text,
        dialect=loaded.format.dialect,
        verified_by=loaded.verified_by,
    )
