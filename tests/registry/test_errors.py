"""Errors: families, what they say, and what they must not say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import AccessDenied, LazyfsError, NotFound, Unavailable, VerificationFailed
from lazyfs.registry.config.errors import (
    ERROR_BODY_LIMIT,
    TEMPORARY,
    Fault,
    Overloaded,
    decode_faults,
    error_for,
    redact_url,
)

URL = "https://r.example/v2/team/app/manifests/v1"


def body(code: str, message: str = "") -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message, "detail": {"a": 1}}]}).encode()


@pytest.mark.parametrize(
    ("status", "family", "is_temporary"),
    [
        (400, Unavailable, False),
        (401, AccessDenied, False),
        (403, AccessDenied, False),
        (404, NotFound, False),
        (405, Unavailable, False),
        (408, Unavailable, True),
        (410, NotFound, False),
        (416, Unavailable, False),
        (418, Unavailable, False),
        (429, Unavailable, True),
        (500, Unavailable, True),
        (501, Unavailable, False),
        (502, Unavailable, True),
        (503, Unavailable, True),
        (504, Unavailable, True),
        (599, Unavailable, True),
        (101, Unavailable, False),
        (302, Unavailable, False),
    ],
)
def test_statuses(status: int, family: type[LazyfsError], is_temporary: bool) -> None:
    error = error_for("GET", URL, status, {}, b"", registry="r.example")
    assert isinstance(error, family)
    assert isinstance(error, TEMPORARY) == is_temporary
    assert f"GET {URL}: HTTP status {status}" in error.message


def test_the_registrys_own_words_are_there() -> None:
    said = body("MANIFEST_UNKNOWN", "no such\nmanifest\x1b[31m")
    error = error_for("GET", URL, 404, {}, said, registry="r.example")
    assert error.message == (
        f"GET {URL}: HTTP status 404, MANIFEST_UNKNOWN (no such\\nmanifest\\x1b[31m)"
    )


def test_denied_says_how_to_log_in() -> None:
    error = error_for("GET", URL, 401, {}, b"", registry="r.example")
    assert "docker login r.example" in str(error)
    assert "podman login r.example" in str(error)


def test_retry_after_is_kept() -> None:
    error = error_for("GET", URL, 429, {"retry-after": "7"}, b"", registry="r")
    assert isinstance(error, Overloaded)
    assert error.retry_after == "7"


def test_a_refused_digest_is_a_failed_verification() -> None:
    error = error_for("PUT", URL, 400, {}, body("DIGEST_INVALID"), registry="r")
    assert isinstance(error, VerificationFailed)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"errors": 5}', b'{"errors": [5]}', b"<html>", b"\xff", b"[" * 100_000],
)
def test_bodies_that_are_no_error_document(data: bytes) -> None:
    assert decode_faults(data) == ()


def test_error_documents_cut_at_each_place_or_with_more_behind_them() -> None:
    whole = body("DENIED", "no")
    assert decode_faults(whole) == (Fault("DENIED", "no"),)
    for end in range(len(whole)):
        assert decode_faults(whole[:end]) == ()
    assert decode_faults(whole + b"x") == ()


def test_error_documents_are_bounded() -> None:
    many = json.dumps({"errors": [{"code": "X" * 999, "message": "y" * 9999}] * 50}).encode()
    faults = decode_faults(many[:ERROR_BODY_LIMIT] if len(many) < ERROR_BODY_LIMIT else body("A"))
    assert len(faults) <= 3
    assert all(len(str(fault)) < 400 for fault in decode_faults(body("X" * 999, "y" * 9999)))


@given(st.binary(max_size=200))
def test_any_body_is_read_without_complaint(data: bytes) -> None:
    decode_faults(data)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://r/v2/x?digest=sha256:ab", "https://r/v2/x?digest=sha256:ab"),
        ("https://r/x?X-Amz-Signature=abc&ns=a", "https://r/x?X-Amz-Signature=…&ns=a"),
        ("https://user:pass@r/x", "https://r/x"),
        ("https://r/x#secret", "https://r/x"),
        ("https://[::1", "(a URL that cannot be parsed)"),
        ("https://r/" + "x" * 900, "https://r/" + "x" * 489 + "…"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown
