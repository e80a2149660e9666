"""Manifests, indexes and configs as received, by digest."""

from lazyfs.digest import Digest, digest_of
from lazyfs.store.content.regular import read_regular
from lazyfs.store.paths import Store
from lazyfs.store.quarantine import put_aside


def load_blob(store: Store, digest: Digest) -> bytes | None:
    """Return a stored blob, its digest checked again, or None; a rotten one is put aside."""
    path = store.blob_path(digest)
    try:
        data = read_regular(path)
    except OSError:
        return None
    if digest_of(data, digest.algorithm) != digest:
        put_aside(store, digest.hex, data)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # a disk that takes nothing: it is not believed the next time either
        return None
    return data


def save_blob(store: Store, digest: Digest, data: bytes) -> None:
    """Keep *data*, which has been verified to have *digest*."""
    path = store.blob_path(digest)
    store.make_folder(path.parent)
    store.write_file(path, data)
