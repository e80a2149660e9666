"""Why a sandbox cannot have an image: errors of registry, store and mount as the snapshots' own.

The only place that translates them.  A reason that is none of these stays what it is: a layer that
is not eStargz, a full disk, a kernel without FUSE.
"""

from typing import Any

from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseUnavailable,
    NoSpace,
    PlatformMismatch,
    SnapshotError,
    TagUnresolvable,
    TemplateInvalid,
)
from lazyfs.documents.manifest import Image
from lazyfs.errors import (
    AccessDenied,
    LazyfsError,
    NotFound,
    Unavailable,
    UsageError,
    VerificationFailed,
)
from lazyfs.oci.platforms import NoPlatform
from lazyfs.store.paths import StoreFull
from lazyfs.trust.errors import TRUST_ERRORS


def reason_of(error: LazyfsError, image: str, *, is_tag: bool = False) -> LazyfsError:
    """Return the snapshots' error for *error*, met with *image*; *is_tag*: while asking its tag."""
    if isinstance(error, (SnapshotError, *TRUST_ERRORS)):
        return error  # it says all there is to say, whatever command the image was for
    message = f"image {image}: {error.message}"
    details = {"image": image, "code": error.code}
    family = _family(error, is_tag=is_tag)
    return error if family is None else family(message, hint=error.hint, details=details)


def _family(error: LazyfsError, *, is_tag: bool) -> type[SnapshotError] | None:
    if isinstance(error, UsageError):
        return TemplateInvalid
    if isinstance(error, NoPlatform):
        return PlatformMismatch
    if isinstance(error, VerificationFailed):
        return BaseCorrupt
    if isinstance(error, NotFound | AccessDenied | Unavailable):
        return TagUnresolvable if is_tag else BaseUnavailable
    return NoSpace if isinstance(error, StoreFull) else None


def unresolvable(image: str, why: str) -> TagUnresolvable:
    """Return the error for a tag that may not be asked for."""
    return TagUnresolvable(
        f"image {image}: its digest is not known: {why}",
        hint="--pull missing asks the registry",
        details={"image": image},
    )


def not_available(image: Image, answers: list[dict[str, Any]]) -> SnapshotError:
    """Return the error for a recorded image that no source has: BaseCorrupt where one lied."""
    is_corrupt = any(answer["corrupt"] for answer in answers)
    asked = "; ".join(f"{answer['source']}: {answer['answer']}" for answer in answers)
    family = BaseCorrupt if is_corrupt else BaseUnavailable
    return family(
        f"base image {image.manifest_digest} of {image.original_ref} (recorded "
        f"{image.resolved_at}) is not available: {asked}",
        hint="no other image takes its place: push that digest again, name a repository that "
        "has it, or use a snapshot with an embedded base",
        details={
            "container": image.name,
            "originalRef": image.original_ref,
            "manifestDigest": image.manifest_digest,
            "sources": answers,
        },
    )
