"""The real registry: the suite that the fake one passes too, and images that skopeo moves."""

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.errors import AccessDenied, Unavailable
from lazyfs.oci.config import decode_config
from lazyfs.oci.manifest import Manifest, decode_manifest
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.source import AccessOptions
from tests.support.formats import images
from tests.support.registries import docker_registry
from tests.support.registries.clients import ONCE, connected, described, read_range
from tests.support.registries.docker_registry import DockerRegistry
from tests.support.registries.repositories import DATA, Place, RepositoryContract

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        docker_registry.why_missing() is not None, reason=docker_registry.why_missing() or ""
    ),
]

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("guarded"), has_users=True) as registry:
        yield registry


def place_in(registry: DockerRegistry, options: AccessOptions) -> Place:
    reference = parse_reference(f"{registry.host}/test/repository{next(NUMBERS)}")
    assert isinstance(reference, Reference)
    return lambda: RegistryClient(reference, options)


class TestDockerRegistry(RepositoryContract):
    @pytest.fixture
    def place(self, registry: DockerRegistry) -> Place:
        return place_in(registry, AccessOptions())


class TestDockerRegistryWithPasswords(RepositoryContract):
    @pytest.fixture
    def place(self, guarded: DockerRegistry, tmp_path: Path) -> Place:
        authfile = guarded.auth_file(tmp_path / "auth.json")
        return place_in(guarded, AccessOptions(authfile=authfile))


def skopeo_copy(source: str, destination: str) -> None:
    subprocess.run(
        [
            *("skopeo", "copy", "--insecure-policy", "--quiet"),
            *("--src-tls-verify=false", "--dest-tls-verify=false", source, destination),
        ],
        check=True,
        timeout=60,
    )


@pytest.mark.anyio
async def test_without_credentials_access_is_denied(guarded: DockerRegistry) -> None:
    async with connected(guarded.host) as client:
        with pytest.raises(AccessDenied, match="HTTP status 401, UNAUTHORIZED") as caught:
            await client.fetch_manifest("latest")
        with pytest.raises(AccessDenied):
            await client.push_blob(described(DATA), DATA)
    assert f"docker login {guarded.host}" in str(caught.value)


@pytest.mark.anyio
async def test_https_to_a_registry_of_plain_http(
    registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfs.registry.config.endpoints.is_loopback", lambda name: False)
    async with connected(registry.host, policy=ONCE) as client:
        with pytest.raises(Unavailable) as caught:
            await client.fetch_manifest("latest")
    assert "--plain-http" in str(caught.value)


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
async def test_an_image_that_skopeo_pushed(registry: DockerRegistry, tmp_path: Path) -> None:
    layers = [
        images.layer_from_fixture("estargz-go-0.12/edge-default"),
        images.plain_layer(images.tar_bytes([images.file("a", b"a" * 5000)])),
    ]
    digest = images.make_layout(tmp_path / "layout", layers, tag="v1")
    await trio.to_thread.run_sync(
        skopeo_copy, f"oci:{tmp_path}/layout:v1", f"docker://{registry.host}/pushed/image:v1"
    )
    async with connected(registry.host, "pushed/image") as client:
        document = await client.fetch_manifest("v1")
        assert document.digest == digest, "skopeo keeps an OCI manifest as it is"
        assert (await client.fetch_manifest(digest)).data == document.data
        found = decode_manifest(document.data, document.media_type)
        assert isinstance(found, Manifest)
        config = decode_config(await client.fetch_blob(found.config, limit=1 << 20))
        assert config.diff_ids == tuple(layer.diff_id for layer in layers)
        for descriptor, layer in zip(found.layers, layers, strict=True):
            assert descriptor.annotations == layer.annotations
            assert await client.fetch_blob(descriptor, limit=1 << 30) == layer.blob
            tail = max(0, descriptor.size - 1000)
            assert await read_range(client, descriptor, tail) == layer.blob[tail:]


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
async def test_skopeo_reads_what_was_pushed(registry: DockerRegistry, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest = images.make_layout(layout, [images.layer_from_fixture("estargz-go-0.12/edge-default")])
    data = images.read_blob(layout, digest)
    found = decode_manifest(data, None)
    assert isinstance(found, Manifest)
    async with connected(registry.host, "pushed/by-lazyfs") as client:
        for blob in (found.config, *found.layers):
            await client.push_blob(blob, images.blob_path(layout, blob.digest))
        assert await client.push_manifest(data, found.media_type, "v1") == digest
    copied = tmp_path / "copied"
    await trio.to_thread.run_sync(
        skopeo_copy, f"docker://{registry.host}/pushed/by-lazyfs:v1", f"oci:{copied}:v1"
    )
    assert images.tagged(copied, "v1")["digest"] == str(digest)
