"""The signatures by cosign in tests/fixtures/trust/cosign, as candidates; policies for them."""

import base64
import functools
import json
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lazyfs.digest import Digest, parse_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_MANIFEST, Manifest, decode_manifest
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference
from lazyfs.trust.files.containers import LocalFiles
from lazyfs.trust.request import Request
from lazyfs.trust.sigstore.candidates import (
    Attachment,
    Bundled,
    Candidate,
    attachment_tag,
    bundle_layer,
    payload_layers,
)
from lazyfs.trust.sigstore.judge import judge
from lazyfs.trust.sigstore.policy_reading import parse_policy
from lazyfs.trust.verdict import Verdict

VECTORS = Path(__file__).parents[2] / "fixtures" / "trust" / "cosign"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
# Registry as the vectors' makers called it → layout, and the port that signatures name.
REGISTRIES = {"olareg": ("referrers", 8912), "docker-registry": ("tags", 8913)}


@functools.cache
def index() -> Any:
    """Return the vectors' index.json."""
    return json.loads((VECTORS / "index.json").read_bytes())


@functools.cache
def layout(name: str) -> dict[str, bytes]:
    """Return the files of a layout by their names: ``index.json``, ``blobs/sha256/…``."""
    with tarfile.open(VECTORS / f"layout-{name}.tar.xz") as archive:
        files = [member for member in archive if member.isfile()]
        return {
            each.name.removeprefix("./").removeprefix("layout/"): _read(archive, each)
            for each in files
        }


def key_file(name: str) -> bytes:
    """Return a file among the vectors' keys: ``p256.pub``, ``ca.crt``."""
    return (VECTORS / "keys" / name).read_bytes()


def key_data(name: str) -> str:
    """Return such a file as keyData and caRootsData want it."""
    return base64.b64encode(key_file(name)).decode()


def image_digest(image: str) -> Digest:
    """Return the digest of a vector's image."""
    return parse_digest(index()["images"][image])


def candidates(image: str, registry: str = "olareg") -> list[Candidate]:
    """Return what a registry has for an image: old signatures, then new ones."""
    return list(_candidates(image, registry))


@functools.cache
def _candidates(image: str, registry: str) -> tuple[Candidate, ...]:
    name, _ = REGISTRIES[registry]
    files, digest = layout(name), image_digest(image)
    found: list[Candidate] = []
    for manifest, tag, _ in _manifests(name):
        if tag == attachment_tag(digest):
            for layer in payload_layers(manifest):
                data = files[f"blobs/sha256/{layer.digest.hex}"]
                found.append(Attachment(layer.digest, data, layer.annotations))
    for manifest, _, manifest_digest in _manifests(name):
        if manifest.subject is not None and manifest.subject.digest == digest:
            bundle = bundle_layer(manifest, digest)
            if bundle is not None:
                data = files[f"blobs/sha256/{bundle.digest.hex}"]
                found.append(Bundled(manifest_digest, data))
    return tuple(found)


def reference(registry: str = "olareg", suffix: str = ":latest") -> Reference:
    """Return the name of the vectors' repository, as the signatures in a registry name it."""
    _, port = REGISTRIES[registry]
    parsed = parse_reference(f"127.0.0.1:{port}/{index()['repo']}{suffix}")
    assert isinstance(parsed, Reference)
    return parsed


def signed_by(key: str, **members: Any) -> dict[str, Any]:
    """Return a requirement for a signature by one of the vectors' keys, of any name."""
    return {
        "type": "sigstoreSigned",
        "keyData": key_data(f"{key}.pub"),
        "signedIdentity": {"type": "matchDigestOnly"},
        **members,
    }


def certified(email: str, **members: Any) -> dict[str, Any]:
    """Return a requirement for a signature with a certificate of the vectors' authority."""
    return {
        "type": "sigstoreSigned",
        "pki": {"caRootsData": key_data("ca.crt"), "subjectEmail": email},
        "signedIdentity": {"type": "matchDigestOnly"},
        **members,
    }


def judged(
    requirement: dict[str, Any] | list[dict[str, Any]],
    found: Any,
    digest: Digest,
    *,
    asked: Reference | LayoutReference | None = None,
    now: datetime = NOW,
    annotations: dict[str, str] | None = None,
) -> Verdict:
    """Return the verdict of a policy that requires this of all images."""
    requirements = requirement if isinstance(requirement, list) else [requirement]
    policy = parse_policy(json.dumps({"default": requirements}).encode(), "policy.json")
    image = Descriptor(OCI_MANIFEST, digest, 0)
    request = Request(
        reference=asked or reference(), image=image, now=now, metadata=annotations or {}
    )
    return judge(policy, LocalFiles(), request, found)


def _manifests(name: str) -> Iterator[tuple[Manifest, str | None, Digest]]:
    """Yield the manifests of a layout, each with its tag and digest."""
    files = layout(name)
    for entry in json.loads(files["index.json"])["manifests"]:
        digest = parse_digest(entry["digest"])
        document = decode_manifest(files[f"blobs/sha256/{digest.hex}"], None)
        if isinstance(document, Manifest):
            tag = entry.get("annotations", {}).get("org.opencontainers.image.ref.name")
            yield document, tag, digest


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
