"""`make demo`: mount a small real image lazily, run from it, tamper with it, unmount it.

The image is made from this machine's Python in two layers, converted to eStargz, and served by the
tests' registry in a process of its own, on loopback.  Nothing is left behind, whatever happens.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.bench.processes import EmbeddedRegistry
from tools.images import host, layout
from tools.images.tree import Node, Tree, add_parents, directory, file
from tools.mounted import CommandFailed, Mounted, Workspace

PROGRAM = """\
import json, os, platform
root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(root, "etc/release")) as file:
    release = file.read().strip()
print(json.dumps({"hello from": release, "python": platform.python_version()}))
"""
VICTIM = "srv/letter.txt"
# Of the standard library: what a program in an image does not need.
LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages",
    "dist-packages", "__pycache__", Path(sysconfig.get_config_var("LIBPL")).name,
}  # fmt: skip
SECONDS = 60


def main() -> int:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        print("demo: cannot open /dev/fuse, which mounting needs", file=sys.stderr)
        hint = "as root: modprobe fuse; for other users also: chmod 666 /dev/fuse"
        print(f"hint: {hint}", file=sys.stderr)
        return 8
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave by way of every finally
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="lazyfs-demo-"))
    try:
        show(folder)
    except CommandFailed as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\nNothing is left behind. It took {time.monotonic() - started:.0f} seconds.")
    return 0


def show(folder: Path) -> None:
    """Do all of it, in *folder*."""
    workspace = Workspace(folder / "lazyfs")
    images = folder / "images" / "demo"
    python = Path(os.path.realpath(sys.executable))

    step(f"make an image of two layers from {python}, its libraries and a script")
    layout.write_image(
        images, list(layers(python)), tag="plain", cmd=[str(python), "/app/hello.py"]
    )
    workspace.run("convert", f"oci:{images}:plain", f"oci:{images}:latest")
    size = sum(layer["size"] for layer in layout.read_tagged(images, "latest")["layers"])
    print(f"   {size / 1e6:.1f} MB as eStargz, served by a registry on loopback")

    with EmbeddedRegistry(images.parent) as registry:
        reference = f"{registry.address}/demo:latest"
        step(f"lazyfs mount --prefetch none {reference} mnt")
        with Mounted(workspace, reference, "--prefetch", "none") as mounted:
            driver = mounted.status()["driver"]
            print(f"   live after {mounted.ready_seconds:.2f} s, driver {driver}")
            print(f"   {traffic(registry, size)}")
            line, environment = inside(mounted.path, python)
            step(f"{Path(line[0]).name} … python3 /app/hello.py, with every file from the mount")
            print(f"   {output_of(line, environment)}")
            print(f"   {traffic(registry, size)}")
            show_mount(mounted)
        step(f"unmount, empty the cache, flip one bit of {VICTIM} in the registry, mount again")
        flip_a_bit(images, VICTIM)
        workspace.forget()
        with Mounted(workspace, reference, "--prefetch", "none") as mounted:
            show_refusal(mounted)
        step("unmount; lazyfs verify checks the whole image")
        workspace.run("verify", "--progress", "none", reference, code=6)
        print("   exit code 6: verification failed")


def show_mount(mounted: Mounted) -> None:
    """Look at what is special about a mounted image."""
    step("the layers are merged: a whiteout removes a file, a hard link works")
    print(f"   etc/obsolete exists: {(mounted.path / 'etc/obsolete').exists()}")
    hello, same = (mounted.path / "app" / name for name in ("hello.py", "same.py"))
    print(f"   app/hello.py and app/same.py are one file: {hello.samefile(same)}")

    step("getfattr -d mnt: the mount states which image it is")
    for name in sorted(os.listxattr(mounted.path)):
        value = os.getxattr(mounted.path, name).decode()
        print(f"   {name} = {value if len(value) < 80 else value[:77] + '...'}")


def show_refusal(mounted: Mounted) -> None:
    """Read the file that the registry serves wrongly, and one that it serves well."""
    step(f"cat mnt/{VICTIM}")
    try:
        content = (mounted.path / VICTIM).read_bytes()
    except OSError as exc:
        print(f"   {exc.strerror} (errno {exc.errno}): no unverified byte is served")
    else:
        raise CommandFailed(f"{VICTIM} could be read although it was changed: {content[:40]!r}")
    health = os.getxattr(mounted.path, "user.lazyfs.health").decode()
    print(f"   health: {health}")
    good = (mounted.path / "app/hello.py").read_bytes() == PROGRAM.encode()
    print(f"   app/hello.py is still readable and correct: {good}")


def layers(python: Path) -> Iterator[Tree]:
    """Yield the layers: the system with *python*, then an application on top of it."""
    system: Tree = {}
    host.add_program(system, python)
    for key in ("stdlib", "platstdlib"):
        folder = Path(sysconfig.get_path(key, vars={"base": sys.base_prefix}))
        if folder.is_dir():
            host.add_folder(system, folder, without=LEFT_OUT)
    for extension in [p for p in system if "/lib-dynload/" in p]:
        for library in host.libraries_of(Path("/", extension)):
            host.add_file(system, library)
    system["etc/release"] = file(b"an image that is mounted lazily\n")
    system["etc/obsolete"] = file(b"a later layer removes this\n")
    for path in ("dev", "proc", "tmp"):
        system[path] = directory()
    add_parents(system)
    yield system
    letter = "".join(f"{n}: {n * 7919 % 999_983}\n" for n in range(20_000)).encode()
    application: Tree = {
        "app/hello.py": file(PROGRAM.encode(), 0o755),
        "app/same.py": Node(tarfile.LNKTYPE, 0o755, link="app/hello.py"),
        "etc/.wh.obsolete": file(b""),
        VICTIM: file(letter),
    }
    add_parents(application)
    yield application


def inside(root: Path, python: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment that run the image's program on *root*.

    Root uses chroot; others chroot in a user namespace; where there is none, the image's own
    loader starts the image's Python with the image's libraries.
    """
    line = ["chroot", str(root), str(python), "/app/hello.py"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    if os.geteuid() == 0:
        return line, environment
    namespace = ["unshare", "--user", "--map-root-user"]
    probe = subprocess.run([*namespace, "true"], capture_output=True, timeout=SECONDS, check=False)
    if probe.returncode == 0:
        return [*namespace, *line], environment
    return with_own_loader(root, python), environment | {"PYTHONHOME": f"{root}{sys.base_prefix}"}


def output_of(line: list[str], environment: dict[str, str]) -> str:
    """Run *line* and return what it says."""
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise CommandFailed(f"{' '.join(line)}: ended with {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


def with_own_loader(root: Path, python: Path) -> list[str]:
    """Return the command line that runs the program without any change of root."""
    libraries = [Path(os.path.realpath(path)) for path in host.libraries_of(python)]
    loader = next(path for path in libraries if path.name.startswith("ld-"))
    folders = sorted({str(root) + str(path.parent) for path in libraries})
    program = [str(root) + str(python), "-S", str(root / "app/hello.py")]
    return [str(root) + str(loader), "--library-path", ":".join(folders), *program]


def flip_a_bit(images: Path, name: str) -> None:
    """Flip one bit in the compressed bytes of file *name*, where the registry keeps them."""
    from lazyfs.formats.estargz import TAIL_SIZE, find_toc, read_toc

    for layer in reversed(layout.read_tagged(images, "latest")["layers"]):
        path = layout.blob_path(images, layer["digest"])
        blob = bytearray(path.read_bytes())
        location = find_toc(bytes(blob[-TAIL_SIZE:]), len(blob))
        member = bytes(blob[location.start : location.end])
        toc = read_toc(member, expected=None, blob_size=len(blob)).toc
        for entry in toc.entries:
            if entry.path == name.encode() and entry.chunks:
                # Behind the member's header and name, in its compressed data.
                blob[entry.chunks[0].blob_offset + 500] ^= 0x10
                path.write_bytes(blob)
                return
    raise LookupError(f"{name}: no layer has it")


def traffic(registry: EmbeddedRegistry, size: int) -> str:
    """Return what the registry has been asked for so far, in words."""
    counters = registry.statistics()
    sent = counters["bytes"]
    return (
        f"{counters['requests']} requests, {sent / 1e6:.2f} MB fetched of {size / 1e6:.1f} MB "
        f"({sent / size:.0%})"
    )


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
