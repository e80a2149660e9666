"""Many sandboxes from one snapshot: its files are downloaded once, and linked for each."""

import logging
import shutil
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from lazyfs.documents.errors import Interrupted
from lazyfs.errors import LazyfsError
from lazyfs.sandbox.sandbox import check_id
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.threads import Threads
from lazyfs.snapshot.restore import Order, Restored, Tools, restore
from lazyfs.snapshot.review import review
from lazyfs.snapshot.stores.snapshots import new_id

log = logging.getLogger(__name__)

WORKERS = 2  # restores at once; each keeps more than one core busy for a moment


def clone(
    order: Order,
    sandbox_ids: Sequence[str],
    tools: Tools,
    done: Callable[[Restored], None],
) -> list[tuple[str, LazyfsError]]:
    """Restore the snapshot of *order* under each id; return which could not be, and why.

    *done* is told of each that runs.  The gates come first, once: where they are closed, or the
    files cannot be had, nothing is started, and the reason is raised.
    """
    for sandbox_id in sandbox_ids:
        check_id(sandbox_id)
    wanted = replace(order.wanted, sandbox_id=sandbox_ids[0])
    loaded = review(wanted, tools.snapshots, tools.bases, tools.choose, tools.host).loaded
    folder = tools.sandboxes.root.parent / "clones" / new_id()
    with local_errors(folder, "make"):
        folder.mkdir(mode=0o700, parents=True)
    failed: list[tuple[str, LazyfsError]] = []
    try:
        tools.snapshots.download(loaded, folder / loaded.id)
        # What was looked at is what each of them goes on from, whatever happens to the store.
        wanted = replace(order.wanted, name=loaded.id, manifest_digest=loaded.digest)
        one = replace(order, files=folder / loaded.id, wanted=wanted)

        def start(sandbox_id: str) -> None:
            try:
                done(restore(replace(one, sandbox_id=sandbox_id), tools))
            except LazyfsError as error:
                failed.append((sandbox_id, error))
            except Exception as error:  # a fault of ours in one hides nothing of the others
                log.info("sandbox %s", sandbox_id, exc_info=True)
                failed.append((sandbox_id, _fault(sandbox_id, error)))

        with tools.bases.ready(), Threads(WORKERS) as pool:
            list(pool.map(start, sandbox_ids))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return failed


def _fault(sandbox_id: str, error: Exception) -> LazyfsError:
    return Interrupted(
        f"sandbox {sandbox_id}: {type(error).__name__}: {error}",
        hint="this is a bug in lazyfs: report it with the traceback that -v prints",
    )
