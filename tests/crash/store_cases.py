"""The content store: first use, fills, passes, eviction, repair.  Images are on another disk."""

import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from lazyfs.cli.images.cat import contents_of
from lazyfs.cli.images.reading import run_with_image
from lazyfs.digest import parse_digest
from lazyfs.errors import LazyfsError
from lazyfs.image.open import OpenImage
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.source import AccessOptions
from lazyfs.store.completeness import survey_layer
from lazyfs.store.content.presence import RESIDENT
from lazyfs.store.images import load_image
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import check_store
from lazyfs.store.upkeep.evict import evict, remove_unused
from lazyfs.store.upkeep.removal import remove_image
from tests.crash.cases import RIGHT, Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    host_platform,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.mounts.mounting import force_unmount

Act = Callable[[Place], None]
CHUNK = 8192
REPAIRED = "repaired"
LIVE = "live"
MOUNTED = 20  # one state of so many
ACCESS = AccessOptions()


def contents() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files of two layers, of which some chunks are zeros, and some are twins."""
    drawn = random.Random(12)
    shared = drawn.randbytes(CHUNK + 700)
    lower = {
        "etc/a": b"lower a",
        "etc/b": drawn.randbytes(100),
        "lib/long": drawn.randbytes(5 * CHUNK + 11),
        "lib/holes": drawn.randbytes(CHUNK) + bytes(2 * CHUNK) + drawn.randbytes(50),
        "lib/shared": shared,
        "empty": b"",
    }
    upper = {
        "etc/a": drawn.randbytes(5000),
        "opt/x": drawn.randbytes(3 * CHUNK),
        "opt/shared": shared,
    }
    return lower, upper


def make_image(folder: Path, *, is_plain: bool = False, tag: str = "latest") -> None:
    """Write the image to a layout."""
    layers = []
    for files in contents():
        folders = sorted({name.partition("/")[0] for name in files if "/" in name})
        items = [*(directory(each) for each in folders)]
        items += [file(name, data) for name, data in files.items()]
        tar = tar_bytes(items)
        layers.append(plain_layer(tar) if is_plain else estargz_layer(tar, chunk_size=CHUNK))
    make_layout(folder, layers, tag=tag)


def expected() -> dict[str, bytes]:
    """Return the image's files."""
    lower, upper = contents()
    return lower | upper


def image_of(place: Place) -> str:
    """Return what to call the image."""
    return f"oci:{place.outside / 'image'}:latest"


def cache_of(place: Place) -> Path:
    """Return the store's folder."""
    return place.root / "disk" / "cache"


async def read_files(image: OpenImage, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of an image."""
    found = {}
    for name in names:
        found[name] = b"".join([data async for data in contents_of(image, name.encode())])
    return found


def read_some(place: Place, names: Sequence[str], *, is_kept: bool = True) -> None:
    """Read files as a mount does, and note what was read first."""

    async def use(image: OpenImage) -> None:
        found = await read_files(image, names)
        assert found == {name: expected()[name] for name in names}
        if is_kept:
            image.save_profile()

    run_with_image(image_of(place), None, cache_of(place), ACCESS, use)


class WrongBytes(Exception):
    """A file is not what it is in the image."""


class Believed(Exception):
    """A chunk counts as present that is not."""


def look(place: Place) -> None:
    """Open the image and read it all; raises WrongBytes, Believed, LazyfsError."""

    async def use(image: OpenImage) -> None:
        for device in image.devices:
            content = device.content
            for chunk, state in enumerate(content.states[: device.table.count]):
                if state == RESIDENT and not content.check(chunk):
                    raise Believed(f"chunk {chunk} of layer {device.number}")
        found = await read_files(image, list(expected()))
        for name, data in expected().items():
            if found[name] != data:
                raise WrongBytes(name)

    run_with_image(image_of(place), None, cache_of(place), ACCESS, use)


def survey_all(place: Place) -> None:
    """Do what a restore does first: know what is here, hashed; raises Believed."""
    store = Store(cache_of(place))
    for folder in sorted(store.layers.iterdir()):
        digest = parse_digest(f"sha256:{folder.name}")
        survey = survey_layer(store, digest)
        if survey is not None and survey.rotten:
            raise Believed(f"{survey.rotten} chunks of {folder.name[:12]} counted as right")


def judge(place: Place, number: int, act: Callable[[Place], None] = look) -> Verdict:
    """Use the store twice, with a repair between where the first time was refused."""
    try:
        if number % 3 == 1:
            survey_all(place)
        act(place)
        if number % 3 == 2:
            check_store(Store(cache_of(place)), repair=False, progress=lambda size: None)
            act(place)
        return RIGHT
    except Believed as exc:
        return Verdict(Outcome.BELIEVED, str(exc))
    except WrongBytes as exc:
        return Verdict(Outcome.WRONG, str(exc))
    except LazyfsError as exc:
        refusal = exc.message
    except Exception as exc:
        return Verdict(Outcome.BROKE, f"{type(exc).__name__}: {exc}")
    if not refusal or "\n" in refusal:
        return Verdict(Outcome.BROKE, f"no sentence: {refusal!r}")
    try:
        try:
            act(place)
        except LazyfsError:
            check_store(Store(cache_of(place)), repair=True, progress=lambda size: None)
            act(place)
            return Verdict(Outcome.REPAIRED, refusal)
    except (Believed, WrongBytes) as exc:
        return Verdict(Outcome.WRONG, str(exc))
    except LazyfsError as exc:
        return Verdict(Outcome.STUCK, exc.message)
    except Exception as exc:
        return Verdict(Outcome.BROKE, f"{type(exc).__name__}: {exc}")
    return Verdict(Outcome.REFUSED, refusal)


class StoreCase(Case):
    """A workload over the store; *before* is what is there already."""

    def __init__(
        self, name: str, act: Act, *, before: Act | None = None, is_plain: bool = False
    ) -> None:
        self.name = name
        self._act = act
        self._before = before
        self._is_plain = is_plain

    def prepare(self, place: Place) -> None:
        make_image(place.outside / "image", is_plain=self._is_plain)
        if self._before is not None:
            self._before(place)

    def act(self, place: Place) -> None:
        self._act(place)

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        if any(text == REPAIRED for _, text in marks):
            if (REPAIRED in promised(marks, at)) and (found := _rotten(place)):
                return Verdict(Outcome.LOST, f"the repair: {found}")
            check_store(Store(cache_of(place)), repair=True, progress=lambda size: None)
        return judge(place, number)


def _rotten(place: Place) -> str:
    """Return which chunks are rotten and believed, though they were repaired.

    Files are another matter: their digests are looked at whenever they are read.
    """
    found = check_store(Store(cache_of(place)), repair=False, progress=lambda size: None)
    return "; ".join(f"{each.path} {each.chunk}" for each in found.rotten if each.kind == "chunk")


# Workloads


def make_store(place: Place) -> None:
    Store(cache_of(place))


def read_all(place: Place) -> None:
    read_some(place, list(expected()))


def read_first(place: Place) -> None:
    read_some(place, ["lib/long", "etc/b", "opt/x"])


def read_in_two_sessions(place: Place) -> None:
    read_some(place, ["etc/b", "opt/shared"])
    read_some(place, list(expected()))


def read_at_once(place: Place) -> None:
    """Two processes, one store."""
    _in_children(
        lambda: read_some(place, list(expected())),
        lambda: read_some(place, sorted(expected(), reverse=True)),
    )


def read_after_a_kill(place: Place) -> None:
    """A process that ends as if it were killed, with chunks marked; then another one."""

    async def use(image: OpenImage) -> None:
        await read_files(image, ["lib/long", "opt/x"])
        os._exit(0)

    _in_children(lambda: run_with_image(image_of(place), None, cache_of(place), ACCESS, use))
    read_some(place, list(expected()))


def _in_children(*works: Callable[[], None]) -> None:
    """Do each work in a process of its own, at once."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert codes == [0] * len(works)


def evict_and_read(place: Place) -> None:
    evict(Store(cache_of(place)), 1)
    read_some(place, ["lib/long", "opt/x"])


def remove_and_read(place: Place) -> None:
    store = Store(cache_of(place))
    for folder in sorted(store.images.iterdir()):
        remove_image(store, parse_digest(f"sha256:{folder.name}"))
    remove_unused(store)
    read_some(place, ["lib/long"])


def damage(place: Place) -> None:
    """Have all, with rotten chunks, a rotten TOC and a rotten document."""
    read_all(place)
    store = Store(cache_of(place))
    layers = sorted(store.layers.iterdir())
    with (layers[0] / "content").open("r+b") as content:
        for start in range(0, os.fstat(content.fileno()).st_size, 4 * CHUNK):
            content.seek(start + 3)
            content.write(b"rotten")
    (layers[1] / "toc.zst").write_bytes(b"rotten")
    blob = sorted((store.blobs / "sha256").iterdir())[0]
    blob.write_bytes(b"rotten")


def forget_passes(place: Place) -> None:
    """Have contents of plain layers, and not know of them."""
    read_all(place)
    for name in ("passes", "images"):
        shutil.rmtree(cache_of(place) / name)
        (cache_of(place) / name).mkdir(mode=0o700)


def repair(place: Place) -> None:
    check_store(Store(cache_of(place)), repair=True, progress=lambda size: None)
    mark(REPAIRED)
    read_some(place, ["lib/long", "etc/b"])


def survey(place: Place) -> None:
    """What a restore does, and a fill after it."""
    survey_all(place)
    read_some(place, list(expected()))
    survey_all(place)


def save_profiles(place: Place) -> None:
    for names in (["etc/b"], ["opt/x", "lib/long"]):
        read_some(place, names)


def build_index(place: Place) -> None:
    """``lazyfs index build``."""
    from lazyfs.convert.indexing import build_index_of
    from lazyfs.image.prepare import Request

    async def run() -> None:
        await build_index_of(Request(image_of(place), None, cache_of(place), ACCESS))

    trio.run(run)


def environment(place: Place) -> dict[str, str]:
    """Return what commands are to have; the runtime directory is on no disk."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
        "LAZYFS_CACHE_DIR": str(cache_of(place)),
        "LAZYFS_STATE_DIR": str(place.root / "disk" / "state"),
        "LAZYFS_RUNTIME_DIR": str(place.outside / "run"),
        "NO_COLOR": "1",
    }


def lazyfs(place: Place, *words: object) -> None:
    """Run a command in a process of its own; raises CommandFailed."""
    command = [sys.executable, "-m", "lazyfs", *(str(word) for word in words)]
    done = subprocess.run(
        command, env=environment(place), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise CommandFailed(done.stderr.strip() or f"{words}: exit {done.returncode}")


class CommandFailed(Exception):
    """A command has failed; what it said."""


class Refused(LazyfsError):
    """The same, with an error of ours."""


def mount_and_read(place: Place, driver: str) -> None:
    """A real mount, and all of its files read; raises WrongBytes, CommandFailed."""
    mountpoint = place.outside / "mnt"
    mountpoint.mkdir(exist_ok=True)
    lazyfs(place, "mount", "--driver", driver, "--prefetch", "none", image_of(place), mountpoint)
    mark(LIVE)
    try:
        for name, data in expected().items():
            if (mountpoint / name).read_bytes() != data:
                raise WrongBytes(name)
        lazyfs(place, "umount", mountpoint)
    finally:
        force_unmount(mountpoint)


def is_complete(place: Place) -> bool:
    """Say whether the image's index is here; for tests."""
    store = Store(cache_of(place))
    names = [parse_digest(f"sha256:{each.name}") for each in store.images.iterdir()]
    return bool(names) and all(load_image(store, each) is not None for each in names)


class MountCase(StoreCase):
    """A real mount that fills the store; one state of so many is mounted again."""

    def __init__(self, driver: str) -> None:
        super().__init__(
            f"mount, {driver}", lambda place: mount_and_read(place, driver), before=make_store
        )
        self.driver = driver

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        if number % MOUNTED == 0:
            return judge(place, number, self._mount)
        return super().check(place, marks, at, number)

    def _mount(self, place: Place) -> None:
        try:
            mount_and_read(place, self.driver)
        except CommandFailed as exc:
            raise Refused(str(exc)) from exc


STORE_CASES: tuple[StoreCase, ...] = (
    StoreCase("first use", read_first),
    StoreCase("two sessions", read_in_two_sessions),
    StoreCase("two at once", read_at_once),
    StoreCase("killed before", read_after_a_kill),
    StoreCase("fill up", read_all, before=read_first),
    StoreCase("full pass", read_all, is_plain=True),
    StoreCase("full pass over content", read_all, before=forget_passes, is_plain=True),
    StoreCase("index build", build_index, is_plain=True),
    StoreCase("evict", evict_and_read, before=read_all),
    StoreCase("remove", remove_and_read, before=read_all),
    StoreCase("repair", repair, before=damage),
    StoreCase("survey", survey, before=read_first),
    StoreCase("profiles", save_profiles, before=read_all),
)
MOUNT_CASES: tuple[MountCase, ...] = (MountCase("native"), MountCase("pyfuse3"))


def platform_and_reference(place: Place) -> tuple[str, object]:
    """Return what names the image, for conversions."""
    return host_platform(), parse_reference(image_of(place))
