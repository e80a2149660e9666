"""Check all content of an open image: what the store holds, and what the source serves."""

import logging
import time
from collections.abc import Callable

import msgspec
import trio

from lazyfs.digest import Digest
from lazyfs.errors import AccessDenied, LazyfsError, NotFound, Unavailable
from lazyfs.fetch.device import Device
from lazyfs.image.compare import compare_device
from lazyfs.image.diffid import DiffIdMismatch, check_diff_id
from lazyfs.image.open import OpenImage
from lazyfs.store.content.presence import ABSENT, RESIDENT, UNCLEAN

log = logging.getLogger(__name__)


class Verification(msgspec.Struct):
    """What was found; sizes in bytes of content.

    ``stored_size`` was in the store and has been hashed again; ``resident_size`` is all that is in
    the store, verified, afterwards.  ``repaired`` counts chunks that were damaged in the store and
    fetched anew.  ``diff_ids`` are those that were found to be right: of layers that were
    read whole, or whose tar can be built again.  ``compared`` are the layers whose tar and table of
    contents are one tree; ``not_compared`` those whose tar could not be had, and why.
    """

    stored_size: int = 0
    resident_size: int = 0
    repaired: int = 0
    errors: list[LazyfsError] = msgspec.field(default_factory=list)
    diff_ids: list[Digest] = msgspec.field(default_factory=list)
    compared: list[Digest] = msgspec.field(default_factory=list)
    not_compared: list[tuple[Digest, str]] = msgspec.field(default_factory=list)


async def verify_image(
    image: OpenImage, progress: Callable[[int], None], *, compares: bool = True
) -> Verification:
    """Hash or fetch every chunk of every layer; *progress* is told bytes of content as they pass.

    *compares*: layers are read whole, and their tars compared with their tables of contents.  Goes
    on after an error; each one is in the result, and what was good is in the store.
    """
    result = Verification()
    trees = []
    for device in image.devices:
        await _recheck(image, device, result)
        tree = _Tree(bytearray(device.table.count))
        if compares:
            await _compare(image, device, result, progress, tree)
        trees.append(tree)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(image.prefetch, "all")
        for device, tree in zip(image.devices, trees, strict=True):
            errors = len(result.errors)
            await _visit(image, device, result, progress, tree.counted)
            is_right = len(result.errors) == errors
            result.errors += tree.errors
            if is_right and not any(isinstance(exc, DiffIdMismatch) for exc in tree.errors):
                await _check_diff_id(image, device, result)
        nursery.cancel_scope.cancel()
    return result


class _Tree(msgspec.Struct):
    """What reading a layer whole has found; ``counted`` are the chunks that passed."""

    counted: bytearray
    errors: list[LazyfsError] = msgspec.field(default_factory=list)


async def _compare(
    image: OpenImage,
    device: Device,
    result: Verification,
    progress: Callable[[int], None],
    tree: _Tree,
) -> None:
    """Read a layer whole, unless that was done before, and compare its tar with its TOC."""
    digest = device.descriptor.digest
    try:
        diff_id = await compare_device(image, device, progress, tree.counted)
    except (Unavailable, NotFound, AccessDenied) as exc:
        # Every byte of a file is checked all the same, and what cannot be had of them is said.
        log.info("layer %s: not compared with its tar: %s", digest, exc.message)
        result.not_compared.append((digest, exc.message))
    except LazyfsError as exc:
        tree.errors.append(exc)
    else:
        result.compared.append(digest)
        if diff_id is not None:
            result.diff_ids.append(diff_id)


async def _recheck(image: OpenImage, device: Device, result: Verification) -> None:
    """Hash what is stored; what is not right becomes absent."""
    content, table = device.content, device.table
    before, started = bytes(content.states), time.time()
    wrong = set(await image.contents.doubts.check_again(device, range(table.count)))
    for chunk in range(table.count):
        if before[chunk] == ABSENT:
            continue
        if chunk not in wrong:
            result.stored_size += table.size(chunk)
        elif content.doubted != UNCLEAN or before[chunk] == RESIDENT:
            result.repaired += 1
    await trio.to_thread.run_sync(content.note_checked, started)


async def _visit(
    image: OpenImage,
    device: Device,
    result: Verification,
    progress: Callable[[int], None],
    counted: bytearray,
) -> None:
    table = device.table
    for chunk in device.order:
        start, size = table.device_offset(chunk), table.size(chunk)
        if device.content.states[chunk] != RESIDENT:
            try:
                await image.contents.ensure(device.number, start, start + size)
            except LazyfsError as exc:
                result.errors.append(exc)
        if not counted[chunk]:
            progress(size)
    result.resident_size += device.content.resident_size()


async def _check_diff_id(image: OpenImage, device: Device, result: Verification) -> None:
    try:
        diff_id = await check_diff_id(image, device)
    except Unavailable as exc:  # every byte of a file has been checked all the same
        log.info("layer %s: diffID not checked: %s", device.descriptor.digest, exc.message)
    except LazyfsError as exc:
        result.errors.append(exc)
    else:
        if diff_id is not None and diff_id not in result.diff_ids:
            result.diff_ids.append(diff_id)
