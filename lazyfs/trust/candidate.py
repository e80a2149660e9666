"""What may carry signatures: a manifest and its blobs, as fetched."""

import msgspec

from lazyfs.digest import BadDigest, digest_of, parse_digest


class Candidate(msgspec.Struct, frozen=True):
    """A manifest that may carry signatures, and its blobs by digest, all verified by digest.

    ``artifact_type`` is what the manifest itself says it is, whatever a list said: its
    ``artifactType``, or else the media type of its config.  ``is_tagged``: it was found under
    cosign's tag, and names no subject.
    """

    digest: str
    manifest: bytes
    artifact_type: str
    blobs: dict[str, bytes]
    is_tagged: bool = False

    def is_whole(self) -> bool:
        """Say whether manifest and blobs have their digests: after they were kept on a disk."""
        pairs = [(self.digest, self.manifest), *self.blobs.items()]
        try:
            return all(
                digest_of(data, (digest := parse_digest(name)).algorithm) == digest
                for name, data in pairs
            )
        except BadDigest:
            return False
