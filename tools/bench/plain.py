"""Bench of images that nobody made lazy.

    python -m tools.bench.plain              python and node, loopback and 20 ms / 100 Mbit/s
    python -m tools.bench.plain --image node --link loopback --runs 3

Three ways to come by the same files in one run: the plain image mounted cold (a full pass), the
plain image mounted by an index that was pushed beside it, the image as eStargz; and pulling and
unpacking with skopeo and umoci, or with the bench's own puller.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tools.bench import sides
from tools.bench.__main__ import FOLDER, LOOPBACK, open_registry, through_link
from tools.bench.distribution import push
from tools.bench.processes import DockerRegistry
from tools.bench.samples import Samples
from tools.bench.table import spread
from tools.bench.work import timed, works
from tools.make_image import convert, make_image
from tools.mounted import Mounted, Workspace, command

FIRST, ALL = "first command", "read everything"
LINKS = [LOOPBACK, "20ms/100mbit"]
PLAIN, INDEXED, ESTARGZ = "plain", "by an index", "eStargz"
SECONDS = 600

# Figure, side, what it is held against (figure, side), and what the ratio must not exceed.
PULL = "pull"
BARS = [
    ("ready", PLAIN, "ready", PULL, 0.7),
    (FIRST, INDEXED, FIRST, ESTARGZ, 1.3),
    (ALL, INDEXED, ALL, ESTARGZ, 1.3),
]
AGAIN, AGAIN_SERVED = "again: ready", "again: ready, serve"
AGAIN_SECONDS = 0.1


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.plain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", action="append", choices=["python", "node"])
    parser.add_argument("--link", action="append", metavar="loopback|NNms/NNmbit")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    sides.compile_lazyfs()
    images = FOLDER / "images"
    chosen = arguments.image or ["python", "node"]
    for image in chosen:
        make_image(image, images / image, FOLDER / "apt")
        convert(images / image)
    with open_registry("auto", images) as registry:
        for image in chosen:
            if isinstance(registry, DockerRegistry):
                for tag in (PLAIN, "estargz"):
                    push(registry.address, image, images / image, tag)
            with sides.scratch(FOLDER / f"run-{os.getpid()}") as folder:
                index = push_index(f"{registry.address}/{image}:{PLAIN}", folder / "indexer")
            for link in arguments.link or LINKS:
                with through_link(registry.address, link) as address:
                    compare(image, link, f"{address}/{image}", index, arguments.runs)


def push_index(reference: str, folder: Path) -> str:
    """Publish the index of the plain image; return its digest."""
    line = [command(), "index", "push", "--json", reference]
    done = subprocess.run(
        line,
        env=Workspace(folder).environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        timeout=SECONDS,
    )
    return str(json.loads(done.stdout)["pushed"])


def compare(image: str, link: str, name: str, index: str, runs: int) -> None:
    """Measure all sides of one image over one link, and print the table."""
    chosen = {key: works(image)[key] for key in (FIRST, ALL)}
    ways = {
        PLAIN: (f"{name}:{PLAIN}", []),
        INDEXED: (f"{name}:{PLAIN}", ["--index", index]),
        ESTARGZ: (f"{name}:estargz", []),
    }
    samples = {way: Samples() for way in ways}
    pulled = {key: Samples() for key, _ in sides.pullers()}
    with sides.scratch(FOLDER / f"run-{os.getpid()}") as folder:
        for _ in range(runs):
            for way, (reference, options) in ways.items():
                measure(reference, options, chosen, folder / "lazy", samples[way])
            for key, unpack in sides.pullers():
                sides.measure_pulled(
                    unpack, f"{name}:{PLAIN}", chosen, folder / "pulled", pulled[key]
                )
    print(f"\n{image}, {link}, {runs} runs: seconds, median (min-max)")
    for figure in ("ready", FIRST, ALL, AGAIN, AGAIN_SERVED):
        cells = [f"{way} {spread(samples[way].values[figure])}" for way in ways]
        for key, values in pulled.items():
            of = "pull + unpack" if figure == "ready" else f"pull + {figure}"
            if values.has(of):
                cells.append(f"{key} {spread(values.values[of])}")
        print(f"  {figure:<20} " + "   ".join(cells))
    for figure, way, other, against, bar in BARS:
        mine = samples[way].median(figure)
        if against == PULL:
            theirs = {key: values.median("pull + unpack") for key, values in pulled.items()}
        else:
            theirs = {against: samples[against].median(other)}
        for key, value in theirs.items():
            verdict = "ok" if mine / value <= bar else "OVER"
            print(f"  {figure}, {way} / {key}: {mine / value:.2f}, bar {bar}: {verdict}")
    for figure in (AGAIN, AGAIN_SERVED):
        mine = samples[PLAIN].median(figure)
        verdict = "ok" if mine <= AGAIN_SECONDS else "OVER"
        print(f"  {figure}, {PLAIN}: {mine:.3f} s, bar {AGAIN_SECONDS} s: {verdict}")
    sys.stdout.flush()


def measure(
    reference: str,
    options: list[str],
    chosen: "dict[str, Callable[[Path], None]]",
    folder: Path,
    samples: Samples,
) -> None:
    """Mount cold once for each work, and again with everything here: bare, and by the service."""
    for name, work in chosen.items():
        with sides.scratch(folder):
            workspace = Workspace(folder)
            os.sync()
            with Mounted(workspace, reference, *options) as mounted, sides.deadline(mounted):
                samples.add("ready", mounted.ready_seconds)
                samples.add(name, mounted.ready_seconds + timed(work, mounted.path))
            if name == ALL:
                with Mounted(workspace, reference, *options) as mounted:
                    samples.add(AGAIN, mounted.ready_seconds)
                with (
                    sides.serving(workspace),
                    Mounted(workspace, reference, *options) as mounted,
                ):
                    samples.add(AGAIN_SERVED, mounted.ready_seconds)


if __name__ == "__main__":
    main()
