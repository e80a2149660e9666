"""What files say about themselves beyond their contents: numbers for stat, and xattrs.

An image must not be able to forge its identity.  Names under ``user.lazyfs.`` are shown on the
mount's root only, where the index was built with them and the mount adds its own; what an index
may hold of them elsewhere is hidden.  The ``user.lazyfs.file.*`` names answer when asked and are
not listed, because ``cp -a`` and ``tar --xattrs`` copy what is listed, and a stale claim in
another tree is worse than none.
"""

from lazyfs.mount.contents import MountedImage

PREFIX = b"user.lazyfs."
FILE_PREFIX = b"user.lazyfs.file."
BLOCK_SIZE = 4096
UNIT_SIZE = 512  # what st_blocks counts in


def blocks_of(size: int) -> int:
    """Return st_blocks of a file of *size* bytes: whole blocks, as the kernel's EROFS counts."""
    return -(-size // BLOCK_SIZE) * (BLOCK_SIZE // UNIT_SIZE)


class ExtendedAttributes:
    """The xattrs of a mount; nids are the index's."""

    def __init__(self, image: MountedImage) -> None:
        self._index = image.index
        self._root = image.attributes
        self._provenance = image.provenance
        self._names = [(layer.digest.encode(), layer.diff_id.encode()) for layer in image.layers]

    def get(self, nid: int, name: bytes) -> bytes | None:
        """Return the value of *name* at *nid*, or None if there is no such name."""
        if name.startswith(PREFIX):
            if name.startswith(FILE_PREFIX):
                return self._of_file(nid, name[len(FILE_PREFIX) :])
            if nid != self._index.root_nid:
                return None
            value = self._root.get(name)
            if value is not None:
                return value() if callable(value) else value
        return self._index.xattrs(nid).get(name)

    def names(self, nid: int) -> list[bytes]:
        """Return the names that *nid* lists."""
        names = self._index.xattrs(nid)
        if nid == self._index.root_nid:
            own = [name for name in names if not name.startswith(FILE_PREFIX)]
            return own + [name for name in self._root if name not in names]
        return [name for name in names if not name.startswith(PREFIX)]

    def _of_file(self, nid: int, word: bytes) -> bytes | None:
        origin = self._provenance.of(nid)
        if origin is None or origin.layer >= len(self._names):
            return None
        if word == b"layer.index":
            return b"%d" % origin.layer
        if word == b"layer":
            return self._names[origin.layer][0]
        if word == b"diffid":
            return self._names[origin.layer][1]
        if word == b"digest" and origin.digest is not None:
            return b"sha256:" + origin.digest.hex().encode()
        return None
