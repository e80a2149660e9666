"""Handing the files of a snapshot to the runtime, which alone knows which it needs."""

from collections.abc import Callable
from pathlib import Path

from lazyfs.documents.errors import FileMissing, RuntimeFailed
from lazyfs.documents.manifest import Manifest
from lazyfs.documents.plans import SandboxPlan
from lazyfs.sandbox.runtimes.runtime import Runtime

PAGES = frozenset({"pages.img", "pages_meta.img"})  # gVisor writes both or neither


def resume(
    runtime: Runtime, plan: SandboxPlan, files: Path, manifest: Manifest
) -> Callable[[], None]:
    """Do as ``Runtime.restore``; *files* has those that *manifest* lists.

    Raises FileMissing, which names it, where the manifest does not list one that is needed.
    """
    try:
        return runtime.restore(plan, files)
    except FileNotFoundError as exc:
        path = Path(str(exc.filename))
        if path.parent != files:
            raise
        raise _unlisted(manifest, path.name) from exc
    except RuntimeFailed as exc:
        missing = PAGES - {file.name for file in manifest.files}
        if len(missing) == 1:
            raise _unlisted(manifest, *missing) from exc
        raise


def _unlisted(manifest: Manifest, name: str) -> FileMissing:
    snapshot_id = manifest.snapshot.id
    listed = [file.name for file in manifest.files]
    return FileMissing(
        f"snapshot {snapshot_id} has no file {name}, which the runtime needs; its manifest lists "
        f"{', '.join(listed)}",
        hint="the manifest was changed, or the snapshot was not made whole; use another snapshot",
        details={"id": snapshot_id, "file": name},
    )
