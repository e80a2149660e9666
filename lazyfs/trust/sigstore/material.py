"""The keys and certificates that a requirement names, read from their files.

Importing this module imports cryptography: do so once a policy is in force.
"""

import re
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from lazyfs.printable import printable
from lazyfs.trust import keys
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.keys import PublicKey
from lazyfs.trust.sigstore import certificates
from lazyfs.trust.sigstore.policy import Material, SigstoreSigned

PEM_RE = re.compile(rb"-----BEGIN ([A-Z0-9 ]{0,40})-----")

Made = TypeVar("Made")


class PolicyFiles(Protocol):
    """Where the files are that a policy names."""

    def read(self, path: str) -> bytes:
        """Return the contents of the file at an absolute path.  Raises PolicyFault."""
        ...


class TrustedKey(msgspec.Struct, frozen=True):
    """A key of the policy; ``name`` says which one."""

    key: PublicKey
    name: str


class Trusted(msgspec.Struct, frozen=True):
    """Who may sign: one of the keys, or whoever has a certificate of the authority.

    If there are ``logs``, one of them must have seen the signature.
    """

    keys: tuple[TrustedKey, ...] = ()
    authority: certificates.Authority | None = None
    logs: tuple[PublicKey, ...] = ()


def load(file: str, requirement: SigstoreSigned, files: PolicyFiles) -> Trusted:
    """Return whom *requirement* trusts; *file* is the policy.  Raises PolicyFault."""
    load_all = certificates.load_certificates
    logs = tuple(_made(file, material, files, _load_log) for material in requirement.logs)
    if (pki := requirement.pki) is not None:
        roots = _made(file, pki.roots, files, load_all)
        helpers: tuple[Certificate, ...] = ()
        if pki.intermediates is not None:
            helpers = _made(file, pki.intermediates, files, load_all)
        return Trusted((), certificates.Authority(roots, helpers, pki.email, pki.hostname))
    if (fulcio := requirement.fulcio) is not None:
        roots = _made(file, fulcio.authority, files, load_all)
        authority = certificates.Authority(roots, email=fulcio.email, issuer=fulcio.issuer)
        return Trusted((), authority, logs)
    return Trusted(tuple(_key(file, material, files) for material in requirement.keys), None, logs)


def _key(file: str, material: Material, files: PolicyFiles) -> TrustedKey:
    key = _made(file, material, files, _load_key)
    return TrustedKey(
        key, printable(material.path or f"the key sha256:{keys.spki_digest(key).hex()}")
    )


def _load_key(data: bytes) -> PublicKey:
    # containers/image takes the first key of a file and passes over what follows.
    labels = PEM_RE.findall(data)
    if len(labels) > 1:
        raise Malformed(f"it holds {len(labels)} keys, and one is expected")
    if labels and b"PRIVATE" in labels[0]:
        raise Malformed("it holds a private key, and a public one is expected")
    return keys.load_pem(data)


def _load_log(data: bytes) -> PublicKey:
    key = _load_key(data)
    if keys.curve_hash(key) is None:
        raise Malformed("the key of a log is not an elliptic one")
    return key


def _made(file: str, material: Material, files: PolicyFiles, make: Callable[[bytes], Made]) -> Made:
    where = f"{file}: {material.place}"
    try:
        data = material.data if material.path is None else files.read(material.path)
        return make(data or b"")
    except PolicyFault as exc:
        raise PolicyFault(f"{where}: {exc.message}") from None
    except Malformed as exc:
        if material.path is not None:
            where += f": {printable(material.path)}"
        raise PolicyFault(f"{where}: {exc.message}") from None
