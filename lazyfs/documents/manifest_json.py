"""The JSON of ``snapshot-manifest.json``: read strictly, written in its canonical form.

Contract: docs/reference/snapshot-manifest.md.
"""

from typing import Any

import msgspec

from lazyfs.documents.documents import (
    Difference,
    canonical,
    cut,
    differences,
    make,
    parse_json,
    quote,
)
from lazyfs.documents.errors import ManifestInvalid, VersionUnsupported
from lazyfs.documents.manifest import (
    CHECKPOINT_NAME,
    KNOWN_CRITICAL,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    MEANINGS,
    VERSION,
    File,
    Manifest,
)
from lazyfs.documents.manifest_rules import faults


def decode_manifest(data: bytes, *, known: frozenset[str] = KNOWN_CRITICAL) -> Manifest:
    """Return the manifest in *data*; ``known`` are the critical extensions that are understood.

    Raises VersionUnsupported before it judges anything else, ManifestInvalid with the place.
    """
    if len(data) > MANIFEST_LIMIT:
        raise _invalid(f"longer than {MANIFEST_LIMIT} bytes")
    document = parse_json(data, _invalid)
    if not isinstance(document, dict):
        raise _invalid(f"document: must be an object, not {quote(document)}")
    _check_version(document.get("version"))
    _check_critical(document.get("critical", []), known)
    manifest = make(Manifest, document, _invalid, MEANINGS)
    for fault in faults(manifest):
        raise _invalid(cut(fault))
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical form, images and files by name.  Raises ManifestInvalid."""
    document = document_of(manifest)
    for key in ("images", "files"):
        document[key] = sorted(document[key], key=lambda part: str(part["name"]))
    try:
        data = canonical(document)
    except (TypeError, ValueError, RecursionError) as exc:
        raise _invalid(f"cannot be written as JSON: {exc}") from exc
    decode_manifest(data, known=frozenset(document.get("critical", ())))
    return data


def check_unfinished(manifest: Manifest) -> None:
    """Raise ManifestInvalid for what is wrong whatever files there will be.

    To be asked before a sandbox is saved and ends: afterwards nothing could be mended.
    """
    digest = f"sha256:{'0' * 64}"
    empty = File(CHECKPOINT_NAME, CHECKPOINT_NAME, "none", 0, digest, 0, digest)
    encode_manifest(msgspec.structs.replace(manifest, files=(empty,)))


def diff_manifests(was: Manifest, now: Manifest) -> tuple[Difference, ...]:
    """Return what differs, images, containers and files told apart by their names."""
    return tuple(differences(document_of(was), document_of(now)))


def document_of(part: msgspec.Struct) -> Any:
    """Return a part's JSON form as JSON's types."""
    return msgspec.to_builtins(part)


def _invalid(text: str) -> ManifestInvalid:
    return ManifestInvalid(f"{MANIFEST_NAME}: {text}")


def _check_version(version: Any) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise _invalid(f"version: must be an integer, not {quote(version)}")
    if version != VERSION:
        raise VersionUnsupported(
            f"{MANIFEST_NAME}: version: got {version}, expected {VERSION}",
            hint="a newer lazyfs wrote it" if version > VERSION else None,
            details={"found": version, "supported": [VERSION]},
        )


def _check_critical(critical: Any, known: frozenset[str]) -> None:
    if not isinstance(critical, list) or not all(isinstance(name, str) for name in critical):
        raise _invalid(f"critical: must be a list of names, not {quote(critical)}")
    if unknown := sorted(set(critical) - known):
        raise VersionUnsupported(
            f"{MANIFEST_NAME}: critical: unknown extensions {cut(', '.join(map(quote, unknown)))};"
            f" this release knows {', '.join(sorted(known)) or 'none'}",
            hint="a newer lazyfs wrote it",
            details={"unknown": unknown, "known": sorted(known)},
        )
