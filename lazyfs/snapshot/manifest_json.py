"""The JSON of ``snapshot-manifest.json``: read strictly, written in its canonical form.

Contract: docs/reference/snapshot-manifest.md.
"""

from typing import Any

import msgspec

from lazyfs.snapshot.documents import (
    Difference,
    canonical,
    cut,
    differences,
    make,
    parse_json,
    quote,
)
from lazyfs.snapshot.errors import ManifestInvalid, VersionUnsupported
from lazyfs.snapshot.manifest import (
    CHECKPOINT_NAME,
    KNOWN_CRITICAL,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    MEANINGS,
    VERSION,
    File,
    Manifest,
)
from lazyfs.snapshot.manifest_rules import faults


def decode_manifest(data: bytes, *, known: frozenset[str] = KNOWN_CRITICAL) -> Manifest:
    """Return the manifest in *data*; ``known`` are the critical extensions that are understood.

    Raises VersionUnsupported before it judges anything else, ManifestInvalid with the place.
    """
    if len(data) > MANIFEST_LIMIT:
        raise _invalid(f"got more than {MANIFEST_LIMIT} bytes, expected at most that")
    document = parse_json(data, _invalid)
    if not isinstance(document, dict):
        raise _invalid(f"document: got {quote(document)}, expected an object")
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
        raise _invalid(f"got what JSON cannot say: {exc}") from exc
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
        raise _invalid(f"version: got {quote(version)}, expected an integer")
    if version != VERSION:
        raise VersionUnsupported(
            f"{MANIFEST_NAME}: version: got {version}, expected {VERSION}",
            hint="a newer lazyfs made it" if version > VERSION else None,
            details={"found": version, "supported": [VERSION]},
        )


def _check_critical(critical: Any, known: frozenset[str]) -> None:
    if not isinstance(critical, list) or not all(isinstance(name, str) for name in critical):
        raise _invalid(f"critical: got {quote(critical)}, expected a list of names")
    if unknown := sorted(set(critical) - known):
        raise VersionUnsupported(
            f"{MANIFEST_NAME}: critical: got {cut(', '.join(map(quote, unknown)))},"
            f" expected {', '.join(sorted(known)) or 'no extension that must be understood'}",
            hint="a newer lazyfs made it",
            details={"unknown": unknown, "known": sorted(known)},
        )
