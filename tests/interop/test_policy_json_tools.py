"""The same policy.json before skopeo and before lazyfs: the same verdict on the same image."""

import base64
import json
from collections.abc import Callable, Iterator
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
    tagged,
    tar_bytes,
)
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.programs import CosignTool, Program, of_debian

pytestmark = [pytest.mark.interop]

NAME = "team/app"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGES = ("signed", "unsigned", "bundle", "two-keys", "moved")
Requirements = list[dict[str, Any]]


class World:
    """A registry with images in every state, the keys, and skopeo."""

    def __init__(self, folder: Path, registry: FakeRegistry) -> None:
        self.folder = folder
        self.registry = registry
        self.one = CosignTool(folder / "one", "trixie")
        self.two = CosignTool(folder / "two", "trixie")
        newest = CosignTool(folder / "newest", "sid")
        for key in ("cosign.key", "cosign.pub"):  # the bundle is by the first key
            (newest.folder / key).write_bytes((self.one.folder / key).read_bytes())
        self.one.sign(self._named("signed"), "payload")
        newest.sign(self._named("bundle"), "bundle")
        self.one.sign(self._named("two-keys"), "payload")
        self.two.sign(self._named("two-keys"), "payload")
        moved = self._signature("signed")
        registry.put_manifest(NAME, moved, MANIFEST, self._tag("moved"))
        self.skopeo = Program(of_debian("producers", "skopeo"), folder / "skopeo", {})

    def _digest(self, image: str) -> str:
        return str(tagged(self.folder / "layout", image)["digest"])

    def _named(self, image: str) -> str:
        return f"{self.registry.host}/{NAME}@{self._digest(image)}"

    def _tag(self, image: str) -> str:
        return f"{self._digest(image).replace(':', '-')}.sig"

    def _signature(self, image: str) -> bytes:
        stored = self.registry.content.manifest(NAME, self._tag(image))
        assert stored is not None
        return stored.data

    def key(self, signer: CosignTool) -> str:
        return str(signer.key)

    def verdicts(self, image: str, policy: dict[str, Any], sections: str) -> tuple[bool, bool]:
        """Return whether we and skopeo accept *image*."""
        path = self.folder / "policy.json"
        path.write_text(json.dumps(policy))
        places = self.folder / "registries.d"
        places.mkdir(exist_ok=True)
        (places / "all.yaml").write_text(sections)
        home = self.folder / ".config/containers"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "registries.d").exists():
            (home / "registries.d").symlink_to(places)
        reference = f"{self.registry.host}/{NAME}:{image}"
        done = CliRunner().invoke(cli, ["trust", "check", reference, "--policy", str(path)])
        assert done.exit_code in (0, 6), done.output
        options = (f"--policy={path}", f"--registries.d={places}", "--src-tls-verify=false")
        target = f"dir:{self.folder}/copy"
        copied = self.skopeo(*options[:2], "copy", options[2], f"docker://{reference}", target)
        assert copied.returncode in (0, 1), copied.stderr
        if copied.returncode:
            told = ("signature", "reject", "denied", "accepted", "identity", "match")
            assert any(word in copied.stderr.lower() for word in told), copied.stderr
        return done.exit_code == 0, copied.returncode == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    for tag in IMAGES:
        entries = [directory("d"), file("d/file", tag.encode())]
        make_layout(folder / "layout", [estargz_layer(tar_bytes(entries))], tag=tag)
    with FakeRegistry(folder / "layout") as registry:
        registry.list_referrers()
        yield World(folder, registry)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setenv("HOME", str(world.folder))


def signed_by(path: str, **identity: str) -> dict[str, Any]:
    wanted: dict[str, Any] = {"type": "sigstoreSigned", "keyPath": path}
    if identity:
        wanted["signedIdentity"] = identity
    return wanted


ANY = [{"type": "insecureAcceptAnything"}]
RULES: dict[str, Callable[[World], Requirements]] = {
    "anything": lambda w: ANY,
    "reject": lambda w: [{"type": "reject"}],
    "usual identity": lambda w: [signed_by(w.key(w.one))],
    "repository": lambda w: [signed_by(w.key(w.one), type="matchRepository")],
    "exact": lambda w: [signed_by(w.key(w.one), type="matchExact")],
    "another key": lambda w: [signed_by(w.key(w.two), type="matchRepository")],
    "this repository": lambda w: [
        signed_by(
            w.key(w.one), type="exactRepository", dockerRepository=f"{w.registry.host}/{NAME}"
        )
    ],
    "another repository": lambda w: [
        signed_by(
            w.key(w.one), type="exactRepository", dockerRepository=f"{w.registry.host}/team/b"
        )
    ],
    "a reference": lambda w: [
        signed_by(
            w.key(w.one), type="exactReference", dockerReference=f"{w.registry.host}/{NAME}:signed"
        )
    ],
    "both keys": lambda w: [
        signed_by(w.key(each), type="matchRepository") for each in (w.one, w.two)
    ],
    "one of two keys": lambda w: [
        {
            "type": "sigstoreSigned",
            "keyPaths": [w.key(w.two), w.key(w.one)],
            "signedIdentity": {"type": "matchRepository"},
        }
    ],
    "a key in the policy": lambda w: [
        {
            "type": "sigstoreSigned",
            "keyData": base64.b64encode(w.one.key.read_bytes()).decode(),
            "signedIdentity": {"type": "matchRepository"},
        }
    ],
    "another name's prefix": lambda w: [
        signed_by(
            w.key(w.one),
            type="remapIdentity",
            prefix=w.registry.host,
            signedPrefix="registry.example",
        )
    ],
    "signed, or anything": lambda w: [signed_by(w.key(w.one), type="matchRepository"), *ANY],
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("rule", RULES)
def test_a_requirement(world: World, rule: str, image: str) -> None:
    scope = f"{world.registry.host}/{NAME}"
    policy = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {scope: RULES[rule](world)}},
    }
    us, them = world.verdicts(image, policy, "default-docker: {use-sigstore-attachments: true}\n")
    assert us == them


SCOPES = {
    "default": None,
    "all of docker": "",
    "the host": "{host}",
    "the namespace": "{host}/team",
    "the repository": "{host}/team/app",
    "the tag": "{host}/team/app:unsigned",
    "another tag": "{host}/team/app:signed",
    "another repository": "{host}/team/ap",
    "another host": "registry.example",
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("inside", ["reject", "insecureAcceptAnything"])
def test_a_scope(world: World, scope: str, inside: str) -> None:
    """What holds in the scope, and its opposite elsewhere."""
    outside = "reject" if inside == "insecureAcceptAnything" else "insecureAcceptAnything"
    policy: dict[str, Any] = {"default": [{"type": outside}], "transports": {"docker": {}}}
    text = SCOPES[scope]
    if text is None:
        policy["default"] = [{"type": inside}]
    else:
        where = text.format(host=world.registry.host)
        policy["transports"]["docker"][where] = [{"type": inside}]
    us, them = world.verdicts("unsigned", policy, "")
    assert us == them


@pytest.mark.parametrize(
    ("sections", "is_seen"),
    [
        ("", False),
        ("default-docker: {use-sigstore-attachments: false}\n", False),
        ("docker: {HOST: {use-sigstore-attachments: true}}\n", True),
    ],
)
def test_where_signatures_are_looked_for(world: World, sections: str, *, is_seen: bool) -> None:
    """skopeo has to be told to look beside the image; we always do."""
    scope = f"{world.registry.host}/{NAME}"
    policy = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {scope: RULES["repository"](world)}},
    }
    verdicts = world.verdicts("signed", policy, sections.replace("HOST", world.registry.host))
    assert verdicts == (True, is_seen)
