"""What a program that starts will read is fetched side by side, and nothing else is."""

import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.fetch.ahead.forecast import FORECAST_SIZE
from lazyfs.fetch.ahead.prefetch import Limits
from lazyfs.fetch.ahead.program import STATIC_SIZE, Finder
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.device import Device
from lazyfs.fetch.throttle import Throttle
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.walk import walk_path
from tests.rootfs.test_imports import bytecode
from tests.support.formats.elf import make_elf
from tests.support.formats.images import Item, estargz_layer, file, make_layout, symlink, tar_bytes

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions()
LOADER = b"/lib64/ld-linux-x86-64.so.2"
TRIPLET = "usr/lib/x86_64-linux-gnu"
PYTHON = "usr/lib/python3.11"
TAG = "cpython-311.pyc"


def noise(size: int, seed: int) -> bytes:
    """Return bytes that do not compress, so that files lie apart in the blob."""
    return random.Random(seed).randbytes(size)


def system() -> list[Item]:
    """A system in Debian's manner: a loader, a C library, two libraries, a program, a script."""
    return [
        symlink("lib64", "usr/lib64"),
        symlink("lib", "usr/lib"),
        symlink("usr/lib64/ld-linux-x86-64.so.2", f"/{TRIPLET}/ld-linux-x86-64.so.2"),
        file(f"{TRIPLET}/ld-linux-x86-64.so.2", make_elf(filler=noise(9000, 1)), mode=0o755),
        file(f"{TRIPLET}/libc.so.6", make_elf(filler=noise(90_000, 2))),
        file(
            f"{TRIPLET}/liba.so.1", make_elf([b"libb.so.1", b"libc.so.6"], filler=noise(40_000, 3))
        ),
        symlink(f"{TRIPLET}/libb.so.1", "libb.so.1.2"),
        file(f"{TRIPLET}/libb.so.1.2", make_elf([b"libc.so.6"], filler=noise(40_000, 4))),
        file(f"{TRIPLET}/libunused.so.1", make_elf(filler=noise(40_000, 5))),
        file("opt/own/lib/libown.so", make_elf(filler=noise(40_000, 6))),
        file(
            "usr/bin/program",
            make_elf(
                [b"liba.so.1", b"libown.so", b"libmissing.so.9"],
                interpreter=LOADER,
                search=b"$ORIGIN/../../opt/own/lib",
                filler=noise(50_000, 7),
            ),
            mode=0o755,
        ),
        file("usr/bin/entry.sh", b"#!/usr/bin/env program\necho\n", mode=0o755),
        symlink("usr/bin/env", "program"),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
        file("srv/data", noise(80_000, 8)),
    ]


def python() -> list[Item]:
    modules = {
        "encodings/__init__": b"import codecs\n",
        "encodings/aliases": b"",
        "encodings/utf_8": b"",
        "types": b"",
        "json/__init__": b"from .decoder import one\nimport re, missing\n",
        "json/decoder": b"import enum, os\n",
        "enum": b"def later():\n    import asyncio\n",
        "re": b"import enum\n",
        "os": b"",
        "asyncio": b"",
    }
    program = make_elf([b"libc.so.6"], interpreter=LOADER, filler=noise(50_000, 9))
    items = [symlink("usr/bin/python3", "python3.11"), file("usr/bin/python3.11", program)]
    for number, (name, source) in enumerate(modules.items()):
        folder, _, last = name.rpartition("/")
        padded = bytecode(source + b"X = %r\n" % noise(40_000, 50 + number))
        kept = f"{PYTHON}/{folder}/__pycache__/{last}.{TAG}".replace("//", "/")
        items += [file(f"{PYTHON}/{name}.py", b"#"), file(kept, padded)]
    items.append(file(f"{PYTHON}/lib-dynload/_json.{TAG[:-4]}-x86_64-linux-gnu.so", make_elf()))
    return items


@asynccontextmanager
async def opened(
    folder: Path, items: Sequence[Item], cmd: Sequence[str], **options: object
) -> AsyncIterator[OpenImage]:
    make_layout(folder / "layout", [estargz_layer(tar_bytes(items))], cmd=cmd, **options)
    request = Request(f"oci:{folder}/layout", None, folder / "cache", ACCESS)
    with trio.fail_after(30):
        prepared = await prepare(request)
        async with open_image(prepared, ACCESS) as image:
            yield image


def fetched(image: OpenImage) -> set[str]:
    """Return the files with all bytes here that were fetched for the program."""
    found = set()
    device = image.devices[0]
    pending = [("", image.index.root_nid)]
    while pending:
        above, nid = pending.pop()
        for entry in image.index.entries(nid):
            if entry.name in (b".", b".."):
                continue
            path = f"{above}/{entry.name.decode()}".lstrip("/")
            if entry.kind.name == "DIRECTORY":
                pending.append((path, entry.nid))
            elif entry.kind.name == "REGULAR" and (extent := image.index.extent(entry.nid)):
                chunks = device.table.covering(extent.offset, extent.offset + extent.size)
                if all(device.fetched[chunk] == Purpose.PROGRAM for chunk in chunks):
                    found.add(path)
    return found


async def read(image: OpenImage, path: str) -> bytes:
    extent = image.index.extent(walk_path(image.index, path.encode()))
    assert extent is not None
    return await image.contents.read(extent.device, extent.offset, extent.size)


knows_bytecode = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="the bytecode of 3.14 is not known here"
)
NEEDED = {
    f"{TRIPLET}/ld-linux-x86-64.so.2",
    f"{TRIPLET}/libc.so.6",
    f"{TRIPLET}/liba.so.1",
    f"{TRIPLET}/libb.so.1.2",
    "opt/own/lib/libown.so",
    "usr/bin/program",
    "etc/passwd",
}


@pytest.mark.parametrize(
    ("cmd", "more"),
    [
        (["program"], set()),
        (["/usr/bin/program", "--flag"], set()),
        (["entry.sh"], {"usr/bin/entry.sh"}),
        (["/bin/sh", "-c", "program --flag"], set()),
    ],
)
async def test_a_program_and_what_it_needs(tmp_path: Path, cmd: list[str], more: set[str]) -> None:
    async with opened(tmp_path, system(), cmd) as image:
        await image.prefetch("profile")
        assert fetched(image) == NEEDED | more
        assert image.contents.statistics.traffic[Purpose.DEMAND].requests == 0


@pytest.mark.parametrize("mode", ["none", "landmark"])
async def test_modes_without_a_forecast(tmp_path: Path, mode: str) -> None:
    async with opened(tmp_path, system(), ["program"]) as image:
        await image.prefetch(mode)
        await read(image, "usr/bin/program")
        await image.forecast.wait_settled()
        assert fetched(image) == set()


async def test_a_program_that_the_config_does_not_name(tmp_path: Path) -> None:
    async with opened(tmp_path, system(), ["absent"]) as image:
        await image.prefetch("profile")
        assert fetched(image) == set()
        await read(image, "usr/bin/program")
        await image.forecast.wait_settled()
        # Its path is not known, so neither is what lies beside it; a small file came along.
        missed = {"usr/bin/program", "opt/own/lib/libown.so", "etc/passwd"}
        assert fetched(image) == NEEDED - missed


@knows_bytecode
async def test_python_starts_and_imports(tmp_path: Path) -> None:
    def module(name: str) -> str:
        folder, _, last = name.rpartition("/")
        return f"{PYTHON}/{folder}/__pycache__/{last}.{TAG}".replace("//", "/")

    async with opened(tmp_path, system() + python(), ["python3"]) as image:
        await image.prefetch("profile")
        start = {
            "encodings/__init__",
            "encodings/aliases",
            "encodings/utf_8",
            "types",
            "enum",
            "re",
        }
        assert {path for path in fetched(image) if "/python3.11/" in path} == set(
            map(module, start)
        )
        await read(image, module("json/__init__"))
        await image.forecast.wait_settled()
        # ``os`` is within the program, ``asyncio`` is imported by a function only.  The part that
        # is written in C goes by its name.
        more = {"json/decoder"}
        own = {f"{PYTHON}/lib-dynload/_json.{TAG[:-4]}-x86_64-linux-gnu.so"}
        assert {path for path in fetched(image) if "/python3.11/" in path} == own | set(
            map(module, start | more)
        )


async def test_what_a_python_is_linked_with_goes_by_its_name(tmp_path: Path) -> None:
    def library(name: str) -> str:
        return f"{TRIPLET}/{name}"

    names = [library(name) for name in ("libm.so.6", "libz.so.1", "libexpat.so.1")]
    names += ["usr/lib/libpython3.11.so.1.0", library("gconv/gconv-modules.cache")]
    more = [file(name, noise(40_000, 70 + n)) for n, name in enumerate(names)]
    static = make_elf([b"libc.so.6"], interpreter=LOADER, filler=bytes(STATIC_SIZE))
    large = [file("usr/bin/python3.11", static), symlink("usr/bin/python3", "python3.11")]
    small = [item for item in python() if "lib/" not in str(item.name)]
    for number, items in enumerate((large, small)):
        async with opened(tmp_path / str(number), system() + more + items, ["python3"]) as image:
            await image.prefetch("profile")
            found = fetched(image) & set(names)
            assert found == set(names) - ({names[1], names[2]} if items is small else set())


@knows_bytecode
async def test_the_parts_of_a_small_package_come_with_it(tmp_path: Path) -> None:
    def module(name: str) -> str:
        return f"{PYTHON}/json/__pycache__/{name}.{TAG}"

    parts = {
        module(name): bytecode(b"X = %r\n" % noise(8000, 80 + n)) for n, name in enumerate("ab")
    }
    parts[module("__init__")] = bytecode(b"pass\n")
    spread = [
        (file(name, data), file(f"srv/{n}", noise(40_000, 90 + n)))
        for n, (name, data) in enumerate(parts.items())
    ]
    items = [item for pair in spread for item in pair]
    start = [item for item in python() if "/json/" not in str(item.name)]
    async with opened(tmp_path, system() + start + items, ["python3"]) as image:
        await image.prefetch("profile")
        assert not fetched(image) & parts.keys()
        await read(image, module("__init__"))
        await image.forecast.wait_settled()
        assert fetched(image) & parts.keys() >= {module("a"), module("b")}


async def test_a_python_that_a_shell_starts(tmp_path: Path) -> None:
    async with opened(tmp_path, system() + python(), ["absent"]) as image:
        await image.prefetch("profile")
        await read(image, "usr/bin/python3")
        await image.forecast.wait_settled()
        assert f"{PYTHON}/encodings/__pycache__/aliases.{TAG}" in fetched(image)


async def test_a_profile_knows_better(tmp_path: Path) -> None:
    async with opened(tmp_path, system(), ["program"]) as image:
        await read(image, "srv/data")
        image.save_profile()
    async with opened(tmp_path, system(), ["program"]) as image:
        await image.prefetch("profile")
        assert fetched(image) == set()


async def test_an_image_that_is_here_is_not_looked_into(tmp_path: Path) -> None:
    for is_here in (False, True):
        async with opened(tmp_path, system(), ["/usr/bin/program"]) as image:
            await image.prefetch("all")
            assert all(device.is_complete() for device in image.devices)
            assert (image.contents.foresee is None) == is_here
            assert image.origin.is_open == (not is_here)


async def test_it_is_held_to_the_background_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, system(), ["program"]) as image:
        await image.prefetch("profile", Limits(Throttle(100_000_000)))
        assert fetched(image) == NEEDED


async def test_files_that_lie_about_themselves(tmp_path: Path) -> None:
    """Nothing but bandwidth is lost, and of that no more than a bound."""
    broken = bytearray(make_elf([b"liba.so.1"], interpreter=LOADER, filler=noise(50_000, 7)))
    for at in range(64, 64 + 4 * 56, 8):
        broken[at : at + 8] = b"\xff" * 7 + b"\x7f"
    items = [*system(), file("usr/bin/broken", bytes(broken), mode=0o755)]
    items.append(symlink("usr/bin/round", "round"))
    for cmd in (["broken"], ["round"], ["../../../../etc"], ["-c", "-c"], ["", "\0"]):
        async with opened(tmp_path, items, cmd) as image:
            await image.prefetch("profile")
            traffic = image.contents.statistics.traffic[Purpose.PROGRAM]
            assert traffic.size < FORECAST_SIZE
            assert image.contents.statistics.failed_requests == 0


async def test_names_behind_those_of_many_symbols(tmp_path: Path) -> None:
    program = make_elf(
        [b"liba.so.1"], interpreter=LOADER, others=b"symbol\0" * 700_000, filler=noise(50_000, 7)
    )
    items = [*system(), file("usr/bin/symbols", program, mode=0o755)]
    async with opened(tmp_path, items, ["symbols"]) as image:
        await image.prefetch("profile")
        assert fetched(image) >= {f"{TRIPLET}/liba.so.1", f"{TRIPLET}/libb.so.1.2"}


async def test_of_a_large_library_what_it_needs(tmp_path: Path) -> None:
    """Its tables, and what is written to: not megabytes of data in between."""
    large = make_elf([b"liba.so.1"], filler=noise(9 << 20, 8), is_split=True)
    items = [
        *system(),
        file(f"{TRIPLET}/liblarge.so", large),
        file("usr/bin/user", make_elf([b"liblarge.so"], interpreter=LOADER), mode=0o755),
    ]
    async with opened(tmp_path, items, ["user"]) as image:
        await image.prefetch("profile")
        assert f"{TRIPLET}/liba.so.1" in fetched(image)
        extent = image.index.extent(walk_path(image.index, f"{TRIPLET}/liblarge.so".encode()))
        assert extent is not None
        device = image.devices[0]
        chunks = device.table.covering(extent.offset, extent.offset + extent.size)
        assert [device.fetched[chunk] for chunk in chunks] == [Purpose.PROGRAM, 0, Purpose.PROGRAM]


async def test_what_is_named_later_does_not_wait_for_a_turn(tmp_path: Path) -> None:
    async with opened(tmp_path, system(), ["program"]) as image:
        begun: list[int] = []

        async def fetch(device: Device, chunks: list[int], **options: object) -> None:
            begun.extend(chunks)
            await trio.sleep_forever()

        image.contents.fetch_background = fetch  # type: ignore[method-assign]
        for number, name in enumerate(("libc.so.6", "liba.so.1", "libunused.so.1")):
            found = Finder(image.index).file(f"/{TRIPLET}/{name}".encode())
            assert found is not None
            image.forecast._fetch([(found, 0, found.size)])
            await trio.testing.wait_all_tasks_blocked()
            assert len(begun) == number + 1, "there is room for six"


async def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    async with opened(
        tmp_path, [file("etc/passwd", b"x"), symlink("up", "../../..")], ["x"]
    ) as image:
        finder = Finder(image.index)
        assert finder.file(b"/etc/passwd") == finder.file(b"/up/etc/../etc/passwd")
        assert finder.file(b"/etc") is None
        assert finder.files([b"", b"/", b"/nowhere/x"]) == []
