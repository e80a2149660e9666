"""signedIdentity: each rule of containers-policy.json(5), and names that only look alike."""

import pytest

from lazyfs.oci.reference import BadReference, Reference, parse_reference
from lazyfs.trust.sigstore.identity import Identity, matches, parse_name
from lazyfs.trust.sigstore.scopes import scopes_of

DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
APP = "host.example/ns/app"
REMAP = Identity("remapIdentity", prefix="mirror.example:5000/hub", signed_prefix="docker.io")
HOST = Identity("remapIdentity", prefix="mirror.example", signed_prefix="vendor.example/images")


@pytest.mark.parametrize(
    ("identity", "requested", "signed", "expected"),
    [
        # The default: the same tag, or for a digest any tag of the repository.
        (Identity(), f"{APP}:1", f"{APP}:1", True),
        (Identity(), f"{APP}:1", f"{APP}:2", False),
        (Identity(), f"{APP}:1", APP, False),
        (Identity(), APP, f"{APP}:latest", True),
        (Identity(), APP, APP, False),
        (Identity(), f"{APP}:1", f"{APP}:1@{DIGEST}", False),
        (Identity(), f"{APP}@{DIGEST}", f"{APP}:anything", True),
        (Identity(), f"{APP}@{DIGEST}", f"{APP}@{OTHER}", True),  # whose digest is checked anyway
        (Identity(), f"{APP}@{DIGEST}", APP, False),
        (Identity(), f"{APP}@{DIGEST}", "host.example/ns/other:1", False),
        (Identity(), f"{APP}:1@{DIGEST}", f"{APP}:2", True),
        (Identity(), "python", "docker.io/library/python:latest", True),
        (Identity(), "python", "python:latest", True),
        (Identity(), "python:3", "index.docker.io/library/python:3", True),
        (Identity("matchExact"), f"{APP}:1", f"{APP}:1", True),
        (Identity("matchExact"), f"{APP}:1", f"{APP}:2", False),
        (Identity("matchExact"), f"{APP}@{DIGEST}", f"{APP}@{DIGEST}", True),
        (Identity("matchExact"), f"{APP}@{DIGEST}", f"{APP}@{OTHER}", False),
        (Identity("matchExact"), f"{APP}@{DIGEST}", f"{APP}:1", False),
        (Identity("matchExact"), APP, APP, False),
        (Identity("matchRepository"), f"{APP}:1", APP, True),
        (Identity("matchRepository"), f"{APP}:1", f"{APP}:2", True),
        (Identity("matchRepository"), f"{APP}@{DIGEST}", APP, True),
        (Identity("matchRepository"), f"{APP}:1", "host.example/ns/app2", False),
        (Identity("matchRepository"), f"{APP}:1", "host.example/ns", False),
        (Identity("matchRepository"), f"{APP}:1", "host.example:5000/ns/app", False),
        (Identity("matchRepository"), f"{APP}:1", "HOST.example/ns/app", False),
        (Identity("exactReference", "vendor.example/a:1"), f"{APP}:1", "vendor.example/a:1", True),
        (Identity("exactReference", "vendor.example/a:1"), f"{APP}:1", f"{APP}:1", False),
        (Identity("exactReference", "vendor.example/a:1"), "oci:/d", "vendor.example/a:1", True),
        (Identity("exactReference", "vendor.example/a"), f"{APP}:1", "vendor.example/a", False),
        (Identity("exactRepository", "vendor.example/a"), f"{APP}:1", "vendor.example/a:9", True),
        (Identity("exactRepository", "vendor.example/a"), f"{APP}:1", "vendor.example/a", True),
        (Identity("exactRepository", "vendor.example/a"), f"{APP}:1", APP, False),
        (Identity("exactRepository", "vendor.example/a"), "oci:/d", "vendor.example/a", True),
        # A prefix is replaced where it ends at a slash; what does not begin so stays as it is.
        (REMAP, "mirror.example:5000/hub/library/x:1", "docker.io/library/x:1", True),
        (REMAP, "mirror.example:5000/hub/library/x:1", "docker.io/library/x:2", False),
        (REMAP, "mirror.example:5000/hub/library/x:1", "docker.io/library/x", False),
        (REMAP, f"mirror.example:5000/hub/x/y@{DIGEST}", "docker.io/x/y:2", True),
        (
            REMAP,
            "mirror.example:5000/hub/library/x:1",
            "mirror.example:5000/hub/library/x:1",
            False,
        ),
        (REMAP, "mirror.example:5000/hubs/x:1", "docker.io/s/x:1", False),
        (REMAP, "mirror.example:5000/hubs/x:1", "mirror.example:5000/hubs/x:1", True),
        (REMAP, "mirror.example:5000/hub:1", "docker.io:1", False),
        (REMAP, "mirror.example:5000/hub/x:1", "docker.io/library/x:1", False),
        (REMAP, "mirror.example:5000/hub/x:1", "docker.io/x:1", False),
        (REMAP, "mirror.example/hub/x/y:1", "mirror.example/hub/x/y:1", True),
        (HOST, "mirror.example/a/b:1", "vendor.example/images/a/b:1", True),
        (HOST, "mirror.example:5000/a/b:1", "vendor.example/images/a/b:1", False),
        # Nothing but the digest is wanted.
        (Identity("matchDigestOnly"), f"{APP}:1", "anything/else", True),
        (Identity("matchDigestOnly"), f"{APP}:1", None, True),
        (Identity("matchDigestOnly"), "oci:/d", None, True),
    ],
)
def test_rules(identity: Identity, requested: str, signed: str | None, expected: bool) -> None:
    assert matches(identity, parse_reference(requested), signed) is expected


@pytest.mark.parametrize(
    "identity",
    [
        Identity(),
        Identity("matchExact"),
        Identity("matchRepository"),
        Identity("exactReference", "vendor.example/a:1"),
        Identity("exactRepository", "vendor.example/a"),
        REMAP,
    ],
)
@pytest.mark.parametrize(
    "signed",
    [None, "", "Not A Name", "docker://host.example/ns/app:1", "x" * 2000, "oci:/d", "0" * 64],
)
def test_what_names_no_image_matches_nothing(identity: Identity, signed: str | None) -> None:
    for requested in (f"{APP}:1", f"{APP}@{DIGEST}"):
        assert not matches(identity, parse_reference(requested), signed)


@pytest.mark.parametrize("kind", ["matchExact", "matchRepoDigestOrExact", "matchRepository"])
def test_a_layout_has_no_name_to_compare(kind: str) -> None:
    identity = Identity(kind)  # type: ignore[arg-type]
    assert not matches(identity, parse_reference("oci:/d:1"), f"{APP}:1")


def test_a_reference_without_a_tag_means_latest() -> None:
    """Else it would count as named by digest, for which any tag will do."""
    bare = Reference("host.example", "ns/app", None, None, "")
    assert next(scopes_of(bare)) == f"{APP}:latest"
    assert matches(Identity(), bare, f"{APP}:latest")
    assert not matches(Identity(), bare, f"{APP}:1")


def test_names_say_only_what_they_state() -> None:
    assert parse_name("python").is_bare
    assert parse_name("python").repository == "docker.io/library/python"
    assert parse_name("localhost:5000/x").is_bare
    assert parse_name("localhost:5000/x:latest").tag == "latest"
    assert parse_name(f"x:1@{DIGEST}").digest == DIGEST
    with pytest.raises(BadReference):
        parse_name("oci:/d")
