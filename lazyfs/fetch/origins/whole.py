"""Blobs that are fetched whole: verified at their end, and asked for again where they are wrong."""

import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from lazyfs.digest import Digest, DigestMismatch
from lazyfs.errors import Unavailable
from lazyfs.fetch.origins.origin import REFETCHES
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.source import Source

T = TypeVar("T")

PIECE_SIZE = 1 << 20

log = logging.getLogger(__name__)


class WrongBlob(DigestMismatch):
    """Bytes that are not the blob's; another endpoint may have the right ones."""


async def until_right(source: Source, blob: Descriptor, attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what *attempt* returns, which fetches *blob* and raises WrongBlob for another one.

    It is made once more at least, and once for each endpoint, up to REFETCHES; then WrongBlob is
    raised.  A directory says the same twice, and is not asked again.
    """
    is_asked_again = source.kind != "layout"
    for _ in range(REFETCHES):
        try:
            return await attempt()
        except WrongBlob as exc:
            if not source.blame(blob, 0, blob.size, exc.message) and not is_asked_again:
                raise
            is_asked_again = False
            log.warning("%s; fetching it again", exc.message)
    return await attempt()


async def fetch_file(source: Source, blob: Descriptor, path: Path) -> None:
    """Fetch *blob* into the file *path*, and verify it.

    A transfer that breaks goes on from where it was, as long as it gets anywhere.  Raises
    WrongBlob, OSError, and what the source raises.
    """

    async def attempt() -> None:
        await _fetch_once(source, blob, path)

    await until_right(source, blob, attempt)


async def take_blob(
    source: Source, blob: Descriptor, take: Callable[[bytes], Awaitable[object]]
) -> int:
    """Give *take* the whole blob, unverified, in pieces of PIECE_SIZE and more; return its size.

    A transfer that breaks goes on as long as it gets anywhere.
    """
    size = 0
    while size < blob.size:
        start, waiting = size, bytearray()
        try:
            async with source.open_range(blob, start, blob.size) as body:
                async for piece in body:
                    waiting += piece
                    if len(waiting) >= PIECE_SIZE:
                        await take(bytes(waiting))
                        size += len(waiting)
                        waiting.clear()
        except Unavailable:
            if size + len(waiting) == start:
                raise
        if waiting:
            await take(bytes(waiting))
            size += len(waiting)
    return size


async def _fetch_once(source: Source, blob: Descriptor, path: Path) -> None:
    digest = hashlib.new(blob.digest.algorithm, usedforsecurity=False)

    def store(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    async def take(data: bytes) -> None:
        await trio.to_thread.run_sync(store, data)

    with path.open("wb") as file:
        size = await take_blob(source, blob, take)
    got = Digest(blob.digest.algorithm, digest.hexdigest())
    if got != blob.digest:
        raise WrongBlob(f"blob {blob.digest}: got {got} ({size} bytes)")
