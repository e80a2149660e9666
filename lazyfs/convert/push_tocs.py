"""Put the TOCs of layers into another image (toc_image.py).

Apart from finding them there: a mount has no use for what writes layers.
"""

from collections.abc import Sequence

from lazyfs.convert.rebuild import write_manifest
from lazyfs.digest import Digest, digest_of
from lazyfs.formats.writer import WriterOptions, build_toc_blob
from lazyfs.image.layers.toc_image import LAYER_DIGEST_KEY, TAG_SUFFIX
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from lazyfs.registry.source import Destination

EMPTY_CONFIG = b"{}"


async def push_tocs(
    destination: Destination,
    tag: str,
    tocs: Sequence[tuple[Digest, bytes]],
    options: WriterOptions,
) -> None:
    """Push an image of *tocs*, each with the digest of its layer; nothing where there are none.

    It goes before the image itself: who finds that one finds its tables of contents too.
    """
    if not tocs:
        return
    listed = []
    for layer, toc in dict(tocs).items():
        data = build_toc_blob(toc, options.compression_level)
        blob = Descriptor(
            OCI_LAYER_GZIP, digest_of(data), len(data), {LAYER_DIGEST_KEY: str(layer)}
        )
        await destination.push_blob(blob, data)
        listed.append(blob)
    config = Descriptor(OCI_CONFIG, digest_of(EMPTY_CONFIG), len(EMPTY_CONFIG))
    await destination.push_blob(config, EMPTY_CONFIG)
    manifest = write_manifest(config, listed)
    await destination.push_manifest(manifest, OCI_MANIFEST, tag + TAG_SUFFIX)
