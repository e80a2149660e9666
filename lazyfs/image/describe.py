"""What an image is, layer by layer: whether it can be mounted lazily, and if not, why.

Unlike ``prepare`` this does not stop at the first layer that cannot be; nothing but documents and
TOCs is fetched.
"""

import shutil
from typing import TYPE_CHECKING

import msgspec
import trio
from msgspec.structs import replace

from lazyfs.digest import Digest
from lazyfs.errors import FormatError, LazyfsError, NotFound, VerificationFailed
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.estargz import format_of
from lazyfs.formats.layers import TAIL_SIZE as FORMAT_TAIL_SIZE
from lazyfs.formats.layers import find_layer_toc
from lazyfs.formats.tocs.claims import Claims
from lazyfs.image.layers.budget import Budget
from lazyfs.image.layers.plain import PlainOptions, believed_of
from lazyfs.image.layers.plain_layers import known_layer
from lazyfs.image.layers.toc_image import NoTocImage
from lazyfs.image.layers.tocs import layer_claims, load_tocs, read_range, stored_toc
from lazyfs.image.prepare import Request, wanted_platform
from lazyfs.image.resolve import Resolver, check_platform
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.platforms import Platform
from lazyfs.oci.reference import parse_reference
from lazyfs.signatures.in_force import judge_of
from lazyfs.store.images import load_record
from lazyfs.store.paths import Store, StoreUnwritten, volatile_store
from lazyfs.trust.options import TrustRecord

if TYPE_CHECKING:
    from lazyfs.signatures.judge import Judge


class DescribedLayer(msgspec.Struct, frozen=True):
    """One layer.  ``why`` says why it cannot be mounted lazily, None if it can.

    ``format`` is a name of ``format_of``, ``dialect`` tells two of one format apart.
    ``toc_digest`` is what the manifest promises, or else that of a TOC which the blob's digest
    vouches for.  ``verified_by`` says what does: ``toc``, ``compressed-toc``, ``blob``, ``pass`` or
    ``index``.  ``is_plain``: a mount fetches all of it first where it is not lazy.
    ``has_tar_split``: the uncompressed layer can be built again, and its diffID checked.
    """

    descriptor: Descriptor
    diff_id: Digest
    format: str
    dialect: str | None = None
    toc_digest: Digest | None = None
    verified_by: tuple[str, ...] = ()
    has_tar_split: bool = False
    why: str | None = "not looked at"
    is_plain: bool = False


class DescribedImage(msgspec.Struct, frozen=True):
    """An image's identity and its layers, bottom first."""

    requested: str
    resolved: str
    index_digest: Digest | None
    manifest_digest: Digest
    config_digest: Digest
    platform: Platform
    layers: tuple[DescribedLayer, ...]
    trust: TrustRecord | None = None
    distrust: LazyfsError | None = None


async def describe(request: Request) -> DescribedImage:
    """Resolve *request* and look at the end of each layer.

    Raises what resolving raises, AccessDenied and Unavailable; what is wrong with one layer is in
    the result.
    """
    try:
        return await _describe(request, Store(request.cache_dir))
    except StoreUnwritten:
        store = volatile_store()
    try:
        return await _describe(request, store)
    finally:
        shutil.rmtree(store.root, ignore_errors=True)


async def _describe(request: Request, store: Store) -> DescribedImage:
    reference = parse_reference(request.reference)
    judge = judge_of(request.access)
    origin = Origin(reference, request.access)
    try:
        resolver = Resolver(store, origin)
        wanted = wanted_platform(request.platform)
        resolved = await resolver.resolve(reference.identifier, wanted)
        manifest, digest = resolved.manifest, resolved.document.digest
        config = await resolver.config(manifest)
        is_asked_for = request.platform is not None
        check_platform(config.platform, wanted, request.reference, is_asked_for=is_asked_for)
        record = load_record(store.image_path(digest))
        before = believed_of(() if record is None else record.layers)
        options = replace(request.plain, believed=request.plain.believed | before)
        layers: list[DescribedLayer | None] = [None] * len(manifest.layers)
        errors: list[LazyfsError] = []

        async def look(number: int, layer: Descriptor, diff_id: Digest) -> None:
            try:
                layers[number] = await _describe_layer(
                    store, origin, layer, diff_id, request.verify, options
                )
            except LazyfsError as exc:
                errors.append(exc)

        verdicts: list[TrustRecord | LazyfsError] = []

        async def ask(judge: "Judge") -> None:
            try:
                subjects = await resolver.signable(resolved, None)
                verdicts.append(await judge.image(store, origin, subjects, is_image=True))
            except LazyfsError as exc:
                verdicts.append(exc)

        async with trio.open_nursery() as nursery:
            if judge is not None:
                nursery.start_soon(ask, judge)
            pairs = zip(manifest.layers, config.diff_ids, strict=True)
            for number, (layer, diff_id) in enumerate(pairs):
                nursery.start_soon(look, number, layer, diff_id)
        if errors:
            raise errors[0]
        return DescribedImage(
            requested=request.reference,
            resolved=f"{origin.repository}@{digest}",
            index_digest=resolved.index_digest,
            manifest_digest=digest,
            config_digest=manifest.config.digest,
            platform=config.platform,
            layers=tuple(layer for layer in layers if layer is not None),
            trust=next((each for each in verdicts if isinstance(each, TrustRecord)), None),
            distrust=next((each for each in verdicts if isinstance(each, LazyfsError)), None),
        )
    finally:
        await origin.aclose()


async def _describe_layer(
    store: Store,
    origin: Origin,
    layer: Descriptor,
    diff_id: Digest,
    verify: str,
    options: PlainOptions,
) -> DescribedLayer:
    described = DescribedLayer(layer, diff_id, "unknown")
    try:
        claims = layer_claims(layer, "blob")  # what they do not claim is said below
        described = replace(
            described,
            toc_digest=claims.key,
            verified_by=_vouchers(claims),
            has_tar_split=claims.tar_split is not None,
            is_plain=claims.key is None and verify != "blob",
        )
        if claims.key is None and verify != "blob":
            known = _known(store, described, options)
            if known is not None:
                return known
        stored = stored_toc(store, layer, claims, Budget(origin.environment))
        if stored is not None:
            return replace(
                described, format=stored.format.text, dialect=stored.format.dialect, why=None
            )
        start = max(0, layer.size - FORMAT_TAIL_SIZE)
        tail = await read_range(origin, layer, start, layer.size) if layer.size else b""
        described = replace(described, format=format_of(tail, layer.size, layer.media_type))
        found = find_layer_toc(tail, layer.size, claims, media_type=layer.media_type).format
        described = replace(described, format=found.text, dialect=found.dialect)
        layer_claims(layer, verify)
        (loaded,) = await load_tocs(store, origin, [layer], verify=verify)
        return replace(
            described,
            why=None,
            toc_digest=loaded.toc.digest,
            verified_by=described.verified_by or ("blob",),
        )
    except NoTocImage as exc:  # a mount takes it as a plain one
        known = _known(store, described, options)
        return known or replace(described, why=_why(layer, exc), is_plain=True)
    except (FormatError, VerificationFailed, NotFound) as exc:
        return replace(described, why=_why(layer, exc))


def _known(store: Store, described: DescribedLayer, options: PlainOptions) -> DescribedLayer | None:
    """Return what an earlier pass, or a pinned index, has made of a layer; None without one."""
    known = known_layer(store, described.descriptor, described.diff_id, options)
    if known is None:
        return None
    return replace(
        described,
        format=known.format.text,
        toc_digest=known.toc.digest,
        verified_by=(known.verified_by,),
        why=None,
    )


def _why(layer: Descriptor, exc: LazyfsError) -> str:
    return exc.message.removeprefix(f"layer {layer.digest}: ").removeprefix("layer: ")


def _vouchers(claims: Claims) -> tuple[str, ...]:
    """Return what the manifest states of a TOC: a digest of its JSON, of its frame, or both."""
    stated = {"toc": claims.toc_digest, "compressed-toc": claims.checksum}
    return tuple(name for name, digest in stated.items() if digest is not None)
