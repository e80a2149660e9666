"""Turn samples into the table: medians with their spread, ratios, bars."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tools.bench.sides import Samples

# Lazy figure, the figure it is held against, and what the ratio must not exceed.
BARS = {
    "mount ready": ("pull + first command", 0.10),
    "mount + first command": ("pull + first command", 0.25),
    "mount ready, serve": ("pull + first command", 0.04),
    "mount ready, serve and profile": ("pull + first command", 0.04),
    "mount + first command, serve": ("pull + first command", 0.15),
    "mount + first command, profile": ("pull + first command", 0.15),
    "mount + first command, serve and profile": ("pull + first command", 0.08),
    "mount + read everything": ("pull + read everything", 1.0),
}


@dataclass(frozen=True)
class Row:
    """One line: what was measured, on the lazy side and on each other one."""

    name: str
    lazy: str
    others: tuple[str, ...]
    bar: str


def spread(values: Sequence[float]) -> str:
    """Return ``median (min-max)`` of seconds."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"


def build_rows(lazy: Samples, pulled: dict[str, Samples], *, has_bars: bool) -> list[Row]:
    """Return the rows for seconds; ratios are of medians, lazy to the other."""
    rows = []
    for name in lazy.values:
        if not name.startswith(("mount", "again")):
            continue
        against, bar = BARS.get(name, (name.replace("mount +", "pull +"), None))
        if not has_bars:
            bar = None
        cells, ratios = [], []
        for samples in pulled.values():
            values = samples.values.get(against, [])
            if not values:
                cells.append("-")
                continue
            ratio = statistics.median(lazy.values[name]) / statistics.median(values)
            ratios.append(ratio)
            cells.append(f"{spread(values)}  x{ratio:.2f}")
        verdict = ""
        if bar is not None and ratios:
            words = ["ok" if ratio <= bar else "OVER" for ratio in ratios]
            verdict = f"<= {bar:g}: {', '.join(words)}"
        rows.append(Row(name, spread(lazy.values[name]), tuple(cells), verdict))
    return rows


def format_table(title: str, rows: Sequence[Row], others: Sequence[str]) -> str:
    """Return the rows as text, columns aligned."""
    header = ["seconds: median (min-max)", "lazyfs", *others, "bar on the ratio"]
    cells = [header] + [[row.name, row.lazy, *row.others, row.bar] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    rule = "-" * len(lines[0])
    return "\n".join([f"\n{title}", rule, lines[0], rule, *(line.rstrip() for line in lines[1:])])


def format_traffic(lazy: Samples, image_size: int) -> str:
    """Return the lines about bytes and memory."""
    lines = [f"image: {image_size / 1e6:.1f} MB as eStargz"]
    for name, values in lazy.values.items():
        if name.startswith("sent: "):
            sent = statistics.median(values)
            lines.append(
                f"sent by the registry until the end of {name.removeprefix('sent: ')}: "
                f"{sent / 1e6:.2f} MB, {sent / image_size:.1%} of the image"
            )
    lines.append(f"peak memory of the server: {max(lazy.values['peak memory']) / 1e6:.0f} MB")
    return "\n".join(lines)
