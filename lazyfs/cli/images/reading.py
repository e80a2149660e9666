"""Running something over an image that is open, without a mount."""

import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.image.open import OpenImage
    from lazyfs.registry.source import AccessOptions

Result = TypeVar("Result")


def run_with_image(
    reference: str,
    platform: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    use: "Callable[[OpenImage], Awaitable[Result]]",
    *,
    verify: str = "toc",
) -> Result:
    """Prepare and open the image that *reference* names, and return what *use* makes of it."""
    from lazyfs.image.open import open_image
    from lazyfs.image.prepare import Request, prepare

    async def run() -> Result:
        prepared = await prepare(Request(reference, platform, cache_dir, access, verify))
        async with open_image(prepared, access) as image:
            return await use(image)

    return run_trio(run)


def name_fields(key: str, name: bytes) -> dict[str, str]:
    """Return a name for JSON; its bytes beside it where they are not text."""
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        encoded = base64.b64encode(name).decode()
        return {key: name.decode(errors="replace"), f"{key}Bytes": encoded}
