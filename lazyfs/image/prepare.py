"""Everything about an image that needs the network once: resolve, fetch TOCs, build the index.

Afterwards the store has all that a mount needs to be live; no content has been fetched.
"""

import logging
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import LazyfsError, StoreError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.image.build import Foresee, ImageBuilder
from lazyfs.image.known import note_name
from lazyfs.image.layers.plain import INDEX, PASS, PlainOptions, believed_of, check_image
from lazyfs.image.offline import last_known
from lazyfs.image.resolve import Resolved, Resolver, check_platform
from lazyfs.image.together import run_all
from lazyfs.oci.platforms import Platform, parse_platform, platform_of_machine
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference
from lazyfs.registry.source import AccessOptions
from lazyfs.signatures.in_force import judge_of
from lazyfs.store.images import ImageRecord, LayerRecord, StoredImage, load_image, load_record
from lazyfs.store.layers import load_table
from lazyfs.store.passes import is_lost_as_empty, load_pass
from lazyfs.store.paths import Store, StoreFull, StoreUnwritten, open_store, volatile_store
from lazyfs.store.scratch import sweep
from lazyfs.store.spans import can_be_had
from lazyfs.trust.options import TrustRecord

if TYPE_CHECKING:
    from lazyfs.signatures.judge import Judge

log = logging.getLogger(__name__)

CONNECTIONS = 2
"""Besides the one that the manifest comes by: for the tails of that many layers more."""

JUDGING_CONNECTIONS = 2
"""Those that looking for signatures takes: for referrers, and for cosign's tag."""

GRACE_SECONDS = 0.02
"""How long these are waited for once the manifest is here: it takes as long as they do."""


class Request(msgspec.Struct, frozen=True):
    """What to mount.

    *platform* None means this machine's; *verify* is "toc" or "blob"; *plain* is for layers
    without a TOC.  *index_digest* is of the index that led to the image when it was first mounted:
    it may be what is signed.  *judged_as* is the reference that policies are about, and where
    signatures are looked for, if the image comes from elsewhere.
    """

    reference: str
    platform: str | None
    cache_dir: Path
    access: AccessOptions
    verify: str = "toc"
    plain: PlainOptions = msgspec.field(default_factory=PlainOptions)
    index_digest: str | None = None
    judged_as: str | None = None


class Prepared(msgspec.Struct, frozen=True):
    """An image that is ready to be opened; travels between processes as JSON.

    ``source`` is "registry", "layout" or, when no request was needed, "cache".
    ``resolved_at`` is RFC 3339, UTC.  ``is_volatile``: the disk takes nothing (``trouble``),
    ``store_dir`` is a folder in memory that whoever opens the image removes, and no content is
    stored.
    ``original`` is what the user wrote where somebody else asked for the mount, by digest.
    ``requests`` and ``received_size``, in bytes, are what this took, full passes among it.
    ``trust`` is what a policy made of it, None where none is in force.
    """

    requested: str
    resolved: str
    index_digest: str | None
    image: ImageRecord
    source: str
    resolved_at: str
    store_dir: str
    is_volatile: bool = False
    original: str | None = None
    requests: int = 0
    received_size: int = 0
    trouble: str = ""
    trust: TrustRecord | None = None

    @property
    def wanted(self) -> str:
        """The user's own words."""
        return self.requested if self.original is None else self.original

    def encode(self) -> bytes:
        """Return the JSON form."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(data: bytes) -> "Prepared":
        """Return what ``encode`` made of it."""
        return msgspec.json.decode(data, type=Prepared)


async def prepare(
    request: Request,
    on_resolved: Callable[[str], None] = lambda name: None,
    foresee: Foresee = lambda foreseen: None,
) -> Prepared:
    """Resolve *request* and see that the store holds the image's rootfs index.

    One request for a manifest (two with an index), then the config and the tails of all layers in
    parallel; none for a digest that the store knows.  *on_resolved* is told what to call the image
    once its name is resolved: what fails afterwards is no matter of the name.  *foresee* is told of
    an image that is not here as soon as its manifest is.
    """
    try:
        store = Store(request.cache_dir)
        sweep(store)
        return await _prepare(request, store, on_resolved, foresee, is_volatile=False)
    except StoreUnwritten as exc:
        log.warning("%s; the image is served without being stored", exc.message)
        trouble = exc
    try:
        store = volatile_store()
        try:
            prepared = await _prepare(request, store, on_resolved, foresee, is_volatile=True)
            return msgspec.structs.replace(prepared, trouble=trouble.message)
        except BaseException:
            shutil.rmtree(store.root, ignore_errors=True)
            raise
    except StoreFull as exc:
        why, hint = f"and {trouble.message}", trouble.hint
        if isinstance(trouble, StoreFull):
            why = f"nor is there space at {request.cache_dir}"
            hint = "`lazyfs cache prune --cache-size 0` gives back what is not in use"
        raise StoreFull(f"{exc.message}, {why}", hint=hint) from exc


async def _prepare(
    request: Request,
    store: Store,
    on_resolved: Callable[[str], None],
    foresee: Foresee,
    *,
    is_volatile: bool,
) -> Prepared:
    reference = parse_reference(request.reference)
    judge = judge_of(request.access)
    origin = Origin(reference, request.access)
    try:
        resolver = Resolver(store, origin)
        connections = CONNECTIONS + (0 if judge is None else JUDGING_CONNECTIONS)
        resolved = await _resolved(request, store, origin, resolver, connections)
        manifest, digest = resolved.manifest, resolved.document.digest
        on_resolved(f"{origin.repository}@{digest}")
        check_image(manifest.layers)  # also of an image that an older lazyfs has prepared
        records: list[ImageRecord] = []
        verdicts: list[TrustRecord] = []

        async def build() -> None:
            stored = load_image(store, digest)
            if stored is not None and _has_layers(store, stored, request.plain.pinned):
                records.append(stored.record)
                return
            builder = ImageBuilder(
                reference=request.reference,
                verify=request.verify,
                plain=_with_believed(request.plain, load_record(store.image_path(digest))),
                store=store,
                is_volatile=is_volatile,
                origin=origin,
                resolver=resolver,
                foresee=foresee,
                judge=judge,
            )
            records.append(await builder.build(manifest, digest))

        async def ask(judge: "Judge") -> None:
            verdicts.append(await _judged(judge, request, store, origin, resolver, resolved))

        await run_all(build, *([] if judge is None else [partial(ask, judge)]))
        (record,) = records
        check_platform(
            parse_platform(record.platform),
            wanted_platform(request.platform),
            request.reference,
            is_asked_for=request.platform is not None,
        )
        index_digest = None if resolved.index_digest is None else str(resolved.index_digest)
        if not is_volatile:
            _note_name(store, reference, record, index_digest)
        return Prepared(
            requested=request.reference,
            resolved=f"{origin.repository}@{digest}",
            index_digest=index_digest,
            image=record,
            source=origin.kind if origin.is_open else "cache",
            resolved_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            store_dir=str(store.root),
            is_volatile=is_volatile,
            requests=origin.statistics.requests,
            received_size=origin.statistics.received_size,
            trust=verdicts[0] if verdicts else None,
        )
    finally:
        await origin.aclose()


async def _judged(
    judge: "Judge",
    request: Request,
    store: Store,
    origin: Origin,
    resolver: Resolver,
    resolved: Resolved,
) -> TrustRecord:
    """Return what the policies make of an image; raises what refuses it."""
    subjects = await resolver.signable(resolved, request.index_digest)
    # A store in memory has seen nothing before, not even how new the newest signature was.
    store = open_store(request.cache_dir) or store
    if request.judged_as is None:
        return await judge.image(store, origin, subjects, is_image=True)
    named = Origin(parse_reference(request.judged_as), request.access)
    try:
        return await judge.image(store, named, subjects, is_image=True)
    finally:
        await named.aclose()


async def _resolved(
    request: Request, store: Store, origin: Origin, resolver: Resolver, connections: int
) -> Resolved:
    """Resolve the request; meanwhile connect for what is asked for then, side by side.

    Not where a tag is known: it will mean what it meant, mostly, and nothing more is asked for.
    """
    reference = origin.reference
    platform = wanted_platform(request.platform)
    is_new = isinstance(reference, Reference) and reference.digest is None
    if not is_new or origin.is_offline or last_known(store, reference, platform) is not None:
        return await resolver.resolve(reference.identifier, platform)
    error: LazyfsError | None = None
    resolved: Resolved | None = None
    connected = trio.Event()

    async def connect() -> None:
        await origin.source.connect(connections)
        connected.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        try:
            resolved = await resolver.resolve(reference.identifier, platform)
            with trio.move_on_after(GRACE_SECONDS):
                await connected.wait()
        except LazyfsError as exc:
            error = exc  # raised below: the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if resolved is None:
        assert error is not None
        raise error
    return resolved


def _with_believed(plain: PlainOptions, record: ImageRecord | None) -> PlainOptions:
    """Return *plain* so that the indexes are believed by which the image was made before."""
    before = believed_of(() if record is None else record.layers)
    return msgspec.structs.replace(plain, believed=plain.believed | before)


def _note_name(
    store: Store,
    reference: Reference | LayoutReference,
    record: ImageRecord,
    index_digest: str | None,
) -> None:
    try:
        note_name(store, reference, record, index_digest)
    except StoreError as exc:
        log.debug("%s", exc.message)  # a name for people: the digests count


def wanted_platform(text: str | None) -> Platform:
    """Return the platform that *text* spells, or this machine's."""
    machine = os.uname()
    host = platform_of_machine(machine.sysname, machine.machine)
    return host if text is None else parse_platform(text, host=host)


def _has_layers(store: Store, stored: StoredImage, pinned: Digest | None) -> bool:
    """Say whether the layers' tables are there and sound, and all content can be had by them.

    An image without them is built again, and so is one of which another index is to be used.
    """
    layers, devices = stored.record.layers, stored.index.devices
    return len(layers) == len(devices) and all(
        _has_layer(store, layer, device.size, pinned)
        for layer, device in zip(layers, devices, strict=True)
    )


def _has_layer(store: Store, layer: LayerRecord, size: int, pinned: Digest | None) -> bool:
    digest = parse_digest(layer.toc_digest)
    table = load_table(store, digest)
    if table is None or table.device_size != size:
        return False
    if layer.verified_by not in (PASS, INDEX):
        return True
    if pinned is not None:
        known = load_pass(store, parse_digest(layer.digest))
        if known is None or (known.index_digest, known.toc_digest) != (str(pinned), str(digest)):
            return False
    return can_be_had(store, digest) and not is_lost_as_empty(store, parse_digest(layer.digest))
