"""Platforms: os, architecture, variant.

Spec: OCI image-spec, image-index.md, "platform"; aliases as containerd normalises them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor, in normalised spelling; variant may be empty."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))
