"""Credentials: which files, in which order, which entry."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.registry.config.keychain import (
    BadAuthFile,
    Credential,
    HelperCall,
    Kind,
    auth_paths,
    candidates,
    decode_helper_answer,
    in_file,
    normal_key,
)

HOME = {"HOME": "/home/u"}


def entry(pair: str) -> dict[str, str]:
    return {"auth": base64.b64encode(pair.encode()).decode()}


def file(auths: dict[str, Any] | None = None, **members: Any) -> bytes:
    return json.dumps({"auths": auths or {}, **members}).encode()


def search(
    files: dict[str, bytes],
    registry: str = "r.example",
    repository: str = "team/app",
    environment: dict[str, str] | None = None,
    authfile: str | None = None,
) -> list[Credential | HelperCall]:
    environment = HOME if environment is None else environment
    return list(
        candidates(registry, repository, environment, files.get, authfile=authfile, uid=1000)
    )


def users(found: list[Credential | HelperCall]) -> list[str]:
    return [c.username if isinstance(c, Credential) else f"{c.name}?" for c in found]


def test_the_files_and_their_order() -> None:
    environment = {
        "HOME": "/home/u",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "XDG_CONFIG_HOME": "/cfg",
        "DOCKER_CONFIG": "/docker",
    }
    assert auth_paths(environment, 1000) == [
        "/run/user/1000/containers/auth.json",
        "/cfg/containers/auth.json",
        "/docker/config.json",
        "/home/u/.dockercfg",
    ]
    assert auth_paths(HOME, 1000) == [
        "/run/containers/1000/auth.json",
        "/home/u/.config/containers/auth.json",
        "/home/u/.docker/config.json",
        "/home/u/.dockercfg",
    ]
    assert auth_paths({}, 0) == ["/run/containers/0/auth.json"]


def test_the_first_file_that_knows_comes_first() -> None:
    files = {
        "/home/u/.docker/config.json": file({"r.example": entry("docker:p")}),
        "/home/u/.config/containers/auth.json": file({"r.example": entry("podman:p")}),
        "/run/containers/1000/auth.json": file({"other.example": entry("other:p")}),
        "/home/u/.dockercfg": json.dumps({"https://r.example/v1/": entry("old:p")}).encode(),
    }
    assert users(search(files)) == ["podman", "docker", "old"]


def test_a_named_file_is_the_only_one() -> None:
    files = {
        "/home/u/.docker/config.json": file({"r.example": entry("docker:p")}),
        "/a": file({"r.example": entry("a:p")}),
        "/b": file({"r.example": entry("b:p")}),
    }
    environment = {**HOME, "REGISTRY_AUTH_FILE": "/a"}
    assert users(search(files, environment=environment)) == ["a"]
    assert users(search(files, environment=environment, authfile="/b")) == ["b"]


def test_a_named_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BadAuthFile, match="/nowhere"):
        search({}, authfile="/nowhere")


def test_no_file_at_all_is_none() -> None:
    assert search({}) == []


def test_the_search_reads_no_further_than_it_is_asked_to() -> None:
    files = {
        "/home/u/.config/containers/auth.json": file({"r.example": entry("podman:p")}),
        "/home/u/.docker/config.json": b"broken",
    }
    found = candidates("r.example", "x", HOME, files.get, uid=0)
    assert next(found) == Credential("podman", "p")
    with pytest.raises(BadAuthFile, match=r"\.docker/config\.json"):
        next(found)


def one(auths: dict[str, Any], registry: str = "r.example", repository: str = "team/app") -> Any:
    return next(in_file(file(auths), "f", registry, repository), None)


def test_the_longest_prefix_comes_first() -> None:
    auths = {
        "r.example": entry("all:p"),
        "r.example/team": entry("team:p"),
        "r.example/team/app": entry("app:p"),
        "r.example/te": entry("wrong:p"),
        "r.example/team/app/sub": entry("wrong:p"),
    }
    found = list(in_file(file(auths), "f", "r.example", "team/app"))
    assert users(found) == ["app", "team", "all"]
    assert users(list(in_file(file(auths), "f", "r.example", "team/other"))) == ["team", "all"]
    assert users(list(in_file(file(auths), "f", "r.example:5000", "team/app"))) == []


@pytest.mark.parametrize(
    "key",
    [
        "https://index.docker.io/v1/",
        "https://index.docker.io/v2/",
        "index.docker.io",
        "index.docker.io/v1/",
        "docker.io",
        "https://registry-1.docker.io",
    ],
)
def test_docker_hub_has_many_names(key: str) -> None:
    assert one({key: entry("u:p")}, "docker.io", "library/python") == Credential("u", "p")
    assert one({key: entry("u:p")}, "r.example") is None


def test_docker_hub_repositories_have_keys_of_their_own() -> None:
    auths = {"docker.io": entry("all:p"), "docker.io/team": entry("team:p")}
    assert one(auths, "docker.io", "team/app").username == "team"
    assert one(auths, "docker.io", "library/python").username == "all"


@pytest.mark.parametrize(
    ("key", "normal"),
    [
        ("R.Example:5000", "r.example:5000"),
        ("https://r.example/v2/", "r.example"),
        ("http://r.example", "r.example"),
        ("r.example/team/", "r.example/team"),
        ("", ""),
        ("https://", ""),
    ],
)
def test_keys(key: str, normal: str) -> None:
    assert normal_key(key) == normal


def test_the_plain_key_wins_over_the_url() -> None:
    auths = {"https://r.example/v1/": entry("url:p"), "r.example": entry("plain:p")}
    assert one(auths).username == "plain"
    assert one(dict(reversed(auths.items()))).username == "plain"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, None),
        (None, None),
        ({"auth": ""}, None),
        ({"email": "x@y"}, None),
        (entry("u:p"), Credential("u", "p")),
        (entry("u:p:q"), Credential("u", "p:q")),
        (entry("u:p\0\0"), Credential("u", "p")),
        (entry("u:"), Credential("u", "")),
        (entry("ü:ß"), Credential("ü", "ß")),
        ({"username": "u", "password": "p"}, Credential("u", "p")),
        ({"identitytoken": "t"}, Credential("", "t", Kind.IDENTITY_TOKEN)),
        ({**entry("u:"), "identitytoken": "t"}, Credential("u", "t", Kind.IDENTITY_TOKEN)),
        (entry("<token>:t"), Credential("", "t", Kind.IDENTITY_TOKEN)),
        ({"registrytoken": "t"}, Credential("", "t", Kind.REGISTRY_TOKEN)),
    ],
)
def test_entries(value: Any, expected: Credential | None) -> None:
    assert one({"r.example": value}) == expected


def test_helpers_come_before_entries_and_the_registrys_own_first() -> None:
    data = file(
        {"r.example": entry("u:p")},
        credsStore="desktop",
        credHelpers={"r.example": "ecr-login", "other.example": "gcr"},
    )
    found = list(in_file(data, "f", "r.example", "x"))
    assert found == [
        HelperCall("ecr-login", "r.example", "f"),
        HelperCall("desktop", "r.example", "f"),
        Credential("u", "p"),
    ]


def test_helpers_know_docker_hub_by_its_old_name() -> None:
    found = list(in_file(file(credsStore="desktop"), "f", "docker.io", "library/python"))
    assert found == [HelperCall("desktop", "https://index.docker.io/v1/", "f")]


@pytest.mark.parametrize("name", ["../evil", "a/b", "-x", "a b", "a\n", "."])
def test_a_helper_cannot_be_another_program(name: str) -> None:
    with pytest.raises(BadAuthFile, match="credential helper"):
        list(in_file(file(credsStore=name), "f", "r.example", "x"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"auths": []}',
        b'{"auths": {"r.example": "geheim"}}',
        b'{"auths": {"r.example": {"auth": 5}}}',
        b'{"credsStore": 5}',
        b'{"credHelpers": ["x"]}',
        b"\xff",
        b"[" * 100_000,
        b" " * (5 << 20),
        file({"r.example": {"auth": "%%%"}}),
        file({"r.example": {"auth": base64.b64encode(b"geheim").decode()}}),
        file({"r.example": {"auth": base64.b64encode(b"\xff:\xff").decode()}}),
        file({"r.example": {"auth": "é"}}),
    ],
)
def test_files_that_are_none(data: bytes) -> None:
    with pytest.raises(BadAuthFile, match="the-file") as caught:
        list(in_file(data, "the-file", "r.example", "x"))
    assert "geheim" not in str(caught.value)


def test_a_file_cut_at_each_place_or_with_more_behind_it() -> None:
    whole = file({"r.example": entry("u:p")}, credHelpers={"a": "b"})
    for data in [*(whole[:end] for end in range(len(whole))), whole + b"x"]:
        with pytest.raises(BadAuthFile):
            list(in_file(data, "f", "r.example", "x"))


@given(st.binary(max_size=100))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        list(in_file(data, "f", "r.example", "x"))
    except BadAuthFile:
        pass


def test_secrets_are_not_shown() -> None:
    assert "geheim" not in repr(Credential("u", "geheim"))


CALL = HelperCall("x", "r.example")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"ServerURL":"s","Username":"u","Secret":"p"}', Credential("u", "p")),
        (b'{"Username":"<token>","Secret":"t"}', Credential("", "t", Kind.IDENTITY_TOKEN)),
        (b'{"Username":"","Secret":""}', None),
        (b"{}", None),
    ],
)
def test_helpers_answers(data: bytes, expected: Credential | None) -> None:
    assert decode_helper_answer(data, CALL) == expected


@pytest.mark.parametrize("data", [b"", b"[]", b'{"Secret":["geheim"]}', b'"geheim"', b"\xff"])
def test_helpers_answers_that_are_none(data: bytes) -> None:
    with pytest.raises(BadAuthFile, match="docker-credential-x") as caught:
        decode_helper_answer(data, CALL)
    assert "geheim" not in str(caught.value)
