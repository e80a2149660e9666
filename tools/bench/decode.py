"""Decoding and verifying, on both cores, from memory to memory; beside what the libraries can do.

The pieces are those of a real image's layers, in the order of the blob, handed over as a transfer
does on a fast link: large ones (files of several MiB, in chunks of 4 MiB), and small ones (a member
per file).  The limit is the same members inflated as a whole by isal and hashed by hashlib in as
many threads, with nothing around it: no search for the members' ends, no limits, no bookkeeping.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lazyfs.digest import parse_digest
from lazyfs.fetch.transfer import FEED_MAX
from lazyfs.formats.decode import Decoded, Piece, RangeDecoder
from lazyfs.formats.estargz import find_toc, read_toc
from lazyfs.formats.streams.inflate import open_member
from lazyfs.formats.tocs.claims import toc_digest_of
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.service.processes.memory import set_up_memory
from tools.images import layout

THREADS = 2
ROUNDS = 5
RUN_SIZE = 4 << 20  # what a transfer asks for
LARGE_SIZE = 1 << 20
BYTES = 256 << 20
NEAR = 0.9  # of the libraries' own speed: there is little left to win
MB = 1e6


@dataclass
class Run:
    """Neighbouring pieces of one layer, and the bytes of the blob that hold them."""

    data: bytes
    start: int
    pieces: list[Piece]

    @property
    def size(self) -> int:
        """Bytes of output."""
        return sum(piece.size for piece in self.pieces)


def layer_runs(folder: Path, tag: str, *, large: bool) -> list[Run]:
    """Return the runs of all layers whose pieces are of LARGE_SIZE and more, or less."""
    runs: list[Run] = []
    left = BYTES
    for layer in reversed(layout.read_tagged(folder, tag)["layers"]):
        with layout.blob_path(folder, layer["digest"]).open("rb") as file:
            blob = file.read()
        location = find_toc(blob, len(blob), media_type=layer["mediaType"])
        found = read_toc(
            blob[location.start : location.end],
            expected=toc_digest_of(layer["annotations"]) or parse_digest(layer["digest"]),
            blob_size=len(blob),
        )
        table = LayerTable(build_table(found.toc, found.payload_end))
        run: Run | None = None
        for number in table.by_blob():
            size, start, end = table.size(number), table.blob_offset(number), table.blob_end(number)
            if (size >= LARGE_SIZE) != large:
                run = None
                continue
            if left <= 0:
                break
            if run is None or start - run.start >= RUN_SIZE:
                run = Run(b"", start, [])
                runs.append(run)
            place = start, end, table.inner_offset(number), size, table.digest(number)
            run.pieces.append(Piece(number, *place))
            left -= size
        for each in runs:
            if not each.data:
                each.data = blob[each.start : each.pieces[-1].blob_end]
    return runs


def decode(run: Run) -> None:
    """Decode and verify as a transfer does."""
    decoder = RangeDecoder(run.pieces, run.start)
    done = 0
    for at in range(0, len(run.data), FEED_MAX):
        decoded: list[Decoded] = []
        decoder.feed(run.data[at : at + FEED_MAX], decoded)
        done += sum(item.error is None for item in decoded)
    decoder.finish(decoded)
    if done != len(run.pieces) or any(item.error for item in decoded):
        raise ValueError("a run of the bench does not decode")


def inflate_and_hash(run: Run) -> None:
    """Inflate each member at once and hash it."""
    view = memoryview(run.data)
    for piece in run.pieces:
        member = view[piece.blob_offset - run.start : piece.blob_end - run.start]
        plain = open_member().decompress(member, piece.inner_offset + piece.size)
        if sha256(plain[piece.inner_offset :]).digest() != piece.digest:
            raise ValueError("a member of the bench does not have its digest")


@dataclass
class Rate:
    """Bytes of output a second: by the clock, and for each second of processor time."""

    seconds: float
    processor: float


def rate(runs: Sequence[Run], work: Callable[[Run], None], threads: int = THREADS) -> Rate:
    """Return how fast *work* does all *runs* in *threads*; medians of several rounds."""
    seconds, processor = [], []
    for _ in range(ROUNDS):
        pending = list(runs)

        def take(pending: list[Run] = pending) -> None:
            while True:
                try:
                    run = pending.pop()
                except IndexError:
                    return
                work(run)

        workers = [threading.Thread(target=take) for _ in range(threads)]
        started, used = time.perf_counter(), time.process_time()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    size = sum(run.size for run in runs)
    return Rate(size / statistics.median(seconds), size / statistics.median(processor))


def measure(folder: Path, tag: str = "estargz", least: int = BYTES) -> dict[str, float]:
    """Return bytes of output a second, by what the table calls the figure.

    Of each kind about *least* bytes of output are decoded, several times where there are fewer.
    """
    set_up_memory()  # as a server does
    figures = {}
    for kind, large in (("chunks of 4 MiB", True), ("small members", False)):
        runs = layer_runs(folder, tag, large=large)
        if not runs:
            continue
        runs *= max(1, least // sum(run.size for run in runs))
        for name, work in (("decode", decode), ("limit", inflate_and_hash)):
            found = rate(runs, work)
            figures[f"{name}: {kind}"] = found.seconds
            figures[f"{name}, processor: {kind}"] = found.processor
    return figures


def format_decoding(figures: dict[str, float], bars: dict[str, float]) -> str:
    """Return a line for each kind of piece; *bars* are MB/s by the same names."""
    lines = [f"decode and verify, {THREADS} threads, MB/s of output:"]
    for name, value in figures.items():
        if not name.startswith("decode: "):
            continue
        kind = name.removeprefix("decode: ")
        limit = figures[f"limit: {kind}"]
        bar = bars[kind]
        verdict = "ok" if value >= bar * MB else "OVER"
        if verdict == "OVER" and value >= NEAR * limit:
            verdict = "at the limit of the libraries"
        per_core = figures[f"decode, processor: {kind}"], figures[f"limit, processor: {kind}"]
        lines.append(
            f"  {kind}: {value / MB:.0f}, the libraries alone {limit / MB:.0f}; for a second of "
            f"processor time {per_core[0] / MB:.0f}, the libraries alone {per_core[1] / MB:.0f}; "
            f"bar {bar:g}: {verdict}"
        )
    return "\n".join(lines)
