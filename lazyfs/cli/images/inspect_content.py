"""``lazyfs inspect --content``: how much of an image's content is cached on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfs.digest import parse_digest

if TYPE_CHECKING:
    from lazyfs.image.describe import DescribedImage
    from lazyfs.store.paths import Store


def with_content(
    image: "DescribedImage", document: dict[str, Any], cache_dir: Path, *, rehash: bool
) -> dict[str, Any]:
    """Return *document* with what is here of each layer; sizes in bytes of content.

    *rehash*: what is stored is hashed again, and what is wrong is dropped.  Raises StoreError.
    """
    from lazyfs.store.paths import open_store

    store = open_store(cache_dir)
    layers = []
    for layer, shown in zip(image.layers, document["layers"], strict=True):
        digest = None if layer.toc_digest is None else str(layer.toc_digest)
        layers.append(shown | _content(store, digest, rehash=rehash))
    is_complete = all(layer["missingSize"] == 0 for layer in layers)
    return document | {"complete": is_complete, "layers": layers}


def _content(store: "Store | None", toc_digest: str | None, *, rehash: bool) -> dict[str, Any]:
    """Return the fields of a layer; None where its table, and so its size, is not here."""
    from lazyfs.store.completeness import survey_layer
    from lazyfs.store.layers import load_table
    from lazyfs.store.usage import resident_size

    present, rotten = 0, 0 if rehash else None
    size = None
    if store is not None and toc_digest is not None:
        digest = parse_digest(toc_digest)
        if rehash:
            survey = survey_layer(store, digest, rehash=True)
            if survey is not None:
                present, size, rotten = survey.verified_size, survey.content_size, survey.rotten
        elif load_table(store, digest) is not None:
            present, size = resident_size(store, digest)
    return {
        "contentSize": size,
        "presentSize": present,
        "missingSize": None if size is None else size - present,
        "rottenChunks": rotten,
    }


def content_lines(document: dict[str, Any]) -> list[str]:
    """Return what a person reads: a line for each layer, and one for all."""
    from lazyfs.cli.quantities import size_text

    lines = []
    for layer in document["layers"]:
        if layer["contentSize"] is None:
            what = "nothing cached"
        else:
            what = f"{size_text(layer['presentSize'])} of {size_text(layer['contentSize'])} cached"
        if layer["rottenChunks"]:
            what += f"; {layer['rottenChunks']} damaged chunks were dropped"
        lines.append(f"  {layer['digest']}  {what}")
    return [f"content    {'complete' if document['complete'] else 'incomplete'}", *lines]
