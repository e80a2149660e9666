"""Digests: ``algorithm:hex`` of bytes as stored.

Spec: OCI image-spec, descriptor.md, "Digests".  Only the registered algorithms are accepted, in
their canonical lower-case form.
"""

import hashlib
import re

import msgspec

from lazyfs.errors import FormatError, VerificationFailed

HEX_LENGTH = {"sha256": 64, "sha512": 128}
HEX_RE = re.compile(r"[0-9a-f]+")


class BadDigest(FormatError):
    """Text that is not a digest."""


class DigestMismatch(VerificationFailed):
    """Bytes whose digest is not the expected one."""


class Digest(msgspec.Struct, frozen=True, order=True):
    """A digest; ``str()`` gives the canonical text."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def raw(self) -> bytes:
        """The digest's bytes (32 for sha256)."""
        return bytes.fromhex(self.hex)


def parse_digest(text: str) -> Digest:
    """Return the digest that *text* spells, or raise BadDigest."""
    algorithm, colon, digits = text.partition(":")
    expected = HEX_LENGTH.get(algorithm)
    if not colon or expected is None:
        raise BadDigest(
            f"{text[:100]!r} is not a digest: it does not begin with sha256: or sha512:"
        )
    if len(digits) != expected or HEX_RE.fullmatch(digits) is None:
        raise BadDigest(
            f"{text[:150]!r} is not a digest: it does not have {expected} lower-case hex digits "
            "after the colon"
        )
    return Digest(algorithm, digits)


def digest_of(data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
    """Return the digest of *data*."""
    return Digest(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).hexdigest())


def verify_digest(data: bytes | bytearray | memoryview, expected: Digest, what: str) -> None:
    """Raise DigestMismatch, naming *what*, unless *data* has the digest *expected*."""
    got = digest_of(data, expected.algorithm)
    if got != expected:
        raise DigestMismatch(f"{what}: got {got}, expected {expected} ({len(data)} bytes)")
