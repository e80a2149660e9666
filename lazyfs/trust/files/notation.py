"""Notation's configuration directory: the trust policy and the trust stores.

Spec: Notary Project, trust-store-trust-policy.md; the names of notation 1.3.2 (``truststore``) and
of its successor (``trustpolicy.oci.json``), which is looked for first.
"""

from collections.abc import Sequence
from pathlib import Path

from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.files.reading import list_folder, read_plain
from lazyfs.trust.notation.policy import SIZE_LIMIT, Policy, StoreName, parse_policy

POLICIES = ("trustpolicy.oci.json", "trustpolicy.json")
FILES_LIMIT = 1000  # of a store
FILE_LIMIT = 1 << 20  # bytes
STORE_LIMIT = 16 << 20  # bytes of a store


class NotationFolder:
    """The directory at *path*: ``~/.config/notation``, or where an administrator has another."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def policy(self) -> Policy:
        """Return the trust policy.  Raises PolicyFault, also if there is none."""
        for name in POLICIES:
            data = read_plain(self.path / name, SIZE_LIMIT)
            if data is not None:
                return parse_policy(data, str(self.path / name))
        raise PolicyFault(f"{self.path} has no {' or '.join(POLICIES)}")

    def files(self, store: StoreName) -> Sequence[tuple[str, bytes]]:
        """Return the files of a trust store, in the order of their names.

        Each is to hold certificates; a subdirectory or a symlink is a fault, as in notation.
        Raises PolicyFault.
        """
        folder = self.path / "truststore" / "x509" / store.kind / store.name
        names = list_folder(folder, FILES_LIMIT)
        if names is None:
            raise PolicyFault(f"trust store {store} does not exist: {folder}")
        found, size = [], 0
        for name in names:
            data = read_plain(folder / name, FILE_LIMIT) or b""
            size += len(data)
            if size > STORE_LIMIT:
                raise PolicyFault(f"trust store {store} is larger than {STORE_LIMIT} bytes")
            found.append((name, data))
        return found


def read_policy(path: Path) -> Policy:
    """Return the trust policy in a file that the user named.  Raises PolicyFault."""
    data = read_plain(path, SIZE_LIMIT)
    if data is None:
        raise PolicyFault(f"{path} does not exist")
    return parse_policy(data, str(path))
