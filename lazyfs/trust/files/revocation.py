"""Answers about revocation from a directory: lists and OCSP answers that were fetched before.

They are signed and say until when they hold, so a directory is as good a source as a server: what
is out of date counts for nothing.  Names do not matter; a list is found by its issuer, an OCSP
answer by the certificate's number.  Importing this module imports cryptography.
"""

import base64
import binascii
import re
from pathlib import Path

from lazyfs.printable import printable
from lazyfs.registry.config.files import read_regular
from lazyfs.trust.crl import parse_crl
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.files.reading import list_folder
from lazyfs.trust.ocsp import parse_answer
from lazyfs.trust.questions import LIMITS, Answers, Away, Question

FILES_LIMIT = 1000
TOTAL_LIMIT = 64 << 20  # bytes of all files
PEM_RE = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")


class RevocationFolder:
    """A source of answers: the files in a directory, read when the first question comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lists: dict[bytes, list[bytes]] | None = None
        self._answers: dict[int, list[bytes]] = {}

    def answers(self, question: Question) -> Answers:
        """Return what may answer *question*; it is checked by who asked.  Raises PolicyFault."""
        if self._lists is None:
            self._lists = {}
            self._read(self._lists)
        if question.kind == "crl":
            found = self._lists.get(question.issuer.subject.raw)
        else:
            found = self._answers.get(question.serial)
        return found or Away(f"there is no answer in {self.path}")

    def _read(self, lists: dict[bytes, list[bytes]]) -> None:
        names = list_folder(self.path, FILES_LIMIT, follow=True)
        if names is None:
            raise PolicyFault(f"{self.path} does not exist")
        left = TOTAL_LIMIT
        for name in names:
            path = self.path / name
            if name.startswith(".") or path.is_dir():
                continue
            data = _read(path, min(left, LIMITS["crl"]))
            left -= len(data)
            self._sort(path, data, lists)

    def _sort(self, path: Path, data: bytes, lists: dict[bytes, list[bytes]]) -> None:
        data = _from_pem(path, data)
        try:
            lists.setdefault(parse_crl(data).issuer, []).append(data)
            return
        except Malformed as exc:
            reason = exc.message
        try:
            statuses = parse_answer(data).statuses
        except Malformed as exc:
            raise PolicyFault(
                f"{_shown(path)} is neither a revocation list ({reason}) nor an OCSP answer"
                f" ({exc.message})"
            ) from exc
        for status in statuses:
            self._answers.setdefault(status.id.serial, []).append(data)


def _read(path: Path, limit: int) -> bytes:
    try:
        data = read_regular(path, limit + 1)
    except OSError as exc:
        raise PolicyFault(
            f"{_shown(path)} cannot be read: {(exc.strerror or str(exc)).lower()}"
        ) from exc
    if len(data) > limit:
        raise PolicyFault(
            f"{_shown(path)} is too large, or {path.parent} is: {TOTAL_LIMIT} bytes at most"
        )
    return data


def _from_pem(path: Path, data: bytes) -> bytes:
    if not data.startswith(b"-----"):
        return data
    match = PEM_RE.search(data)
    try:
        return base64.b64decode(b"".join(match[1].split()), validate=True) if match else data
    except binascii.Error as exc:
        raise PolicyFault(f"{_shown(path)} is not valid base64") from exc


def _shown(path: Path) -> str:
    return printable(str(path), 300)
