"""The TOCs of plain layers: from a pass that was made here, from a pinned index, or by a pass.

What vouches for such a TOC is ``pass`` (the blob's digest and the diffID, both of all bytes), or
``index`` (whoever pinned it).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import LazyfsError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.layer_index import LayerIndex
from lazyfs.formats.layer_pass import placed
from lazyfs.formats.tocs.rawtoc import TocTooLarge
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.image.layers.budget import Budget
from lazyfs.image.layers.full_pass import pass_layers
from lazyfs.image.layers.indexes import ARTIFACT_TYPE, fetch_index, keep_index
from lazyfs.image.layers.plain import INDEX, PASS, PlainOptions, check_pairs
from lazyfs.image.layers.tocs import LoadedToc
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.layout import device_size
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.passes import is_lost_as_empty, load_pass
from lazyfs.store.paths import Store
from lazyfs.store.spans import can_be_had, load_spans
from lazyfs.trust.options import TRUSTED

if TYPE_CHECKING:
    from lazyfs.signatures.judge import Judge

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Indexes of one image that are judged, at most."""


async def signed_index(
    judge: "Judge", store: Store, origin: Origin, image: Digest, layers: Sequence[Descriptor]
) -> Digest | None:
    """Return the digest of an index of *image* that the policy trusts, None if there is none.

    Whoever may sign images of a repository may sign indexes beside them: one that is signed so
    needs no pin, and this is how many machines come to trust it.

    None as well where nothing is asked for, or a pass here has been over all of *layers*.  What
    goes wrong is no trouble: layers can be had without an index.
    """
    if all(load_pass(store, layer.digest) is not None for layer in layers):
        return None
    if origin.is_offline and origin.kind == "registry":
        return None
    try:
        listed = await origin.source.fetch_referrers(image, ARTIFACT_TYPE)
    except LazyfsError as error:
        log.info("indexes of %s: %s", image, error.message)
        return None
    for entry in sorted(listed.found, key=lambda each: str(each.digest))[:ATTEMPTS]:
        try:
            document = await origin.source.fetch_manifest(entry.digest)
            record = await judge.image(store, origin, [document], is_image=False)
        except LazyfsError as error:
            log.info("index %s: %s", entry.digest, error.message)
            continue
        if record.verdict == TRUSTED:
            return entry.digest
    return None


async def fetch_pinned(
    store: Store,
    origin: Origin,
    image: Digest,
    layers: Sequence[Descriptor],
    pinned: Digest,
) -> dict[Digest, LayerIndex]:
    """Return what the index *pinned* has of those of *layers* that no pass was made of here.

    *image* is the digest of their manifest.
    """
    missing = [layer for layer in layers if _is_due(store, layer, pinned)]
    return await fetch_index(origin.source, pinned, image, missing) if missing else {}


def _is_due(store: Store, layer: Descriptor, pinned: Digest) -> bool:
    record = load_pass(store, layer.digest)
    if record is None or (record.index_digest and record.index_digest != str(pinned)):
        return True
    return not can_be_had(store, parse_digest(record.toc_digest))


async def load_plain(
    store: Store,
    origin: Origin,
    layers: Sequence[tuple[Descriptor, Digest]],
    indexes: Mapping[Digest, LayerIndex],
    options: PlainOptions,
    budget: Budget,
    *,
    is_stored: bool = True,
) -> list[LoadedToc]:
    """Return the TOC of each of *layers* (with their diffIDs), and see that its table is here.

    *indexes* are those of the index that *options* pin.  *is_stored*: contents are kept.
    """
    check_pairs(layers)
    found: dict[Digest, LoadedToc] = {}
    for layer, diff_id in layers:
        if layer.digest in found:
            continue
        if layer.digest in indexes:
            assert options.pinned is not None
            try:
                toc = keep_index(
                    store, indexes[layer.digest], options.pinned, diff_id, budget.limits
                )
            except TocTooLarge as exc:
                raise budget.refusal(exc) from exc
            budget.spend(toc, len(indexes[layer.digest].toc_json))
            if not is_lost_as_empty(store, layer.digest):
                found[layer.digest] = _loaded(store, toc, INDEX)
                continue
        known = known_layer(store, layer, diff_id, options)
        record = load_pass(store, layer.digest)
        if known is not None:
            found[layer.digest] = known
        elif record is not None:
            why = "is damaged or incomplete"
            if not options.believes(record):
                why = "is from an index that was given for another image"
            log.warning("layer %s: its cached data %s; fetching the whole layer", layer.digest, why)
    if options.pinned is not None:
        passed = sum(known.verified_by == PASS for known in found.values())
        if passed:
            log.warning(
                "index %s: not used for %d of %d layers, which a full pass here has verified",
                *(options.pinned, passed, len(found)),
            )
    due = {layer.digest: (layer, diff_id) for layer, diff_id in layers if layer.digest not in found}
    if due:
        options.on_total(sum(layer.size for layer, _ in due.values()))
        tocs = await pass_layers(
            store,
            origin.source,
            list(due.values()),
            progress=options.progress,
            is_stored=is_stored,
            take_members=budget.take_members,
        )
        for digest, toc in zip(due, tocs, strict=True):
            found[digest] = _loaded(store, toc, PASS)
    return [found[layer.digest] for layer, _ in layers]


def known_layer(
    store: Store, layer: Descriptor, diff_id: Digest, options: PlainOptions
) -> LoadedToc | None:
    """Return what an earlier pass, or a pinned index, has left of a layer.

    None without one, where it is not believed, and where content lacks that could not be had by it.
    """
    record = load_pass(store, layer.digest)
    if record is None or not options.believes(record):
        return None
    if record.diff_id != str(diff_id) or record.blob_size != layer.size:
        return None
    digest = parse_digest(record.toc_digest)
    data, table = load_toc(store, digest), load_table(store, digest)
    if data is None or table is None or not can_be_had(store, digest):
        return None
    if is_lost_as_empty(store, layer.digest):
        return None
    toc = decode_toc(data, expected=digest, blob_size=layer.size, codec=table.format.codec)
    if table.device_size != device_size(toc):
        return None  # whole in itself, and of another TOC
    toc = placed(toc, load_spans(store, digest, layer.size) or ())
    return LoadedToc(toc, table.format, INDEX if record.index_digest else PASS)


def _loaded(store: Store, toc: Toc, verified_by: str) -> LoadedToc:
    table = load_table(store, toc.digest)
    assert table is not None, "written a moment ago"
    return LoadedToc(toc, table.format, verified_by)
