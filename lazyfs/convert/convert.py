"""Turn an image into one whose layers are eStargz or zstd:chunked, for lazy mounting.

The result is an ordinary OCI image: same files, same config but for the diffIDs, same history and
times.  The same source gives the same result, byte for byte, wherever the compression's library
is the same: nothing comes from the clock, or from the number of processors.  Nothing is pushed
before every layer has been verified and converted.

A layer that is in the wanted format already, and whose annotation names its table of contents, is
copied as it is, unless a prioritised file lies in it.
"""

import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import trio
from msgspec.structs import replace

from lazyfs.convert.destination import open_destination
from lazyfs.convert.judged import judged_source
from lazyfs.convert.prioritize import prioritize
from lazyfs.convert.push_tocs import push_tocs
from lazyfs.convert.rebuild import ConvertedLayer, build_config, build_manifest, config_type_of
from lazyfs.convert.spool import (
    FORMATS,
    Unpacked,
    compare_trees,
    is_written,
    keep_layer,
    rewrite_layer,
    unpack_layer,
)
from lazyfs.digest import Digest, DigestMismatch, digest_of
from lazyfs.errors import FormatError, LazyfsError, StoreError, UsageError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.fetch.origins.whole import fetch_file
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.verbatim import CannotKeep
from lazyfs.formats.tocs.claims import PREFIXES, TOC_DIGEST_KEYS
from lazyfs.formats.writer import (
    UNCOMPRESSED_SIZE_ANNOTATION,
    Target,
    WriterOptions,
    WrittenLayer,
)
from lazyfs.image.layers.plain import check_image
from lazyfs.image.resolve import check_platform, find_manifest, platform_by
from lazyfs.oci.config import CONFIG_LIMIT, decode_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import (
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Manifest,
)
from lazyfs.oci.platforms import Platform
from lazyfs.oci.reference import DEFAULT_TAG, parse_reference
from lazyfs.registry.source import AccessOptions, Destination, Document, Source
from lazyfs.signatures.in_force import judge_of

# What a source layer's annotations say about the blob that it no longer is.
STALE_KEYS = (*TOC_DIGEST_KEYS, UNCOMPRESSED_SIZE_ANNOTATION)
STALE_PREFIXES = tuple(PREFIXES.values())
MEDIA_TYPES = {Target.ESTARGZ: OCI_LAYER_GZIP, Target.ZSTD_CHUNKED: OCI_LAYER_ZSTD}

Made_co = TypeVar("Made_co", covariant=True)
Report = Callable[[ConvertedLayer], object]

log = logging.getLogger(__name__)


class ConvertOptions(msgspec.Struct, frozen=True):
    """What to make of an image.

    ``is_platform_asked_for``: refuse an image that comes alone and is for another ``platform``.
    ``prioritized`` are files that a mount should fetch ahead, in the order in which they are
    needed; ``advise``, given the digest of the source's manifest, names those that come after them.
    ``keeps_diff_ids``: refuse a layer whose tar cannot stay as it is; without it only those of
    zstd:chunked stay, where they can.  ``created`` (seconds since 1970) replaces the image's times
    of creation, for builds that set ``SOURCE_DATE_EPOCH``; None keeps the source's.
    ``temporary_dir`` needs room for the image compressed twice and uncompressed once; None is the
    system's.
    """

    platform: Platform
    is_platform_asked_for: bool = False
    prioritized: tuple[str, ...] = ()
    writer: WriterOptions = msgspec.field(default_factory=WriterOptions)
    keeps_diff_ids: bool = False
    advise: Callable[[Digest], Sequence[str]] | None = None
    created: int | None = None
    temporary_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.keeps_diff_ids:
            return
        if self.prioritized or self.advise is not None:
            raise UsageError(
                "convert: --keep-diff-id keeps the order of the files; it does not go with"
                " --prioritize and --profile"
            )
        if self.writer.target is Target.ESTARGZ and not self.writer.is_toc_external:
            raise UsageError(
                "convert: eStargz can keep diffIDs only with an external TOC: inside the layer, the"
                " TOC is part of the tar",
                hint="add --external-toc, or use --to zstd-chunked",
            )


class Conversion(msgspec.Struct, frozen=True):
    """What was converted into what."""

    source_digest: Digest
    manifest_digest: Digest
    config_digest: Digest
    platform: Platform
    layers: tuple[ConvertedLayer, ...]


@dataclass(slots=True)
class _Layer:
    """A layer on its way through files in *directory*.

    ``wanted`` are the prioritised files that lie in it.  ``toc`` is the table of contents of the
    result where it is to be put elsewhere.
    """

    descriptor: Descriptor
    diff_id: Digest
    directory: Path
    number: int
    blob: Path = field(init=False)
    result: Path = field(init=False)
    unpacked: Unpacked = field(init=False)
    wanted: tuple[bytes, ...] = ()
    done: ConvertedLayer | None = None
    toc: bytes = b""

    def __post_init__(self) -> None:
        self.blob = self.directory / f"{self.number}.blob"
        self.result = self.directory / f"{self.number}.result"


class Converted(msgspec.Struct, frozen=True):
    """An image whose layers and config are pushed, and whose *manifest* is not yet.

    ``tocs`` are tables of contents that go elsewhere, each with the digest of its layer.
    """

    conversion: Conversion
    manifest: bytes
    tocs: tuple[tuple[Digest, bytes], ...]


class Convert(Protocol[Made_co]):
    """``convert_image``, or what does the same for a whole index."""

    async def __call__(
        self,
        source: Source,
        identifier: str | Digest,
        destination: Destination,
        tag: str,
        options: ConvertOptions,
        *,
        report: Report,
    ) -> Made_co:
        """Convert what *identifier* names."""


async def convert_reference(
    source: str,
    destination: str,
    access: AccessOptions,
    options: ConvertOptions,
    convert: Convert[Made_co],
    *,
    cache_dir: Path | None = None,
    report: Report = lambda layer: None,
) -> tuple[str, Made_co]:
    """Have what the reference *source* names made by *convert* into what *destination* names.

    *cache_dir* has the cache in which signatures of *source* were seen, for the policies in force.
    Returns the destination's repository too: ``docker.io/library/python``, ``oci:DIR``.
    """
    wanted = parse_reference(source)
    target = parse_reference(destination)
    if target.digest is not None:
        raise UsageError(f"destination {destination!r} has a digest; name it by a tag")
    judge = judge_of(access)
    origin = Origin(wanted, access)
    try:
        identifier = wanted.identifier
        if judge is not None:
            only = options.platform if convert is convert_image else None
            identifier = await judged_source(judge, cache_dir, origin, only)
        place = open_destination(target, access, create=True)
        try:
            made = await convert(
                origin.source,
                identifier,
                place,
                target.tag or DEFAULT_TAG,
                options,
                report=report,
            )
        finally:
            await place.aclose()
    finally:
        await origin.aclose()
    return place.repository, made


async def convert_image(
    source: Source,
    identifier: str | Digest,
    destination: Destination,
    tag: str,
    options: ConvertOptions,
    *,
    report: Report = lambda layer: None,
) -> Conversion:
    """Convert the image that *identifier* names in *source*, and push it to *destination*.

    Of an index, the manifest for the options' platform is converted.  *report* is called as layers
    are done, in any order.  Raises VerificationFailed if any of the source's bytes are not what
    their digests say, FormatError for a layer that cannot be understood, NotFound for a
    prioritised file that is not there; nothing is pushed then.
    """
    document = await source.fetch_manifest(identifier)
    manifest, document = await find_manifest(
        source.fetch_manifest, platform_by(source), document, options.platform
    )

    def check(found: Platform) -> None:
        is_asked_for = options.is_platform_asked_for
        name = f"{source.repository}@{document.digest}"
        check_platform(found, options.platform, name, is_asked_for=is_asked_for)

    made = await convert_manifest(source, document, manifest, destination, options, report, check)
    await push_tocs(destination, tag, made.tocs, options.writer)
    await destination.push_manifest(made.manifest, OCI_MANIFEST, tag)
    return made.conversion


async def convert_manifest(
    source: Source,
    document: Document,
    manifest: Manifest,
    destination: Destination,
    options: ConvertOptions,
    report: Report,
    check: Callable[[Platform], None] = lambda found: None,
) -> Converted:
    """Convert the image of *manifest*, and push all of it but the new manifest.

    *check* is given the platform of the image before anything of it is fetched, and may raise.
    """
    if options.advise is not None:
        advised = await trio.to_thread.run_sync(options.advise, document.digest)
        options = replace(options, prioritized=(*options.prioritized, *advised))
    check_image(manifest.layers)
    config_data = await source.fetch_blob(manifest.config, limit=CONFIG_LIMIT)
    config = decode_config(config_data)
    if len(config.diff_ids) != len(manifest.layers):
        raise FormatError(
            f"config {manifest.config.digest}: got {len(config.diff_ids)} diffIDs, "
            f"expected one per layer: {len(manifest.layers)}"
        )
    check(config.platform)
    try:
        with tempfile.TemporaryDirectory(prefix="lazyfs-", dir=options.temporary_dir) as name:
            layers = [
                _Layer(descriptor, diff_id, Path(name), number)
                for number, (descriptor, diff_id) in enumerate(
                    zip(manifest.layers, config.diff_ids, strict=True)
                )
            ]
            done = await _convert_layers(source, layers, options, report)
            siblings = siblings_of(source.repository, destination.repository)
            for layer in layers:
                await _push_layer(destination, layer, siblings)
    except OSError as exc:
        raise StoreError(
            f"convert: {exc}", hint="set TMPDIR to put temporary files elsewhere"
        ) from exc
    new_config = build_config(config_data, config, done, options.created)
    described = replace(manifest.config, media_type=config_type_of(manifest))
    if new_config != config_data:
        described = replace(described, digest=digest_of(new_config), size=len(new_config))
    await destination.push_blob(described, new_config)
    new_manifest = build_manifest(document, manifest, described, done, options.created)
    conversion = Conversion(
        document.digest, digest_of(new_manifest), described.digest, config.platform, tuple(done)
    )
    tocs = tuple((made.result.digest, layer.toc) for made, layer in zip(done, layers, strict=True))
    return Converted(conversion, new_manifest, tocs if options.writer.is_toc_external else ())


async def _convert_layers(
    source: Source,
    layers: Sequence[_Layer],
    options: ConvertOptions,
    report: Report,
) -> list[ConvertedLayer]:
    """Fetch and unpack all layers, then write them: where files lie is known only in between."""

    async def unpack(layer: _Layer) -> None:
        await fetch_file(source, layer.descriptor, layer.blob)
        tar = layer.blob.with_suffix(".tar")
        try:
            layer.unpacked = await trio.to_thread.run_sync(
                unpack_layer, layer.blob, tar, layer.diff_id
            )
        except DigestMismatch as exc:
            raise DigestMismatch(f"layer {layer.descriptor.digest}: {exc.message}") from exc
        await trio.to_thread.run_sync(
            compare_trees,
            layer.descriptor.digest,
            layer.blob,
            layer.unpacked.tar,
            layer.descriptor.annotations,
        )

    async def write(layer: _Layer) -> None:
        layer.done = await trio.to_thread.run_sync(_convert, layer, options)
        report(layer.done)

    await _for_each(layers, unpack)
    if options.prioritized:
        await trio.to_thread.run_sync(_place, options.prioritized, layers)
    await _for_each(layers, write)
    return [layer.done for layer in layers if layer.done is not None]


async def _for_each(layers: Sequence[_Layer], step: Callable[[_Layer], Awaitable[None]]) -> None:
    """Do *step* for each layer, a few at a time; the first failure stops the others."""
    limiter = trio.CapacityLimiter(max(2, os.cpu_count() or 1))
    failures: list[LazyfsError | OSError] = []

    async def run(layer: _Layer) -> None:
        async with limiter:
            try:
                await step(layer)
            except FormatError as exc:
                failures.append(_name(exc, layer))
            except (LazyfsError, OSError) as exc:
                failures.append(exc)
            else:
                return
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for layer in layers:
            nursery.start_soon(run, layer)
    if failures:
        raise failures[0]


def _name(exc: FormatError, layer: _Layer) -> FormatError:
    message = exc.message.removeprefix("layer: ")
    named = type(exc)(f"layer {layer.descriptor.digest}: {message}", hint=exc.hint)
    named.__cause__ = exc
    return named


def _place(paths: Sequence[str], layers: Sequence[_Layer]) -> None:
    chosen = prioritize(paths, [arrange(layer.unpacked.members).members for layer in layers])
    for layer, wanted in zip(layers, chosen, strict=True):
        layer.wanted = wanted


def _convert(layer: _Layer, options: ConvertOptions) -> ConvertedLayer:
    source, target = layer.descriptor, options.writer.target
    media_type = MEDIA_TYPES[target]
    if (
        not layer.wanted
        and not options.writer.is_toc_external
        and is_written(layer.blob, source.annotations, FORMATS[target])
    ):
        result = Descriptor(media_type, source.digest, source.size, source.annotations)
        return ConvertedLayer(source, result, layer.diff_id, is_copied=True)
    written = _write(layer, options)
    annotations = {
        key: value
        for key, value in source.annotations.items()
        if key not in STALE_KEYS and not key.startswith(STALE_PREFIXES)
    }
    annotations.update(written.annotations)
    if options.writer.is_toc_external:
        layer.toc = written.toc
    result = Descriptor(media_type, written.digest, written.size, annotations)
    return ConvertedLayer(source, result, written.diff_id, is_copied=False)


def _write(layer: _Layer, options: ConvertOptions) -> WrittenLayer:
    is_zstd = options.writer.target is Target.ZSTD_CHUNKED
    if options.keeps_diff_ids or (is_zstd and not layer.wanted):
        try:
            return keep_layer(layer.unpacked, layer.diff_id, layer.result, options.writer)
        except CannotKeep as exc:
            if options.keeps_diff_ids:
                raise
            log.debug("layer %s: new diffID: %s", layer.descriptor.digest, exc)
    arrangement = arrange(layer.unpacked.members, layer.wanted)
    return rewrite_layer(layer.unpacked.tar, arrangement, layer.result, options.writer)


def siblings_of(source: str, destination: str) -> tuple[str, ...]:
    """Return the repository of *source* if *destination* is in the same registry.

    A registry can give a blob that one repository has to another, so that it is not sent.
    """
    host, _, repository = source.partition("/")
    is_same = destination.partition("/")[0] == host and not source.startswith("oci:")
    return (repository,) if is_same else ()


async def _push_layer(destination: Destination, layer: _Layer, siblings: Sequence[str]) -> None:
    assert layer.done is not None
    result = layer.done.result
    if await destination.has_blob(result):
        return
    if layer.done.is_copied:
        await destination.push_blob(result, layer.blob, mount_from=siblings)
    else:
        await destination.push_blob(result, layer.result)
