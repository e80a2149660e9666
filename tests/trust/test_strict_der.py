"""Something more, at the end of every element of every document: nobody may overlook it.

What one reader overlooks another may read: two meanings of one signed document.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazyfs.trust import der
from lazyfs.trust.certificates import parse_certificate
from lazyfs.trust.cms import parse_signed_data
from lazyfs.trust.crl import parse_crl
from lazyfs.trust.errors import Malformed
from lazyfs.trust.ocsp import parse_answer
from lazyfs.trust.timestamp import parse_statement, verify_token
from tests.support.trust import pki
from tests.trust.fuzz import files, statements, tokens

MORE = der.encode(der.NULL)
Path = tuple[int, ...]


def grown(value: der.Value, path: Path = ()) -> Iterator[tuple[Path, bytes]]:
    """Yield the document with an element more in each constructed one, with its place."""
    parts = list(value.parts())
    yield path, der.encode(value.tag, value.body, MORE)
    for at, part in enumerate(parts):
        if part.tag & der.CONSTRUCTED:
            for where, changed in grown(part, (*path, at)):
                pieces = [each.raw for each in parts]
                pieces[at] = changed
                yield where, der.encode(value.tag, *pieces)


def inside(data: bytes) -> bytes:
    """Return the BasicOCSPResponse in an answer."""
    _, given = der.read(data).parts()
    _, basic = given.parts().take().parts()
    return basic.octets()


def wrapped(basic: bytes) -> bytes:
    """Return an answer with another BasicOCSPResponse."""
    kind = bytes.fromhex("06092b0601050507300101")
    inner = der.encode(der.SEQUENCE, kind, der.encode(der.OCTET_STRING, basic))
    return der.encode(der.SEQUENCE, b"\x0a\x01\x00", der.encode(der.context(0), inner))


LEAF = pki.issue(
    "leaf", pki.root(), extensions=[pki.points("http://a.test"), pki.responders("http://b.test")]
)
CLOCK = pki.authority_for_time()
HELPER = pki.delegate(pki.root())
ANSWER = pki.ocsp_answer(LEAF, pki.root(), "REVOKED", signer=HELPER, certificates=[HELPER])

# Reader, document, and places that it does not look into, with all below them.
CASES: dict[str, tuple[Callable[[bytes], Any], bytes, list[Path]]] = {
    # The algorithm of a key: the library refuses the key, and then it has none.
    "certificate": (parse_certificate, LEAF.der, [(0, 6, 0)]),
    # The issuer's name is compared as bytes; entries are walked through when one is wanted.
    "crl": (parse_crl, files("crl")[-1], [(0, 2), (0, 5)]),
    "ocsp": (parse_answer, ANSWER, []),
    # The responder's name is not asked for, and the signature's algorithm looked at with it.
    "ocsp-inside": (
        lambda data: parse_answer(wrapped(data)),
        inside(ANSWER),
        [(0, 0), (1,), (3, 0, 0, 0, 6, 0)],
    ),
    # What algorithms there are; certificates, of which broken ones are left out; the signer's
    # issuer, compared as bytes; the attribute that names its certificate, and the algorithm.
    "cms": (
        parse_signed_data,
        tokens()[0],
        [(1, 0, 1), (1, 0, 3), (1, 0, 4, 0, 1, 0), (1, 0, 4, 0, 3, 3, 1, 0), (1, 0, 4, 0, 4)],
    ),
    "tstinfo": (parse_statement, statements()[0], []),
}


@pytest.mark.parametrize("name", CASES)
def test_an_element_more(name: str) -> None:
    read, data, allowed = CASES[name]
    read(data)
    accepted = []
    for path, changed in grown(der.read(data)):
        try:
            read(changed)
        except Malformed:
            continue
        accepted.append(path)
    overlooked = [
        path for path in accepted if not any(path[: len(each)] == each for each in allowed)
    ]
    assert overlooked == []


def test_a_key_with_something_more_is_none() -> None:
    for path, changed in grown(der.read(LEAF.der)):
        if path == (0, 6, 0):
            assert parse_certificate(changed).key is None


def test_the_attribute_that_names_the_signer() -> None:
    digest = der.encode(der.OCTET_STRING, hashlib.sha256(CLOCK.der).digest())
    named = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, digest)))
    roots = [pki.root().certificate]
    verify_token(pki.timestamp(CLOCK, b"x", attributes={"certificate": named}), b"x", roots)
    for path, changed in grown(der.read(named)):
        token = pki.timestamp(CLOCK, b"x", attributes={"certificate": changed})
        if path == (0,):
            continue  # a second certificate: only the first counts
        with pytest.raises(Malformed):
            verify_token(token, b"x", roots)
