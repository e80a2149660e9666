"""``lazyfs snapshot list`` and ``lazyfs snapshot show``."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import json_option, s3_endpoint_option
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import manifest_digest_option

if TYPE_CHECKING:
    from lazyfs.documents.manifest import Image, Manifest
    from lazyfs.errors import LazyfsError
    from lazyfs.snapshot.stores.pointers import Pointer
    from lazyfs.snapshot.stores.snapshots import Loaded, Snapshots, State

READERS = 8  # manifests at once
SHOWN_DIGEST = 19  # of the text
MINUTE, HOUR, DAY = 60, 3600, 86400


def load(
    text: str, s3_endpoint: str | None, manifest_digest: str | None = None
) -> "tuple[Snapshots, Loaded]":
    """Return the store and the snapshot that ``STORE/ID`` or ``STORE@POINTER`` names."""
    from lazyfs.snapshot.stores.snapshots import Snapshots
    from lazyfs.snapshot.stores.stores import open_objects, parse_snapshot_name

    name = parse_snapshot_name(text)
    snapshots = Snapshots(open_objects(name.store, s3_endpoint=s3_endpoint, must_exist=True))
    return snapshots, snapshots.load(name.name, manifest_digest)


@click.command("list")
@click.argument("store")
@s3_endpoint_option
@json_option
def list_snapshots(store: str, s3_endpoint: str | None, as_json: bool) -> None:
    """List the snapshots of STORE, including unfinished ones, and its pointers."""
    from lazyfs.snapshot.stores.snapshots import Snapshots
    from lazyfs.snapshot.stores.stores import open_objects

    snapshots = Snapshots(open_objects(store, s3_endpoint=s3_endpoint, must_exist=True))
    states = snapshots.states()
    pointers = snapshots.pointers()
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda state: _load(snapshots, state), states))
    rows = [_listed(state, each, pointers) for state, each in zip(states, found, strict=True)]
    digests = {row["id"]: row["manifestDigest"] for row in rows}
    named = [_pointer(name, each, digests) for name, each in sorted(pointers.items())]
    if as_json:
        document = {"store": snapshots.objects.url, "snapshots": rows, "pointers": named}
        click.echo(json.dumps(document, indent=2))
        return
    if not rows and not named:  # as it is where the name of the store has a slip in it
        print_line(f"lazyfs: store {snapshots.objects.url}: no snapshots", err=True)
    for line in _lines(rows, datetime.now(UTC).timestamp(), states):
        print_line(line)
    for each in named:
        note = "" if each["state"] == "committed" else f"  {each['state']}"
        print_line(f"@{each['name']}  {each['id']}{note}")


@click.command("show")
@click.argument("snapshot", metavar="SNAPSHOT")
@manifest_digest_option
@s3_endpoint_option
@json_option
def show(
    snapshot: str, manifest_digest: str | None, s3_endpoint: str | None, as_json: bool
) -> None:
    """Show a snapshot: its images, files, origin, and what it asks of a machine that restores it.

    SNAPSHOT is STORE/ID or STORE@POINTER.
    """
    snapshots, loaded = load(snapshot, s3_endpoint, manifest_digest)
    requests = asked(loaded.manifest)
    names = _names_of(loaded.id, snapshots.pointers())
    if as_json:
        document = {
            "store": snapshots.objects.url,
            "id": loaded.id,
            "manifestDigest": loaded.digest,
            "pointers": names,
            "requests": requests,
            "manifest": json.loads(loaded.data),
        }
        click.echo(json.dumps(document, indent=2))
        return
    for line in _described(loaded, names):
        print_line(line)
    for each in requests:
        print_line(f"asks for   {request_line(each)}")


def asked(manifest: "Manifest") -> list[dict[str, Any]]:
    """Return what a snapshot would ask of a machine that restores it.

    Fields: docs/reference/json.md.  Raises TemplateInvalid.
    """
    from lazyfs.snapshot.grants import document_of_request
    from lazyfs.snapshot.review import requests_of

    return [document_of_request(each) for each in requests_of(manifest)]


def request_line(request: dict[str, Any]) -> str:
    """Return a request as people read it."""
    never = "" if request["allowable"] else ": no option allows this"
    return f"{request['kind']}={request['value']} ({request['field']}){never}"


def _load(snapshots: "Snapshots", state: "State") -> "Loaded | LazyfsError | None":
    from lazyfs.errors import LazyfsError

    if not state.is_committed:
        return None
    try:
        return snapshots.load(state.id)
    except LazyfsError as error:
        return error


def _listed(
    state: "State", found: "Loaded | LazyfsError | None", pointers: "dict[str, Pointer]"
) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    from lazyfs.snapshot.stores.snapshots import Loaded

    row: dict[str, Any] = {
        "id": state.id,
        "state": "committed" if state.is_committed else "partial",
        "modified": _time(state.modified),
        "size": state.size,
        "objects": len(state.files),
        "pointers": _names_of(state.id, pointers),
        "manifestDigest": None,
        "createdAt": None,
        "role": None,
        "scope": None,
        "generation": None,
        "parent": None,
        "sandboxId": None,
        "template": None,
        "images": [],
        "error": None,
    }
    if isinstance(found, Loaded):
        made = found.manifest.snapshot
        row |= {
            "manifestDigest": found.digest,
            "createdAt": made.created_at,
            "role": made.role,
            "scope": made.scope,
            "generation": made.generation,
            "parent": None if made.parent is None else made.parent.id,
            "sandboxId": made.sandbox_id,
            "template": getattr(made.template, "name", None),
            "images": [_image(image) for image in found.manifest.images],
        }
    elif found is not None:
        row["error"] = {"code": found.code, "message": found.message}
    return row


def _image(image: "Image") -> dict[str, Any]:
    return {
        "name": image.name,
        "originalRef": image.original_ref,
        "resolvedRef": image.resolved_ref,
        "embedded": image.embedded is True,
    }


def _pointer(name: str, pointer: "Pointer", digests: dict[str, str | None]) -> dict[str, Any]:
    digest = digests.get(pointer.id)
    if digest is None:
        state = "missing"
    else:
        state = "committed" if digest == pointer.manifest_digest else "overwritten"
    return {
        "name": name,
        "id": pointer.id,
        "manifestDigest": pointer.manifest_digest,
        "state": state,
    }


def _lines(rows: list[dict[str, Any]], now: float, states: "Sequence[State]") -> list[str]:
    """Return what a person reads."""
    from lazyfs.cli.quantities import size_text

    lines = []
    for row, state in zip(rows, states, strict=True):
        if row["error"] is not None:
            what = row["error"]["message"]
        else:
            what = ", ".join(f"{each['name']}={each['originalRef']}" for each in row["images"])
        kind = row["state"] if row["role"] is None else f"{row['role']} {row['generation']}"
        names = " ".join(f"@{name}" for name in row["pointers"])
        age = _age(now - state.modified)
        lines.append(
            f"{row['id']}  {kind:<12}  {age:>4}  {size_text(row['size']):>10}  "
            f"{names + '  ' if names else ''}{what}"
        )
    return [line.rstrip() for line in lines]


def _described(loaded: "Loaded", names: list[str]) -> list[str]:
    from lazyfs.cli.quantities import size_text

    manifest = loaded.manifest
    made = manifest.snapshot
    parent = "none" if made.parent is None else made.parent.id
    lines = [
        f"snapshot   {loaded.id}  {loaded.digest}",
        f"pointers   {' '.join(names) or 'none'}",
        f"made       {made.created_at} of sandbox {made.sandbox_id}, {made.role}, {made.scope}",
        f"lineage    generation {made.generation}, parent {parent}",
        f"runtime    {_runtime(manifest)}",
    ]
    for image in manifest.images:
        kept = ", embedded" if image.embedded is True else ""
        lines.append(
            f"image      {image.name}: {image.original_ref} -> {image.resolved_ref} "
            f"({image.platform.os}/{image.platform.architecture}, {image.source}{kept})"
        )
    for file in manifest.files:
        lines.append(
            f"file       {file.name}: {size_text(file.raw_size)}, stored as {file.object}, "
            f"{size_text(file.stored_size)}, {file.raw_digest[:SHOWN_DIGEST]}"
        )
    return lines


def _runtime(manifest: "Manifest") -> str:
    runtime = manifest.runtime
    facts = (runtime.class_, runtime.version, runtime.platform, runtime.arch, runtime.overlay)
    return ", ".join(fact for fact in facts if isinstance(fact, str))


def _names_of(snapshot_id: str, pointers: "dict[str, Pointer]") -> list[str]:
    return sorted(name for name, each in pointers.items() if each.id == snapshot_id)


def _age(seconds: float) -> str:
    for unit, letter in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m")):
        if seconds >= unit:
            return f"{seconds // unit:.0f}{letter}"
    return f"{max(seconds, 0):.0f}s"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
