#!/usr/bin/env python3
"""Make a real image for measuring, as an OCI layout: plain tar.gz, and eStargz from the same.

    python3 tools/make_image.py python DEST

DEST then holds the tags ``plain`` and ``estargz``.  Kinds:

    python   Debian's python3 on a small Debian system: about 45 MB, 120 MB of files
    node     Debian's nodejs and npm on the same system: about 79 MB, 29,000 files
    large    the system and 1 GiB in six files
    small    the system and 100,000 small files

Needs a Debian or Ubuntu machine with its package sources, but neither root nor Docker.  Packages
are kept in the cache folder; the same packages make the same image, byte for byte.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, not as a module

from tools.images import debian, layout, synthetic  # noqa: E402
from tools.images.tree import Tree, total_size  # noqa: E402

RECIPE = "1"  # raise it when an image changes, so that cached ones are made again
BASE = [
    "base-files", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep",
    "gzip", "hostname", "libc-bin", "mawk", "ncurses-base", "perl-base", "sed", "tar",
    "util-linux", "tzdata", "ca-certificates",
]  # fmt: skip
PYTHON = ["python3", "python3-pip", "python3-venv"]
NODE = ["nodejs", "npm"]


def base(packages: debian.Packages) -> Tree:
    """Return the small system that every image starts from."""
    tree = packages.tree(BASE)
    debian.add_system_files(tree)
    return tree


def on_base(packages: debian.Packages, names: Sequence[str], *, compiled: bool) -> list[Tree]:
    """Return two layers: the system, and what *names* add to it."""
    below = base(packages)
    upper = packages.tree([*BASE, *names])
    debian.add_system_files(upper)
    if compiled:
        debian.byte_compile(upper)
    added = {path: node for path, node in upper.items() if path not in below}
    return [below, added]


KINDS: dict[str, Callable[[debian.Packages], list[Tree]]] = {
    "python": lambda packages: on_base(packages, PYTHON, compiled=True),
    "node": lambda packages: on_base(packages, NODE, compiled=False),
    "large": lambda packages: [base(packages), synthetic.large_files()],
    "small": lambda packages: [base(packages), synthetic.small_files()],
}
COMMANDS = {"python": ["python3"], "node": ["node"]}
FORMATS = {
    "estargz": [],
    "estargz-64k": ["--min-chunk-size", "64KiB"],
    "zstd-chunked": ["--to", "zstd-chunked"],
}
"""What an image is converted to: the tag it gets, and the converter's options."""


def make_image(kind: str, destination: Path, cache: Path) -> None:
    """Make the image *kind* in *destination*, plain, unless this recipe has made it already."""
    stamp = destination / "made-by"
    made_by = f"{kind} {RECIPE}\n"
    if not (stamp.exists() and stamp.read_text() == made_by):
        if (destination / "oci-layout").exists():
            shutil.rmtree(destination)  # of another recipe
        layers = KINDS[kind](debian.Packages(cache))
        layout.write_image(destination, layers, tag="plain", cmd=COMMANDS.get(kind, ["/bin/sh"]))
        for tree in layers:
            print(f"layer: {len(tree):,} entries, {total_size(tree) / 1e6:.1f} MB of files")
        stamp.write_text(made_by)


def convert(destination: Path, tag: str = "estargz") -> None:
    """Add *tag*, one of FORMATS, by lazyfs' own converter, unless it is there."""
    try:
        layout.read_tagged(destination, tag)
        return
    except KeyError:
        pass
    line = [sys.executable, "-m", "lazyfs", "convert", *FORMATS[tag]]
    subprocess.run(
        [*line, f"oci:{destination}:plain", f"oci:{destination}:{tag}"], check=True, cwd=ROOT
    )


def image_size(destination: Path, tag: str) -> int:
    """Return the bytes of all layers of *tag* as a registry keeps them."""
    layers = layout.read_tagged(destination, tag)["layers"]
    return sum(layer["size"] for layer in layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("destination", type=Path, metavar="DEST", help="folder of the OCI layout")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".bench" / "apt", help="folder for packages"
    )
    parser.add_argument("--plain-only", action="store_true", help="do not convert to eStargz")
    arguments = parser.parse_args()
    destination = arguments.destination.resolve()
    try:
        make_image(arguments.kind, destination, arguments.cache)
        if not arguments.plain_only:
            convert(destination)
    except (debian.DebianFailed, subprocess.CalledProcessError) as exc:
        sys.exit(f"make_image: {exc}")
    for tag in ("plain", "estargz"):
        try:
            print(f"{tag}: {image_size(destination, tag) / 1e6:.1f} MB")
        except KeyError:
            pass


if __name__ == "__main__":
    main()
