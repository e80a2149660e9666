"""Token services: what they are asked, and what they answer."""

import base64
import json
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.registry.answers.tokens import (
    TokenRequest,
    build_token_request,
    decode_token,
    pull_scope,
    push_scope,
    scopes_to_ask,
)
from lazyfs.registry.config.errors import BadAnswer
from lazyfs.registry.config.keychain import Credential, Kind

REALM = "https://auth.example/token"
SCOPE = pull_scope("team/app")


def asked(
    service: str = "",
    credential: Credential | None = None,
    *,
    realm: str = REALM,
    scopes: Sequence[str] = (SCOPE,),
) -> TokenRequest:
    return build_token_request(realm, service, scopes, credential)


def query(request: TokenRequest) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(request.url).query)


def test_nobody_asks_for_a_token() -> None:
    request = asked("the registry")
    assert request.method == "GET"
    assert request.url.startswith(REALM + "?")
    assert query(request) == [("service", "the registry"), ("scope", "repository:team/app:pull")]
    assert request.authorization is None
    assert request.body is None


def test_a_user_asks_for_a_token() -> None:
    request = asked("", Credential("u", "p:q"))
    assert request.authorization == "Basic " + base64.b64encode(b"u:p:q").decode()
    assert query(request) == [("scope", SCOPE)]


def test_an_identity_token_is_posted_and_never_in_the_url() -> None:
    request = asked("s", Credential("", "geheim", Kind.IDENTITY_TOKEN))
    assert request.method == "POST"
    assert request.url == REALM
    assert request.authorization is None
    assert dict(parse_qsl((request.body or b"").decode())) == {
        "service": "s",
        "scope": SCOPE,
        "grant_type": "refresh_token",
        "client_id": "lazyfs",
        "refresh_token": "geheim",
    }
    assert "geheim" not in repr(request)


def test_a_realm_keeps_its_own_query() -> None:
    request = asked("s", realm=REALM + "?account=a")
    assert query(request) == [("account", "a"), ("service", "s"), ("scope", SCOPE)]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("", [SCOPE]),
        (SCOPE, [SCOPE]),
        ("repository:other/name:pull", [SCOPE, "repository:other/name:pull"]),
        ("repository:team/app:pull,push", [SCOPE, "repository:team/app:pull,push"]),
        ('a"b \\', [SCOPE]),
    ],
)
def test_scopes_that_the_registry_names_are_asked_for_too(scope: str, expected: list[str]) -> None:
    assert scopes_to_ask(SCOPE, scope) == expected
    request = asked(scopes=expected)
    assert [value for name, value in query(request) if name == "scope"] == expected


def test_a_scope_within_ours_is_not_asked_for_twice() -> None:
    assert scopes_to_ask(push_scope("team/app"), SCOPE) == ["repository:team/app:pull,push"]


@pytest.mark.parametrize(
    ("answer", "text", "seconds"),
    [
        ({"token": "t", "expires_in": 300}, "t", 300),
        ({"access_token": "t", "expires_in": 300}, "t", 300),
        ({"token": "t", "access_token": "t"}, "t", 60),
        ({"token": "t", "expires_in": None}, "t", 60),
        ({"token": "t", "expires_in": 0}, "t", 1),
        ({"token": "t", "expires_in": -5}, "t", 1),
        ({"token": "t", "expires_in": 10**12}, "t", 86400),
        ({"token": "t", "expires_in": "300"}, "t", 300),
        ({"token": "t", "expires_in": "299.5"}, "t", 299.5),
        ({"token": "t", "expires_in": "soon"}, "t", 60),
        ({"token": "t", "expires_in": "1e9"}, "t", 60),
        ({"token": "t", "expires_in": 99.5, "issued_at": "2001-01-01T00:00:00Z"}, "t", 99.5),
    ],
)
def test_tokens(answer: dict[str, object], text: str, seconds: float) -> None:
    data = json.dumps(answer).encode()
    token = decode_token(data, 1000.0)
    assert decode_token(b"\xef\xbb\xbf" + data, 1000.0) == token
    assert token.authorization == f"Bearer {text}"
    assert token.expiry == 1000 + seconds
    assert token.received == 1000 < token.due < token.expiry
    assert text not in repr(token).replace("Token", "").replace("due", "").replace("expiry", "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"token": ""}',
        b'{"token": 5}',
        b'{"token": "two\\r\\nX-Evil: geheim"}',
        b'{"token": "geheim with blanks"}',
        '{"token": "geheim-é"}'.encode(),
        b'{"token": "' + b"x" * 70_000 + b'"}',
        b"<html>geheim",
        b"\xff",
    ],
)
def test_answers_that_hold_no_token(data: bytes) -> None:
    with pytest.raises(BadAnswer, match="token service") as caught:
        decode_token(data, 0.0)
    assert "geheim" not in str(caught.value)


@given(st.binary(max_size=100))
def test_any_answer_is_a_token_or_refused(data: bytes) -> None:
    try:
        decode_token(data, 0.0)
    except BadAnswer:
        pass
