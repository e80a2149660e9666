"""The config of an image that is ready to be mounted."""

import shutil
from pathlib import Path
from typing import Any

from lazyfs.digest import parse_digest
from lazyfs.errors import FormatError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.prepare import Prepared
from lazyfs.image.resolve import Resolver
from lazyfs.oci.manifest import Manifest, decode_manifest
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.store.paths import Store


async def config_of(prepared: Prepared, access: AccessOptions) -> dict[str, Any]:
    """Return an image's config document, from the store or else from its source.

    Removes a store in memory, which is of no use to another process.
    """
    store = Store(Path(prepared.store_dir))
    origin = Origin(parse_reference(prepared.resolved), access)
    try:
        resolver = Resolver(store, origin)
        document = await resolver.document(parse_digest(prepared.image.manifest_digest))
        manifest = decode_manifest(document.data, document.media_type)
        if not isinstance(manifest, Manifest):
            raise FormatError(f"{document.digest} is an index, not a manifest")
        return (await resolver.config(manifest)).raw
    finally:
        await origin.aclose()
        if prepared.is_volatile:
            shutil.rmtree(store.root, ignore_errors=True)
