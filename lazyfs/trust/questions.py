"""What has to be asked of others to judge a signature, and where the answers come from.

For who fetches: this module imports no cryptography.  What the answers mean is in
``revocation.py``.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

from lazyfs.printable import printable

if TYPE_CHECKING:
    from lazyfs.trust.certificates import Certificate

LIMITS = {"crl": 32 << 20, "ocsp": 256 << 10}  # bytes of an answer, by kind of question
# Host and port as RFC 3986, section 3.2, without a user; then what is printable and no blank.
HTTP_RE = re.compile(
    r"http://(?:[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?(?:[/?][!-~]*)?",
    re.ASCII | re.IGNORECASE,
)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known: an OCSP answer, or a list.

    ``url`` is where a server has it; ``request`` the body to post there (empty for a list: GET).
    For those who have answers stored: ``issuer`` is the issuer's certificate, by whose name lists
    are found and whose signature they must have; ``serial`` is the certificate's number, 0 for a
    list.
    """

    kind: Literal["ocsp", "crl"]
    url: str
    request: bytes
    issuer: "Certificate"
    serial: int


class Away(msgspec.Struct, frozen=True):
    """There is no answer, for a reason in plain words."""

    reason: str


Answers: TypeAlias = Sequence[bytes] | Away
"""Documents (DER) of which one is hoped to answer, or why there are none."""


class RevocationSource(Protocol):
    """Where answers come from: servers, or a directory.  Never with the registry's credentials."""

    def answers(self, question: Question) -> Answers:
        """Return what answers *question*.

        At most ``LIMITS[question.kind]`` bytes each.  One that asks servers refuses what
        ``refused_url`` refuses.
        """
        ...


def refused_url(url: str) -> str | None:
    """Return why a server at *url* must not be asked; None if it may.

    Answers are signed, and asking over TLS could itself need a revocation check: http alone.
    """
    scheme = url.partition(":")[0].lower()
    if scheme != "http":
        return f"only http is supported, not {printable(scheme, 20)}"
    return None if HTTP_RE.fullmatch(url) else "the address is not valid"
