"""``lazyfs cache``: list, measure, check and remove what is cached on this machine."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.cache.cache_removal import prune, remove
from lazyfs.cli.cache.cache_verify import verify
from lazyfs.cli.options import cache_dir_option, cache_size_option, json_option
from lazyfs.cli.output import print_line

if TYPE_CHECKING:
    from lazyfs.store.paths import Store
    from lazyfs.store.upkeep.budget import Budget
    from lazyfs.store.usage import Holdings, ImageUsage, LayerUsage

SHOWN_DIGEST = 19  # of the text: enough to name it by


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cache() -> None:
    """List, measure, check or remove what is cached on this machine."""


cache.add_command(remove)
cache.add_command(prune)
cache.add_command(verify)


@cache.command("ls")
@cache_dir_option
@json_option
def list_cache(cache_dir: Path, as_json: bool) -> None:
    """List the cached images, and how much of their content is cached.

    A layer that several images share is counted for each of them.
    """
    from lazyfs.store.names import names_of
    from lazyfs.store.paths import open_store
    from lazyfs.store.usage import Holdings, holdings_of

    store = open_store(cache_dir)
    held = Holdings() if store is None else holdings_of(store)
    names = {} if store is None else names_of(store)
    if as_json:
        document = {
            "cacheDir": str(cache_dir),
            "images": [_image(each, names) for each in held.images.values()],
            "layers": [_layer(each, held) for each in held.layers.values()],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for line in _lines(held, names):
        print_line(line)


@cache.command("du")
@cache_dir_option
@cache_size_option()
@json_option
def measure(cache_dir: Path, cache_size: "Budget", as_json: bool) -> None:
    """Show how much disk space each image and each layer takes, and how much of it is shared.

    Mounts keep the cache within the budget: the least recently used contents are evicted first.
    """
    from lazyfs.store.names import names_of
    from lazyfs.store.paths import open_store
    from lazyfs.store.usage import Holdings, holdings_of

    store = open_store(cache_dir)
    held = Holdings() if store is None else holdings_of(store)
    names = {} if store is None else names_of(store)
    document = {
        "cacheDir": str(cache_dir),
        "budget": cache_size.size_in(cache_dir),
        "allocatedSize": held.allocated_size,
        "otherSize": held.other_size,
        "images": [_measured_image(each, held, names) for each in held.images.values()],
        "layers": []
        if store is None
        else [_measured_layer(store, held, name) for name in held.layers],
    }
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    for line in _measured_lines(document):
        print_line(line)


def _image(usage: "ImageUsage", names: dict[str, list[str]]) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    record = usage.record
    return {
        "manifestDigest": record.manifest_digest,
        "configDigest": record.config_digest,
        "names": names.get(record.manifest_digest, []),
        "platform": record.platform,
        "layers": [each.toc_digest for each in record.layers],
        "lastUsed": _time(usage.last_used),
        "inUse": usage.is_in_use,
        "pinnedBy": list(usage.pinned_by),
    }


def _layer(usage: "LayerUsage", held: "Holdings") -> dict[str, Any]:
    name = str(usage.toc_digest)
    return {
        "tocDigest": name,
        "images": held.users_of(name),
        "allocatedSize": usage.allocated_size,
        "lastUsed": _time(usage.last_used),
        "inUse": usage.is_in_use,
        "pinnedBy": list(usage.pinned_by),
    }


def _measured_image(
    usage: "ImageUsage", held: "Holdings", names: dict[str, list[str]]
) -> dict[str, Any]:
    own = shared = 0
    for layer in {each.toc_digest for each in usage.record.layers}:
        if layer in held.layers:
            size = held.layers[layer].allocated_size
            if len(held.users_of(layer)) > 1:
                shared += size
            else:
                own += size
    return _image(usage, names) | {
        "indexSize": usage.allocated_size,
        "ownSize": own,
        "sharedSize": shared,
    }


def _measured_layer(store: "Store", held: "Holdings", name: str) -> dict[str, Any]:
    from lazyfs.store.usage import resident_size

    usage = held.layers[name]
    resident, content = resident_size(store, usage.toc_digest)
    return _layer(usage, held) | {"residentSize": resident, "contentSize": content}


def _lines(held: "Holdings", names: dict[str, list[str]]) -> list[str]:
    """Return what a person reads."""
    from lazyfs.cli.quantities import size_text

    lines = []
    for name, image in held.images.items():
        layers = [each.toc_digest for each in image.record.layers]
        size = sum(held.layers[each].allocated_size for each in layers if each in held.layers)
        lines.append(
            f"{name}  {image.record.platform}  {len(layers)} layers  {size_text(size):>10}  "
            f"{_time(image.last_used)}  {'in use  ' if image.is_in_use else ''}"
            f"{_pins(image.pinned_by)}"
            f"{', '.join(names.get(name, []))}"
        )
    orphans = held.orphans()
    if orphans:
        size = sum(usage.allocated_size for usage in orphans)
        lines.append(
            f"{len(orphans)} layers that belong to no image, {size_text(size)}; to remove them: "
            "lazyfs cache prune --unused"
        )
    return [line.rstrip() for line in lines]


def _measured_lines(document: dict[str, Any]) -> list[str]:
    from lazyfs.cli.quantities import size_text

    lines = []
    for image in document["images"]:
        total = image["indexSize"] + image["ownSize"] + image["sharedSize"]
        lines.append(
            f"image {image['manifestDigest'][:SHOWN_DIGEST]}  {size_text(total):>10}, "
            f"{size_text(image['sharedSize'])} of it shared  {image['lastUsed']}  "
            f"{'in use  ' if image['inUse'] else ''}{_pins(image['pinnedBy'])}"
            f"{', '.join(image['names'])}"
        )
    for layer in document["layers"]:
        users = ", ".join(name[:SHOWN_DIGEST] for name in layer["images"]) or "no image"
        lines.append(
            f"layer {layer['tocDigest'][:SHOWN_DIGEST]}  {size_text(layer['allocatedSize']):>10}, "
            f"{size_text(layer['residentSize'])} of {size_text(layer['contentSize'])} resident  "
            f"{layer['lastUsed']}  {'in use  ' if layer['inUse'] else ''}in {users}"
        )
    lines.append(
        f"{size_text(document['allocatedSize'])} on disk, {size_text(document['otherSize'])} of it "
        f"metadata and profiles; the budget is {size_text(document['budget'])}"
    )
    return [line.rstrip() for line in lines]


def _pins(sandbox_ids: Sequence[str]) -> str:
    return f"needed by {', '.join(sandbox_ids)}  " if sandbox_ids else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
