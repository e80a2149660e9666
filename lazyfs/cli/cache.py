"""``lazyfs cache``: what is kept on this machine, and how to get rid of it."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import cache_dir_option, json_option
from lazyfs.errors import NotFound, UsageError

if TYPE_CHECKING:
    from lazyfs.store.images import ImageRecord
    from lazyfs.store.paths import Store
    from lazyfs.store.usage import LayerUsage

PREFIX_RE = re.compile(r"[0-9a-f]{6,64}")


class NotKept(NotFound):
    """What is to be removed is not in the cache."""

    code = "E_NOT_IN_CACHE"


@dataclass
class Holdings:
    """What a store holds: images by manifest digest, layers by TOC digest."""

    images: "dict[str, ImageRecord]" = field(default_factory=dict)
    layers: "dict[str, LayerUsage]" = field(default_factory=dict)

    def users_of(self, layer: str) -> list[str]:
        """Return the manifest digests of the images that have the layer."""
        return [
            name
            for name, record in self.images.items()
            if any(each.toc_digest == layer for each in record.layers)
        ]

    def is_in_use(self, image: str) -> bool:
        """Say whether an image may be mounted: whoever mounts it has all of its layers open."""
        used = [
            each.toc_digest in self.layers and self.layers[each.toc_digest].is_in_use
            for each in self.images[image].layers
        ]
        return bool(used) and all(used)


@dataclass
class Removal:
    """What was removed, and what was not because it is in use; sizes in bytes on the disk."""

    images: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    freed_size: int = 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cache() -> None:
    """List or remove what is kept on this machine."""


@cache.command("ls")
@cache_dir_option
@json_option
def list_cache(cache_dir: Path, as_json: bool) -> None:
    """List the images whose index is kept, and how much of their content is.

    Layers that several images share are counted for each of them.
    """
    held = holdings_of(_store(cache_dir))
    if as_json:
        click.echo(json.dumps(_document(cache_dir, held), indent=2))
        return
    for line in _lines(held):
        click.echo(line)


@cache.command("rm")
@click.argument("targets", metavar="[DIGEST]...", nargs=-1)
@click.option("--unused", is_flag=True, help="Remove the layers that belong to no image.")
@click.option("--all", "all_of_it", is_flag=True, help="Remove all that is not in use.")
@cache_dir_option
@json_option
def remove(
    targets: tuple[str, ...], unused: bool, all_of_it: bool, cache_dir: Path, as_json: bool
) -> None:
    """Remove images from the cache, and the layers that no other image has.

    DIGEST is a manifest's (or a layer's TOC digest): in full, the start of its hexadecimal part,
    or a reference that ends in it.  What is mounted stays.
    """
    if not targets and not unused and not all_of_it:
        raise UsageError("cache rm: got nothing to remove, expected DIGEST, --unused or --all")
    store = _store(cache_dir)
    removal = Removal()
    if store is not None:
        held = holdings_of(store)
        names = list(held.images) if all_of_it else [find(held, text) for text in targets]
        _remove(store, held, names, removal, with_orphans=unused or all_of_it)
        if all_of_it:
            _remove_documents(store, held, removal)
    elif targets:
        raise NotKept(f"cache {cache_dir}: got nothing, expected {targets[0]}")
    _report(removal, as_json)
    if targets and removal.in_use:
        _complain_of(removal.in_use)


@cache.command("evict")
@click.argument("size", type=click.IntRange(min=0), metavar="BYTES")
@cache_dir_option
def evict(size: int, cache_dir: Path) -> None:
    """Give back content, least recently used first, until at most BYTES are occupied.

    The images stay as quick to mount as before; their contents are fetched again when read.
    """
    from lazyfs.store.usage import evict as evict_layers

    store = _store(cache_dir)
    click.echo(str(0 if store is None else evict_layers(store, size)))


def holdings_of(store: "Store | None") -> Holdings:
    """Return what a store holds; nothing, if there is none."""
    from lazyfs.store.usage import images_in, layers_in

    if store is None:
        return Holdings()
    return Holdings(
        {record.manifest_digest: record for record in images_in(store)},
        {str(usage.toc_digest): usage for usage in layers_in(store)},
    )


def find(held: Holdings, text: str) -> str:
    """Return the digest that *text* means, or raise NotKept or UsageError."""
    wanted = text.rpartition("@")[2].removeprefix("sha256:")
    if PREFIX_RE.fullmatch(wanted) is None:
        raise UsageError(
            f"cache rm: got {text!r}, expected a digest or 6 or more of its hexadecimal digits",
            hint="`lazyfs cache ls` lists them",
        )
    names = [
        name for name in (*held.images, *held.layers) if name.partition(":")[2].startswith(wanted)
    ]
    if not names:
        raise NotKept(f"cache: got no {text}, expected an image or a layer")
    if len(names) > 1:
        raise UsageError(f"cache rm: got {text!r}, expected one of {', '.join(names)}")
    return names[0]


def _store(cache_dir: Path) -> "Store | None":
    """Return the store, None if there is none: looking must not make one."""
    from lazyfs.store.paths import Store

    return Store(cache_dir) if (cache_dir / "version").exists() else None


def _remove(
    store: "Store", held: Holdings, names: Iterable[str], removal: Removal, *, with_orphans: bool
) -> None:
    from lazyfs.digest import parse_digest
    from lazyfs.store.usage import remove_image

    layers: dict[str, None] = {}  # in order, once each
    for name in names:
        if name not in held.images:
            layers[name] = None
        elif held.is_in_use(name):
            removal.in_use.append(name)
        else:
            remove_image(store, parse_digest(name))
            layers |= dict.fromkeys(each.toc_digest for each in held.images.pop(name).layers)
            removal.images.append(name)
    named = set(names)
    if with_orphans:
        layers |= dict.fromkeys(held.layers)
    for layer in layers:
        if layer in held.layers and (layer in named or not held.users_of(layer)):
            _remove_layer(store, held.layers[layer], removal)


def _remove_layer(store: "Store", usage: "LayerUsage", removal: Removal) -> None:
    from lazyfs.store.usage import LayerInUse, remove_layer

    try:
        remove_layer(store, usage.toc_digest)
    except LayerInUse:
        removal.in_use.append(str(usage.toc_digest))
        return
    removal.layers.append(str(usage.toc_digest))
    removal.freed_size += usage.allocated_size


def _remove_documents(store: "Store", held: Holdings, removal: Removal) -> None:
    """Remove manifests, indexes, configs and profiles, but not those of images that stay."""
    from lazyfs.digest import parse_digest

    kept = {
        store.blob_path(parse_digest(digest))
        for record in held.images.values()
        for digest in (record.manifest_digest, record.config_digest)
    }
    for path in store.blobs.glob("*/*"):
        if path not in kept:
            removal.freed_size += path.stat().st_size
            path.unlink(missing_ok=True)


def _report(removal: Removal, as_json: bool) -> None:
    from lazyfs.cli.status import size_text

    if as_json:
        document = {
            "images": removal.images,
            "layers": removal.layers,
            "inUse": removal.in_use,
            "freedSize": removal.freed_size,
        }
        click.echo(json.dumps(document, indent=2))
        return
    for name in (*removal.images, *removal.layers):
        click.echo(name)
    click.echo(f"lazyfs: {size_text(removal.freed_size)} given back", err=True)
    for name in removal.in_use:
        click.echo(f"lazyfs: {name} is in use and stays", err=True)


def _complain_of(names: list[str]) -> None:
    from lazyfs.store.usage import LayerInUse

    raise LayerInUse(
        f"cache: got {len(names)} in use, expected none: {names[0]}",
        hint="`lazyfs status` shows what is mounted",
    )


def _document(cache_dir: Path, held: Holdings) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "cacheDir": str(cache_dir),
        "images": [
            {
                "manifestDigest": name,
                "configDigest": record.config_digest,
                "platform": record.platform,
                "layers": [each.toc_digest for each in record.layers],
                "inUse": held.is_in_use(name),
            }
            for name, record in held.images.items()
        ],
        "layers": [
            {
                "tocDigest": name,
                "images": held.users_of(name),
                "allocatedSize": usage.allocated_size,
                "lastUsed": _time(usage.last_used),
                "inUse": usage.is_in_use,
            }
            for name, usage in held.layers.items()
        ],
    }


def _lines(held: Holdings) -> list[str]:
    """Return what a person reads."""
    from lazyfs.cli.status import size_text

    lines = []
    for name, record in held.images.items():
        usages = [
            held.layers[each.toc_digest] for each in record.layers if each.toc_digest in held.layers
        ]
        size = size_text(sum(usage.allocated_size for usage in usages))
        used = _time(max((usage.last_used for usage in usages), default=0))
        state = "in use" if held.is_in_use(name) else ""
        lines.append(
            f"{name}  {record.platform}  {len(record.layers)} layers  {size:>10}  {used}  {state}"
        )
    unused = [usage for name, usage in held.layers.items() if not held.users_of(name)]
    if unused:
        size = size_text(sum(usage.allocated_size for usage in unused))
        lines.append(f"{len(unused)} layers of no image, {size}: lazyfs cache rm --unused")
    return [line.rstrip() for line in lines]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
