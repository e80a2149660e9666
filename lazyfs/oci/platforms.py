"""Platforms: os, architecture, variant.

Spec: OCI image-spec, image-index.md, "platform"; aliases and the order of fallbacks as containerd
has them: a machine runs what its lower variants and its 32-bit sibling run.
"""

import re
from collections.abc import Iterator

import msgspec

from lazyfs.errors import NotFound, UsageError

UNKNOWN = "unknown"  # BuildKit's attestations call their platform unknown/unknown
DEFAULT_OS = "linux"

OS_ALIASES = {"macos": "darwin"}
ARCHITECTURE_ALIASES = {
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
# The variant that the bare architecture means.
PLAIN_VARIANTS = {"amd64": "v1", "arm64": "v8"}
# Armv9.n has all of Armv8.(n+5); of Armv8 there is nothing above 8.9.
ARMV8_OF_ARMV9, LAST_ARMV8 = 5, 9
OPERATING_SYSTEMS = frozenset(
    [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "illumos",
        "linux",
        "netbsd",
        "openbsd",
        "solaris",
        "wasip1",
        "windows",
    ]
)
COMPONENT_RE = re.compile(r"[A-Za-z0-9_.-]+")
VARIANT_RE = re.compile(r"v?([0-9]{1,2})(?:\.([0-9]{1,2}))?")


class BadPlatform(UsageError):
    """Text that names no platform."""

    code = "E_PLATFORM"


class NoPlatform(NotFound):
    """An index has nothing for the wanted platform."""

    code = "E_NO_PLATFORM"


class Platform(msgspec.Struct, frozen=True):
    """An operating system and a processor, in normalised spelling; variant may be empty."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def normalise(os: str, architecture: str, variant: str = "") -> Platform:
    """Return the platform in its one spelling: aliases resolved, implied variants left out."""
    os = os.lower()
    architecture = architecture.lower()
    variant = variant.lower()
    architecture, implied = ARCHITECTURE_ALIASES.get(architecture, (architecture, ""))
    variant = variant or implied
    if variant[:1].isdigit():
        variant = "v" + variant
    if architecture == "arm64":
        variant = variant.removesuffix(".0")
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant == PLAIN_VARIANTS.get(architecture):
        variant = ""
    return Platform(OS_ALIASES.get(os, os), architecture, variant)


def parse_platform(text: str, *, host: Platform | None = None) -> Platform:
    """Return the platform that *text* spells: ``OS/ARCH[/VARIANT]``, ``ARCH`` or ``OS``.

    An architecture alone is Linux'; an operating system alone takes *host*'s processor.  Raises
    BadPlatform.
    """
    parts = text.split("/")
    if len(parts) > 3 or not all(COMPONENT_RE.fullmatch(part) for part in parts):
        raise BadPlatform(f"platform {text!r} is not of the form OS/ARCH[/VARIANT]")
    if len(parts) > 1:
        return normalise(*parts)
    name = parts[0].lower()
    if OS_ALIASES.get(name, name) not in OPERATING_SYSTEMS:
        return normalise(DEFAULT_OS, name)
    if host is None:
        raise BadPlatform(f"platform {text!r} has no architecture: {text}/ARCH")
    return normalise(name, host.architecture, host.variant)


def platform_of_machine(system: str, machine: str) -> Platform:
    """Return the platform of a machine that uname describes so (``Linux``, ``x86_64``)."""
    return normalise(system, machine)


def runs(wanted: Platform, offered: Platform) -> bool:
    """Say whether a machine of the platform *wanted* runs what is made for *offered*."""
    normalised = normalise(offered.os, offered.architecture, offered.variant)
    return normalised in candidates(normalise(wanted.os, wanted.architecture, wanted.variant))


def candidates(wanted: Platform) -> Iterator[Platform]:
    """Yield the platforms that *wanted*, normalised, runs: itself, then others, best first."""
    os, architecture = wanted.os, wanted.architecture
    yield wanted
    match = VARIANT_RE.fullmatch(wanted.variant or PLAIN_VARIANTS.get(architecture, ""))
    major = int(match[1]) if match else 0
    if match and match[2]:  # v8.2 runs v8.1, v8.0, v8
        for minor in range(int(match[2]) - 1, -1, -1):
            yield normalise(os, architecture, f"v{major}.{minor}")
        yield normalise(os, architecture, f"v{major}")
    if architecture == "amd64":
        for lower in range(major - 1, 0, -1):
            yield normalise(os, architecture, f"v{lower}")
        yield Platform(os, "386")
    elif architecture == "arm64":
        if major == 9:
            minor = min(int(match[2] or 0) + ARMV8_OF_ARMV9 if match else 0, LAST_ARMV8)
            for lower in range(minor, 0, -1):
                yield normalise(os, architecture, f"v8.{lower}")
        for lower in range(major - 1, 7, -1):
            yield normalise(os, architecture, f"v{lower}")
        for lower in range(8, 4, -1):
            yield Platform(os, "arm", f"v{lower}")
    elif architecture == "arm":
        for lower in range(major - 1, 4, -1):
            yield Platform(os, architecture, f"v{lower}")
