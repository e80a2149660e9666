"""The mounts of sandboxes, for commands that must not ask a registry: seen, profiled, let go of."""

from contextlib import suppress
from pathlib import Path

from lazyfs.digest import parse_digest
from lazyfs.mount.point import BusyMountpoint, State, real_path, state_of, unmount
from lazyfs.service.identity import end_stuck
from lazyfs.service.processes.control import ServerSilent, ask
from lazyfs.service.record import (
    find_record,
    is_alive,
    load_records,
    remove_stale,
    socket_path,
    wait_server_end,
)
from lazyfs.service.witness import MountWitness
from lazyfs.store.paths import open_store
from lazyfs.store.profiles import encode_profile, load_profile

END_SECONDS = 30.0


class NodeMounts(MountWitness):
    """What a checkpoint needs of mounts; *cache_dir* is the store, *runtime* has their records."""

    def __init__(self, runtime: Path, cache_dir: Path) -> None:
        super().__init__(runtime)
        self._records = runtime
        self._cache = cache_dir

    def unmount(self, directory: Path) -> None:
        """Unmount, lazily if somebody still uses it; nothing to do where nothing is mounted."""
        release_mount(self._records, directory)

    def profile(self, manifest_digest: str) -> bytes | None:
        """Return the first accesses of an image, with those of mounts that are live now."""
        folders = {self._cache}
        for record in load_records(self._records):
            if record.manifest_digest == manifest_digest and is_alive(record):
                folders.add(Path(record.cache_dir))
                with suppress(ServerSilent):  # what it saved before has to do
                    ask(socket_path(self._records, record.mount_id), {"type": "save-profile"})
        for folder in sorted(folders, key=lambda each: each != self._cache):
            store = open_store(folder)
            found = None if store is None else load_profile(store, parse_digest(manifest_digest))
            if found is not None:
                return encode_profile(found)
        return None


def release_mount(runtime: Path, directory: Path) -> None:
    """Unmount *directory* and wait for the server to end; lazily where somebody still uses it."""
    mountpoint = real_path(str(directory))
    end_stuck(runtime, mountpoint)
    while True:
        state, entry = state_of(mountpoint)
        if entry is None:
            break
        record = find_record(runtime, mountpoint)
        is_lazy = state is State.DEAD
        try:
            unmount(mountpoint, lazy=is_lazy)
        except BusyMountpoint:
            is_lazy = True
            unmount(mountpoint, lazy=True)
        if record is not None and not is_lazy:
            wait_server_end(record, END_SECONDS)
    remove_stale(runtime, mountpoint)
