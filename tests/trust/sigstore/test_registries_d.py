"""registries.d: which section holds for an image, and what a file may say."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.sigstore.registries_d import (
    FILE_LIMIT,
    FILES_LIMIT,
    Registries,
    lookaside_of,
    parse_registries,
    uses_attachments,
)

SPECIFIC = b"""
docker:
  registry.example:
    use-sigstore-attachments: true
    lookaside: https://host.example/
  registry.example/team:
    use-sigstore-attachments: false
  registry.example/team/app:v1:
    use-sigstore-attachments: true
    lookaside-staging: file:///staging
  "*.wild.example":
    sigstore: https://old.example
    use-sigstore-attachments: yes
  other.example/both: {sigstore: https://old.example, lookaside: https://new.example}
"""


def parsed(*texts: bytes) -> Registries:
    return parse_registries([(f"{at}.yaml", text) for at, text in enumerate(texts)])


@pytest.mark.parametrize(
    ("name", "attachments", "lookaside"),
    [
        ("registry.example/app", True, "https://host.example/"),
        ("REGISTRY.example/app", True, "https://host.example/"),
        ("registry.example:5000/app", False, None),
        ("registry.example/team/app", False, "https://host.example/"),  # set only for the host
        ("registry.example/team/app:v1", True, "https://host.example/"),
        ("registry.example/team/app:v2", False, "https://host.example/"),
        ("registry.example/teams/app", True, "https://host.example/"),
        ("a.wild.example:5000/app", True, "https://old.example"),
        ("wild.example/app", False, None),
        ("other.example/both", False, "https://new.example"),
        ("python", False, None),
        ("oci:/registry.example", False, None),
    ],
)
def test_the_most_specific_setting_wins(
    name: str, attachments: bool, lookaside: str | None
) -> None:
    registries, reference = parsed(SPECIFIC), parse_reference(name)
    assert uses_attachments(registries, reference) is attachments
    assert lookaside_of(registries, reference) == lookaside
    assert registries.ignored == ()


def test_a_default_section_holds_where_nothing_else_is_said() -> None:
    default = b"default-docker: {use-sigstore-attachments: true, lookaside: https://d.example}"
    registries = parsed(SPECIFIC, default)
    assert uses_attachments(registries, parse_reference("python"))
    assert lookaside_of(registries, parse_reference("python")) == "https://d.example"
    assert not uses_attachments(registries, parse_reference("registry.example/team/app"))


def test_sections_without_anything() -> None:
    registries = parsed(b"docker:\n  registry.example:\ndefault-docker:\n", b"", b"docker:\n")
    assert not uses_attachments(registries, parse_reference("registry.example/app"))
    assert registries.default is None


def test_other_files_are_passed_over() -> None:
    assert parse_registries([("README", b"{"), ("x.yml", b"{"), ("x.yaml~", b"{")]) == Registries()


def test_unknown_keys_are_named() -> None:
    registries = parsed(b"docker: {a.example: {signed: 1, lookaside: u}}\nx: 1")
    assert registries.ignored == (
        "0.yaml: 'x' is not used",
        "0.yaml: docker: 'a.example': 'signed' is not used",
    )
    assert lookaside_of(registries, parse_reference("a.example/b")) == "u"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"docker: {a.example: {}}", b"docker: {a.example: {}}"], "in 0.yaml already"),
        ([b"docker: {a.example: {}, A.example: {}}"], "'A.example' is in 0.yaml already"),
        ([b"default-docker: {}", b"default-docker: {}"], "default-docker is in 0.yaml already"),
        ([b"docker: {a.example: {}, a.example: {}}"], "appears more than once"),
        ([b"docker: {a.example: {lookaside: 3}}"], "lookaside must be a URL, not 3"),
        ([b"docker: {a.example: {use-sigstore-attachments: maybe}}"], "true or false, not 'maybe'"),
        ([b"docker: [a]"], "docker must have keys"),
        ([b"- docker"], "the document must have keys"),
        ([b"docker: {a.example: text}"], "'a.example' must have keys, not be 'text'"),
        ([b"docker: \x02"], "not valid YAML: unacceptable character #x0002: special char"),
        ([b"docker: {"], "line 1, column 10: not valid YAML"),
        ([b"\xff"], "not valid UTF-8 at byte 0"),
        ([b"#" * (FILE_LIMIT + 1)], "longer than"),
        ([b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n" * 1 + b"[" * 5000], "not valid YAML"),
        ([b""] * (FILES_LIMIT + 1), "at most 1000 are read"),
    ],
)
def test_faults_are_told(texts: list[bytes], message: str) -> None:
    with pytest.raises(PolicyFault, match=message) as caught:
        parsed(*texts)
    assert "\n" not in caught.value.message


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SPECIFIC)), st.binary(max_size=4), st.integers(0, 8))
def test_damaged_files_are_refused_or_read(at: int, put: bytes, cut: int) -> None:
    with contextlib.suppress(PolicyFault):
        parsed(SPECIFIC[:at] + put + SPECIFIC[at + cut :])
