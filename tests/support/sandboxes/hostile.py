"""Stores of snapshots that somebody else can write to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazyfs.digest import digest_of
from lazyfs.snapshot.stores.keys import manifest_key, pointer_key
from lazyfs.snapshot.stores.pointers import Pointer, encode_pointer

Change = Callable[[dict[str, Any]], None]
PROGRAMS = ("crun", "runc", "bwrap")


def tamper(store: Path, pointer: str, change: Change) -> str:
    """Write another manifest in the place of the one that *pointer* names, and have it name that.

    Whoever can write to a store can do so without a trace.  Returns the snapshot's id.
    """
    snapshot_id = json.loads((store / pointer_key(pointer)).read_bytes())["id"]
    path = store / manifest_key(snapshot_id)
    document = json.loads(path.read_bytes())
    change(document)
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(data)
    named = Pointer(snapshot_id, str(digest_of(data)))
    (store / pointer_key(pointer)).write_bytes(encode_pointer(named))
    return snapshot_id


def in_runtime(**fields: Any) -> Change:
    """Return a change of what the manifest says of the runtime."""
    return lambda document: document["runtime"].update(fields)


def in_template(**fields: Any) -> Change:
    """Return a change of the recorded template."""
    return lambda document: document["extensions"]["template"].update(fields)


def in_container(**fields: Any) -> Change:
    """Return a change of the recorded template's first container."""
    return lambda document: document["extensions"]["template"]["containers"][0].update(fields)
