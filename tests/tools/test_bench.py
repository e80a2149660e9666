"""The bench's arithmetic and its works, on directories instead of mounts."""

import os
from pathlib import Path

import pytest

from tools.bench import hits, table, work
from tools.bench.sides import Samples, forget_pages


def samples(**values: list[float]) -> Samples:
    made = Samples()
    for name, numbers in values.items():
        for number in numbers:
            made.add(name.replace("_", " ").replace("plus", "+"), number)
    return made


def test_ratios_are_of_medians_and_held_against_the_bar() -> None:
    lazy = samples(mount_ready=[0.5, 0.1, 0.2], mount_plus_read_everything=[4.0])
    fast = samples(pull_plus_first_command=[1.0, 1.0, 9.0], pull_plus_read_everything=[2.0])
    slow = samples(pull_plus_first_command=[4.0], pull_plus_read_everything=[8.0])
    rows = table.build_rows(lazy, {"fast": fast, "slow": slow}, has_bars=True)
    ready, everything = rows
    assert ready.lazy == "0.20 (0.10-0.50)"
    assert [cell.split()[-1] for cell in ready.others] == ["x0.20", "x0.05"]
    assert ready.bar == "<= 0.1: OVER, ok"
    assert [cell.split()[-1] for cell in everything.others] == ["x2.00", "x0.50"]
    assert everything.bar == "<= 1: OVER, ok"
    text = table.format_table("title", rows, ["fast", "slow"])
    assert "mount + read everything" in text
    assert len({line.index("x") for line in text.splitlines() if " x" in line}) >= 1


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    rows = table.build_rows(samples(mount_ready=[1.0]), {"other": samples()}, has_bars=True)
    assert rows == [table.Row("mount ready", "1.00 (1.00-1.00)", ("-",), "")]


def test_traffic_is_told_against_the_image() -> None:
    lazy = Samples()
    for name, value in (("sent: read 1 %", 2e6), ("peak memory", 50e6), ("peak memory", 60e6)):
        lazy.add(name, value)
    text = table.format_traffic(lazy, 40_000_000)
    assert "read 1 %: 2.00 MB" in text
    assert "5.0%" in text
    assert "60 MB" in text


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(300):
        path = tmp_path / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (number * 300))
    os.link(tmp_path / "d0/f0", tmp_path / "d1/again")
    os.symlink("/etc", tmp_path / "out")
    return tmp_path


def test_files_are_found_once_and_inside(tree: Path) -> None:
    found = [path for path, _ in work.files_of(str(tree))]
    assert len(found) == 300
    assert all(path.startswith(str(tree)) for path in found)


def test_shares_are_nested_and_the_same_each_time(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(share: float) -> set[str]:
        seen = set()

        def note(path: str) -> int:
            seen.add(path)
            return os.stat(path).st_size

        monkeypatch.setattr(work, "read_file", note)
        work.read_share(share, tree)
        return seen

    tenth, half, whole = read(0.1), read(0.5), read(1.0)
    assert tenth < half < whole
    assert len(whole) == 300
    assert 15 <= len(tenth) <= 50
    assert read(0.1) == tenth


def test_a_short_read_is_not_a_fast_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "read_file", lambda path: os.stat(path).st_size - 1)
    with pytest.raises(ValueError, match="shorter than"):
        work.read_share(1.0, tree)


def test_works_run_on_a_directory(tree: Path) -> None:
    for name, doing in work.works("python").items():
        if name != "first command":
            assert work.timed(doing, tree) >= 0
    forget_pages(tree)
    assert work.read_file(str(tree / "d0/f7")) == 2100


def test_hits_are_judged_by_median_or_best() -> None:
    native, ext4 = hits.Side("native:2"), hits.Side("ext4")
    times = {
        ("native:2", "walk", False): [3.0, 2.0, 1.1],
        ("ext4", "walk", False): [1.0, 1.0, 1.0],
        ("native:2", "walk", True): [3.0, 2.0, 1.4],
        ("ext4", "walk", True): [1.0, 1.0, 1.0],
    }
    native.cpu, native.requests = {"walk": 0.001}, {"walk": 100}
    native.memory = {"Anon": 41 << 10, "File": 5 << 10}
    lines = [line.strip() for line in hits.format_table(times, [native, ext4]).splitlines()]
    assert lines[2:4] == [
        "native:2 / ext4 2.00 (1.10), bar 1.2: ok",
        "server, us of processor time per request: native:2 10.0",
    ]
    assert lines[5] == "native:2 / ext4 2.00 (1.40), bar 1.3: OVER"
    assert "41 MB of its own for 29200 files, bar 40: OVER" in lines[6]
