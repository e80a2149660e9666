"""Compare lazy mounts with pulling and unpacking, side by side, in one run.

    python -m tools.bench                      the python image, loopback and 20 ms / 100 Mbit/s
    python -m tools.bench --quick              two runs of each
    python -m tools.bench --image node --link 50ms/100mbit --work "first command"
    python -m tools.bench --matrix             all images over all links, within --minutes
    python -m tools.bench --part hits          only the drivers beside ext4, all bytes being there
    python -m tools.bench --part trust         what a trust policy costs a mount

Images are made once, in .bench/.  Each figure is the median of several runs; lazy and pulled runs
take turns, so that a busy minute meets both.  Cold means: nothing of the image is on this side.
The programs of both sides are warm, as on a machine that starts containers all day.
"""

import argparse
import itertools
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyfs.errors import MountFailed
from lazyfs.mount.kernel import check_erofs
from tools.bench import decode, hits, limits, matrix, sides, table, trust
from tools.bench.distribution import push
from tools.bench.limits import Link
from tools.bench.processes import DockerRegistry, EmbeddedRegistry, RunningLink
from tools.bench.samples import Samples
from tools.bench.work import FIRST_COMMANDS, works
from tools.images.debian import DebianFailed
from tools.make_image import FORMATS, ROOT, convert, image_size, make_image
from tools.mounted import CommandFailed

FOLDER = ROOT / ".bench"
LAZY, HITS, TRUST = PARTS = ["lazy", "hits", "trust"]
LEAST_HITS = 7  # runs
LOOPBACK = table.LOOPBACK
BUSY = 0.5
USUAL_LINKS = [LOOPBACK, "20ms/100mbit"]
FIRST = "first command"
ALL_LINKS = [LOOPBACK, "20ms/100mbit", "50ms/100mbit", "100ms/20mbit"]
MATRIX_WORKS = [FIRST, "read 1 %", "read 10 %", "read 50 %", "read everything"]
USUAL_WORKS = [FIRST, "walk with stat", "small files", "read everything"]
LINK_RE = re.compile(r"(\d+(?:\.\d+)?)ms/(\d+(?:\.\d+)?)mbit")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave by way of every finally
    arguments = parse_arguments()
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    sides.compile_lazyfs()
    busy = os.getloadavg()[0]
    if busy > BUSY:
        print(f"load average {busy:.1f}: something else runs here and blurs the figures")
    if LAZY in arguments.part:
        compare_images(arguments)
    if HITS in arguments.part:
        compare_hits(arguments)
    if TRUST in arguments.part:
        compare_trust(arguments)


def compare_images(arguments: argparse.Namespace) -> None:
    """Lazy mounts beside pull and unpack: a table for each image and link."""
    images = FOLDER / "images"
    results: list[dict[str, Any]] = []
    for image in arguments.image:
        make_image(image, images / image, FOLDER / "apt")
        convert(images / image, arguments.format)
    with open_registry(arguments.registry, images) as registry:
        print(f"registry: {registry.name}")
        for image in arguments.image:
            if isinstance(registry, DockerRegistry):
                for tag in ("plain", arguments.format):
                    push(registry.address, image, images / image, tag)
        for cell in cells(arguments, images):
            with through_link(registry.address, cell.link) as address:
                result = compare(cell, address, registry.written_size, arguments)
                results.append(result)
    for image in arguments.image:
        if arguments.format != "estargz":
            continue  # the figure is about a gzip member for each chunk
        figures = decode.measure(images / image)
        print(f"\n{image}: {decode.format_decoding(figures, table.DECODING_BARS)}", flush=True)
        results.append({"image": image, "decoding": figures})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


def compare_hits(arguments: argparse.Namespace) -> None:
    """The drivers beside ext4 and each other: one table."""
    if os.geteuid() != 0:
        print("hits: not measured, which needs root")
        return
    names = hits.SIDES.split(",")
    try:
        check_erofs(platform.release())
    except MountFailed as error:
        print(f"hits: {error}")
        names.remove("erofs")
    runs = arguments.runs if arguments.quick else max(arguments.runs, LEAST_HITS)
    print(hits.compare(names, list(hits.WORKLOADS), runs, hits.BIG_SIZE))


def compare_trust(arguments: argparse.Namespace) -> None:
    """Mounts with a trust policy beside mounts without one: a table for each image and link."""
    for image in arguments.image:
        layout = FOLDER / "images" / image
        make_image(image, layout, FOLDER / "apt")
        convert(layout, arguments.format)
        for link in arguments.link:
            with sides.scratch(FOLDER / f"run-{os.getpid()}") as folder:
                print(
                    trust.compare(
                        layout, through_link, link, arguments.format, arguments.runs, folder
                    )[0],
                    flush=True,
                )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--part", action="append", choices=PARTS, help="default: lazy and hits")
    add("--image", action="append", choices=sorted(FIRST_COMMANDS), help="default: python")
    add("--link", action="append", metavar="loopback|NNms/NNmbit", help="may be repeated")
    add("--work", action="append", choices=list(works("python")), help="may be repeated")
    add("--format", choices=list(FORMATS), default="estargz", help="of what is mounted")
    add("--runs", type=int, default=5)
    add("--matrix", action="store_true", help="all images, all links, in single runs if need be")
    add("--minutes", type=float, default=120, help="what a matrix may take; default: 120")
    add("--quick", action="store_true", help="two runs of each")
    add("--registry", choices=["auto", "docker", "embedded"], default="auto")
    add("--mount-option", action="append", default=[], help="passed to lazyfs mount")
    add("--json", type=Path, metavar="FILE", help="write all samples there")
    arguments = parser.parse_args()
    arguments.part = arguments.part or [LAZY, HITS]
    usual = (sorted(FIRST_COMMANDS), ALL_LINKS, MATRIX_WORKS)
    if not arguments.matrix:
        usual = (["python"], USUAL_LINKS, USUAL_WORKS)
    arguments.image = arguments.image or usual[0]
    arguments.link = arguments.link or usual[1]
    arguments.work = arguments.work or usual[2]
    if arguments.quick:
        arguments.runs = 2
    for link in arguments.link:
        if link != LOOPBACK and not LINK_RE.fullmatch(link):
            parser.error(f"--link: got {link!r}, expected loopback or 20ms/100mbit")
    return arguments


@contextmanager
def open_registry(kind: str, images: Path) -> "Iterator[DockerRegistry | EmbeddedRegistry]":
    """Run docker-registry where it is installed, else the tests' own."""
    if kind == "docker" or (kind == "auto" and DockerRegistry.is_installed()):
        with DockerRegistry(FOLDER / "registry") as docker:
            yield docker
    else:
        with EmbeddedRegistry(images) as embedded:
            yield embedded


def cells(arguments: argparse.Namespace, images: Path) -> list[matrix.Cell]:
    """Return what is to be measured, and how often each."""
    if not arguments.matrix:
        pairs = itertools.product(arguments.image, arguments.link)
        return [matrix.Cell(image, link, 0.0, arguments.runs) for image, link in pairs]
    sizes = {
        image: float(image_size(images / image, arguments.format)) for image in arguments.image
    }
    links = [(name, link_of(name).round_trip, link_of(name).rate) for name in arguments.link]
    planned = matrix.plan(sizes, links, 60 * arguments.minutes)
    if arguments.quick:
        planned = [matrix.Cell(cell.image, cell.link, cell.seconds) for cell in planned]
    minutes = sum(cell.runs * cell.seconds for cell in planned) / 60
    print(f"{len(planned)} cells, about {minutes:.0f} minutes")
    return planned


def link_of(name: str) -> Link:
    """Return what the name of a link says."""
    match = LINK_RE.fullmatch(name)
    return Link() if match is None else Link(float(match[1]) / 1e3, float(match[2]) * 1e6 / 8)


@contextmanager
def through_link(address: str, name: str) -> Iterator[str]:
    """Yield the address at which the registry is reached over the link *name*."""
    link = link_of(name)
    if not link.rate:
        yield address
        return
    rtt_ms, mbit = link.round_trip * 1e3, link.rate * 8 / 1e6
    with RunningLink(address, rtt_ms=rtt_ms, mbit=mbit) as running:
        yield running.address


def compare(
    cell: matrix.Cell,
    address: str,
    sent_size: Callable[[], int],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Measure all sides of one image over one link, and print the table."""
    image = cell.image
    chosen = {n: w for n, w in works(image).items() if n in arguments.work}
    lazy = Samples()
    pulled = {name: Samples() for name, _ in sides.pullers()}
    lazy.add("interpreter", limits.interpreter_seconds())
    with sides.scratch(FOLDER / f"run-{os.getpid()}") as folder:
        for _ in range(cell.runs):
            reference = f"{address}/{image}:{arguments.format}"
            sides.measure_lazy(
                reference, chosen, folder / "lazy", lazy, arguments.mount_option, sent_size
            )
            if FIRST in chosen:
                options = arguments.mount_option
                sides.measure_starts(
                    reference, chosen[FIRST], folder / "lazy", lazy, options, sent_size
                )
            for name, unpack in sides.pullers():
                sides.measure_pulled(
                    unpack, f"{address}/{image}:plain", chosen, folder / "pulled", pulled[name]
                )
    size = image_size(FOLDER / "images" / image, arguments.format)
    rows = table.build_rows(lazy, pulled, image=image, link=cell.link)
    runs = "one run" if cell.runs == 1 else f"{cell.runs} runs"
    title = f"{image} as {arguments.format}, {cell.link}, {runs}"
    print(table.format_table(title, rows, list(pulled)))
    for part in (
        table.format_limits(rows, lazy, pulled, link_of(cell.link)),
        table.format_traffic(lazy, size, image_size(FOLDER / "images" / image, "plain")),
    ):
        if part:
            print(part, flush=True)
    return {
        "image": image,
        "format": arguments.format,
        "link": cell.link,
        "lazyfs": lazy.values,
        **{name: samples.values for name, samples in pulled.items()},
    }


if __name__ == "__main__":
    try:
        main()
    except (DebianFailed, CommandFailed) as exc:
        sys.exit(f"bench: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)
