"""What lazyfs adds to a manifest beyond its fields: none of it critical.

    template    what was run, its canonical form without values of the environment
    profiles    manifest digest → what was read first: zstd in base64, as lazyfs profile export
                writes it; bounded, what was read last is left out first
    specs       container → what must be the same of its config.json at a restore
    golden      a golden snapshot's name, its number, and the id of the one before
    trust       manifest digest → what the policy of the machine that took the snapshot said of the
                image; for people and audits: who restores judges by a policy of their own

A reader that does not know them restores all the same.  What cannot be read of profiles and of a
golden snapshot's name is left out; specs decide how processes are started, and are refused where
they are unfit.  Pure: bytes and values.
"""

import base64
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import msgspec
import zstandard

from lazyfs.documents.documents import make, quote
from lazyfs.documents.errors import ManifestInvalid
from lazyfs.documents.manifest import MANIFEST_NAME
from lazyfs.store.profiles import FILE_LIMIT, BadProfile, decode_profile, encode_profile

TEMPLATE = "template"
SPECS = "specs"
PROFILES = "profiles"
GOLDEN = "golden"
TRUST = "trust"
TRUST_PREFIX = "user.lazyfs.trust"
PROFILES_SIZE = 384 << 10  # bytes of a manifest, which has 1 MiB, for all profiles together
LEVEL = 9
WINDOW = 1 << 24  # bytes that a reader needs at most; those of LEVEL fit


class _Named(msgspec.Struct):
    """What has a name, and more that is only compared."""

    name: str


class _Placed(msgspec.Struct):
    path: str


class _Variables(msgspec.Struct):
    env: list[_Named] | None = None


class _WithVariables(msgspec.Struct):
    """The shape of a template, as far as it is gone through for values."""

    containers: list[_Variables] | None = None


class _Facts(msgspec.Struct, rename="camel"):
    """The shape of what ``spec_facts`` returns.

    Earlier releases lack some, later ones may have more: those are compared and nothing else.
    """

    args: list[str] = []
    cwd: str = ""
    user: dict[str, Any] = {}
    capabilities: dict[str, list[str]] = {}
    rlimits: list[dict[str, Any]] = []
    read_only_root: bool = False
    mounts: list[_Named] = []
    devices: list[_Placed] = []
    namespaces: list[str] = []
    annotations: dict[str, str] = {}
    no_new_privileges: bool = False


def trust_of(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return what a mount's attributes say of the verdict on its image; empty without one."""
    names = {
        "": "verdict",
        ".policy": "policy",
        ".level": "level",
        ".signer": "signer",
        ".signature": "signature",
        ".signed-at": "signedAt",
        ".judged-at": "judgedAt",
    }
    return {
        name: attributes[TRUST_PREFIX + suffix]
        for suffix, name in names.items()
        if TRUST_PREFIX + suffix in attributes
    }


def pack_profiles(profiles: Mapping[str, bytes], limit: int = PROFILES_SIZE) -> dict[str, str]:
    """Return the extension's value: manifest digest → text, all texts within *limit* bytes.

    *profiles* are as ``Bases.profile`` gives them; what is no profile is left out.
    """
    share = limit // max(len(profiles), 1)
    packed = {}
    for digest, data in sorted(profiles.items()):
        text = _pack(data, share)
        if text is not None:
            packed[digest] = text
    return packed


def _pack(data: bytes, limit: int) -> str | None:
    try:
        profile = decode_profile(data)
    except BadProfile:
        return None
    while profile.accesses:
        plain = encode_profile(profile)
        text = base64.b64encode(zstandard.ZstdCompressor(level=LEVEL).compress(plain)).decode()
        if len(text) <= limit:
            return text
        kept = min(len(profile.accesses) - 1, len(profile.accesses) * limit // len(text))
        profile = msgspec.structs.replace(profile, accesses=profile.accesses[:kept])
    return None


def unpack_profiles(extensions: Mapping[str, Any], digests: Collection[str]) -> dict[str, bytes]:
    """Return manifest digest → profile, of those of *digests* only: each may become 16 MiB.

    What cannot be read is left out, as a hint may be.
    """
    found = extensions.get(PROFILES)
    if not isinstance(found, dict):
        return {}
    profiles = {}
    for digest in digests:
        text: Any = found.get(digest)
        try:
            packed = base64.b64decode(text, validate=True)
            with zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(packed) as stream:
                data = stream.read(FILE_LIMIT + 1)
            decode_profile(data)
        except (ValueError, TypeError, zstandard.ZstdError, BadProfile):
            continue
        profiles[digest] = data
    return profiles


def template_of(extensions: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the document of the template that was run, or None."""
    found = extensions.get(TEMPLATE)
    return found if isinstance(found, dict) else None


def specs_of(extensions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return container → what its spec was, as far as it is there; each as ``spec_facts`` does.

    Raises ManifestInvalid where it cannot be that: containers would be started by it.
    """
    found = extensions.get(SPECS, {})
    if not isinstance(found, dict):
        raise _unfit(f"must be an object, not {quote(found)}")
    for name, facts in found.items():
        place = quote(name)
        if isinstance(facts, dict) and "process" in facts:  # a config.json, and not facts of one
            raise _unfit(f"{place}: the field process is not a fact")
        make(_Facts, facts, partial(_unfit_at, place), {})
    return dict(found)


def _unfit_at(place: str, text: str) -> ManifestInvalid:
    return _unfit(f"{place}: {text}")


def _unfit(text: str) -> ManifestInvalid:
    return ManifestInvalid(f"{MANIFEST_NAME}: extensions.{SPECS}: {text}")


def without_values(template: dict[str, Any]) -> dict[str, Any]:
    """Return a template's document with an environment of names only: values are secrets.

    Raises msgspec.ValidationError for what is no template's document.

    It is a template still: each value is empty.  Processes that are restored have the values that
    they were started with in their memory.
    """
    msgspec.convert(template, _WithVariables)
    containers = []
    for container in template.get("containers") or ():
        env = [{"name": each["name"], "value": ""} for each in container.get("env") or ()]
        rest = {key: value for key, value in container.items() if key != "env"}
        containers.append(rest | ({"env": env} if env else {}))
    return template | {"containers": containers}
