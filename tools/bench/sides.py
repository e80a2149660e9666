"""The sides that are compared: a lazy mount, and pulling and unpacking in two ways."""

import compileall
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.bench import limits
from tools.bench.samples import Samples
from tools.bench.work import timed
from tools.mounted import ROOT, CommandFailed, Mounted, Workspace, command

SECONDS = 600
SKOPEO_UMOCI = "skopeo + umoci"
PLAIN_PULL = "plain pull"
Work = Callable[[Path], None]


def compile_lazyfs() -> None:
    """Compile what an installer compiles; Python may have been told to keep nothing."""
    compileall.compile_dir(ROOT / "lazyfs", quiet=1)


def forget_pages(folder: Path) -> None:
    """Take all files below *folder* out of the page cache; works for ordinary users too."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def measure_lazy(
    reference: str,
    works: dict[str, Work],
    folder: Path,
    samples: Samples,
    options: list[str],
    sent_size: Callable[[], int],
) -> None:
    """Mount cold once for each of *works*; then once more with everything in the store.

    *sent_size* tells how many bytes the registry has sent until now.
    """
    for name, work in works.items():
        shutil.rmtree(folder, ignore_errors=True)
        workspace = Workspace(folder)
        os.sync()  # what the run before has written is not this one's to pay for
        before = sent_size()
        with Mounted(workspace, reference, *options) as mounted, deadline(mounted):
            seconds = timed(work, mounted.path)
            samples.add("mount ready", mounted.ready_seconds)
            samples.add(f"mount + {name}", mounted.ready_seconds + seconds)
            samples.add(f"sent: {name}", sent_size() - before)
            limits.note(samples, name, mounted)
            samples.add("peak memory", mounted.peak_memory_size())
    forget_pages(folder / "cache")
    with Mounted(workspace, reference, *options) as mounted, deadline(mounted):
        seconds = timed(work, mounted.path)
        samples.add("again: mount ready", mounted.ready_seconds)
        samples.add(f"again: {name}", seconds)
    shutil.rmtree(folder)


def measure_starts(
    reference: str,
    work: Work,
    folder: Path,
    samples: Samples,
    options: list[str],
    sent_size: Callable[[], int],
) -> None:
    """Mount cold for a first command as a node does that has more than the bare command.

    With the profile of an earlier mount, through ``lazyfs serve``, and with both.
    """
    name = "mount + first command"

    def note(mounted: Mounted, what: str, before: int) -> None:
        samples.add(f"sent: {what}", sent_size() - before)
        limits.note(samples, what, mounted)

    shutil.rmtree(folder, ignore_errors=True)
    workspace = Workspace(folder)
    with Mounted(workspace, reference, *options) as mounted:
        work(mounted.path)  # leaves a profile
    keep_profiles(workspace)
    before = sent_size()
    with Mounted(workspace, reference, *options) as mounted, deadline(mounted):
        seconds = timed(work, mounted.path)
        samples.add(f"{name}, profile", mounted.ready_seconds + seconds)
        note(mounted, "first command, profile", before)
    with serving(workspace):
        for kind in ("serve", "serve and profile"):
            if kind == "serve":
                workspace.forget()
            else:
                keep_profiles(workspace)
            os.sync()
            before = sent_size()
            with Mounted(workspace, reference, *options) as mounted, deadline(mounted):
                seconds = timed(work, mounted.path)
                samples.add(f"mount ready, {kind}", mounted.ready_seconds)
                samples.add(f"{name}, {kind}", mounted.ready_seconds + seconds)
                note(mounted, f"first command, {kind}", before)
    shutil.rmtree(folder)


def keep_profiles(workspace: Workspace) -> None:
    """Empty the cache but for profiles, as on a node that imported one."""
    profiles, kept = workspace.folder / "cache" / "profiles", workspace.folder / "kept"
    profiles.rename(kept)
    workspace.forget()
    # The next command makes the rest of the store around it.
    profiles.parent.mkdir(mode=0o700)
    kept.rename(profiles)


@contextmanager
def serving(workspace: Workspace) -> Iterator[None]:
    """Have ``lazyfs serve`` listen for the workspace's mounts."""
    server = subprocess.Popen(
        [command(), "-q", "serve"], env=workspace.environment, stdin=subprocess.DEVNULL
    )
    try:
        socket = workspace.folder / "run" / "control.sock"
        deadline_at = time.monotonic() + SECONDS
        while not (socket.exists() and _is_ready(server.pid)):
            if server.poll() is not None or time.monotonic() > deadline_at:
                raise CommandFailed("lazyfs serve: got no socket, expected one")
            time.sleep(0.01)
        time.sleep(0.5)  # let the machine calm down
        yield
    finally:
        server.terminate()
        server.wait(SECONDS)


def _is_ready(pid: int) -> bool:
    """Say whether ``lazyfs serve`` has imported what it needs: it catches SIGTERM then."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return bool(int(status.partition("\nSigCgt:")[2].split()[0], 16) & 1 << signal.SIGTERM - 1)


@contextmanager
def deadline(mounted: Mounted) -> Iterator[None]:
    """Kill the server if the block lasts too long: a read that hangs cannot be interrupted."""

    def kill() -> None:
        print(f"bench: no end after {SECONDS} s: {mounted.status()}", file=sys.stderr)
        os.kill(mounted.pid, signal.SIGKILL)

    timer = threading.Timer(SECONDS, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def measure_pulled(
    unpack: Callable[[str, Path], Path],
    reference: str,
    works: dict[str, Work],
    folder: Path,
    samples: Samples,
) -> None:
    """Pull and unpack *reference* once, then do all of *works* on the result."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    started = time.perf_counter()
    root = unpack(reference, folder)
    seconds = time.perf_counter() - started
    samples.add("pull + unpack", seconds)
    # What was just written is still in memory, as it is after any pull.
    for name, work in works.items():
        samples.add(f"pull + {name}", seconds + timed(work, root))
    forget_pages(root)
    samples.add(f"again: {name}", timed(work, root))
    shutil.rmtree(folder)


def skopeo_umoci(reference: str, folder: Path) -> Path:
    """Pull with skopeo into an OCI layout, unpack with umoci."""
    layout, root = folder / "layout", folder / "root"
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false"]
    _run([*copy, f"docker://{reference}", f"oci:{layout}:image"])
    unpack = ["umoci", "--log=error", "raw", "unpack"]
    rootless = ["--rootless"] if os.geteuid() else []
    _run([*unpack, *rootless, "--image", f"{layout}:image", str(root)])
    return root


def plain_pull(reference: str, folder: Path) -> Path:
    """Pull with the bench's own puller: parallel downloads, each layer unpacked by tar."""
    root = folder / "root"
    _run([sys.executable, "-m", "tools.bench.puller", reference, str(root)])
    return root


def pullers() -> Iterator[tuple[str, Callable[[str, Path], Path]]]:
    """Yield the ways to pull and unpack that this machine has."""
    if shutil.which("skopeo") and shutil.which("umoci"):
        yield SKOPEO_UMOCI, skopeo_umoci
    yield PLAIN_PULL, plain_pull


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield *folder*, empty; remove it in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(line: list[str]) -> None:
    subprocess.run(line, check=True, stdin=subprocess.DEVNULL, cwd=ROOT, timeout=SECONDS)
