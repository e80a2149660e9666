"""The commands that talk to a registry, run in this process against a site with peculiarities.

Each has a cache of its own, so that it asks for all that it needs, and raises where it fails or
says something else than it should.
"""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import trio
from click.testing import CliRunner

from lazyfs.cli.images.cat import contents_of
from lazyfs.cli.main import cli
from lazyfs.digest import digest_of, parse_digest
from lazyfs.image.layers.indexes import ARTIFACT_TYPE
from lazyfs.image.open import open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.push import Pusher
from lazyfs.registry.retry import RetryPolicy
from lazyfs.registry.source import AccessOptions
from tests.support.formats.images import (
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tagged,
    tar_bytes,
)
from tests.support.registries.quirk_rules import NAME, Site
from tests.support.registries.registry_content import OCI_MANIFEST

BIG = random.Random(7).randbytes(300_000)
SMALL = b"a small file"
LARGE_BLOB = random.Random(8).randbytes(250_000)
PIECE_SIZE = 100_000
EMPTY = b"{}"
numbers = itertools.count()


def make_images(folder: Path) -> None:
    """Write the repository's layout: an index with an image that is lazy, and a plain image."""
    tar = tar_bytes([file("big", BIG), file("dir/small", SMALL)])
    make_layout(folder / NAME, [estargz_layer(tar)], tag="lazy", others={"linux/s390x": []})
    make_layout(folder / NAME, [plain_layer(tar)], tag="plain")


def digest_for(site: Site, tag: str) -> str:
    """Return the digest of the image that *tag* is for this machine."""
    layout = site.registry.content.directory
    assert layout is not None
    described = tagged(layout / NAME, tag)
    path = layout / NAME / "blobs" / described["digest"].replace(":", "/")
    document = json.loads(path.read_bytes())
    return str(
        document["manifests"][0]["digest"] if "manifests" in document else described["digest"]
    )


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest_of(data)), "size": len(data)}


def _parsed(described: dict[str, object]) -> Descriptor:
    return Descriptor(
        str(described["mediaType"]),
        parse_digest(str(described["digest"])),
        int(str(described["size"])),
    )


class Runner:
    """Runs commands with one cache; *pushes* says that credentials are needed for it."""

    def __init__(self, site: Site, *, pushes: bool = False) -> None:
        self.site = site
        self.cache_dir = site.folder / f"cache-{next(numbers)}"
        self.authfile = site.authfile if pushes or site.is_private else None
        self.options = ["--anonymous"] if self.authfile is None else ["--authfile", self.authfile]
        if site.hosts_dir is not None:
            self.options += ["--hosts-dir", site.hosts_dir]

    @property
    def access(self) -> AccessOptions:
        return AccessOptions(
            environment={},
            authfile=self.authfile,
            is_anonymous=self.authfile is None,
            hosts_dir=self.site.hosts_dir,
        )

    def client(self, name: str = NAME) -> RegistryClient:
        reference = parse_reference(f"{self.site.registry.host}/{name}")
        assert isinstance(reference, Reference)
        return RegistryClient(reference, self.access)

    def __call__(self, *words: object) -> bytes:
        """Run ``lazyfs``; return what it prints."""
        command = [str(word) for word in (*words, *self.options)]
        environment = {"LAZYFS_CACHE_DIR": str(self.cache_dir)}
        done = CliRunner().invoke(cli, command, env=environment)
        if done.exit_code != 0:
            raise AssertionError(f"lazyfs {words[0]}: {done.stderr}") from done.exception
        return done.stdout_bytes


def _resolve(site: Site) -> None:
    expected = digest_for(site, "plain")
    assert expected.encode() in Runner(site)("resolve", f"{site.image}:plain")


def _inspect(site: Site) -> None:
    (layer,) = json.loads(Runner(site)("inspect", "--json", f"{site.image}:lazy"))["layers"]
    assert layer["lazy"]


def _ls(site: Site) -> None:
    assert Runner(site)("ls", f"{site.image}:lazy").split() == [b"big", b"dir"]


def _cat(site: Site) -> None:
    runner = Runner(site)
    assert runner("cat", f"{site.image}:lazy", "big") == BIG
    assert runner("cat", f"{site.image}:lazy", "dir/small") == SMALL


def _mount(site: Site) -> None:
    """What a mount does before it is there, and its first reads."""
    runner = Runner(site)

    async def run() -> None:
        request = Request(f"{site.image}:lazy", None, runner.cache_dir, runner.access)
        prepared = await prepare(request)
        assert prepared.image.manifest_digest == digest_for(site, "lazy")
        async with open_image(prepared, runner.access) as image:
            assert b"".join([data async for data in contents_of(image, b"big")]) == BIG

    trio.run(run)


def _pull(site: Site) -> None:
    runner = Runner(site)
    runner("pull", f"{site.image}:lazy")
    runner.options += ["--offline"]
    assert runner("cat", f"{site.image}:lazy", "big") == BIG


def _verify(site: Site) -> None:
    Runner(site)("verify", f"{site.image}:lazy")
    Runner(site)("verify", f"{site.image}:plain")


def _convert(site: Site) -> None:
    made = f"{site.registry.host}/team/made-{next(numbers)}:lazy"
    Runner(site, pushes=True)("convert", f"{site.image}:plain", made)
    assert Runner(site)("cat", made, "big") == BIG


def _copy(site: Site) -> None:
    """Convert what is lazy already: layers come from the other repository."""
    made = f"{site.registry.host}/team/copy-{next(numbers)}:lazy"
    Runner(site, pushes=True)("convert", f"{site.image}:lazy", made)
    assert Runner(site)("cat", made, "big") == BIG


def _index(site: Site) -> None:
    runner = Runner(site, pushes=True)
    runner("index", "build", f"{site.image}:plain")
    runner("index", "push", f"{site.image}:plain")
    listed = json.loads(Runner(site)("index", "show", "--json", f"{site.image}:plain"))
    assert len(listed["indexes"]) == 1


def _referrers(site: Site) -> None:
    name = f"team/referred-{next(numbers)}"
    runner = Runner(site, pushes=True)

    async def run() -> None:
        client = runner.client(name)
        try:
            empty = _descriptor("application/vnd.oci.empty.v1+json", EMPTY)
            await client.push_blob(_parsed(empty), EMPTY)
            document = {"schemaVersion": 2, "config": empty, "layers": [empty]}
            subject = json.dumps(document).encode()
            pushed = await client.push_manifest(subject, OCI_MANIFEST, "subject")
            assert (await client.fetch_referrers(pushed)).found == ()
            expected = []
            for number in range(3):
                referrer = {
                    **document,
                    "artifactType": ARTIFACT_TYPE,
                    "subject": _descriptor(OCI_MANIFEST, subject),
                    "annotations": {"number": str(number)},
                }
                data = json.dumps(referrer).encode()
                expected.append(await client.push_manifest(data, OCI_MANIFEST, None))
            found = await client.fetch_referrers(pushed, ARTIFACT_TYPE)
            assert [each.digest for each in found.found] == expected
            assert (await client.fetch_manifest("subject")).data == subject
        finally:
            await client.aclose()

    trio.run(run)


def _push(site: Site) -> None:
    """Push a blob that is too large for one request, and one that is not."""
    name = f"team/pushed-{next(numbers)}"
    runner = Runner(site, pushes=True)
    descriptor = _parsed(_descriptor("application/octet-stream", LARGE_BLOB))

    async def run() -> None:
        for whole_limit in (PIECE_SIZE, len(LARGE_BLOB)):
            client = runner.client(f"{name}-{whole_limit}")
            try:
                place, policy = client._places[-1], RetryPolicy()
                await place.settle()
                pusher = Pusher(
                    *(place, policy, client.statistics),
                    whole_limit=whole_limit,
                    piece_size=PIECE_SIZE,
                )
                assert not await pusher.has_blob(descriptor)
                await pusher.push_blob(descriptor, LARGE_BLOB)
                if not await pusher.has_blob(descriptor):
                    await pusher.push_blob(descriptor, LARGE_BLOB)  # as good as new
            finally:
                await client.aclose()

    trio.run(run)
    for whole_limit in (PIECE_SIZE, len(LARGE_BLOB)):
        content = site.registry.content
        assert content.blob(f"{name}-{whole_limit}", str(descriptor.digest)) == LARGE_BLOB


COMMANDS: dict[str, Callable[[Site], None]] = {
    "resolve": _resolve,
    "inspect": _inspect,
    "ls": _ls,
    "cat": _cat,
    "mount": _mount,
    "pull": _pull,
    "verify": _verify,
    "convert": _convert,
    "convert of a lazy image": _copy,
    "index push, show": _index,
    "referrers": _referrers,
    "push of a large blob": _push,
}


def run_command(command: str, site: Site) -> None:
    """Run one of COMMANDS; raises where it does not pass."""
    site.done.clear()
    COMMANDS[command](site)
