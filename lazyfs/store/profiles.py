"""Profiles on disk: which chunks of an image were read first, by manifest digest.

A profile is a hint.  One that is wrong, or forged, costs bandwidth and nothing else: what it names
is fetched and verified like everything.
"""

from pathlib import Path

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import FormatError
from lazyfs.store.content.regular import read_regular
from lazyfs.store.paths import Store, store_error

PROFILE_VERSION = 1
FILE_LIMIT = 16 << 20
CHUNK_LIMIT = 1 << 20
RANGE_LIMIT = 1 << 14
DIGEST_LIMIT = 1 << 16
DIGEST_DIGITS = 16
ALIKE = 32
"""So many profiles, the newest ones, are looked at for one of the same repository."""


class BadProfile(FormatError):
    """Bytes that are not a profile."""


class Profile(msgspec.Struct, frozen=True):
    """First accesses in order: pairs of a layer's place in ``layers`` and a chunk number.

    ``layers`` are TOC digests, bottom first; the chunk numbers are those of the layer tables that
    ``layout`` (the version of the device layout) makes of them.  ``ranges`` say where these chunks
    lie: (layer, start, end) of its blob in bytes, in the order in which they are best asked for.
    ``digests`` are the first DIGEST_DIGITS hexadecimal digits of the chunks' own, in the order of
    ``accesses``, and ``repository`` is where the image is from: by these other images of the
    repository find what they have in common with it.
    """

    manifest_digest: str
    layout: int
    layers: tuple[str, ...]
    accesses: tuple[tuple[int, int], ...]
    ranges: tuple[tuple[int, int, int], ...] = ()
    digests: tuple[str, ...] = ()
    repository: str = ""
    version: int = PROFILE_VERSION


class _Place(msgspec.Struct):
    """What tells whether the rest of a profile is worth decoding."""

    repository: str = ""


def encode_profile(profile: Profile) -> bytes:
    """Return the JSON form; the same for the same profile."""
    return msgspec.json.encode(profile) + b"\n"


def decode_profile(data: bytes) -> Profile:
    """Return the profile that *data* holds, or raise BadProfile."""
    if len(data) > FILE_LIMIT:
        raise BadProfile(f"profile: got {len(data)} bytes, expected at most {FILE_LIMIT}")
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadProfile(f"profile is not valid: {exc}") from exc
    if profile.version != PROFILE_VERSION:
        raise BadProfile(f"profile: got version {profile.version}, expected {PROFILE_VERSION}")
    longest = max(len(profile.accesses), len(profile.ranges), len(profile.digests))
    if longest > CHUNK_LIMIT:
        raise BadProfile(f"profile: got {longest} accesses, expected at most {CHUNK_LIMIT}")
    for layer, chunk in profile.accesses:
        if not 0 <= layer < len(profile.layers) or chunk < 0:
            raise BadProfile(
                f"profile: layer {layer}, chunk {chunk} is out of range; it has "
                f"{len(profile.layers)} layers"
            )
    for layer, start, end in profile.ranges:
        if not 0 <= layer < len(profile.layers) or not 0 <= start < end:
            raise BadProfile(
                f"profile: layer {layer}, bytes {start}-{end} is out of range; it has "
                f"{len(profile.layers)} layers"
            )
    return profile


def load_profile(store: Store, manifest_digest: Digest) -> Profile | None:
    """Return the stored profile of an image, or None; a broken one counts as none."""
    try:
        return decode_profile(read_regular(store.profile_path(manifest_digest)))
    except (OSError, BadProfile):
        return None


def load_alike(store: Store, repository: str) -> Profile | None:
    """Return the newest profile of an image of *repository*, or None."""
    found: list[tuple[float, Path]] = []
    for path in store.profiles.glob("*"):
        try:
            found.append((path.stat().st_mtime, path))
        except OSError:
            continue  # removed meanwhile
    for _, path in sorted(found, reverse=True)[:ALIKE]:
        try:
            data = read_regular(path)
            if msgspec.json.decode(data, type=_Place).repository == repository:
                return decode_profile(data)
        except (OSError, BadProfile, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return None


def remove_profile(store: Store, manifest_digest: Digest) -> bool:
    """Remove the profile of an image; False if there is none."""
    path = store.profile_path(manifest_digest)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise store_error(path, exc) from exc
    return True


def save_profile(store: Store, manifest_digest: Digest, profile: Profile) -> None:
    """Keep a profile; StoreFull or StoreUnusable when the store cannot."""
    path = store.profile_path(manifest_digest)
    store.make_folder(path.parent)
    store.write_file(path, encode_profile(profile))
