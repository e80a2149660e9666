"""A tar put together again from its tar-split and its payloads."""

from collections.abc import Callable

from lazyfs.formats.tars.tarsplit import tar_parts
from lazyfs.formats.tocs.toc import Toc, TocEntry


def rebuild_tar(document: bytes, toc: Toc, payload_of: Callable[[TocEntry], bytes]) -> bytes:
    """Return the tar that *document* was made of; *payload_of* is asked for regular files."""
    return b"".join(
        part if isinstance(part, bytes) else payload_of(part) for part in tar_parts(document, toc)
    )
