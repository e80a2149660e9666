"""Converting images: what comes out, what is refused, and what is left behind."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.convert.convert import (
    Conversion,
    ConvertOptions,
    convert_image,
    convert_reference,
    siblings_of,
)
from lazyfs.digest import Digest, digest_of
from lazyfs.errors import (
    FormatError,
    LazyfsError,
    NotFound,
    StoreError,
    Unavailable,
    UsageError,
    VerificationFailed,
)
from lazyfs.formats.estargz import TAIL_SIZE, find_toc, read_toc
from lazyfs.formats.tocs.claims import toc_digest_of
from lazyfs.formats.tocs.toc import Kind, Toc
from lazyfs.formats.writer import WriterOptions
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_MANIFEST, Manifest, decode_manifest
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.merge import Directory, Node, merge
from tests.support.formats.images import (
    CREATED,
    Layer,
    blob_path,
    char_device,
    directory,
    estargz_layer,
    file,
    hardlink,
    host_platform,
    layer_from_fixture,
    make_layout,
    plain_layer,
    read_blob,
    source_tar,
    symlink,
    tagged,
    tamper_blob,
    tampered,
    tar_bytes,
    whiteout,
)
from tests.support.registries.faults import cut, flip
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

HOST = parse_platform(host_platform())
PROGRAM = os.urandom(20_000)

BASE = tar_bytes(
    [
        directory("usr"),
        directory("usr/bin"),
        file("usr/bin/python3.11", PROGRAM, mode=0o755),
        symlink("usr/bin/python3", "python3.11"),
        symlink("bin", "usr/bin"),
        directory("etc"),
        file("etc/config", b"old"),
        file("etc/gone", b"gone"),
        hardlink("etc/again", "etc/config"),
        directory("tmp", mode=0o1777),
    ]
)
TOP = tar_bytes(
    [
        file("etc/config", b"new"),
        whiteout("etc/gone"),
        symlink("usr/bin/env", "/bin/python3"),
        symlink("loop", "loop"),
        file("tmp/left", b"x"),
    ]
)


class Place:
    """A source and a destination layout below one directory, and room for temporary files."""

    def __init__(self, path: Path) -> None:
        self.source = path / "source"
        self.destination = path / "destination"
        self.temporary = path / "temporary"
        self.temporary.mkdir()

    def options(self, **changes: object) -> ConvertOptions:
        return ConvertOptions(
            **{"platform": HOST, "temporary_dir": self.temporary, **changes}  # type: ignore[arg-type]
        )

    async def convert(
        self, tag: str = "latest", *, to: str = "latest", source: object = None, **changes: object
    ) -> Conversion:
        return await convert_image(
            source or ImageLayout(str(self.source)),  # type: ignore[arg-type]
            tag,
            ImageLayout(str(self.destination), create=True),
            to,
            self.options(**changes),
        )

    def manifest(self, tag: str = "latest") -> dict:
        return json.loads(read_blob(self.destination, tagged(self.destination, tag)["digest"]))

    def config(self, tag: str = "latest") -> dict:
        return json.loads(read_blob(self.destination, self.manifest(tag)["config"]["digest"]))

    def layers(self, tag: str = "latest") -> list[Layer]:
        diff_ids = self.config(tag)["rootfs"]["diff_ids"]
        return [
            Layer(
                read_blob(self.destination, each["digest"]),
                each["mediaType"],
                each.get("annotations", {}),
                Digest(*diff_id.split(":")),
            )
            for each, diff_id in zip(self.manifest(tag)["layers"], diff_ids, strict=True)
        ]

    def tocs(self, tag: str = "latest") -> list[Toc]:
        return [toc_of(layer) for layer in self.layers(tag)]

    async def refuses(self, error: type[LazyfsError], match: str, **changes: object) -> None:
        """Check that a conversion fails so, and that nothing was written anywhere."""
        with pytest.raises(error, match=match):
            await self.convert(**changes)  # type: ignore[arg-type]
        assert not self.destination.exists()
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def toc_of(layer: Layer) -> Toc:
    """Read a layer as a mount does; its annotation must vouch for it."""
    found = find_toc(layer.blob[-TAIL_SIZE:], layer.size)
    expected = toc_digest_of(layer.annotations)
    assert expected is not None
    member = layer.blob[found.start : found.end]
    return read_toc(member, expected=expected, blob_size=layer.size).toc


def tree(tocs: Sequence[Toc]) -> dict[bytes, tuple]:
    """Return the merged tree: path → what is there."""
    found: dict[bytes, tuple] = {}

    def visit(path: bytes, node: Node) -> None:
        entry = node.entry
        if isinstance(node, Directory):
            found[path] = (node.kind, entry.mode if entry else None)
            for name, child in node.children.items():
                visit(path + b"/" + name, child)
        else:
            assert entry is not None
            found[path] = (node.kind, entry.mode, entry.link, entry.digest)

    visit(b"", merge(tocs))
    return found


# What comes out


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_plain_layers_become_estargz(place: Place, compression: str):
    layers = [plain_layer(tar, compression=compression) for tar in (BASE, TOP)]
    source_digest = make_layout(place.source, layers)
    conversion = await place.convert()
    assert conversion.source_digest == source_digest
    assert str(conversion.manifest_digest) == tagged(place.destination)["digest"]
    assert conversion.platform == HOST
    assert [layer.is_copied for layer in conversion.layers] == [False, False]
    assert [layer.source.digest for layer in conversion.layers] == [each.digest for each in layers]

    manifest = place.manifest()
    assert manifest["mediaType"] == OCI_MANIFEST
    for layer, described in zip(place.layers(), manifest["layers"], strict=True):
        assert described["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
        assert described["size"] == layer.size
        assert digest_of(gzip.decompress(layer.blob)) == layer.diff_id
    found = tree(place.tocs())
    assert found[b"/etc/config"][3] == digest_of(b"new").raw
    assert found[b"/usr/bin/python3.11"] == (Kind.REGULAR, 0o755, b"", digest_of(PROGRAM).raw)
    assert b"/etc/gone" not in found
    assert found[b"/tmp"] == (Kind.DIRECTORY, 0o1777)
    assert list(place.temporary.iterdir()) == []


async def test_the_rest_of_the_image_stays(place: Place):
    extra = {
        "author": "somebody <é>",
        "config": {"Env": ["A=1"], "Labels": {"x": "y"}, "ArgsEscaped": True},
        "history": [{"created": CREATED, "created_by": "a"}, {"empty_layer": True}],
        "x-unknown": [1, 2.5, None, {"deep": 2**70}],
    }
    make_layout(
        place.source,
        [plain_layer(BASE)],
        config=extra,
        annotations={"org.opencontainers.image.title": "t"},
    )
    await place.convert()
    config = place.config()
    for key, value in extra.items():
        assert config[key] == value
    assert config["created"] == CREATED
    assert config["architecture"] == HOST.architecture
    assert place.manifest()["annotations"] == {"org.opencontainers.image.title": "t"}


async def test_what_is_unknown_in_the_manifest_stays(place: Place):
    make_layout(place.source, [plain_layer(BASE)])
    index = json.loads((place.source / "index.json").read_text())
    (top,) = index["manifests"]
    manifest = json.loads(read_blob(place.source, top["digest"]))
    manifest["x-unknown"] = {"deep": [1, None]}
    manifest["config"]["annotations"] = {"of": "the config"}
    data = json.dumps(manifest).encode()
    top["digest"], top["size"] = str(digest_of(data)), len(data)
    blob_path(place.source, digest_of(data)).write_bytes(data)
    (place.source / "index.json").write_text(json.dumps(index))
    await place.convert()
    assert place.manifest()["x-unknown"] == manifest["x-unknown"]
    assert place.manifest()["config"]["annotations"] == {"of": "the config"}
    assert place.manifest()["config"]["digest"] != manifest["config"]["digest"]


async def test_docker_images_become_oci_images(place: Place):
    make_layout(place.source, [plain_layer(BASE), plain_layer(TOP)], docker=True)
    await place.convert()
    manifest = place.manifest()
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert {each["mediaType"] for each in manifest["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar+gzip"
    }
    decoded = decode_manifest(json.dumps(manifest).encode(), None)
    assert isinstance(decoded, Manifest)
    assert len(place.tocs()) == 2


async def test_of_an_index_the_wanted_platform_is_converted(place: Place):
    make_layout(
        place.source,
        [plain_layer(BASE)],
        platform="linux/s390x",
        others={"linux/arm64/v8": [plain_layer(TOP)]},
    )
    conversion = await place.convert(platform=parse_platform("linux/arm64"))
    assert str(conversion.platform) == "linux/arm64"
    assert b"/loop" in tree(place.tocs())
    assert place.manifest()["mediaType"] == OCI_MANIFEST
    with pytest.raises(NotFound, match="s390x"):
        await place.convert(platform=parse_platform("linux/386"))


@pytest.mark.parametrize("name", ["edge", "real-gnu", "empty"])
async def test_reference_tars_survive(place: Place, name: str):
    make_layout(place.source, [plain_layer(source_tar(name))])
    await place.convert(writer=WriterOptions(chunk_size=4096))
    assert place.layers()[0].blob == estargz_layer(source_tar(name), chunk_size=4096).blob


async def test_an_image_without_layers_is_an_image(place: Place):
    make_layout(place.source, [])
    await place.convert()
    assert place.manifest()["layers"] == []


# The same again


async def test_the_same_source_gives_the_same_image(place: Place, tmp_path: Path):
    make_layout(place.source, [plain_layer(BASE), plain_layer(TOP)])
    first = await place.convert(to="one")
    second = await place.convert(to="two")
    assert first == second
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    make_layout(other.source, [plain_layer(BASE), plain_layer(TOP)])
    assert (await other.convert()).manifest_digest == first.manifest_digest


async def test_a_converted_image_is_copied_as_it_is(place: Place):
    make_layout(place.source, [plain_layer(BASE), layer_from_fixture("edge-esgz14")])
    first = await place.convert(to="first")
    assert [layer.is_copied for layer in first.layers] == [False, True]
    again = await place.convert(source=ImageLayout(str(place.destination)), tag="first", to="again")
    assert all(layer.is_copied for layer in again.layers)
    assert again.manifest_digest == first.manifest_digest


async def test_estargz_that_nothing_vouches_for_is_converted(place: Place):
    layer = estargz_layer(TOP)
    other = estargz_layer(BASE)
    key = "containerd.io/snapshot/stargz/toc.digest"
    promises = (
        {},
        {key: other.annotations[key]},
        {key: "nonsense"},
        {**layer.annotations, "org.opencontainers.image.toc.digest": other.annotations[key]},
    )
    for number, annotations in enumerate(promises):
        given = Layer(layer.blob, layer.media_type, annotations, layer.diff_id)
        make_layout(place.source, [given], tag=f"t{number}")
        conversion = await place.convert(tag=f"t{number}")
        assert not conversion.layers[0].is_copied
        (converted,) = place.layers()
        assert converted.blob == layer.blob  # the same tree, written by the same rules
        assert converted.annotations == layer.annotations


async def test_annotations_about_the_old_blob_go_and_others_stay(place: Place):
    plain = plain_layer(BASE, compression="zstd")
    annotations = {
        "io.containers.zstd-chunked.manifest-checksum": "sha256:0",
        "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
        "io.containers.estargz.uncompressed-size": "7",
        "com.example.kept": "yes",
    }
    make_layout(place.source, [Layer(plain.blob, plain.media_type, annotations, plain.diff_id)])
    await place.convert()
    (layer,) = place.layers()
    assert sorted(layer.annotations) == [
        "com.example.kept",
        "containerd.io/snapshot/stargz/toc.digest",
        "io.containers.estargz.uncompressed-size",
    ]
    assert layer.annotations["io.containers.estargz.uncompressed-size"] == str(
        len(gzip.decompress(layer.blob))
    )


async def test_created_can_be_set(place: Place):
    make_layout(
        place.source,
        [estargz_layer(BASE)],
        annotations={"org.opencontainers.image.created": CREATED},
    )
    await place.convert(created=86_400)
    config = place.config()
    assert config["created"] == "1970-01-02T00:00:00Z"
    assert {step["created"] for step in config["history"]} == {"1970-01-02T00:00:00Z"}
    assert place.manifest()["annotations"] == {
        "org.opencontainers.image.created": "1970-01-02T00:00:00Z"
    }


# Prioritised files


def before_landmark(toc: Toc) -> list[bytes]:
    paths = [entry.path for entry in toc.entries]
    if b".prefetch.landmark" not in paths:
        assert paths[0] == b".no.prefetch.landmark"
        return []
    return paths[: paths.index(b".prefetch.landmark")]


async def test_prioritised_files_come_first_where_they_lie(place: Place):
    make_layout(place.source, [plain_layer(BASE), plain_layer(TOP)])
    await place.convert(prioritized=("/usr/bin/env", "etc/config", "./etc/again"))
    base, top = place.tocs()
    # env → /bin/python3 → (bin → usr/bin) python3 → python3.11
    assert before_landmark(top) == [b"usr/bin/env", b"etc/config"]
    assert before_landmark(base) == [
        b"bin",
        b"usr",
        b"usr/bin",
        b"usr/bin/python3",
        b"usr/bin/python3.11",
        b"etc",
        b"etc/config",
        b"etc/again",
    ]
    assert base.prefetch_end is not None
    assert base.prefetch_end > len(PROGRAM)


async def test_only_layers_with_prioritised_files_are_written_again(place: Place):
    make_layout(place.source, [estargz_layer(BASE), estargz_layer(TOP)])
    conversion = await place.convert(prioritized=("etc/config",))
    assert [layer.is_copied for layer in conversion.layers] == [True, False]


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ("/no/such", NotFound, "does not exist"),
        ("/etc/gone", NotFound, "does not exist"),  # a whiteout above
        ("/etc/config/x", NotFound, "is not a directory"),
        ("/loop", NotFound, "40 symlinks"),
        ("/etc", UsageError, "directory"),
        ("/", UsageError, "directory"),
        ("../../etc/.", UsageError, "directory"),
    ],
)
async def test_prioritised_files_must_be_there(
    place: Place, path: str, error: type[LazyfsError], match: str
):
    make_layout(place.source, [plain_layer(BASE), plain_layer(TOP)])
    await place.refuses(error, match, prioritized=("/etc/config", path))


# What is refused: nothing is pushed, nothing is left


async def test_a_damaged_blob_is_refused(place: Place):
    good, bad = plain_layer(BASE), plain_layer(TOP)
    make_layout(place.source, [good, bad])
    tamper_blob(place.source, bad.digest, bad.size - 1, 0x80)
    await place.refuses(VerificationFailed, str(bad.digest))


async def test_a_damaged_estargz_layer_is_not_copied(place: Place):
    layer = estargz_layer(BASE)
    make_layout(place.source, [layer])
    tamper_blob(place.source, layer.digest, 30)
    await place.refuses(VerificationFailed, str(layer.digest))


@pytest.mark.parametrize("make", [plain_layer, estargz_layer])
async def test_a_tar_that_the_config_does_not_name_is_refused(place: Place, make):
    layer = make(BASE)
    lying = Layer(layer.blob, layer.media_type, layer.annotations, digest_of(TOP))
    make_layout(place.source, [plain_layer(TOP), lying])
    await place.refuses(VerificationFailed, f"layer {lying.digest}: .* expected diffID")


async def test_bytes_that_are_no_layer_are_refused(place: Place):
    tar = tampered(BASE, 1)
    make_layout(place.source, [plain_layer(tar)])
    await place.refuses(FormatError, "checksum")
    make_layout(place.source, [plain_layer(b"a text, and no tar" * 99)])
    await place.refuses(FormatError, "not a tar, it begins with b'a text, and no t'…")
    cut_short = gzip.compress(BASE)[:-4]
    make_layout(place.source, [Layer(cut_short, plain_layer(BASE).media_type, {}, digest_of(BASE))])
    await place.refuses(FormatError, "cut short")


async def test_what_no_mount_could_hold_is_refused(place: Place):
    make_layout(place.source, [plain_layer(tar_bytes([char_device("d", 5000, 1)]))])
    await place.refuses(FormatError, "got device .*5000")


async def test_a_config_must_name_every_layer(place: Place):
    config = {"rootfs": {"type": "layers", "diff_ids": []}}
    make_layout(place.source, [plain_layer(BASE)], config=config)
    await place.refuses(FormatError, "0 diffIDs")


async def test_a_missing_blob_is_refused(place: Place):
    layer = plain_layer(BASE)
    make_layout(place.source, [layer])
    os.unlink(place.source / "blobs" / "sha256" / layer.digest.hex)
    await place.refuses(NotFound, str(layer.digest))


async def test_trouble_with_temporary_files_is_told(place: Place):
    make_layout(place.source, [plain_layer(BASE)])
    with pytest.raises(StoreError, match="no-such-place"):
        await place.convert(temporary_dir=place.temporary / "no-such-place")


# Transfers


class Broken(ImageLayout):
    """A layout whose bodies break off after *size* bytes."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(str(path))
        self.size = size
        self.starts: list[int] = []

    @asynccontextmanager
    async def open_range(
        self, descriptor: Descriptor, start: int, end: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.starts.append(start)

        async def body() -> AsyncIterator[bytes]:
            left = self.size
            async with ImageLayout.open_range(self, descriptor, start, end) as stream:
                async for piece in stream:
                    if len(piece) > left:
                        yield piece[:left]
                        raise Unavailable("connection: got a reset, expected the rest")
                    left -= len(piece)
                    yield piece

        yield body()


async def test_a_broken_transfer_goes_on_where_it_was(place: Place):
    tar = tar_bytes([file("big", os.urandom(5 << 20))])
    layer = plain_layer(tar, compression="none")
    make_layout(place.source, [layer])
    source = Broken(place.source, 3_000_000)
    await place.convert(source=source)
    assert source.starts == [0, 3_000_000]
    assert place.layers()[0].blob == estargz_layer(tar).blob


async def test_a_transfer_that_gets_nowhere_ends(place: Place):
    make_layout(place.source, [plain_layer(BASE)])
    await place.refuses(Unavailable, "reset", source=Broken(place.source, 0))


async def test_bytes_that_are_wrong_are_fetched_once_more(tmp_path: Path):
    layer = plain_layer(BASE)
    make_layout(tmp_path / "source", [layer])
    with FakeRegistry(tmp_path / "source") as registry:
        rule = registry.faults.add(flip(50), path=str(layer.digest), times=1)
        options = ConvertOptions(HOST)
        target = f"oci:{tmp_path}/made:latest"
        _, made = await convert_reference(
            f"{registry.host}/a:latest", target, AccessOptions(), options, convert_image
        )
        assert (rule.hits, len(made.layers)) == (1, 1)
        registry.faults.add(flip(50), path=str(layer.digest), times=None)
        with pytest.raises(VerificationFailed, match=str(layer.digest)):
            await convert_reference(
                f"{registry.host}/a:latest", target, AccessOptions(), options, convert_image
            )


async def test_from_registry_to_registry(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(BASE), plain_layer(TOP)], index=True)
    access = AccessOptions(environment={})
    with FakeRegistry(tmp_path / "source") as source, FakeRegistry() as destination:
        source.faults.add(cut(2000), method="GET", path="/blobs/", ranged=True, skip=1)
        name, conversion = await convert_reference(
            f"{source.host}/demo:latest",
            f"{destination.host}/made:v1",
            access,
            ConvertOptions(HOST, temporary_dir=tmp_path),
            convert_image,
        )
        assert name == f"{destination.host}/made"
        pushed = destination.content.manifest("made", "v1")
        assert pushed is not None
        assert digest_of(pushed.data) == conversion.manifest_digest
        assert pushed.media_type == OCI_MANIFEST
        uploads = destination.count("PUT", "/blobs/uploads/")
        assert uploads == 3
        # everything is there by now: no blob travels again
        await convert_reference(
            f"{destination.host}/made:v1",
            f"{destination.host}/made:v2",
            access,
            ConvertOptions(HOST, temporary_dir=tmp_path),
            convert_image,
        )
        assert destination.content.manifest("made", "v2").digest == pushed.digest
        assert destination.count("PUT", "/blobs/uploads/") <= uploads + 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]


async def test_nothing_is_pushed_when_a_layer_is_bad(tmp_path: Path):
    layer = plain_layer(TOP)
    make_layout(tmp_path / "source", [plain_layer(BASE), layer])
    tamper_blob(tmp_path / "source", layer.digest, 20)
    with FakeRegistry() as destination:
        with pytest.raises(VerificationFailed):
            await convert_reference(
                f"oci:{tmp_path}/source",
                f"{destination.host}/made:v1",
                AccessOptions(environment={}),
                ConvertOptions(HOST),
                convert_image,
            )
        assert destination.count("PUT") == destination.count("POST") == 0


async def test_a_destination_has_a_tag(tmp_path: Path):
    digest = digest_of(b"")
    with pytest.raises(UsageError, match="tag"):
        await convert_reference(
            f"oci:{tmp_path}/source",
            f"oci:{tmp_path}/destination@{digest}",
            AccessOptions(environment={}),
            ConvertOptions(HOST),
            convert_image,
        )


# The command


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lazyfs", "convert", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )


def test_the_command_prints_what_it_made(place: Place):
    make_layout(place.source, [plain_layer(BASE), estargz_layer(TOP)])
    source, destination = f"oci:{place.source}", f"oci:{place.destination}:made"
    done = run(source, destination, "--chunk-size", "8KiB", "--prioritize", "/bin/python3")
    assert done.returncode == 0, done.stderr
    digest = tagged(place.destination, "made")["digest"]
    assert done.stdout == f"oci:{place.destination}@{digest}\n"
    assert "kept as it is" in done.stderr
    base, top = place.tocs("made")
    assert b"usr/bin/python3.11" in before_landmark(base)
    assert {len(entry.chunks) for entry in base.entries} == {0, 1, 3}

    done = run(source, destination, "--json", SOURCE_DATE_EPOCH="0")
    document = json.loads(done.stdout)
    assert document["resolved"].endswith(document["manifestDigest"])
    assert document["platform"] == str(HOST)
    assert [layer["copied"] for layer in document["layers"]] == [False, True]
    assert document["layers"][1]["tocDigest"] == str(top.digest)
    assert place.config("made")["created"] == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--chunk-size", "1"], 2),
        (["--chunk-size", "huge"], 2),
        (["--level", "10"], 2),
        (["--platform", "linux/amd64/v1/x"], 2),
        (["--prioritize", "/etc"], 2),
        (["--prioritize", "/nope"], 3),
    ],
)
def test_the_command_fails_by_its_codes(place: Place, words: list[str], code: int):
    make_layout(place.source, [plain_layer(BASE)])
    done = run(f"oci:{place.source}", f"oci:{place.destination}", *words)
    assert done.returncode == code, done.stderr
    assert not place.destination.exists()


def test_the_command_refuses_what_is_not_verified(place: Place):
    layer = plain_layer(BASE)
    make_layout(place.source, [layer])
    tamper_blob(place.source, layer.digest, 20)
    done = run(f"oci:{place.source}", f"oci:{place.destination}", "--json")
    assert done.returncode == 6
    assert json.loads(done.stderr)["type"] == "error"
    done = run(f"oci:{place.source}", f"oci:{place.destination}", SOURCE_DATE_EPOCH="now")
    assert done.returncode == 2
    assert "SOURCE_DATE_EPOCH" in done.stderr


@pytest.mark.parametrize(
    ("source", "destination", "siblings"),
    [
        ("r.example/a/b", "r.example/c", ("a/b",)),
        ("r.example/a", "other.example/a", ()),
        ("oci:/srv/x", "oci:/srv/y", ()),
        ("oci:/srv/x", "r.example/a", ()),
    ],
)
def test_repositories_that_may_have_a_blob_already(
    source: str, destination: str, siblings: tuple[str, ...]
) -> None:
    assert siblings_of(source, destination) == siblings
