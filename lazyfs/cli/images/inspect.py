"""``lazyfs inspect``: an image's digests, and which of its layers can be mounted lazily."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import (
    OptionalValue,
    cache_dir_option,
    json_option,
    platform_option,
    verify_option,
)
from lazyfs.cli.output import print_found
from lazyfs.cli.trust_options import trust_options
from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.image.describe import DescribedImage, DescribedLayer
    from lazyfs.registry.source import AccessOptions

MISSING = 3  # the exit code of what is not found


@click.command()
@click.argument("image")
@cache_dir_option
@platform_option
@access_options
@trust_options
@verify_option
@click.option(
    "--endpoints",
    "is_about_endpoints",
    is_flag=True,
    help="Show only which endpoints IMAGE would be fetched from, in which order, and why.",
)
@click.option(
    "--content",
    cls=OptionalValue,
    bare="marks",
    type=click.Choice(["marks", "hash"]),
    metavar="[=hash]",
    help="Also show how much of each layer is cached; =hash hashes it again. The exit code is 3 "
    "unless everything is cached.",
)
@json_option
def inspect(
    image: str,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    verify_mode: str,
    is_about_endpoints: bool,
    content: str | None,
    as_json: bool,
) -> int:
    """Show what IMAGE resolves to and, for each layer, whether it can be mounted lazily.

    Manifests and tables of contents are fetched and verified, but no file contents.  For an image
    that was mounted here, IMAGE may also be just its digest.
    """
    if is_about_endpoints:
        from lazyfs.cli.mounts.endpoints import decision
        from lazyfs.cli.mounts.endpoints import lines_of as endpoint_lines

        decided = decision(image, access)
        print_found(decided, endpoint_lines(decided), as_json=as_json)
        return 0
    from lazyfs.image.describe import describe
    from lazyfs.image.known import reference_of
    from lazyfs.image.prepare import Request
    from lazyfs.store.paths import open_store

    store = open_store(cache_dir)
    named = image if store is None else reference_of(store, image) or image
    described = run_trio(describe, Request(named, platform, cache_dir, access, verify_mode))
    document, lines = document_of(described) | {"reference": image}, lines_of(described)
    if content is not None:
        from lazyfs.cli.images.inspect_content import content_lines, with_content

        document = with_content(described, document, cache_dir, rehash=content == "hash")
        lines += content_lines(document)
    print_found(document, lines, as_json=as_json)
    return 0 if document.get("complete", True) else MISSING


def document_of(image: "DescribedImage") -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "reference": image.requested,
        "resolved": image.resolved,
        "indexDigest": None if image.index_digest is None else str(image.index_digest),
        "manifestDigest": str(image.manifest_digest),
        "configDigest": str(image.config_digest),
        "platform": str(image.platform),
        "trust": trust_document(image),
        "layers": [
            {
                "digest": str(layer.descriptor.digest),
                "size": layer.descriptor.size,
                "mediaType": layer.descriptor.media_type,
                "diffId": str(layer.diff_id),
                "format": layer.format,
                "dialect": layer.dialect,
                "tocDigest": None if layer.toc_digest is None else str(layer.toc_digest),
                "verifiedBy": list(layer.verified_by),
                "tarSplit": layer.has_tar_split,
                "lazy": layer.why is None,
                "why": layer.why,
            }
            for layer in image.layers
        ],
    }


def trust_document(image: "DescribedImage") -> dict[str, Any] | None:
    """Return what the policies in force make of the image; None where there is none."""
    from msgspec import to_builtins

    from lazyfs.trust.errors import CannotTell

    if image.distrust is not None:
        verdict = "unknown" if isinstance(image.distrust, CannotTell) else "untrusted"
        return {"verdict": verdict, "reason": image.distrust.message}
    document: dict[str, Any] | None = to_builtins(image.trust)
    return document


def lines_of(image: "DescribedImage") -> list[str]:
    """Return what a person reads."""
    from lazyfs.cli.quantities import size_text

    lines = [
        f"reference  {image.requested}",
        f"resolved   {image.resolved}",
        f"index      {image.index_digest or '-'}",
        f"manifest   {image.manifest_digest}",
        f"config     {image.config_digest}",
        f"platform   {image.platform}",
        f"layers     {len(image.layers)}, {sum(layer.why is None for layer in image.layers)} lazy",
    ]
    trust = trust_document(image)
    if trust is not None:
        why = trust.get("reason") or trust.get("signer") or trust["policy"]
        lines.append(f"trust      {trust['verdict']}: {why}")
    for layer in image.layers:
        size = size_text(layer.descriptor.size)
        name = layer.format if layer.dialect is None else f"{layer.format} ({layer.dialect})"
        lines.append(f"  {layer.descriptor.digest}  {size:>10}  {name}  {_verdict(layer)}")
    if any(layer.is_plain and layer.why is not None for layer in image.layers):
        lines.append(HINT)
    return lines


DOWNLOADED = "downloaded in full by the first mount"
HINT = "hint       `lazyfs convert` and `lazyfs index push` make plain layers lazy"
VOUCHERS = {
    "toc": "its TOC's digest",
    "compressed-toc": "its compressed TOC's digest",
    "blob": "its own digest (downloaded whole first)",
    "pass": "its own digest (was downloaded whole here)",
    "index": "a pinned index",
}


def _verdict(layer: "DescribedLayer") -> str:
    """Return whether a layer can be mounted lazily, and why, or how it is verified."""
    if layer.why is not None:
        if not layer.is_plain:
            return f"not lazy: {layer.why}"
        plain = f"plain {layer.format}"
        why = f" ({plain})" if plain in layer.why else f": {layer.why}"
        return f"not lazy{why}; {DOWNLOADED}"
    vouchers = " and ".join(VOUCHERS[each] for each in layer.verified_by)
    more = "; tar-split gives the diffID" if layer.has_tar_split else ""
    return f"lazy, verified by {vouchers}{more}"
