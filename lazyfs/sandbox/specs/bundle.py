"""OCI bundles: a folder with ``config.json`` and the mountpoint ``rootfs``.

Spec: OCI runtime-spec, bundle.md.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs.documents.errors import NoSpace, RuntimeFailed
from lazyfs.store.paths import NO_SPACE

CONFIG_NAME = "config.json"
CONFIG_LIMIT = 4 << 20  # bytes


def write_bundle(folder: Path, spec: Mapping[str, Any]) -> None:
    """Make the bundle *folder*: its rootfs, unless it is there, and config.json, all at once.

    Only its owner may read config.json: it has the values of the environment.  Raises NoSpace,
    RuntimeFailed.
    """
    target = folder / CONFIG_NAME
    temporary = folder / f".{CONFIG_NAME}.tmp"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not touched where it is there: it may be a mount, and that a dead one.
        if not os.path.lexists(folder / "rootfs"):
            (folder / "rootfs").mkdir(mode=0o755)
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(json.dumps(spec, indent=1).encode() + b"\n")
        temporary.replace(target)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink()
        family = NoSpace if exc.errno in NO_SPACE else RuntimeFailed
        raise family(f"bundle {folder}: {exc.strerror}") from exc


def load_bundle(folder: Path) -> dict[str, Any]:
    """Return the config.json of the bundle *folder*.  Raises RuntimeFailed."""
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(CONFIG_LIMIT))
    except (OSError, ValueError, RecursionError) as exc:
        raise RuntimeFailed(f"{path} is not a valid OCI config: {exc}") from exc
    if not isinstance(document, dict):
        raise RuntimeFailed(f"{path} is not a valid OCI config: it is not a JSON object")
    return document


def rootfs_of(folder: Path, spec: Mapping[str, Any]) -> Path:
    """Return where the root filesystem of the bundle *folder* is, whose config is *spec*."""
    root = spec.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    return folder / (path if isinstance(path, str) else "rootfs")
