"""Trust stores: the certificates that a policy trusts.

Spec: Notary Project, trust-store-trust-policy.md, "Trust Store".  The system's own certificates are
never trusted.  A certificate in a store is an authority, or one that issued itself; anything else
is a fault of the whole store, as in notation.
"""

from collections.abc import Sequence
from typing import Protocol

from lazyfs.printable import printable
from lazyfs.trust.certificates import Certificate, parse_certificates
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.notation.policy import StoreKind, StoreName

CERTIFICATES_LIMIT = 1000  # of a store


class StoreFiles(Protocol):
    """Where trust stores are kept."""

    def files(self, store: StoreName) -> Sequence[tuple[str, bytes]]:
        """Return the files of *store*, names and contents.  Raises PolicyFault."""
        ...


class TrustStores:
    """Trust stores that are read when they are asked for, once."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._read: dict[StoreName, tuple[Certificate, ...] | PolicyFault] = {}

    def certificates(self, stores: Sequence[StoreName], kind: StoreKind) -> tuple[Certificate, ...]:
        """Return the certificates of those of *stores* that are of *kind*.  Raises PolicyFault."""
        found: list[Certificate] = []
        for store in stores:
            if store.kind == kind:
                found += self._load(store)
        return tuple(found)

    def _load(self, store: StoreName) -> tuple[Certificate, ...]:
        if store not in self._read:
            try:
                self._read[store] = _parse(store, self._files.files(store))
            except PolicyFault as exc:
                self._read[store] = exc
        read = self._read[store]
        if isinstance(read, PolicyFault):
            raise read
        return read


def _parse(store: StoreName, files: Sequence[tuple[str, bytes]]) -> tuple[Certificate, ...]:
    found: list[Certificate] = []
    for file, data in files:
        name = printable(file, 100)
        try:
            certificates = parse_certificates(data, CERTIFICATES_LIMIT - len(found))
        except Malformed as exc:
            raise PolicyFault(f"trust store {store}: {name}: {exc.message}") from exc
        for certificate in certificates:
            _check(store, name, certificate)
        found += certificates
    if not found:
        raise PolicyFault(f"trust store {store} is empty")
    return tuple(found)


def _check(store: StoreName, name: str, certificate: Certificate) -> None:
    if store.kind == "tsa" and not certificate.is_self_signed:
        raise PolicyFault(
            f"trust store {store}: {name}: certificate {certificate.who} did not issue itself"
        )
    if not certificate.is_authority and not certificate.is_self_signed:
        raise PolicyFault(
            f"trust store {store}: {name}: certificate {certificate.who} is not an authority,"
            " and did not issue itself"
        )
