"""What notation and cosign sign is trusted here, and what is tampered with is refused by all."""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lazyfs.cli.main import cli
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    sha256,
    tagged,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.programs import CosignTool, NotationTool

pytestmark = [pytest.mark.interop]

NAME = "team/app"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
COSIGN = [("trixie", "payload"), ("sid", "payload"), ("sid", "bundle")]


@pytest.fixture(params=["referrers API", "tag schema"])
def registry(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """A registry with two images, ``one`` and ``two``; tags can be moved there."""
    for tag in ("one", "two"):
        entries = [directory("d"), file("d/file", tag.encode())]
        make_layout(tmp_path / "layout", [estargz_layer(tar_bytes(entries))], tag=tag)
    with FakeRegistry(tmp_path / "layout") as found:
        if request.param == "referrers API":
            found.list_referrers()
        for tag in ("one", "two"):
            move(found, tmp_path, "latest" if tag == "one" else tag, tag)
        yield found


def move(registry: FakeRegistry, folder: Path, tag: str, image: str) -> None:
    """Have *tag* name an image of the layout."""
    described = tagged(folder / "layout", image)
    data = (folder / "layout/blobs" / described["digest"].replace(":", "/")).read_bytes()
    registry.put_manifest(NAME, data, described["mediaType"], tag)


def digest_of(folder: Path, image: str = "one") -> str:
    return str(tagged(folder / "layout", image)["digest"])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAZYFS_CACHE_DIR", str(tmp_path / "cache"))


def ours(*words: object) -> int:
    """Return the exit code of ``lazyfs trust check``; it says what it found in any case."""
    done = CliRunner().invoke(cli, ["trust", "check", *map(str, words)])
    assert done.exit_code in (0, 2, 5, 6), done.output
    assert "Traceback" not in done.output
    return done.exit_code


def check_use(folder: Path, image: str, policy: Path, code: int) -> None:
    """Pull, list and mount *image*, which ends with *code* each time."""
    lazyfs, point = Lazyfs(folder / "user"), folder / "user/mnt"
    point.mkdir(parents=True)
    for words in (("ls", image), ("pull", image)):
        done = lazyfs(*words, "--policy", policy)
        assert done.returncode == code, (words, done.stderr)
    try:
        done = lazyfs("mount", "--policy", policy, image, point)
        assert done.returncode == code, done.stderr
        if code == 0:
            assert os.getxattr(point, "user.lazyfs.trust") == b"trusted"
            assert (point / "d/file").read_bytes() == b"one"
            assert lazyfs("umount", point).returncode == 0
        else:
            assert list(point.iterdir()) == []
    finally:
        force_unmount(point)


# notation


def has_api(registry: FakeRegistry) -> bool:
    return registry.referrers is not None


def sign(tool: NotationTool, registry: FakeRegistry, image: str, *more: str) -> None:
    tags = f"--force-referrers-tag={str(not has_api(registry)).lower()}"
    tool.do("sign", "--insecure-registry", tags, *more, image)


def theirs(tool: NotationTool, image: str) -> int:
    return tool("verify", "--insecure-registry", image).returncode


@needs_root[0]
@needs_root[1]
@needs_fuse[0]
@needs_fuse[1]
@pytest.mark.parametrize("envelope", ["jws", "cose"])
def test_an_image_signed_by_notation_is_used(
    registry: FakeRegistry, tmp_path: Path, envelope: str
) -> None:
    tool = NotationTool(tmp_path / "publisher")
    image = f"{registry.host}/{NAME}"
    policy = tool.trust(image)
    assert (ours(f"{image}:latest", "--policy", policy), theirs(tool, f"{image}:latest")) == (6, 1)
    sign(tool, registry, f"{image}@{digest_of(tmp_path)}", "--signature-format", envelope)
    assert (ours(f"{image}:latest", "--policy", policy), theirs(tool, f"{image}:latest")) == (0, 0)
    check_use(tmp_path, f"{image}:latest", policy, 0)


@needs_root[0]
@needs_root[1]
@needs_fuse[0]
@needs_fuse[1]
def test_a_tag_that_was_moved_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    tool = NotationTool(tmp_path / "publisher")
    image = f"{registry.host}/{NAME}"
    policy = tool.trust(image)
    sign(tool, registry, f"{image}:latest")
    move(registry, tmp_path, "latest", "two")
    assert theirs(tool, f"{image}:latest") == 1
    check_use(tmp_path, f"{image}:latest", policy, 6)


@pytest.mark.parametrize("kind", ["another image's", "a changed envelope", "another name"])
def test_a_signature_of_notation_in_another_place_is_refused(
    registry: FakeRegistry, tmp_path: Path, kind: str
) -> None:
    tool = NotationTool(tmp_path / "publisher")
    image = f"{registry.host}/{NAME}"
    policy = tool.trust(f"{registry.host}/team/other" if kind == "another name" else image)
    sign(tool, registry, f"{image}:latest")
    about = "latest"
    if kind == "another image's":
        about = "two"
        attach(registry, tmp_path, signature_of(registry), "two")
    elif kind == "a changed envelope":
        move(registry, tmp_path, "latest", "two")
        manifest = signature_of(registry)
        (layer,) = manifest["layers"]
        blob = registry.content.blob(NAME, layer["digest"])
        assert isinstance(blob, bytes)
        envelope = json.loads(blob)
        envelope["payload"] = "e30"
        changed = json.dumps(envelope).encode()
        registry.put_blob(NAME, changed)
        layer.update(digest=sha256(changed), size=len(changed))
        attach(registry, tmp_path, manifest, "two")
    assert ours(f"{image}:{about}", "--policy", policy) == 6
    assert theirs(tool, f"{image}:{about}") == 1


def signature_of(registry: FakeRegistry) -> dict[str, Any]:
    """Return the manifest of the one signature that was pushed."""
    pushed = [json.loads(each.data) for each in registry.content.manifests(NAME)]
    (found,) = [each for each in pushed if "subject" in each]
    return found


def attach(registry: FakeRegistry, folder: Path, manifest: dict[str, Any], image: str) -> None:
    """Push *manifest* as a referrer of another image."""
    subject = tagged(folder / "layout", image)
    manifest["subject"] = {key: subject[key] for key in ("mediaType", "digest", "size")}
    data = json.dumps(manifest).encode()
    digest = registry.put_manifest(NAME, data, MANIFEST)
    if not has_api(registry):
        entry = {"mediaType": MANIFEST, "digest": digest, "size": len(data)}
        entry["artifactType"] = manifest.get("artifactType") or manifest["config"]["mediaType"]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        tag = subject["digest"].replace(":", "-")
        registry.put_manifest(NAME, json.dumps(index).encode(), INDEX, tag)


def test_another_publishers_signature_is_refused_until_one_of_the_right_one_is_there(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = f"{registry.host}/{NAME}"
    right = NotationTool(tmp_path / "right")
    policy = right.trust(image)
    sign(NotationTool(tmp_path / "wrong"), registry, f"{image}:latest")
    assert (ours(f"{image}:latest", "--policy", policy), theirs(right, f"{image}:latest")) == (6, 1)
    sign(right, registry, f"{image}:latest")
    assert (ours(f"{image}:latest", "--policy", policy), theirs(right, f"{image}:latest")) == (0, 0)


def test_a_signature_that_has_expired_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    tool = NotationTool(tmp_path / "publisher")
    image = f"{registry.host}/{NAME}"
    policy = tool.trust(image)
    sign(tool, registry, f"{image}:latest", "--expiry", "1m")
    assert ours(f"{image}:latest", "--policy", policy) == 0
    later = (datetime.now(UTC) + timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert ours(f"{image}:latest", "--policy", policy, "--at", later) == 6


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", [estargz_layer(tar_bytes([directory("d")]))], tag="one")
    with FakeRegistry(tmp_path / "layout") as registry:
        registry.list_referrers()
        image = f"{registry.host}/{NAME}:one"
        end = datetime.now(UTC) + timedelta(seconds=8)
        tool = NotationTool(tmp_path / "publisher", end=end)
        policy = tool.trust(image.rpartition(":")[0])
        sign(tool, registry, image)
        time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds() + 1.1))
        assert (ours(image, "--policy", policy), theirs(tool, image)) == (6, 1)
        lenient = tool.trust(image.rpartition(":")[0], level="permissive")
        assert (ours(image, "--policy", lenient), theirs(tool, image)) == (0, 0)


@pytest.mark.parametrize("envelope", ["jws", "cose"])
def test_a_layout_signed_by_notation(tmp_path: Path, envelope: str) -> None:
    make_layout(tmp_path / "layout", [estargz_layer(tar_bytes([directory("d")]))], tag="one")
    tool = NotationTool(tmp_path / "publisher")
    scope = "registry.example/team/app"
    policy = tool.trust(scope)
    named = f"{tmp_path}/layout@{digest_of(tmp_path)}"

    def verdicts() -> tuple[int, int]:
        verify = tool("verify", "--oci-layout", "--scope", scope, named)
        return ours(f"oci:{named}", "--policy", policy, "--as", scope), verify.returncode

    assert verdicts() == (6, 1)
    tool.do("sign", "--oci-layout", "--signature-format", envelope, named)
    assert verdicts() == (0, 0)
    tool.trust(scope, NotationTool(tmp_path / "other").root)
    assert verdicts() == (6, 1)


# cosign


@needs_root[0]
@needs_root[1]
@needs_fuse[0]
@needs_fuse[1]
@pytest.mark.parametrize(("suite", "form"), COSIGN)
def test_an_image_signed_by_cosign_is_used(
    registry: FakeRegistry, tmp_path: Path, suite: str, form: str
) -> None:
    tool = CosignTool(tmp_path / "publisher", suite)
    image = f"{registry.host}/{NAME}"
    signed = f"{image}@{digest_of(tmp_path)}"
    assert ours(signed, "--key", tool.key) == 6
    assert tool.verify(signed) == 10
    tool.sign(signed, form)
    assert (ours(signed, "--key", tool.key), tool.verify(signed)) == (0, 0)
    identity = "matchDigestOnly" if form == "bundle" else "matchRepository"
    policy = policy_json(tmp_path, tool.key, image, identity)
    check_use(tmp_path, f"{image}:latest", policy, 0)


def policy_json(folder: Path, key: Path, scope: str, identity: str) -> Path:
    """Write containers' policy that wants a signature by *key*; return its path."""
    wanted = {"type": "sigstoreSigned", "keyPath": str(key), "signedIdentity": {"type": identity}}
    path = folder / "policy.json"
    transports = {"docker": {scope: [wanted]}}
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": transports}))
    sections = folder / ".config/containers/registries.d"
    sections.mkdir(parents=True, exist_ok=True)
    (sections / "all.yaml").write_text("default-docker: {use-sigstore-attachments: true}\n")
    return path


@pytest.mark.parametrize(("suite", "form"), COSIGN)
@pytest.mark.parametrize("kind", ["moved tag", "another key", "another image's"])
def test_what_cosign_did_not_sign_is_refused(
    registry: FakeRegistry, tmp_path: Path, suite: str, form: str, kind: str
) -> None:
    tool = CosignTool(tmp_path / "publisher", suite)
    image = f"{registry.host}/{NAME}"
    one, two = digest_of(tmp_path, "one"), digest_of(tmp_path, "two")
    signer = CosignTool(tmp_path / "other", suite) if kind == "another key" else tool
    signer.sign(f"{image}@{one}", form)
    about = one
    if kind == "moved tag":
        move(registry, tmp_path, "latest", "two")
        about = two
        assert ours(f"{image}:latest", "--key", tool.key) == 6
    elif kind == "another image's":
        about = two
        if form == "payload":
            stored = registry.content.manifest(NAME, f"{one.replace(':', '-')}.sig")
            assert stored is not None
            tag = f"{two.replace(':', '-')}.sig"
            registry.put_manifest(NAME, stored.data, stored.media_type, tag)
        else:
            attach(registry, tmp_path, signature_of(registry), "two")
    assert ours(f"{image}@{about}", "--key", tool.key) == 6
    assert tool.verify(f"{image}@{about}") != 0


def test_an_attestation_is_no_signature(registry: FakeRegistry, tmp_path: Path) -> None:
    """cosign 3.1.1 takes one for a signature."""
    tool = CosignTool(tmp_path / "publisher", "sid")
    image = f"{registry.host}/{NAME}@{digest_of(tmp_path)}"
    (tool.folder / "predicate.json").write_text('{"a": "b"}')
    words = ("--use-signing-config=false", "--tlog-upload=false", "--yes", "--type", "custom")
    tool.do("attest", "--key", "cosign.key", "--predicate", "predicate.json", *words, image)
    assert ours(image, "--key", tool.key) == 6
