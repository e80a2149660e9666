"""``lazyfs cache verify``: hash again what is cached."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import cache_dir_option, default_runtime_dir, json_option
from lazyfs.cli.output import print_line
from lazyfs.cli.progress import progress_option, show_progress
from lazyfs.errors import VerificationFailed

if TYPE_CHECKING:
    from lazyfs.store.upkeep.check import Check, Fault

SHOWN_FAULTS = 20


@click.command("verify")
@click.option(
    "--repair", is_flag=True, help="Drop what is damaged; it is fetched again when needed."
)
@cache_dir_option
@progress_option
@json_option
def verify(repair: bool, cache_dir: Path, progress: str, as_json: bool) -> int:
    """Hash everything in the cache again, and list what is damaged.

    No registry is contacted.  Images may be mounted meanwhile.  The exit code is 6 if anything was
    damaged, even if --repair dropped it.
    """
    from lazyfs.cli.main import exit_code_of
    from lazyfs.store.paths import open_store
    from lazyfs.store.upkeep.check import Check, check_store
    from lazyfs.store.usage import layers_in, resident_size

    store = open_store(cache_dir)
    found = Check()
    if store is not None:
        size = sum(resident_size(store, usage.toc_digest)[0] for usage in layers_in(store))
        try:
            with show_progress("none" if as_json else progress, "verify", size) as advance:
                check_store(store, repair=repair, progress=advance, found=found)
        except BaseException:
            if found.rotten:  # it is marked in the store already, and will not be found again
                _tell(store.root, found)
            raise
        _tell(store.root, found)  # also if nothing was found: some layers cannot be checked
    if as_json:
        click.echo(json.dumps(_document(cache_dir, found), indent=2))
    else:
        _say(found)
    return exit_code_of(VerificationFailed("")) if found.rotten else 0


def _tell(store: Path, found: "Check") -> None:
    """Tell live mounts to drop what they may have served of damaged chunks."""
    from lazyfs.service.dropped import tell_mounts

    chunks: dict[str, list[int] | None] = {}
    for fault in found.rotten:
        if fault.chunk is not None:
            numbers = chunks.setdefault(Path(fault.path).parent.name, [])
            if numbers is not None:
                numbers.append(fault.chunk)
    for fault in (*found.rotten, *found.skipped):
        if fault.kind == "content":  # it could not be checked
            chunks[Path(fault.path).parent.name] = None
    for mountpoint in tell_mounts(default_runtime_dir(), store, chunks):
        print_line(
            f"lazyfs: {mountpoint}: the server does not answer; what the kernel has kept of rotten"
            " bytes may still be read there",
            err=True,
        )
        print_line("unmount it, and mount it again", err=True)


def _document(cache_dir: Path, found: "Check") -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "cacheDir": str(cache_dir),
        "verified": not found.rotten,
        "documents": found.documents,
        "images": found.images,
        "layers": found.layers,
        "chunks": found.chunks,
        "contentSize": found.content_size,
        "lostChunks": found.lost_chunks,
        "rotten": [_fault(each) | {"dropped": each.is_dropped} for each in found.rotten],
        "skipped": [_fault(each) for each in found.skipped],
    }


def _fault(fault: "Fault") -> dict[str, Any]:
    return {
        "kind": fault.kind,
        "path": fault.path,
        "chunk": fault.chunk,
        "reason": fault.reason,
    }


def _say(found: "Check") -> None:
    from lazyfs.cli.quantities import size_text

    for fault in found.skipped:
        print_line(f"lazyfs: {fault.path}: not checked: {fault.reason}", err=True)
    for fault in found.rotten[:SHOWN_FAULTS]:
        which = "" if fault.chunk is None else f", chunk {fault.chunk}"
        end = "; dropped" if fault.is_dropped else ""
        print_line(f"lazyfs: {fault.path}{which}: {fault.reason}{end}", err=True)
    if len(found.rotten) > SHOWN_FAULTS:
        print_line(f"lazyfs: and {len(found.rotten) - SHOWN_FAULTS} more", err=True)
    if found.lost_chunks:
        print_line(
            f"lazyfs: {found.lost_chunks} chunks were lost when a process or the machine stopped; "
            "they are not used",
            err=True,
        )
    checked = (
        f"{found.images} images, {found.layers} layers, {found.documents} documents, "
        f"{found.chunks} chunks of {size_text(found.content_size)}"
    )
    if found.rotten:
        print_line(f"lazyfs: {len(found.rotten)} damaged; checked {checked}", err=True)
    else:
        print_line(f"verified: {checked}")
