"""Image layouts that are written: conversions and indexes, beside an image that was there."""

import shutil
from collections.abc import Callable, Sequence

import trio

from lazyfs.convert.convert import ConvertOptions, convert_image, convert_reference
from lazyfs.convert.indexing import build_index_of, push_index
from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import LazyfsError
from lazyfs.image.layers.plain import PlainOptions
from lazyfs.image.open import open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.interrupts import run_trio
from lazyfs.oci.platforms import parse_platform
from tests.crash.cases import RIGHT, Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.crash.store_cases import ACCESS, expected, make_image, read_files
from tests.support.formats.images import file as file_item
from tests.support.formats.images import host_platform, make_layout, plain_layer, tar_bytes

OLD = {"etc/old": b"an image that was in the layout before"}
DONE = "done"
WRONG = "wrong bytes"


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
    request = Request(f"{layout_of(place)}:plain", None, place.outside / "build", ACCESS)
    built = trio.run(build_index_of, request)
    (place.outside / "index").write_text(str(built.artifact.digest))


class LayoutCase(Case):
    """A workload over a layout; *look* says why what it makes cannot be had, "" if it is right."""

    def __init__(
        self,
        name: str,
        act: Callable[[Place], None],
        look: Callable[[Place, str], str],
        *,
        before: Callable[[Place], None] | None = None,
    ) -> None:
        self.name = name
        self._act = act
        self._look = look
        self._before = before

    def prepare(self, place: Place) -> None:
        make_image(place.outside / "image")
        if self._before is not None:
            self._before(place)

    def act(self, place: Place) -> None:
        self._act(place)

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        if self._before is not None and (why := wrong_image(place, f"{number}-old", "old", OLD)):
            return Verdict(Outcome.LOST, f"the image that was there: {why}")
        why = self._look(place, f"{number}-then")
        if why.startswith(WRONG):
            return Verdict(Outcome.WRONG, why)
        if why and DONE in promised(marks, at):
            return Verdict(Outcome.LOST, why)
        try:
            shutil.rmtree(place.outside / "push", ignore_errors=True)
            self._act(place)
        except LazyfsError as exc:
            return Verdict(Outcome.STUCK, exc.message)
        if again := self._look(place, f"{number}-again"):
            return Verdict(Outcome.STUCK, again)
        return Verdict(Outcome.REFUSED, why) if why else RIGHT


def wrong_image(
    place: Place, cache: str, tag: str, files: dict[str, bytes], index: Digest | None = None
) -> str:
    """Return why an image cannot be read, "" if it is right; by *index*, if that is given."""

    async def run() -> str:
        folder = place.outside / "caches" / cache
        plain = PlainOptions(pinned=index)
        request = Request(f"{layout_of(place)}:{tag}", None, folder, ACCESS, plain=plain)
        prepared = await prepare(request)
        async with open_image(prepared, ACCESS) as image:
            if index is not None and not all(device.is_by_index for device in image.devices):
                return "the index was not used"
            return "" if await read_files(image, list(files)) == files else WRONG

    try:
        return run_trio(run)
    except LazyfsError as exc:
        return exc.message


def wrong_converted(place: Place, cache: str) -> str:
    return wrong_image(place, cache, "converted", expected())


def wrong_index(place: Place, cache: str) -> str:
    """Say why the index that is pushed does not serve the image, "" if it does."""
    digest = parse_digest((place.outside / "index").read_text())
    return wrong_image(place, cache, "plain", expected(), digest)


LAYOUT_CASES: tuple[LayoutCase, ...] = (
    LayoutCase("convert", convert, wrong_converted),
    LayoutCase("convert beside another", convert, wrong_converted, before=with_old_image),
    LayoutCase("index push", push, wrong_index, before=with_plain_image),
)
