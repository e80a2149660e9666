"""References: what people type, and the one thing that it means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import digest_of
from lazyfs.errors import UsageError
from lazyfs.oci.reference import (
    BadReference,
    LayoutReference,
    Reference,
    api_host,
    auth_key,
    is_loopback,
    parse_reference,
)

DIGEST = digest_of(b"")
HEX = DIGEST.hex


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12", "docker.io/library/python:3.12"),
        ("library/python", "docker.io/library/python:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("docker.io/library/python", "docker.io/library/python:latest"),
        ("index.docker.io/library/python", "docker.io/library/python:latest"),
        ("docker://python", "docker.io/library/python:latest"),
        ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
        ("docker.io/a/b/c", "docker.io/a/b/c:latest"),
        ("docker.io/foo.bar/baz", "docker.io/foo.bar/baz:latest"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest"),
        ("ghcr.io/a/b:c", "ghcr.io/a/b:c"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("ghcr.io", "docker.io/library/ghcr.io:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("host:5000/a/b:c", "host:5000/a/b:c"),
        ("127.0.0.1:80/a", "127.0.0.1:80/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("[2001:DB8::1]/a:b", "[2001:DB8::1]/a:b"),
        ("MyHost/a", "MyHost/a:latest"),
        ("my-host/a", "docker.io/my-host/a:latest"),
        ("a.b/c", "a.b/c:latest"),
        ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
        ("a:_x.-", "docker.io/library/a:_x.-"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
        (f"a:t@{DIGEST}", f"docker.io/library/a:t@{DIGEST}"),
        ("a:" + "t" * 128, "docker.io/library/a:" + "t" * 128),
        ("f" * 63, f"docker.io/library/{'f' * 63}:latest"),
        (f"docker.io/{HEX}", f"docker.io/library/{HEX}:latest"),
    ],
)
def test_registry_references(text, canonical):
    reference = parse_reference(text)
    assert isinstance(reference, Reference)
    assert str(reference) == canonical
    assert reference.text == text
    assert parse_reference(canonical).name == reference.name


def test_a_digest_counts_and_the_tag_is_kept():
    reference = parse_reference(f"python:3.12@{DIGEST}")
    assert reference.identifier == DIGEST
    assert (reference.tag, reference.digest) == ("3.12", DIGEST)
    assert parse_reference(f"python@{DIGEST}").tag is None
    assert parse_reference("python").identifier == "latest"
    assert parse_reference("python:3").identifier == "3"
    assert parse_reference(f"a@{digest_of(b'', 'sha512')}").digest == digest_of(b"", "sha512")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "a b",
        " a",
        "a\n",
        "a\0",
        "Python",
        "docker.io/Python",
        "ghcr.io/A/b",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a.-b",
        "ä",
        "a:",
        "a:-b",
        "a:.b",
        "a:b:c",
        "a:" + "t" * 129,
        "a:tág",
        "a@",
        "a@sha256:",
        f"a@sha256:{HEX[:-1]}",
        f"a@sha256:{HEX.upper()}",
        f"a@md5:{'a' * 32}",
        f"a@{DIGEST}@{DIGEST}",
        f"@{DIGEST}",
        HEX,
        "http://a/b",
        "https://ghcr.io/a/b",
        "ghcr.io:/a",
        "ghcr.io:port/a",
        "ghcr.io:123456/a",
        "-ghcr.io/a",
        "ghcr..io/a",
        "[::1/a",
        "[g::1]/a",
        "user@ghcr.io/a",
        "ghcr.io/" + "a" * 256,
        "ghcr.io/../a",
        "docker://",
        "oci:",
        "oci::tag",
        "oci:dir:",
        "oci:dir\0",
        f"oci:dir@sha256:{HEX[:-1]}",
        f"oci:@{DIGEST}",
    ],
)
def test_refused(text):
    with pytest.raises(BadReference, match="reference"):
        parse_reference(text)


def test_hints():
    with pytest.raises(BadReference, match="lower case"):
        parse_reference("Python")
    with pytest.raises(BadReference, match=f"NAME@sha256:{HEX}"):
        parse_reference(HEX)
    assert issubclass(BadReference, UsageError)


@pytest.mark.parametrize(
    ("text", "path", "tag", "digest"),
    [
        ("oci:dir", "dir", None, None),
        ("oci:/srv/images:tag", "/srv/images", "tag", None),
        ("oci:/a:b/c", "/a:b/c", None, None),
        ("oci:/a:b/c:d", "/a:b/c", "d", None),
        ("oci:dir:a:b", "dir:a", "b", None),
        ("oci:dir:ä", "dir:ä", None, None),
        (f"oci:dir@{DIGEST}", "dir", None, DIGEST),
        (f"oci:dir:t@{DIGEST}", "dir", "t", DIGEST),
        ("oci:a@b:c", "a@b", "c", None),
        ("oci:..", "..", None, None),
        ("oci:my dir:t", "my dir", "t", None),
    ],
)
def test_layout_references(text, path, tag, digest):
    reference = parse_reference(text)
    assert reference == LayoutReference(path, tag, digest, text)
    assert reference.identifier == (digest or tag or "")
    assert reference.name == f"oci:{path}"
    assert parse_reference(str(reference)) == LayoutReference(path, tag, digest, str(reference))


def test_docker_hub_has_other_names():
    assert api_host("docker.io") == "registry-1.docker.io"
    assert auth_key("docker.io") == "https://index.docker.io/v1/"
    assert api_host("ghcr.io:443") == auth_key("ghcr.io:443") == "ghcr.io:443"


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1", True),
        ("127.8.8.8:1", True),
        ("[::1]", True),
        ("[::1]:5000", True),
        ("[::2]:5000", False),
        ("10.0.0.1:5000", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("ghcr.io", False),
        ("docker.io", False),
    ],
)
def test_loopback(registry, expected):
    assert is_loopback(registry) is expected


@given(st.one_of(st.text(max_size=60), st.text(alphabet="ab.-_:/@[]0A", max_size=40)))
def test_any_text(text):
    try:
        reference = parse_reference(text)
    except BadReference:
        return
    again = parse_reference(str(reference))
    assert (again.name, again.identifier) == (reference.name, reference.identifier)


def test_long_text_is_refused_quickly():
    for text in ("a-" * 100_000, "a" * 10**6, "a/" * 500_000, "a." * 500_000 + "/b"):
        with pytest.raises(BadReference):
            parse_reference(text)
