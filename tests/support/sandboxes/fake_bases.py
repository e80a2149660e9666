"""Images without a registry, mounts without a kernel: a Bases whose mounts are plain folders.

``FakeImages`` stands for what the world has: manifests by digest, tags that move.  Every request is
written down.  A ``FakeBases`` is one machine: what it has fetched, and what it has mounted.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import UNSET

from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseUnavailable,
    BaseUnresolved,
    DeadMount,
    TagUnresolvable,
)
from lazyfs.documents.manifest import Image, Layer, Platform
from lazyfs.oci.reference import parse_reference
from lazyfs.sandbox.bases import Base

PREFIX = "user.lazyfs."
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
WHEN = "2026-11-20T19:40:02Z"


def digest_of(*words: object) -> str:
    """Return a digest that is the same for the same words."""
    return "sha256:" + hashlib.sha256(repr(words).encode()).hexdigest()


@dataclass(frozen=True)
class FakeImage:
    """An image: its files, and digests that follow from them."""

    files: tuple[tuple[str, str], ...]
    platform: str = "linux/amd64"
    layers_of: tuple[str, ...] = ("base",)
    command: tuple[str, ...] = ("/bin/counter",)
    env: tuple[str, ...] = ("PATH=/bin",)
    index: str | None = None

    @property
    def manifest(self) -> str:
        return digest_of("manifest", self.files, self.platform, self.layers_of, self.command)

    @property
    def config(self) -> str:
        return digest_of("config", self.manifest)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(
            Layer(
                digest=digest_of("layer", word, self.files),
                diff_id=digest_of("diff", word, self.files),
                media_type=LAYER_TYPE,
                size=1000 + place,
            )
            for place, word in enumerate(self.layers_of)
        )

    def document(self) -> dict[str, Any]:
        os, architecture = self.platform.split("/")[:2]
        config = {"Cmd": list(self.command), "Env": list(self.env)}
        return {"os": os, "architecture": architecture, "config": config}


def image(base: str = "old", **fields: Any) -> FakeImage:
    """Return an image whose /etc/base says *base*."""
    return FakeImage(files=(("etc/base", base),), **fields)


@dataclass
class FakeImages:
    """All registries there are.  ``requests`` are "tag REF" and "digest DIGEST"."""

    tags: dict[str, FakeImage] = field(default_factory=dict)
    by_digest: dict[str, FakeImage] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    is_down: bool = False

    def tag(self, ref: str, image: FakeImage) -> FakeImage:
        """Have a tag name *image* from now on."""
        self.tags[str(parse_reference(ref))] = image
        self.by_digest[image.manifest] = image
        if image.index is not None:
            self.by_digest[image.index] = image
        return image

    def tag_requests(self) -> list[str]:
        return [each for each in self.requests if each.startswith("tag ")]

    def ask_tag(self, ref: str) -> FakeImage:
        self.requests.append(f"tag {ref}")
        if self.is_down or ref not in self.tags:
            raise TagUnresolvable(f"{ref}: got no answer, expected a digest")
        return self.tags[ref]

    def ask_digest(self, digest: str) -> FakeImage | None:
        self.requests.append(f"digest {digest}")
        found = self.by_digest.get(digest)
        if self.is_down or found is None or found.manifest in self.gone or digest in self.gone:
            return None
        return found


@dataclass
class FakeMount:
    image: FakeImage
    requested: str
    mount_id: str
    health: str = "ok"
    is_dead: bool = False
    changes: dict[str, str] = field(default_factory=dict)


class FakeBases:
    """The Bases of one machine.

    ``fail`` names calls that raise what it has for them, "identity:after" once the state of a
    sandbox was saved; ``swap`` has what is mounted in the place of an image, by manifest.
    """

    def __init__(self, images: FakeImages) -> None:
        self.images = images
        self.cache: dict[str, FakeImage] = {}
        self.known: dict[str, str] = {}  # tag → manifest, as the last request had it
        self.partial: set[str] = set()  # manifests of which only some contents are here
        self.corrupt: set[str] = set()
        self.mounts: dict[Path, FakeMount] = {}
        self.profiles: dict[str, bytes] = {}
        self.added: dict[str, bytes] = {}
        self.fail: dict[str, Exception] = {}
        self.swap: dict[str, FakeImage] = {}
        self.calls: list[str] = []
        self.on_call: Callable[[str], None] | None = None
        self._numbers = itertools.count(1)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.on_call is not None:
            self.on_call(name)
        if name in self.fail:
            raise self.fail[name]

    # Bases

    def resolve(
        self, wanted: Mapping[str, str], *, platform: str | None, pull: str
    ) -> dict[str, Base]:
        self._called("resolve")
        found = {ref: self._resolve(ref, pull) for ref in sorted(set(wanted.values()))}
        for each in found.values():
            self.cache[each.manifest] = each
        return {name: _base(name, ref, found[ref]) for name, ref in wanted.items()}

    def _resolve(self, text: str, pull: str) -> FakeImage:
        reference = parse_reference(text)
        if reference.digest is not None:
            digest = str(reference.digest)
            for each in self.cache.values():
                if digest in (each.manifest, each.index):
                    return each
            found = self.images.ask_digest(digest)
            if found is None:
                raise BaseUnavailable(f"{text}: got 404, expected a manifest")
            return found
        tag = str(reference)
        if pull != "always" and tag in self.known:
            return self.cache[self.known[tag]]
        if pull == "never":
            raise TagUnresolvable(f"{text}: --pull never, and the tag is not known")
        found = self.images.ask_tag(tag)
        self.known[tag] = found.manifest
        return found

    def obtain(
        self, images: Sequence[Image], *, embedded: Path | None, allow_partial: bool
    ) -> dict[str, Base]:
        self._called("obtain")
        found = {}
        for each in images:
            got = self._obtain(each, embedded, allow_partial)
            found[each.name] = _base(each.name, each.original_ref, got)
        return found

    def _obtain(self, wanted: Image, embedded: Path | None, allow_partial: bool) -> FakeImage:
        digest = wanted.manifest_digest
        is_partial = digest in self.partial and not allow_partial
        if digest in self.cache and digest not in self.corrupt and not is_partial:
            return self.cache[digest]
        if embedded is not None:
            hex_ = digest.removeprefix("sha256:")
            if (embedded / "blobs" / "sha256" / hex_).exists():
                return self.images.by_digest[digest]
        got = self.images.ask_digest(digest)
        if got is None:
            kind = BaseCorrupt if digest in self.corrupt else BaseUnavailable
            raise kind(
                f"{wanted.resolved_ref} (of {wanted.original_ref}): cache: got no whole copy; "
                "embedded: got none; registry: got 404",
                details={"sources": ["cache", "embedded", "registry"]},
            )
        self.corrupt.discard(digest)
        self.cache[digest] = got
        return got

    def ready(self) -> AbstractContextManager[None]:
        return nullcontext()

    def give_up(self) -> None:
        self._called("give up")

    def mount(self, base: Base, directory: Path) -> None:
        self._called("mount")
        assert directory.is_dir()
        assert directory not in self.mounts
        wanted = base.image.manifest_digest
        assert base.mount_ref.endswith(wanted), "never by a tag"
        got = self.swap.get(wanted) or self.images.by_digest[wanted]
        for name, text in got.files:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        mount_id = f"{next(self._numbers):016x}"
        self.mounts[directory] = FakeMount(got, base.image.original_ref, mount_id)

    def unmount(self, directory: Path) -> None:
        self._called("unmount")
        if self.mounts.pop(directory, None) is not None:
            for path in directory.iterdir():
                shutil.rmtree(path)

    def identity(self, directory: Path) -> dict[str, str]:
        self._called("identity")
        mount = self.mounts.get(directory)
        if mount is None:
            raise BaseUnresolved(f"{directory} is not a lazyfs mount")
        if mount.is_dead:
            raise DeadMount(f"mount {directory} is dead: its server has ended")
        return _attributes(mount)

    def profile(self, manifest_digest: str) -> bytes | None:
        self._called("profile")
        return self.profiles.get(manifest_digest)

    def add_profile(self, manifest_digest: str, data: bytes) -> None:
        self._called("add_profile")
        self.added[manifest_digest] = data

    def drift(self, images: Sequence[Image]) -> dict[str, str]:
        self._called("drift")
        found = {}
        for each in images:
            reference = parse_reference(each.original_ref)
            if reference.digest is None:
                now = self.images.ask_tag(str(reference)).manifest
                if now != each.manifest_digest:
                    found[each.name] = now
        return found


def _base(name: str, text: str, got: FakeImage) -> Base:
    reference = parse_reference(text)
    os, architecture, *variant = got.platform.split("/")
    resolved = f"{reference.name}@{got.manifest}"
    made = Image(
        name=name,
        original_ref=text,
        resolved_ref=resolved,
        pinned=reference.digest is not None,
        platform=Platform(os, architecture, variant[0] if variant else UNSET),
        index_digest=got.index,
        manifest_digest=got.manifest,
        manifest_media_type=MANIFEST_TYPE,
        config_digest=got.config,
        layers=got.layers,
        resolved_at=WHEN,
        source="xattr+record",
    )
    return Base(made, got.document(), resolved)


def _attributes(mount: FakeMount) -> dict[str, str]:
    got = mount.image
    name = parse_reference(mount.requested).name
    layers = [
        {"digest": e.digest, "diffId": e.diff_id, "mediaType": e.media_type, "size": e.size}
        for e in got.layers
    ]
    values = {
        "schema": "1",
        "ref.requested": mount.requested,
        "ref.resolved": f"{name}@{got.manifest}",
        "manifest.digest": got.manifest,
        "manifest.mediatype": MANIFEST_TYPE,
        "config.digest": got.config,
        "platform": got.platform,
        "layers": json.dumps(layers),
        "resolved-at": WHEN,
        "mount.id": mount.mount_id,
        "health": mount.health,
        **({} if got.index is None else {"index.digest": got.index}),
        **mount.changes,
    }
    return {PREFIX + key: value for key, value in values.items()}
