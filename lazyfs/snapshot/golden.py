"""Golden snapshots: built from a template once, for many sandboxes to start from.

    Pending → Resolving → Booting → Warming → Checkpointing → Ready     or Failed, for good

Each build is a fresh run: tags are resolved again, unless locked, and changes are reported.
A build is a generation; earlier ones are kept, and sandboxes started from them are not touched.
``golden-NAME`` is the pointer to the newest.  A build that fails is tried a few times, with growing
pauses, and then stays failed: none of its processes are left, and it is not tried again.
"""

import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lazyfs.documents.journal import Failure, SandboxBroken
from lazyfs.documents.manifest import Image, Manifest
from lazyfs.documents.own import read_own
from lazyfs.documents.template import TEMPLATE_NAME, Template
from lazyfs.errors import LazyfsError, NotFound, UsageError
from lazyfs.sandbox.sandbox import Sandbox, utc_now, write_durably
from lazyfs.snapshot import checkpoint as checkpoints
from lazyfs.snapshot.extensions import GOLDEN
from lazyfs.snapshot.publish import Made, check_writable
from lazyfs.snapshot.stores.keys import ID_RE, check_pointer
from lazyfs.snapshot.stores.snapshots import Snapshots, new_id

ROLE = "golden"
PREFIX = "golden-"
ATTEMPTS = 5
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each that follows
NUMBER_LIMIT = 1 << 31  # of a generation: one more can always be counted
STATUS_LIMIT = 1 << 20  # bytes


class State(StrEnum):
    """What a build is doing, or has come to."""

    PENDING = "Pending"
    RESOLVING = "Resolving"
    BOOTING = "Booting"
    WARMING = "Warming"
    CHECKPOINTING = "Checkpointing"
    READY = "Ready"
    FAILED = "Failed"


class NoGolden(NotFound):
    """No golden snapshot of that name was built."""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """A golden snapshot's newest build on this machine."""

    name: str
    store: str
    state: State
    template_digest: str
    attempts: int
    updated_at: str
    snapshot: str | None = None
    previous: str | None = None
    error: Failure | None = None


class Generation(msgspec.Struct, frozen=True):
    """A golden snapshot in a store; ``number`` counts them, ``previous`` is the one before."""

    id: str
    name: str
    number: int
    created_at: str
    previous: str | None
    images: tuple[Image, ...]


class Start(Protocol):
    """Starts a sandbox afresh; it runs, and is ready, when this returns."""

    def __call__(
        self, template: Template, sandbox_id: str, entered: Callable[[State], None]
    ) -> Sandbox:
        """Return it; *entered* is told of Booting.  What fails leaves what ``remove`` frees."""
        ...


class Tools(msgspec.Struct, frozen=True):
    """What a build works with; ``folder`` keeps the status of builds, ``sleep`` takes seconds."""

    start: Start
    remove: Callable[[str], None]
    checkpoint: checkpoints.Tools
    folder: Path
    say: Callable[[str], None]
    sleep: Callable[[float], None]


class Order(msgspec.Struct, frozen=True):
    """What is to be built, and where it goes; ``warm_seconds`` lie between ready and saved."""

    template: Template
    store: str
    s3_endpoint: str | None = None
    warm_seconds: float = 0.0
    compress: str = "zstd"
    attempts: int = ATTEMPTS


def build(order: Order, tools: Tools) -> Made:
    """Build a golden snapshot, and have its pointer name it; raise why it stays Failed."""
    name = order.template.name
    check_pointer(pointer_of(name))
    objects = tools.checkpoint.objects(order.store, order.s3_endpoint)
    before = newest(Snapshots(objects), name)
    check_writable(objects, new_id())  # or it would be tried again and again
    status = Status(
        name=name,
        store=objects.url,
        state=State.PENDING,
        template_digest=order.template.digest,
        attempts=0,
        updated_at=utc_now(),
        previous=None if before is None else before.id,
    )
    pause = PAUSE_SECONDS
    while True:
        status = _step(tools, status, State.RESOLVING, attempts=status.attempts + 1)
        try:
            made = _attempt(order, tools, status, before)
        except LazyfsError as error:
            failure = Failure(code=error.code, message=error.message)
            is_last = status.attempts >= order.attempts or isinstance(error, UsageError)
            state = State.FAILED if is_last else State.PENDING
            status = _step(tools, status, state, error=failure)
            if is_last:
                raise
            tools.say(f"{name}: attempt {status.attempts} of {order.attempts}: {error.message}")
            tools.sleep(pause)
            pause *= 2
            continue
        _step(tools, status, State.READY, snapshot=made.id, error=None)
        for line in moved(before, made.manifest):
            tools.say(line)
        return made


def _attempt(order: Order, tools: Tools, status: Status, before: Generation | None) -> Made:
    """Run the template, save it, and let go of the sandbox, whatever happens."""
    sandbox_id = f"golden-{new_id()[-8:]}"

    def entered(state: State) -> None:
        _step(tools, status, state)

    try:
        sandbox = tools.start(order.template, sandbox_id, entered)
        if order.warm_seconds:
            entered(State.WARMING)
            tools.sleep(order.warm_seconds)
        entered(State.CHECKPOINTING)
        number = 1 if before is None else before.number + 1
        previous = None if before is None else before.id
        extension = {"name": status.name, "number": number, "previous": previous}
        wanted = checkpoints.Order(
            store=order.store,
            s3_endpoint=order.s3_endpoint,
            pointer=pointer_of(status.name),
            compress=order.compress,
            role=ROLE,
            extensions={GOLDEN: extension},
        )
        return checkpoints.checkpoint(sandbox, wanted, tools.checkpoint)
    finally:
        tools.remove(sandbox_id)


def pointer_of(name: str) -> str:
    """Return the pointer that names the newest golden snapshot *name*."""
    return f"{PREFIX}{name}"


def newest(snapshots: Snapshots, name: str) -> Generation | None:
    """Return the golden snapshot that the pointer names, None if there is none."""
    if snapshots.pointer(pointer_of(name)) is None:
        return None
    return _generation(snapshots.load(f"@{pointer_of(name)}").manifest)


def generations(snapshots: Snapshots, name: str | None = None) -> list[Generation]:
    """Return the golden snapshots of a store, by name and number: clocks may be wrong."""
    found = []
    for snapshot_id in snapshots.ids():
        try:
            generation = _generation(snapshots.load(snapshot_id).manifest)
        except LazyfsError:
            continue  # one that cannot be read hides no other
        if generation is not None and name in (None, generation.name):
            found.append(generation)
    return sorted(found, key=lambda each: (each.name, each.number, each.id))


def _generation(manifest: Manifest) -> Generation | None:
    extension: Any = (manifest.extensions or {}).get(GOLDEN)
    snapshot = manifest.snapshot
    if snapshot.role != ROLE or not isinstance(extension, dict):
        return None
    name, number = extension.get("name"), extension.get("number")
    previous = extension.get("previous")
    if not isinstance(name, str) or re.match(TEMPLATE_NAME, name) is None:
        return None
    if type(number) is not int or not 0 < number < NUMBER_LIMIT:
        return None
    return Generation(
        id=snapshot.id,
        name=name,
        number=number,
        created_at=snapshot.created_at,
        previous=previous if isinstance(previous, str) and ID_RE.fullmatch(previous) else None,
        images=manifest.images,
    )


def moved(before: Generation | None, now: Manifest) -> Iterator[str]:
    """Yield a line for each container whose image is another one than a generation before."""
    old = {} if before is None else {image.name: image for image in before.images}
    for image in now.images:
        was = old.get(image.name)
        if was is None:
            yield f"{image.name}: {image.original_ref} → {image.manifest_digest}"
        elif was.manifest_digest != image.manifest_digest:
            have = {layer.digest for layer in was.layers}
            new = [layer for layer in image.layers if layer.digest not in have]
            kept = len(image.layers) - len(new)
            size = sum(layer.size for layer in new)
            yield (
                f"{image.name}: {image.original_ref}: {was.manifest_digest} → "
                f"{image.manifest_digest}; layers: {kept} kept, {len(was.layers) - kept} removed, "
                f"{len(new)} added ({size} bytes)"
            )


def _step(tools: Tools, status: Status, state: State, **changes: Any) -> Status:
    status = msgspec.structs.replace(status, state=state, updated_at=utc_now(), **changes)
    try:
        tools.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise SandboxBroken(f"{tools.folder}: {exc.strerror}") from exc
    write_durably(_path_of(tools.folder, status.name), msgspec.json.encode(status))
    return status


def load_status(folder: Path, name: str) -> Status:
    """Return the status of the newest build of *name* on this machine.  Raises NoGolden."""
    path = _path_of(folder, name)
    try:
        return msgspec.json.decode(read_own(path, STATUS_LIMIT), type=Status)
    except FileNotFoundError as exc:
        raise NoGolden(
            f"this machine has no golden build named {name}",
            hint="lazyfs golden list STORE lists those in a store",
        ) from exc
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise SandboxBroken(f"{path} is not a valid build status: {exc}") from exc


def _path_of(folder: Path, name: str) -> Path:
    return folder / f"{check_pointer(name)}.json"
