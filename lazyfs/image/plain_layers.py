"""The TOCs of plain layers: from a pass that was made here, from a pinned index, or by a pass.

What vouches for such a TOC is ``pass`` (the blob's digest and the diffID, both of all bytes), or
``index`` (whoever pinned it).
"""

from collections.abc import Sequence

from lazyfs.digest import Digest, parse_digest
from lazyfs.formats.layer_pass import placed
from lazyfs.formats.toc import Toc, decode_toc
from lazyfs.image.full_pass import pass_layers
from lazyfs.image.indexes import fetch_index, keep_index
from lazyfs.image.origin import Origin
from lazyfs.image.plain import PlainOptions
from lazyfs.image.tocs import LoadedToc
from lazyfs.oci.descriptor import Descriptor
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.passes import load_pass, load_spans
from lazyfs.store.paths import Store

PASS, INDEX = "pass", "index"


async def load_plain(
    store: Store,
    origin: Origin,
    image: Digest,
    layers: Sequence[tuple[Descriptor, Digest]],
    options: PlainOptions,
    *,
    is_stored: bool = True,
) -> list[LoadedToc]:
    """Return the TOC of each of *layers* (with their diffIDs), and see that its table is here.

    *image* is the digest of their manifest.  *is_stored*: contents are kept.
    """
    found: dict[Digest, LoadedToc] = {}
    for layer, diff_id in layers:
        known = known_layer(store, layer, diff_id)
        if known is not None:
            found[layer.digest] = known
    missing = [pair for pair in layers if pair[0].digest not in found]
    if missing and options.pinned is not None:
        indexes = await fetch_index(origin.source, options.pinned, image, missing)
        for digest, index in indexes.items():
            toc = keep_index(store, index, options.pinned)
            found[digest] = _loaded(store, toc, INDEX)
    due = {layer.digest: (layer, diff_id) for layer, diff_id in layers if layer.digest not in found}
    if due:
        options.on_total(sum(layer.size for layer, _ in due.values()))
        tocs = await pass_layers(
            store,
            origin.source,
            list(due.values()),
            progress=options.progress,
            is_stored=is_stored,
        )
        for digest, toc in zip(due, tocs, strict=True):
            found[digest] = _loaded(store, toc, PASS)
    return [found[layer.digest] for layer, _ in layers]


def known_layer(store: Store, layer: Descriptor, diff_id: Digest) -> LoadedToc | None:
    """Return what an earlier pass, or a pinned index, has left of a layer; None without one."""
    record = load_pass(store, layer.digest)
    if record is None or record.diff_id != str(diff_id) or record.blob_size != layer.size:
        return None
    digest = parse_digest(record.toc_digest)
    data, table = load_toc(store, digest), load_table(store, digest)
    if data is None or table is None:
        return None
    toc = decode_toc(data, expected=digest, blob_size=layer.size, codec=table.format.codec)
    toc = placed(toc, load_spans(store, digest, layer.size))
    return LoadedToc(toc, table.format, INDEX if record.index_digest else PASS)


def _loaded(store: Store, toc: Toc, verified_by: str) -> LoadedToc:
    table = load_table(store, toc.digest)
    assert table is not None, "written a moment ago"
    return LoadedToc(toc, table.format, verified_by)
