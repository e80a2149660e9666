"""``lazyfs cache rm`` and ``lazyfs cache prune``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.options import cache_dir_option, cache_size_option, json_option
from lazyfs.cli.output import print_line
from lazyfs.errors import NotFound, UsageError

if TYPE_CHECKING:
    from lazyfs.store.paths import Store
    from lazyfs.store.upkeep.budget import Budget
    from lazyfs.store.upkeep.removal import Pinned
    from lazyfs.store.usage import Holdings


class NotKept(NotFound):
    """What is to be removed is not in the cache."""

    code = "E_NOT_IN_CACHE"


@dataclass
class Removal:
    """What was removed, and what was not because it is in use; sizes in bytes on the disk.

    ``pinned``: why what sandboxes need stays, by digest.
    """

    images: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    pinned: dict[str, "Pinned"] = field(default_factory=dict)
    freed_size: int = 0


@click.command("rm")
@click.argument("targets", metavar="[IMAGE]...", nargs=-1)
@click.option("--all", "all_of_it", is_flag=True, help="Remove everything that is not in use.")
@cache_dir_option
@json_option
def remove(targets: tuple[str, ...], all_of_it: bool, cache_dir: Path, as_json: bool) -> None:
    """Remove images from the cache, and the layers that no other image needs.

    IMAGE is a reference that was mounted here, or the digest of a manifest, of an index or of a
    layer's table of contents, or the first 6 or more hexadecimal digits of one.  No registry is
    contacted.  Mounted images stay, and so do those that a sandbox needs, until it is deleted.
    """
    if not targets and not all_of_it:
        raise UsageError("cache rm needs an IMAGE or --all")
    from lazyfs.store.paths import open_store
    from lazyfs.store.usage import holdings_of

    removal = Removal()
    store = open_store(cache_dir)
    if store is not None:
        held = holdings_of(store)
        found = [name for text in targets for name in find(store, held, text)]
        _remove(
            store, held, list(held.images) if all_of_it else list(dict.fromkeys(found)), removal
        )
        if all_of_it:
            _remove_rest(store, removal)
    elif targets:
        raise NotKept(f"{targets[0]} is not in the cache: {cache_dir} has no images")
    _report(removal, as_json)
    if targets and removal.pinned:
        raise next(iter(removal.pinned.values()))
    if targets and removal.in_use:
        _complain_of(removal.in_use)


@click.command("prune")
@cache_size_option("--size")
@click.option(
    "--unused", is_flag=True, help="Remove only layers and documents that belong to no image."
)
@cache_dir_option
@json_option
def prune(cache_size: "Budget", unused: bool, cache_dir: Path, as_json: bool) -> None:
    """Remove contents, least recently used first, until the cache is within its budget.

    Images stay as quick to mount as before; their contents are fetched again when they are read.
    If that frees too little, images that were not used for an hour are removed as well.  Mounted
    images stay, and so do those that a sandbox needs.
    """
    from lazyfs.cli.quantities import size_text
    from lazyfs.store.paths import open_store
    from lazyfs.store.upkeep.evict import evict, remove_unused
    from lazyfs.store.usage import holdings_of

    store = open_store(cache_dir)
    freed = allocated = 0
    budget = cache_size.size_in(cache_dir)
    if store is not None:
        if unused:
            freed = remove_unused(store)
            allocated = holdings_of(store).allocated_size
        else:
            done = evict(store, budget)
            freed, allocated = done.freed_size, done.allocated_size
    if as_json:
        document = {"freedSize": freed, "allocatedSize": allocated, "budget": budget}
        click.echo(json.dumps(document, indent=2))
        return
    print_line(
        f"lazyfs: {size_text(freed)} freed; {size_text(allocated)} left, "
        f"the budget is {size_text(budget)}",
        err=True,
    )


def find(store: "Store", held: "Holdings", text: str) -> list[str]:
    """Return the digests of images or layers that *text* means; NotKept or UsageError."""
    from lazyfs.image.known import DIGEST_RE, known_images
    from lazyfs.store.paths import ALGORITHMS

    found = known_images(store, text)
    match = DIGEST_RE.fullmatch(text)
    if match is not None:
        found += [name for name in held.layers if name.partition(":")[2].startswith(match[1])]
        if len(found) > 1 and len(match[1]) not in ALGORITHMS:
            raise UsageError(f"{text!r} is ambiguous: it may be any of {', '.join(found)}")
    if not found:
        raise NotKept(
            f"{text} is not in the cache",
            hint="`lazyfs cache ls` lists what is",
        )
    return found


def _remove(store: "Store", held: "Holdings", names: list[str], removal: Removal) -> None:
    from lazyfs.digest import parse_digest
    from lazyfs.store.upkeep.removal import Pinned, pinned, remove_image

    layers: dict[str, None] = {}  # in order, once each
    for name in names:
        if name in held.layers:
            layers[name] = None
        elif name in held.images and held.images[name].pinned_by:
            removal.pinned[name] = pinned(f"image {name}", held.images[name].pinned_by)
        elif name in held.images and held.images[name].is_in_use:
            removal.in_use.append(name)
        else:
            try:
                removal.freed_size += remove_image(store, parse_digest(name))
            except Pinned as error:
                removal.pinned[name] = error
                continue
            removal.images.append(name)
            if name in held.images:
                record = held.images.pop(name).record
                layers |= dict.fromkeys(each.toc_digest for each in record.layers)
    for layer in layers:
        if layer in held.layers and (layer in names or not held.users_of(layer)):
            _remove_layer(store, layer, removal)


def _remove_layer(store: "Store", name: str, removal: Removal) -> None:
    from lazyfs.digest import parse_digest
    from lazyfs.store.upkeep.removal import LayerInUse, Pinned, remove_layer

    try:
        removal.freed_size += remove_layer(store, parse_digest(name))
    except Pinned as error:
        removal.pinned[name] = error
        return
    except LayerInUse:
        removal.in_use.append(name)
        return
    removal.layers.append(name)


def _remove_rest(store: "Store", removal: Removal) -> None:
    """Remove what belongs to no image, and the profiles of images that are not here."""
    from lazyfs.store.paths import digest_named
    from lazyfs.store.upkeep.evict import remove_unused
    from lazyfs.store.upkeep.removal import remove_files
    from lazyfs.store.usage import holdings_of

    held = holdings_of(store)
    profiles = [
        path for path in store.profiles.glob("*") if str(digest_named(path.name)) not in held.images
    ]
    removal.freed_size += remove_files(profiles)
    for usage in held.orphans():
        _remove_layer(store, str(usage.toc_digest), removal)
    removal.freed_size += remove_unused(store)


def _report(removal: Removal, as_json: bool) -> None:
    from lazyfs.cli.quantities import size_text

    if as_json:
        document = {
            "images": removal.images,
            "layers": removal.layers,
            "inUse": removal.in_use,
            "pinned": list(removal.pinned),
            "freedSize": removal.freed_size,
        }
        click.echo(json.dumps(document, indent=2))
        return
    for name in (*removal.images, *removal.layers):
        print_line(name)
    print_line(f"lazyfs: {size_text(removal.freed_size)} freed", err=True)
    for name in removal.in_use:
        print_line(f"lazyfs: {name} is in use and was not removed", err=True)
    for error in removal.pinned.values():
        print_line(f"lazyfs: {error.message}; it was not removed", err=True)


def _complain_of(names: list[str]) -> None:
    from lazyfs.store.upkeep.removal import LayerInUse

    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise LayerInUse(
        f"not removed because it is in use: {names[0]}{more}",
        hint="`lazyfs status` shows what is mounted",
    )
