"""JWS envelopes: their shape, and base64 that means one thing."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.notation.jws import parse_jws
from tests.support.trust import pki
from tests.support.trust.notation import vectors

LEAF = pki.issue("leaf", pki.root())
GOOD = pki.jws([LEAF, pki.root()], pki.payload("sha256:" + "0" * 64))


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(GOOD)
    change(document)
    return json.dumps(document).encode()


def test_a_good_one() -> None:
    found = parse_jws(GOOD)
    found.verify()
    assert found.leaf == LEAF.certificate
    assert not found.is_by_authority
    assert parse_jws(changed(lambda each: each.update(more=1))).target == found.target


@pytest.mark.parametrize("name", ["payload", "protected", "signature", "header"])
def test_a_member_that_is_not_there_or_of_another_kind(name: str) -> None:
    for value in (None, 5, [], True, ["x"]):
        with pytest.raises(Malformed):
            parse_jws(changed(lambda each, value=value: each.update({name: value})))  # type: ignore[misc]
    with pytest.raises(Malformed):
        parse_jws(changed(lambda each: each.pop(name)))
    with pytest.raises(Malformed):
        parse_jws(changed(lambda each: each.update({name.upper(): each.pop(name)})))


@pytest.mark.parametrize("name", ["payload", "protected", "signature"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + "=" * (-len(text) % 4 or 4),
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text[:4] + "\n" + text[4:],
        lambda text: text[:4] + "+" + text[5:],
        lambda text: text[:4] + "/" + text[5:],
        lambda text: text[:4] + "\u00e9" + text[5:],
        # One character more than whole bytes need; bits at the end that mean nothing.
        lambda text: text[: len(text) // 4 * 4] + "A",
        lambda text: text[: len(text) // 4 * 4] + "AB",
        lambda text: text[: len(text) // 4 * 4] + "AAB",
    ],
)
def test_base64_in_another_spelling(name: str, spoil: Callable[[str], str]) -> None:
    """Two spellings of the same bytes would be two envelopes with one signature."""
    with pytest.raises(Malformed, match="part of the JWS"):
        parse_jws(changed(lambda each: each.update({name: spoil(each[name])})))


def test_what_is_signed_is_the_text() -> None:
    blank = pki.url64(b" " + json.dumps({"x": 1}).encode())
    for name in ("payload", "protected"):
        other = changed(lambda each, name=name: each.update({name: blank}))  # type: ignore[misc]
        with pytest.raises(Malformed):
            parse_jws(other)
    moved = pki.jws([LEAF, pki.root()], pki.payload("sha256:" + "1" * 64))
    swapped = changed(lambda each: each.update(payload=json.loads(moved)["payload"]))
    with pytest.raises(BadSignature):
        parse_jws(swapped).verify()


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2560),
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=range(3),
)
def test_a_key_that_no_algorithm_is_for(key: pki.Key) -> None:
    leaf = pki.issue("leaf", pki.root(), key=key)
    found = parse_jws(pki.jws([leaf, pki.root()], pki.payload("sha256:" + "0" * 64)))
    with pytest.raises(Malformed, match="must not sign"):
        found.verify()


def test_real_ones_are_understood() -> None:
    for key, name in (("rsa2048", "PS256"), ("rsa4096", "PS512"), ("p384", "ES384")):
        found = parse_jws(vectors().envelope(f"jws-{key}"))
        assert found.algorithm == name
        found.verify()
