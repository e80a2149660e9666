"""Image layouts that are written: conversions and indexes, beside an image that was there."""

import json
from collections.abc import Callable, Sequence

import trio

from lazyfs.errors import LazyfsError
from lazyfs.image.convert import ConvertOptions, convert_image, convert_reference
from lazyfs.image.indexing import build_index_of, push_index
from lazyfs.image.open import OpenImage
from lazyfs.image.prepare import Request
from lazyfs.oci.platforms import parse_platform
from lazyfs.cli.reading import run_with_image
from tests.crash.cases import RIGHT, Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.crash.store_cases import ACCESS, expected, make_image, read_files
from tests.support.images import host_platform
from tests.support.images import file as file_item
from tests.support.images import make_layout, plain_layer, tar_bytes

OLD = {"etc/old": b"an image that was in the layout before"}
DONE = "done"


def layout_of(place: Place) -> str:
    """Return the layout that is written to."""
    return f"oci:{place.root / 'disk' / 'layout'}"


def convert(place: Place) -> None:
    options = ConvertOptions(parse_platform(host_platform()), temporary_dir=place.outside)

    async def run() -> None:
        source = f"oci:{place.outside / 'image'}:latest"
        target = f"{layout_of(place)}:converted"
        await convert_reference(source, target, ACCESS, options, convert_image)

    trio.run(run)
    mark(DONE)


def push(place: Place) -> None:
    """``lazyfs index push`` of an image that lies in the layout itself."""
    request = Request(f"{layout_of(place)}:plain", None, place.outside / "push", ACCESS)

    async def run() -> None:
        await push_index(request, await build_index_of(request))

    trio.run(run)
    mark(DONE)


def with_old_image(place: Place) -> None:
    tar = tar_bytes([file_item(name, data) for name, data in OLD.items()])
    make_layout(place.root / "disk" / "layout", [plain_layer(tar)], tag="old")


def with_plain_image(place: Place) -> None:
    make_image(place.root / "disk" / "layout", is_plain=True, tag="plain")
    with_old_image(place)


class LayoutCase(Case):
    """A workload over a layout; *wanted* is the tag that has the image then."""

    def __init__(
        self,
        name: str,
        act: Callable[[Place], None],
        wanted: str,
        *,
        before: Callable[[Place], None] | None = None,
    ) -> None:
        self.name = name
        self._act = act
        self._wanted = wanted
        self._before = before

    def prepare(self, place: Place) -> None:
        make_image(place.outside / "image")
        if self._before is not None:
            self._before(place)

    def act(self, place: Place) -> None:
        self._act(place)

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        cache = place.root / "disk" / "cache"
        if self._before is not None and (why := _wrong(place, f"{number}-old", "old", OLD)):
            return Verdict(Outcome.LOST, f"the image that was there: {why}")
        why = _wrong(place, f"{number}-then", self._wanted, expected())
        if why.startswith("wrong"):
            return Verdict(Outcome.WRONG, why)
        if why and DONE in promised(marks, at):
            return Verdict(Outcome.LOST, why)
        try:
            self._act(place)
        except LazyfsError as exc:
            return Verdict(Outcome.STUCK, exc.message)
        if again := _wrong(place, f"{number}-again", self._wanted, expected()):
            return Verdict(Outcome.STUCK, again)
        json.loads((place.root / "disk" / "layout" / "index.json").read_bytes())
        assert not cache.exists()
        return Verdict(Outcome.REFUSED, why) if why else RIGHT


def _wrong(place: Place, cache: str, tag: str, files: dict[str, bytes]) -> str:
    """Return why an image cannot be read, "" if it is right."""

    async def use(image: OpenImage) -> str:
        found = await read_files(image, list(files))
        return "" if found == files else "wrong bytes"

    try:
        folder = place.outside / "caches" / cache
        return run_with_image(f"{layout_of(place)}:{tag}", None, folder, ACCESS, use)
    except LazyfsError as exc:
        return exc.message


LAYOUT_CASES: tuple[LayoutCase, ...] = (
    LayoutCase("convert", convert, "converted"),
    LayoutCase("convert beside another", convert, "converted", before=with_old_image),
    LayoutCase("index push", push, "plain", before=with_plain_image),
)
