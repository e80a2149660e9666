"""WWW-Authenticate: what real servers send, and what nobody should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.registry.answers.challenges import Challenge, choose_challenge, parse_challenges

DOCKER_HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/python:pull,push"'
)
HUB = Challenge(
    "bearer",
    {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "repository:library/python:pull,push",
    },
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ()),
        (" , ,\t", ()),
        (DOCKER_HUB, (HUB,)),
        ('Basic realm="a b"', (Challenge("basic", {"realm": "a b"}),)),
        ("Basic", (Challenge("basic"),)),
        ("BASIC realm=plain", (Challenge("basic", {"realm": "plain"}),)),
        # Unquoted URLs: not the grammar, but seen.
        (
            "Bearer realm=https://r/token, service=r",
            (Challenge("bearer", {"realm": "https://r/token", "service": "r"}),),
        ),
        (
            'Bearer realm = "x" , service = "y"',
            (Challenge("bearer", {"realm": "x", "service": "y"}),),
        ),
        (
            f'Basic realm="x", {DOCKER_HUB}',
            (Challenge("basic", {"realm": "x"}), HUB),
        ),
        (f"Negotiate, {DOCKER_HUB}", (Challenge("negotiate"), HUB)),
        (f"Negotiate YII/abc+==, {DOCKER_HUB}", (Challenge("negotiate"), HUB)),
        (r'Basic realm="say \"hi\" \\"', (Challenge("basic", {"realm": r'say "hi" \\'[:-1]}),)),
        ('Bearer realm="a",realm="b"', (Challenge("bearer", {"realm": "a"}),)),
        ('Bearer realm="unterminated', (Challenge("bearer"),)),
        ('Bearer REALM="x"', (Challenge("bearer", {"realm": "x"}),)),
        ('realm="no scheme"', ()),
        ('Bearer realm="x" junk=(', (Challenge("bearer", {"realm": "x", "junk": "("}),)),
        ("\x00Bearer", ()),
        ("x" * 20_000, ()),
    ],
)
def test_challenges(header: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == expected


def test_every_cut_of_a_header_is_read_without_complaint() -> None:
    header = f'Negotiate YII==, Basic realm="x\\"y", {DOCKER_HUB}'
    whole = parse_challenges(header)
    for end in range(len(header)):
        for found, full in zip(parse_challenges(header[:end]), whole, strict=False):
            assert full.scheme.startswith(found.scheme)
            assert found.parameters.items() <= full.parameters.items()


@given(st.text(alphabet='Beartsic ,="\\\t/:x', max_size=300))
def test_any_text_ends_in_challenges(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower() != ""


def test_long_hostile_headers_take_no_time() -> None:
    for header in ('Bearer x="' + '\\"' * 8000, "Bearer " + "a=" * 8000, "a " * 8000, "=," * 8000):
        parse_challenges(header)


def test_a_token_service_is_preferred() -> None:
    basic = Challenge("basic", {"realm": "x"})
    assert choose_challenge((basic, HUB)) == HUB
    assert choose_challenge((Challenge("bearer"), basic)) == basic, "a token service without a URL"
    assert choose_challenge((Challenge("negotiate"),)) is None
