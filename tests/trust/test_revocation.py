"""Lists and OCSP answers: which count, and what follows from them."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from lazyfs.trust import crl as lists
from lazyfs.trust import der, ocsp, revocation
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.questions import Answers, Away, Question, refused_url
from lazyfs.trust.revocation import Revoked, StatusUnknown, check_revocation
from tests.support.trust import pki

URL = "http://crl.test/a"
LEAF = pki.issue("leaf", pki.root(), extensions=[pki.points(URL)], serial=77)
SECOND = timedelta(seconds=1)


def since(data: bytes, now: datetime = pki.NOW, leaf: pki.Issued = LEAF) -> datetime | None:
    return lists.revoked_since(data, leaf.certificate, pki.root().certificate, now)


def point(**given: object) -> list[tuple[x509.ExtensionType, bool]]:
    usual = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return [(x509.IssuingDistributionPoint(**{**usual, **given}), True)]  # type: ignore[arg-type]


def test_what_a_list_says() -> None:
    assert since(pki.crl(pki.root())) is None
    assert since(pki.crl(pki.root(), [1, 77, 78])) == pki.BEGIN
    assert since(pki.crl(pki.root(), [7, 770, 0x4D4D])) is None
    held = pki.crl(pki.root(), [77], reason=x509.ReasonFlags.certificate_hold)
    assert since(held) == pki.BEGIN


@pytest.mark.parametrize("size", [1, 127, 128, 255, 256, 1 << 64, (1 << 158) - 1])
def test_numbers_of_every_size(size: int) -> None:
    leaf = pki.issue("leaf", pki.root(), serial=size)
    assert since(pki.crl(pki.root(), [size]), leaf=leaf) == pki.BEGIN
    assert since(pki.crl(pki.root(), [size + 1]), leaf=leaf) is None


def test_the_period_of_a_list() -> None:
    data = pki.crl(pki.root(), this=pki.NOW, until=pki.NOW + SECOND)
    assert since(data, pki.NOW) is None
    assert since(data, pki.NOW - lists.SKEW) is None
    for moment in (pki.NOW - lists.SKEW - SECOND, pki.NOW + SECOND):
        with pytest.raises(Malformed, match=r"it hel|it hol"):
            since(data, moment)


ECDSA = der.encode(der.SEQUENCE, bytes.fromhex("06082a8648ce3d040302"))
ECDSA_384 = der.encode(der.SEQUENCE, bytes.fromhex("06082a8648ce3d040303"))
BEGIN, END = (der.encode(der.UTC_TIME, text) for text in (b"260101000000Z", b"490101000000Z"))
NUMBER = der.encode_integer(77)


def raw_crl(
    entries: bytes = b"",
    *,
    version: int | None = 1,
    algorithm: bytes = ECDSA,
    until: bytes = END,
    extensions: bytes = b"",
) -> bytes:
    """Return a list whose parts are given as DER, signed by the root."""
    signed = der.encode(
        der.SEQUENCE,
        b"" if version is None else der.encode_integer(version),
        algorithm,
        pki.root().certificate.subject.raw,
        BEGIN,
        until,
        entries and der.encode(der.SEQUENCE, entries),
        extensions,
    )
    assert isinstance(pki.root().key, ec.EllipticCurvePrivateKey)
    signature = pki.root().key.sign(signed, ec.ECDSA(pki.SHA256))
    return der.encode(der.SEQUENCE, signed, ECDSA, der.encode(der.BIT_STRING, b"\0" + signature))


def entry(*more: bytes, number: bytes = NUMBER) -> bytes:
    return der.encode(der.SEQUENCE, number, BEGIN, *more)


def reasons(value: int, oid: str = "0603551d15", *, critical: bool = False) -> bytes:
    flag = der.encode(der.BOOLEAN, b"\xff") if critical else b""
    content = der.encode(der.OCTET_STRING, der.encode(0x0A, bytes([value])))
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, bytes.fromhex(oid), flag, content))


def test_lists_made_by_hand() -> None:
    assert since(raw_crl()) is None
    assert since(raw_crl(version=None)) is None
    assert since(raw_crl(entry())) == pki.BEGIN
    assert since(raw_crl(entry(number=der.encode_integer(5)) + entry())) == pki.BEGIN
    assert since(raw_crl(entry(reasons(1, critical=True)))) == pki.BEGIN


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (raw_crl(until=b""), "until when"),
        (raw_crl(version=2), "version"),
        (raw_crl(algorithm=ECDSA_384), "two signature algorithms"),
        (raw_crl(der.encode(der.SET, NUMBER) + entry()), "not a sequence"),
        (raw_crl(NUMBER + entry()), "not a sequence"),
        (raw_crl(entry(reasons(8))), "removed"),
        (raw_crl(entry(reasons(1, "0603551d1d", critical=True))), "critical"),
        (raw_crl(entry(reasons(1) + reasons(1))), "behind"),
        (raw_crl(entry(reasons(1), BEGIN)), "behind"),
        (raw_crl(der.encode(der.SEQUENCE, NUMBER)), "cut off"),
    ],
    ids=range(10),
)
def test_lists_that_say_nothing(data: bytes, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        since(data)


def test_whose_list() -> None:
    other = pki.issue("root", authority=True)
    with pytest.raises(BadSignature):
        since(pki.crl(other))
    with pytest.raises(BadSignature, match="another issuer"):
        since(pki.crl(pki.middle()))
    silent = pki.issue("root", authority=True, extensions=[(pki.usage(key_cert_sign=True), True)])
    with pytest.raises(BadSignature, match="may not sign lists"):
        lists.revoked_since(pki.crl(silent), LEAF.certificate, silent.certificate, pki.NOW)


NAMED = [x509.UniformResourceIdentifier(URL)]


@pytest.mark.parametrize(
    ("extensions", "fault"),
    [
        (point(indirect_crl=True), "complete"),
        (point(only_contains_attribute_certs=True), "complete"),
        (point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), "complete"),
        (point(only_contains_ca_certs=True), "another kind"),
        (point(full_name=[x509.UniformResourceIdentifier("http://crl.test/b")]), "another dist"),
        (point(full_name=[x509.DirectoryName(pki.name("x"))]), "no address"),
        ([(x509.DeltaCRLIndicator(3), True)], "changes"),
        (
            [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)],
            "1.2.3",
        ),
    ],
)
def test_a_list_that_is_not_about_the_certificate(
    extensions: Sequence[tuple[x509.ExtensionType, bool]], fault: str
) -> None:
    """One of another part, or of another kind, would say of every certificate that it is good."""
    with pytest.raises(Malformed, match=fault):
        since(pki.crl(pki.root(), [77], extensions=extensions))


@pytest.mark.parametrize("given", [{"full_name": NAMED}, {"only_contains_user_certs": True}])
def test_a_list_of_a_part_that_is_meant(given: dict[str, object]) -> None:
    assert since(pki.crl(pki.root(), [77], extensions=point(**given))) == pki.BEGIN


def test_a_part_that_is_not_understood() -> None:
    content = der.encode(der.OCTET_STRING, der.encode(der.SEQUENCE, der.encode(der.NULL)))
    point_ = der.encode(der.SEQUENCE, bytes.fromhex("0603551d1c"), content)
    extensions = der.encode(der.context(0), der.encode(der.SEQUENCE, point_))
    with pytest.raises(Malformed, match="behind"):
        since(raw_crl(extensions=extensions))


def test_a_list_of_users_says_nothing_of_authorities() -> None:
    data = pki.crl(pki.root(), extensions=point(only_contains_user_certs=True))
    with pytest.raises(Malformed, match="another kind"):
        since(data, leaf=pki.middle())


def test_a_large_list_is_searched_in_bounded_time() -> None:
    """32 MiB, which only the authority itself could sign: no objects are made of its entries."""
    entry = der.encode(
        der.SEQUENCE, der.encode_integer(0x0201 << 104), der.encode(der.UTC_TIME, b"260101000000Z")
    )
    entries = der.read(
        der.encode(der.SEQUENCE, entry * ((31 << 20) // len(entry))), limit=lists.SIZE_LIMIT
    )
    assert lists.find_entry(entries, 5) is None
    # Its bytes are in every entry's number, and not at the beginning: all are walked through.
    assert lists.find_entry(entries, 0) is None


def test_a_larger_list_is_refused() -> None:
    with pytest.raises(Malformed, match="longer than"):
        lists.parse_crl(b"\x30\x84\x02\x00\x00\x01" + bytes(lists.SIZE_LIMIT))


# OCSP


def state(data: bytes, now: datetime = pki.NOW) -> str:
    return ocsp.status_of(data, LEAF.certificate, pki.root().certificate, now).state


def test_what_an_answer_says() -> None:
    for given in ("GOOD", "REVOKED", "UNKNOWN"):
        assert state(pki.ocsp_answer(LEAF, pki.root(), given)) == given.lower()


def test_an_answer_about_another_certificate() -> None:
    other = pki.issue("leaf", pki.root(), serial=78)
    with pytest.raises(Malformed, match="about other"):
        state(pki.ocsp_answer(other, pki.root()))
    twin = pki.issue("root", authority=True)
    with pytest.raises(Malformed, match="about other"):
        state(pki.ocsp_answer(pki.issue("leaf", twin, serial=77), twin))


def test_who_may_answer() -> None:
    """The issuer, or whom it has asked to: a certificate of its own, for OCSP, without doubt."""
    good = pki.delegate(pki.root())
    assert state(pki.ocsp_answer(LEAF, pki.root(), signer=good, certificates=[good])) == "good"
    bad = [
        pki.delegate(pki.root(), eku=False),
        pki.delegate(pki.root(), no_check=False),
        pki.delegate(pki.root(), end=pki.NOW - SECOND),
        pki.delegate(pki.middle()),
        pki.delegate(pki.issue("root", authority=True)),
    ]
    for signer in bad:
        with pytest.raises(BadSignature, match="not signed by"):
            state(pki.ocsp_answer(LEAF, pki.root(), signer=signer, certificates=[signer]))
    with pytest.raises(BadSignature, match="not signed by"):
        state(pki.ocsp_answer(LEAF, pki.root(), signer=good))


def test_the_period_of_an_answer() -> None:
    data = pki.ocsp_answer(LEAF, pki.root(), this=pki.NOW, until=pki.NOW + SECOND)
    assert state(data) == "good"
    with pytest.raises(Malformed, match="held until"):
        state(data, pki.NOW + SECOND)
    with pytest.raises(Malformed, match="holds from"):
        state(data, pki.NOW - lists.SKEW - SECOND)
    with pytest.raises(Malformed, match="until when"):
        state(pki.ocsp_answer(LEAF, pki.root(), until=None))


@pytest.mark.parametrize(
    ("code", "text"), [(1, "malformedRequest"), (3, "tryLater"), (6, "unauth")]
)
def test_an_answer_that_is_an_error(code: int, text: str) -> None:
    with pytest.raises(Malformed, match=text):
        ocsp.parse_answer(der.encode(der.SEQUENCE, der.encode(0x0A, bytes([code]))))


def test_the_request_is_what_the_library_reads() -> None:
    from cryptography.x509 import ocsp as library

    asked = library.load_der_ocsp_request(ocsp.request(LEAF.certificate, pki.root().certificate))
    assert asked.serial_number == 77
    built = library.OCSPRequestBuilder().add_certificate(LEAF.x509, pki.root().x509, pki.SHA256)
    assert asked.issuer_key_hash == built.build().issuer_key_hash
    assert asked.issuer_name_hash == built.build().issuer_name_hash


# Both


def run(
    chain: Sequence[pki.Issued], answer: Callable[[Question], Answers]
) -> tuple[Revoked | StatusUnknown | None, list[str]]:
    asked = []
    steps = check_revocation([each.certificate for each in chain], pki.NOW)
    given: Answers | None = None
    while True:
        try:
            question = steps.send(given)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value, asked
        asked.append(f"{question.kind} {question.url}")
        given = answer(question)


BOTH = pki.issue(
    "both",
    pki.middle(),
    extensions=[pki.responders("http://ocsp.test/"), pki.points(URL, "http://crl.test/b")],
)


def test_ocsp_first_then_lists_one_after_another() -> None:
    chain = [BOTH, pki.middle(), pki.root()]
    good = pki.ocsp_answer(BOTH, pki.middle())
    found, asked = run(chain, lambda _: [good])
    assert (found, asked) == (None, ["ocsp http://ocsp.test/"])
    list_ = pki.crl(pki.middle())
    found, asked = run(
        chain, lambda question: [list_] if question.url.endswith("/b") else Away("HTTP 503")
    )
    assert found is None
    assert asked == ["ocsp http://ocsp.test/", f"crl {URL}", "crl http://crl.test/b"]
    found, _ = run(chain, lambda question: Away("HTTP 503"))
    assert isinstance(found, StatusUnknown)
    assert found.message.endswith("is unknown: http://ocsp.test/: HTTP 503")


def test_a_responder_that_does_not_know_is_not_the_last_word() -> None:
    unknown = pki.ocsp_answer(BOTH, pki.middle(), "UNKNOWN")
    revoking = pki.crl(pki.middle(), [BOTH.certificate.serial])
    found, _ = run(
        [BOTH, pki.middle(), pki.root()],
        lambda question: [unknown] if question.kind == "ocsp" else [revoking],
    )
    assert isinstance(found, Revoked)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_lists_the_one_that_revokes_counts(order: int) -> None:
    """A directory may hold an older list beside a newer one."""
    both = [pki.crl(pki.root()), b"nonsense", pki.crl(pki.root(), [77])][::order]
    found, _ = run([LEAF, pki.root()], lambda _: both)
    assert isinstance(found, Revoked)


def test_answers_that_are_not_all_read_say_nothing_good() -> None:
    """The newest of thirty lists may be the one that revokes."""
    lists = [pki.crl(pki.root())] * revocation.ANSWERS_LIMIT
    found, _ = run([LEAF, pki.root()], lambda _: lists)
    assert found is None
    found, _ = run([LEAF, pki.root()], lambda _: [*lists, pki.crl(pki.root(), [77])])
    assert isinstance(found, StatusUnknown)
    assert "there are 17 answers, and at most 16 are read" in found.message
    found, _ = run([LEAF, pki.root()], lambda _: [pki.crl(pki.root(), [77]), *lists])
    assert isinstance(found, Revoked)


def test_revoked_weighs_more_than_unknown() -> None:
    middle = pki.issue("middle", pki.root(), authority=True, extensions=[pki.points(URL)])
    leaf = pki.issue("leaf", middle, extensions=[pki.points("http://crl.test/b")])
    revoking = pki.crl(middle, [leaf.certificate.serial])
    found, asked = run(
        [leaf, middle, pki.root()],
        lambda question: [revoking] if question.url.endswith("/b") else Away("gone"),
    )
    assert isinstance(found, Revoked)
    assert asked == [f"crl {URL}", "crl http://crl.test/b"]


def test_no_address_no_question() -> None:
    assert run([pki.issue("leaf", pki.root()), pki.root()], lambda _: [])[0] is None


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("http://crl.test/a", True),
        ("HTTP://CRL.test:8080/a?b=c", True),
        ("http://[::1]:80/", True),
        ("http://crl.test", True),
        ("https://crl.test/a", False),
        ("ldap://crl.test/cn=a", False),
        ("file:///etc/passwd", False),
        ("http://user:password@crl.test/", False),
        ("http://crl.test/a b", False),
        ("http://crl.test/\r\nHost: x", False),
        ("http://crl.test/\n", False),
        ("http:///a", False),
        ("", False),
    ],
)
def test_which_servers_are_asked(url: str, is_allowed: bool) -> None:
    assert (refused_url(url) is None) == is_allowed
