"""Turn samples into the table: medians with their spread, ratios, bars."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tools.bench.limits import Link, explain
from tools.bench.samples import Samples

LOOPBACK = "loopback"


@dataclass(frozen=True)
class Bar:
    """What a lazy figure's ratio to the figure *against* must not exceed, and where that holds.

    ``link`` and ``image`` are None where it holds for all.
    """

    against: str
    ratio: float
    link: str | None = None
    image: str | None = "python"


BARS = {
    "mount ready": Bar("pull + unpack", 0.12, LOOPBACK),
    "mount ready, serve": Bar("pull + unpack", 0.04, LOOPBACK),
    "mount ready, serve and profile": Bar("pull + unpack", 0.04, LOOPBACK),
    "mount + first command": Bar("pull + first command", 0.15),
    "mount + first command, serve": Bar("pull + first command", 0.15),
    "mount + first command, profile": Bar("pull + first command", 0.08),
    "mount + first command, serve and profile": Bar("pull + first command", 0.08),
    "mount + read everything": Bar("pull + read everything", 1.0, image=None),
}
FETCHED_BAR = 1.3
MEMORY_BAR = 150e6
DECODING_BARS = {"chunks of 4 MiB": 800.0, "small members": 400.0}


@dataclass(frozen=True)
class Row:
    """One line: what was measured, on the lazy side and on each other one."""

    name: str
    lazy: str
    others: tuple[str, ...]
    bar: str
    is_over: bool = False


def spread(values: Sequence[float]) -> str:
    """Return ``median (min-max)`` of seconds."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f} (one run)"
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"


def build_rows(
    lazy: Samples, pulled: dict[str, Samples], *, image: str, link: str = LOOPBACK
) -> list[Row]:
    """Return the rows for seconds; ratios are of medians, lazy to the other."""
    rows = []
    for name in lazy.values:
        if not name.startswith(("mount", "again")):
            continue
        bar = BARS.get(name)
        against = name.replace("mount +", "pull +") if bar is None else bar.against
        if bar is not None and (bar.link not in (None, link) or bar.image not in (None, image)):
            bar = None
        cells, ratios = [], []
        for samples in pulled.values():
            if not samples.has(against):
                cells.append("-")
                continue
            ratio = lazy.median(name) / samples.median(against)
            ratios.append(ratio)
            cells.append(f"{spread(samples.values[against])}  x{ratio:.2f}")
        verdict = ""
        if bar is not None and ratios:
            words = ["ok" if ratio <= bar.ratio else "OVER" for ratio in ratios]
            verdict = f"<= {bar.ratio:g}: {', '.join(words)}"
        rows.append(Row(name, spread(lazy.values[name]), tuple(cells), verdict, "OVER" in verdict))
    return rows


def format_limits(
    rows: Sequence[Row], lazy: Samples, pulled: dict[str, Samples], link: Link
) -> str:
    """Return a paragraph on the rows that miss a bar: where their seconds went; or nothing."""
    lines = [
        f"  {explain(row.name, lazy, list(pulled.values()), link)}" for row in rows if row.is_over
    ]
    return "\n".join(["limits (they overlap where they can):", *lines]) if lines else ""


def format_table(title: str, rows: Sequence[Row], others: Sequence[str]) -> str:
    """Return the rows as text, columns aligned."""
    header = ["seconds: median (min-max)", "lazyfs", *others, "bar on the ratio"]
    cells = [header] + [[row.name, row.lazy, *row.others, row.bar] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    rule = "-" * len(lines[0])
    return "\n".join([f"\n{title}", rule, lines[0], rule, *(line.rstrip() for line in lines[1:])])


def format_traffic(lazy: Samples, image_size: int, plain_size: int) -> str:
    """Return the lines about bytes and memory; sizes of the layers as mounted, and as pulled."""
    lines = [f"image: {image_size / 1e6:.1f} MB to mount, {plain_size / 1e6:.1f} MB to pull"]
    for name, values in lazy.values.items():
        if name.startswith("sent: "):
            sent = statistics.median(values)
            lines.append(
                f"sent by the registry until the end of {name.removeprefix('sent: ')}: "
                f"{sent / 1e6:.2f} MB, {sent / image_size:.1%} of the image"
            )
        elif name.startswith("fetched: first command"):
            ratio = statistics.median(values)
            lines.append(
                f"bytes fetched for each byte read by {name.removeprefix('fetched: ')}: {ratio:.2f}"
                f"; bar {FETCHED_BAR:g}: {'ok' if ratio <= FETCHED_BAR else 'OVER'}"
            )
    peak = max(lazy.values["peak memory"])
    lines.append(
        f"peak memory of the server: {peak / 1e6:.0f} MB"
        f"; bar {MEMORY_BAR / 1e6:g}: {'ok' if peak <= MEMORY_BAR else 'OVER'}"
    )
    return "\n".join(lines)
