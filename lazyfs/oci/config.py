"""Image configs: the platform an image is for, and the diffIDs of its layers.

Spec: OCI image-spec, config.md.  Docker's config has the same fields.
"""

from typing import Any

import msgspec

from lazyfs.digest import BadDigest, Digest, parse_digest
from lazyfs.errors import FormatError
from lazyfs.json_keys import Names, check_keys
from lazyfs.oci.platforms import UNKNOWN, Platform, normalise

CONFIG_LIMIT = 8 << 20


CONFIG_KEYS: Names = {
    **dict.fromkeys(("architecture", "os", "os.version", "os.features", "variant")),
    **dict.fromkeys(("author", "created", "history")),
    "rootfs": dict.fromkeys(("type", "diff_ids")),
    "config": dict.fromkeys(
        (
            *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir"),
            *("Labels", "StopSignal"),
        )
    ),
}


class BadConfig(FormatError):
    """Bytes that are no image config."""

    code = "E_BAD_CONFIG"


class ImageConfig(msgspec.Struct, frozen=True):
    """An image config; ``raw`` is the whole document, as JSON's types.

    Where the document names no system or processor these are UNKNOWN.
    """

    os: str
    architecture: str
    variant: str
    diff_ids: tuple[Digest, ...]
    raw: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def platform(self) -> Platform:
        """The platform, normalised."""
        return normalise(self.os, self.architecture, self.variant)


class _RootFs(msgspec.Struct):
    type: str
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    rootfs: _RootFs
    os: str | None = None  # of the image-spec "REQUIRED"; data images lack it
    architecture: str | None = None
    variant: str | None = None


def decode_config(data: bytes) -> ImageConfig:
    """Return the image config in *data*, or raise BadConfig."""
    if len(data) > CONFIG_LIMIT:
        raise BadConfig(f"config: got {len(data)} bytes, expected at most {CONFIG_LIMIT}")
    try:
        config = msgspec.json.decode(data, type=_Config)
        raw = msgspec.json.decode(data, type=dict[str, Any])
        check_keys(data, CONFIG_KEYS)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise BadConfig(f"config: {data[:60]!r}… is not a valid image config: {exc}") from exc
    if config.rootfs.type != "layers":
        raise BadConfig(f"config: got rootfs type {config.rootfs.type!r}, expected 'layers'")
    try:
        diff_ids = tuple(parse_digest(text) for text in config.rootfs.diff_ids or ())
    except BadDigest as exc:
        raise BadConfig(f"config: diff_ids: {exc}") from exc
    return ImageConfig(
        config.os or UNKNOWN,
        config.architecture or UNKNOWN,
        config.variant or "",
        diff_ids,
        raw,
    )
