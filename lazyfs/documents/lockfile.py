"""Lock files: what the references of a template meant, for all platforms, to be used again.

JSON, sorted, without times: the same meanings make the same bytes.  Contract: docs/reference/
template.md, "Lock files".
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from lazyfs.documents.documents import make, parse_json, quote
from lazyfs.documents.durable import put_file
from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.manifest import MEANINGS, ImageDigest
from lazyfs.documents.template import Template
from lazyfs.documents.template_reading import decode_template, with_images
from lazyfs.documents.template_rules import reference_fault
from lazyfs.documents.yaml_documents import Scalar, scalars
from lazyfs.errors import UsageError
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference

VERSION = 1
KIND = "image-lock"
LOCK_LIMIT = 1 << 20  # bytes


class BadLock(UsageError):
    """A lock file cannot be read, or does not know an image."""

    code = "E_LOCK"


class LockedImage(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a reference meant: an index with the manifests of its platforms, or one manifest.

    ``manifests``: "linux/amd64" → digest.
    """

    repository: str
    index_digest: ImageDigest | None
    manifests: Annotated[dict[str, ImageDigest], Meta(min_length=1)]

    @property
    def digest(self) -> str:
        """What to pin to: the index, so that it stays good for every platform."""
        return self.index_digest or min(self.manifests.values())


class Lock(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A lock file: reference as typed → what it meant."""

    version: int
    kind: str
    images: dict[str, LockedImage]


def lock_of(images: Mapping[str, LockedImage]) -> Lock:
    """Return the lock of *images*: reference as typed → what it meant."""
    return Lock(VERSION, KIND, dict(images))


def encode_lock(lock: Lock) -> bytes:
    """Return the file's bytes: sorted, two blanks a level, a newline at the end."""
    document = msgspec.to_builtins(lock)
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def decode_lock(data: bytes, what: str = "lock file") -> Lock:
    """Return the lock in *data*, or raise BadLock."""

    def complain(text: str) -> BadLock:
        return BadLock(f"{what}: {text}")

    if len(data) > LOCK_LIMIT:
        raise complain(f"longer than {LOCK_LIMIT} bytes")
    document = parse_json(data, complain)
    for key, expected in (("version", VERSION), ("kind", KIND)):
        got = document.get(key) if isinstance(document, dict) else None
        if got != expected:
            raise complain(f"{key}: must be {quote(expected)}, not {quote(got)}")
    lock = make(Lock, document, complain, MEANINGS)
    for text, image in lock.images.items():
        if fault := reference_fault(text):
            raise complain(f"images: {fault}")
        if parse_reference(text).name != image.repository:
            raise complain(
                f"images.{quote(text)}.repository: must be {quote(parse_reference(text).name)},"
                f" not {quote(image.repository)}"
            )
        if image.index_digest is None and len(image.manifests) != 1:
            raise complain(
                f"images.{quote(text)}.manifests: {len(image.manifests)} manifests without an "
                "index;"
                " there can be only 1"
            )
    return lock


def load_lock(path: Path) -> Lock:
    """Return the lock in a file, or raise BadLock."""
    try:
        with open(path, "rb") as file:
            data = file.read(LOCK_LIMIT + 1)
    except OSError as exc:
        raise BadLock(f"lock file {path}: {exc.strerror or exc}") from exc
    return decode_lock(data, f"lock file {path}")


def save_lock(path: Path, lock: Lock) -> None:
    """Write *lock*: all of it or nothing.  Raises BadLock."""
    replace_file(path, encode_lock(lock))


def apply_lock(template: Template, lock: Lock) -> Template:
    """Return *template* with every reference pinned to what *lock* says.

    A reference with a digest stays as it is.  Raises BadLock for one that the lock does not know.
    """
    pinned = {}
    for name, text in template.images.items():
        if text in lock.images:
            pinned[name] = pin(text, lock.images[text].digest)
        elif parse_reference(text).digest is None:
            raise BadLock(
                f"lock file: {quote(text)} (container {name}) is not in it;"
                f" it has {', '.join(sorted(lock.images)) or 'no images'}",
                hint="lazyfs resolve TEMPLATE --lockfile FILE writes a new one",
            )
    return with_images(template, pinned)


def pin(text: str, digest: str) -> str:
    """Return a reference as typed with *digest* behind it; one that has a digest stays so."""
    parsed: Reference | LayoutReference = parse_reference(text)
    return text if parsed.digest is not None else f"{text}@{digest}"


def rewrite(text: str, pins: Mapping[str, str], *, what: str = "template") -> str:
    """Return a template's text with other references, and nothing else changed.

    *pins*: reference as typed → the new one.  Raises TemplateInvalid where one is written in a way
    that cannot be edited.
    """

    def complain(fault: str) -> TemplateInvalid:
        return TemplateInvalid(f"{what}: {fault}")

    before = decode_template(text.encode(), what=what)
    edits: dict[int, tuple[Scalar, str]] = {}
    for place, scalar in scalars(text, complain).items():
        if _is_image(place) and (new := pins.get(scalar.value, scalar.value)) != scalar.value:
            if scalar.style in ("|", ">"):
                raise complain(f"{place}: must be a reference on one line, not a block of text")
            edits[scalar.start] = (scalar, _spelled(new, scalar.style))
    for start, (scalar, spelled) in sorted(edits.items(), reverse=True):
        text = text[:start] + spelled + text[scalar.end :]
    wanted = {name: pins.get(ref, ref) for name, ref in before.images.items()}
    if decode_template(text.encode(), what=what) != with_images(before, wanted):
        raise complain("its references cannot be changed in place; write them as plain values")
    return text


def rewrite_file(path: Path, pins: Mapping[str, str]) -> bool:
    """Rewrite a template's references where it is; say whether anything changed."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise TemplateInvalid(f"template: {path}: {exc}") from exc
    changed = rewrite(text, pins, what=str(path))
    if changed == text:
        return False
    replace_file(path, changed.encode())
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Put *data* in the place of a file, with its mode; a link stays, its target changes."""
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
        put_file(target, data, partial, mode=mode)
    except OSError as exc:
        raise BadLock(f"{path}: {exc.strerror or exc}") from exc


def _is_image(place: str) -> bool:
    """Say whether a scalar's place is that of a reference."""
    place = place.removeprefix("spec.")
    if place == "pauseImage":
        return True
    return place.startswith("containers[") and place.endswith("].image")


def _spelled(text: str, style: str) -> str:
    if style == '"':
        return json.dumps(text, ensure_ascii=False)
    if style == "'":
        return "'" + text.replace("'", "''") + "'"
    return text


def names_of(template: Template) -> dict[str, list[str]]:
    """Return each reference with the containers that have it, the root one first."""
    found: dict[str, list[str]] = {}
    for name, text in template.images.items():
        found.setdefault(text, []).append(name)
    return found
