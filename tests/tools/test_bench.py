"""The bench's arithmetic and its works, on directories instead of mounts."""

import os
from pathlib import Path

import pytest

from tests.support.formats.images import estargz_layer, file, make_layout, tar_bytes
from tools.bench import decode, hits, table, work
from tools.bench.limits import Link
from tools.bench.matrix import MAX_RUNS, plan
from tools.bench.samples import Samples
from tools.bench.sides import forget_pages


def samples(**values: list[float]) -> Samples:
    made = Samples()
    for name, numbers in values.items():
        for number in numbers:
            made.add(name.replace("_", " ").replace("plus", "+"), number)
    return made


def test_ratios_are_of_medians_and_held_against_the_bar() -> None:
    lazy = samples(mount_ready=[0.5, 0.1, 0.2], mount_plus_read_everything=[4.0])
    fast = samples(pull_plus_unpack=[1.0, 1.0, 9.0], pull_plus_read_everything=[2.0])
    slow = samples(pull_plus_unpack=[4.0], pull_plus_read_everything=[8.0])
    rows = table.build_rows(lazy, {"fast": fast, "slow": slow}, image="python")
    ready, everything = rows
    assert ready.lazy == "0.20 (0.10-0.50)"
    assert [cell.split()[-1] for cell in ready.others] == ["x0.20", "x0.05"]
    assert ready.bar == "<= 0.12: OVER, ok"
    assert everything.lazy == "4.00 (one run)"
    assert [cell.split()[-1] for cell in everything.others] == ["x2.00", "x0.50"]
    assert everything.bar == "<= 1: OVER, ok"
    text = table.format_table("title", rows, ["fast", "slow"])
    assert "mount + read everything" in text
    assert len({line.index("x") for line in text.splitlines() if " x" in line}) >= 1


def test_bars_hold_where_they_are_set() -> None:
    lazy = samples(mount_ready=[9.0], mount_plus_first_command=[9.0])
    lazy.add("mount + read everything", 9.0)
    other = samples(pull_plus_unpack=[1.0], pull_plus_first_command=[1.0])
    other.add("pull + read everything", 1.0)

    def over(image: str, link: str) -> list[bool]:
        rows = table.build_rows(lazy, {"other": other}, image=image, link=link)
        return [row.is_over for row in rows]

    assert over("python", "loopback") == [True, True, True]
    assert over("python", "20ms/100mbit") == [False, True, True]
    assert over("large", "20ms/100mbit") == [False, False, True]


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    rows = table.build_rows(samples(mount_ready=[1.0]), {"other": samples()}, image="python")
    assert rows == [table.Row("mount ready", "1.00 (one run)", ("-",), "")]


def test_limits_are_computed_from_what_was_measured() -> None:
    lazy = samples(mount_plus_first_command=[2.0], interpreter=[0.2])
    for name, value in (("asked", 6.0), ("sent", 5e6), ("processor", 0.3)):
        lazy.add(f"{name}: first command", value)
    other = samples(pull_plus_unpack=[5.0], pull_plus_first_command=[5.06])
    rows = table.build_rows(lazy, {"other": other}, image="python")
    text = table.format_limits(rows, lazy, {"other": other}, Link(0.05, 12.5e6))
    assert text.splitlines()[1].strip() == (
        "mount + first command: of 2.00 s: 10 round trips 0.50, 5.00 MB on the link 0.40, the "
        "server's processor time 0.30, interpreter and imports 0.20, the work on files that are "
        "there 0.06"
    )
    other.values["pull + first command"] = [100.0]
    rows = table.build_rows(lazy, {"other": other}, image="python")
    assert table.format_limits(rows, lazy, {"other": other}, Link()) == ""


def test_a_matrix_fits_in_its_time() -> None:
    sizes = {"tiny": 1e6, "huge": 1e9}
    links = [("near", 0.0, 0.0), ("far", 0.1, 2.5e6)]
    once = plan(sizes, links, 0)
    assert [(cell.image, cell.link, cell.runs) for cell in once] == [
        ("tiny", "near", 1), ("tiny", "far", 1), ("huge", "near", 1), ("huge", "far", 1)
    ]  # fmt: skip
    least = sum(cell.seconds for cell in once)
    more = plan(sizes, links, least + 300)
    assert sum(cell.runs * cell.seconds for cell in more) <= least + 300
    assert more[0].runs > 1
    assert more[3].runs == 1
    assert all(cell.runs == MAX_RUNS for cell in plan(sizes, links, 1e9))


def test_decoding_is_held_against_the_libraries(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    tar = tar_bytes([file("large", data), *(file(f"small{n}", b"%d" % n * 50) for n in range(99))])
    make_layout(tmp_path, [estargz_layer(tar)], tag="estargz")
    figures = decode.measure(tmp_path, least=1)
    assert len(figures) == 8
    assert all(value > 0 for value in figures.values())
    slow = {name: 1e6 if name.startswith("decode") else 2e6 for name in figures}
    near = {name: 1.0e6 if name.startswith("decode") else 1.05e6 for name in figures}
    bars = {"chunks of 4 MiB": 2.0, "small members": 0.5}
    assert "bar 2: OVER" in decode.format_decoding(slow, bars)
    assert "bar 0.5: ok" in decode.format_decoding(slow, bars)
    assert "bar 2: at the limit of the libraries" in decode.format_decoding(near, bars)


def test_traffic_is_told_against_the_image() -> None:
    lazy = Samples()
    for name, value in (("sent: read 1 %", 2e6), ("peak memory", 50e6), ("peak memory", 160e6)):
        lazy.add(name, value)
    lazy.add("fetched: first command", 1.25)
    text = table.format_traffic(lazy, 40_000_000, 37_000_000)
    assert "40.0 MB to mount, 37.0 MB to pull" in text
    assert "read 1 %: 2.00 MB" in text
    assert "5.0%" in text
    assert "160 MB; bar 150: OVER" in text
    assert "read by first command: 1.25; bar 1.3: ok" in text


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
