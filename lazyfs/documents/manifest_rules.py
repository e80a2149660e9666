"""What a snapshot's manifest must keep beyond its schema.

Each rule yields what is wrong as "PLACE: must be …, not …" or the like.  Contract: docs/reference/
snapshot-manifest.md, "Rules".
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec
from msgspec import UNSET

from lazyfs.documents.documents import quote
from lazyfs.documents.manifest import CHECKPOINT_NAME, MANIFEST_NAME, Container, Image, Manifest
from lazyfs.oci.platforms import normalise
from lazyfs.oci.reference import BadReference, Reference, parse_reference

# A machine of the first architecture also runs the others' programs.
SIBLINGS = {"amd64": {"386"}, "arm64": {"arm"}}


def faults(manifest: Manifest) -> Iterator[str]:
    """Yield what breaks a rule."""
    for rule in RULES:
        yield from rule(manifest)


def image_faults(image: Image, place: str) -> Iterator[str]:
    """Yield what one image's entry states that cannot be."""
    _, _, resolved = image.resolved_ref.rpartition("@")
    if resolved != image.manifest_digest:
        yield (
            f"{place}.resolvedRef: got digest {resolved}, expected {place}.manifestDigest:"
            f" {image.manifest_digest}"
        )
    try:
        parse_reference(image.resolved_ref)
    except BadReference as exc:
        yield f"{place}.resolvedRef: {exc.message}"
    for number, hint in enumerate(image.hints or ()):
        if not _is_in_a_registry(hint):
            # It is not shown: what is unfit may have a password in it.
            yield f"{place}.hints[{number}]: must be a repository of a registry"
    try:
        original = parse_reference(image.original_ref)
    except BadReference as exc:
        yield f"{place}.originalRef: {exc.message}"
        return
    digest = None if original.digest is None else str(original.digest)
    if image.pinned != (digest is not None):
        yield (
            f"{place}.pinned: got {quote(image.pinned)}, expected {quote(digest is not None)}"
            f" for {place}.originalRef {quote(image.original_ref)}"
        )
    if digest is not None and digest not in (image.index_digest, image.manifest_digest):
        yield (
            f"{place}.originalRef: got digest {digest}, expected indexDigest or manifestDigest:"
            f" {image.index_digest or '-'}, {image.manifest_digest}"
        )


def _is_in_a_registry(text: str) -> bool:
    """Say whether *text* names a repository over there: no hint reads files of this machine."""
    try:
        return isinstance(parse_reference(text), Reference)
    except BadReference:
        return False


def _complete(manifest: Manifest) -> Iterator[str]:
    """A full snapshot names its runtime (the schema's "if … then")."""
    if manifest.snapshot.scope == "full":
        for name in ("version", "platform", "overlay", "containers"):
            if getattr(manifest.runtime, name) is UNSET:
                yield f'runtime.{name}: missing; it is required where scope is "full"'


def _sets(manifest: Manifest) -> Iterator[str]:
    """Lists that are sets name nothing twice (the schema's "uniqueItems")."""
    yield from _twice("critical", "name", manifest.critical or ())
    yield from _twice("runtime.cpuFeatures", "name", manifest.runtime.cpu_features or ())


def _printable(manifest: Manifest) -> Iterator[str]:
    """Text has no characters in it that a terminal would obey, or that nobody sees (rule 9).

    What is in extensions is shown through ``printable`` only: arguments may have lines in them.
    """
    document = msgspec.to_builtins(manifest)
    waiting = [(key, value) for key, value in document.items() if key != "extensions"]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if not key.isprintable():
                    yield f"{place}: the key {quote(key)} is not printable text"
                waiting.append((f"{place}.{key}", inner))
        elif isinstance(value, list | tuple):
            waiting += [(f"{place}[{number}]", inner) for number, inner in enumerate(value)]
        elif isinstance(value, str) and not value.isprintable():
            yield f"{place}: must be printable text, not {quote(value)}"


def _times(manifest: Manifest) -> Iterator[str]:
    """Times are days that exist."""
    times = [("snapshot.createdAt", manifest.snapshot.created_at)]
    times += [(f"{place}.resolvedAt", image.resolved_at) for place, image in _images(manifest)]
    for place, text in times:
        try:
            year, month, day, hour, minute, second = map(int, re.split("[-T:]", text[:19]))
            datetime(year, month, day, hour, minute, second)
        except ValueError:
            yield f"{place}: {quote(text)} is not a time that exists"


def _unique(manifest: Manifest) -> Iterator[str]:
    """Names are unique; containers and images of a full snapshot belong together (rule 1)."""
    images = [image.name for image in manifest.images]
    containers = [each.name for each in _containers(manifest)]
    yield from _twice("images", "name", images)
    yield from _twice("files", "name", [file.name for file in manifest.files])
    yield from _twice("runtime.containers", "name", containers)
    if manifest.snapshot.scope == "full" and set(images) != set(containers):
        yield (
            f"runtime.containers: must be those of images ({', '.join(sorted(images))}),"
            f" not {', '.join(sorted(containers)) or 'none'}"
        )


def _references(manifest: Manifest) -> Iterator[str]:
    """What was typed, what it meant, and the digests say the same (rules 2 and 3)."""
    for place, image in _images(manifest):
        yield from image_faults(image, place)


def _platforms(manifest: Manifest) -> Iterator[str]:
    """All images are for one platform, which the runtime's machine can run (rule 4)."""
    first = manifest.images[0].platform
    machine = normalise(first.os, manifest.runtime.arch).architecture
    for place, image in _images(manifest):
        own = image.platform
        platform = normalise(own.os, own.architecture)
        if platform != normalise(first.os, first.architecture):
            yield (
                f"{place}.platform: got {own.os}/{own.architecture},"
                f" expected images[0]'s: {first.os}/{first.architecture}"
            )
        if platform.architecture not in {machine} | SIBLINGS.get(machine, set()):
            yield (
                f"{place}.platform.architecture: {quote(own.architecture)} cannot run on"
                f" runtime.arch {quote(manifest.runtime.arch)}"
            )


def _lineage(manifest: Manifest) -> Iterator[str]:
    """The first generation has no parent; one container stands for the sandbox (rule 5)."""
    snapshot = manifest.snapshot
    if (snapshot.generation == 1) != (snapshot.parent is None):
        expected = "null" if snapshot.generation == 1 else "a snapshot"
        got = "null" if snapshot.parent is None else snapshot.parent.id
        yield (
            f"snapshot.parent: must be {expected} for generation {snapshot.generation}, not {got}"
        )
    containers = _containers(manifest)
    roots = [each.name for each in containers if each.root is True]
    if containers and len(roots) != 1:
        yield (
            f"runtime.containers: {len(roots)} have root: true"
            f" ({', '.join(roots) or 'none'}); there must be exactly 1"
        )


def _stored_as_it_is(manifest: Manifest) -> Iterator[str]:
    """What is not compressed is stored as it is (rule 6)."""
    for place, file in ((f"files[{n}]", file) for n, file in enumerate(manifest.files)):
        if file.compression != "none":
            continue
        if file.stored_size != file.raw_size:
            yield f"{place}.storedSize: got {file.stored_size}, expected rawSize: {file.raw_size}"
        if file.stored_digest != file.raw_digest:
            yield (
                f"{place}.storedDigest: got {file.stored_digest},"
                f" expected rawDigest: {file.raw_digest}"
            )


def _objects(manifest: Manifest) -> Iterator[str]:
    """Files are in objects of their own, none of which is the manifest (rule 7)."""
    objects = [file.object for file in manifest.files]
    yield from _twice("files", "object", objects)
    if MANIFEST_NAME in objects:
        place = f"files[{objects.index(MANIFEST_NAME)}].object"
        yield f"{place}: the name {quote(MANIFEST_NAME)} is reserved"


def _checkpoint(manifest: Manifest) -> Iterator[str]:
    """A full snapshot has the file that every checkpoint has (rule 8)."""
    names = [file.name for file in manifest.files]
    if manifest.snapshot.scope == "full" and CHECKPOINT_NAME not in names:
        yield f"files: {CHECKPOINT_NAME} is missing; there is only {', '.join(sorted(names))}"


# What the schema says too; msgspec cannot.
SCHEMA_RULES = (_complete, _sets)
RULES = (
    *SCHEMA_RULES,
    _printable,
    _times,
    _unique,
    _references,
    _platforms,
    _lineage,
    _stored_as_it_is,
    _objects,
    _checkpoint,
)


def _images(manifest: Manifest) -> Iterator[tuple[str, Image]]:
    return ((f"images[{place}]", image) for place, image in enumerate(manifest.images))


def _containers(manifest: Manifest) -> tuple[Container, ...]:
    return manifest.runtime.containers or ()


def _twice(place: str, field: str, names: Iterable[str]) -> Iterator[str]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        yield f"{place}: the {field} {quote(twice[0])} appears more than once"
