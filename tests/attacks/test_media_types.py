"""A layer is what its media type says, and a tar only if its bytes are one.

Other file systems, artifacts and attestations are layers of manifests too.  None of them is an
empty directory: each command says which layer it is and why, before anything of it is fetched.
"""

# ruff: noqa: F811 - fixtures are imported by their names

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyfs.digest import digest_of
from lazyfs.formats.tars.tar import BadTar, TarScanner
from lazyfs.oci.manifest import is_layer_tar
from lazyfs.store.passes import RULES, load_pass, save_pass
from lazyfs.store.paths import Store
from tests.cli.conftest import Run, cache_dir, run  # noqa: F401
from tests.support.formats.images import (
    OCI_GZIP,
    OCI_TAR,
    Layer,
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import needs_fuse, needs_root
from tests.support.registries.registry import FakeRegistry

TARS = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "Application/VND.OCI.image.layer.v1.tar+gzip; charset=utf-8",
]
OTHERS = [
    "",
    "application/vnd.erofs.layer.v1",
    "application/vnd.oci.image.layer.v1.erofs",
    "application/vnd.oci.image.layer.nydus.blob.v1",
    "application/vnd.oci.image.layer.v1.squashfs",
    "application/vnd.oci.image.layer.v1.tar+xz",
    "application/vnd.oci.image.layer.v1.tar+gzip+evil",
    "application/vnd.oci.image.layer.v1.tarx",
    "application/vnd.in-toto+json",
    "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    "application/octet-stream",
    "application/vnd.oci.image.manifest.v1+json",
    "text/plain",
    "x.tar",
]
TAR = tar_bytes([file("hello", b"text")])


@pytest.mark.parametrize("media_type", TARS)
def test_what_is_known_to_be_a_tar(media_type: str) -> None:
    assert is_layer_tar(media_type)


@pytest.mark.parametrize("media_type", OTHERS)
def test_what_is_not(media_type: str) -> None:
    assert not is_layer_tar(media_type)


COMMANDS: list[tuple[str, ...]] = [
    ("mount", "IMAGE", "DIR", "--no-service"),
    ("pull", "IMAGE"),
    ("verify", "IMAGE"),
    ("verify", "--verify=blob", "IMAGE"),
    ("convert", "IMAGE", "oci:DIR"),
    ("convert", "--all-platforms", "IMAGE", "oci:DIR"),
    ("optimize", "IMAGE", "oci:DIR", "--", "/hello"),
    ("index", "build", "IMAGE"),
    ("index", "push", "IMAGE"),
    ("ls", "IMAGE"),
    ("cat", "IMAGE", "hello"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("media_type", ["application/vnd.erofs.layer.v1", ""])
def test_every_command_names_it_and_fetches_nothing(
    tmp_path: Path, words: tuple[str, ...], media_type: str
) -> None:
    lazyfs = Lazyfs(tmp_path)
    (tmp_path / "dir").mkdir()
    layer = replace(plain_layer(TAR), media_type=media_type)
    make_layout(tmp_path / "image", [plain_layer(TAR), layer])
    with FakeRegistry(tmp_path / "image") as registry:
        image = f"{registry.host}/app:latest"
        filled = [
            word.replace("IMAGE", image).replace("DIR", str(tmp_path / "dir")) for word in words
        ]
        done = lazyfs(*filled)
        asked = registry.count("GET", f"/blobs/{layer.digest}")
    assert done.returncode == 7, done.stderr
    assert str(layer.digest) in done.stderr
    assert (repr(media_type) if media_type else "no media type") in done.stderr
    assert asked == 0


@pytest.mark.parametrize("media_type", OTHERS)
def test_inspect_says_it(run: Run, tmp_path: Path, media_type: str) -> None:
    make_layout(tmp_path / "image", [replace(plain_layer(TAR), media_type=media_type)])
    done = run("inspect", "--json", f"oci:{tmp_path}/image")
    (layer,) = done.json["layers"]
    assert (done.code, layer["lazy"]) == (0, False)
    assert "not known to be a tar" in layer["why"]
    assert "fetched whole" not in run("inspect", f"oci:{tmp_path}/image").text


def test_a_claimed_toc_does_not_help(run: Run, tmp_path: Path) -> None:
    layer = replace(estargz_layer(TAR), media_type="application/vnd.erofs.layer.v1")
    make_layout(tmp_path / "image", [layer])
    done = run("ls", f"oci:{tmp_path}/image")
    assert done.code == 7
    assert "vnd.erofs.layer.v1" in done.err


def test_escapes_in_a_type_are_not_obeyed(run: Run, tmp_path: Path) -> None:
    make_layout(tmp_path / "image", [replace(plain_layer(TAR), media_type="\x1b]0;owned\x07")])
    done = run("ls", f"oci:{tmp_path}/image")
    assert done.code == 7
    assert "\x1b" not in done.err


# What begins with zeros

EROFS = bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(3068)
EXT4 = bytes(1080) + b"\x53\xef" + bytes(5000)
NO_TARS = {
    "erofs": EROFS,
    "ext4": EXT4,
    "zeros, then one byte": bytes(4095) + b"\x01",
    "a disk of zeros": bytes((1 << 20) + 512),
    "a tar behind an end": bytes(1024) + TAR,
}
EMPTY = {"no bytes": b"", "one block": bytes(512), "two": bytes(1024), "GNU tar": bytes(10240)}


@pytest.mark.parametrize("data", NO_TARS.values(), ids=NO_TARS)
@pytest.mark.parametrize("step", [100, 512, 1000, 1 << 21])
def test_no_tar_is_an_empty_one(data: bytes, step: int) -> None:
    with pytest.raises(BadTar, match=r"not a tar|an empty tar|few for a tar"):
        scan(data, step)


def scan(data: bytes, step: int) -> None:
    scanner = TarScanner()
    for at in range(0, len(data), step):
        scanner.feed(data[at : at + step])


@pytest.mark.parametrize("data", NO_TARS.values(), ids=NO_TARS)
@pytest.mark.parametrize("media_type", [OCI_TAR, OCI_GZIP])
def test_no_command_shows_an_empty_directory(
    run: Run,
    tmp_path: Path,
    data: bytes,
    media_type: str,
) -> None:
    blob = gzip.compress(data, mtime=0) if media_type == OCI_GZIP else data
    make_layout(tmp_path / "image", [Layer(blob, media_type, {}, digest_of(data))])
    image = f"oci:{tmp_path}/image"
    for words in (("ls", image), ("verify", image), ("convert", image, f"oci:{tmp_path}/made")):
        done = run(*words)
        assert done.code == 7, words
        assert re.search("not a tar|an empty tar|few for a tar", done.err)


@pytest.mark.parametrize("data", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_empty_tar_is_one(run: Run, tmp_path: Path, data: bytes, compression: str) -> None:
    make_layout(tmp_path / "image", [plain_layer(data, compression=compression)])
    image = f"oci:{tmp_path}/image"
    assert run("ls", image).code == 0
    assert run("verify", image).code == 0
    assert run("convert", image, f"oci:{tmp_path}/made").code == 0


def test_what_follows_members_is_nobodys_business(run: Run, tmp_path: Path) -> None:
    """As for Go's archive/tar, umoci and GNU tar; the diffID vouches for it."""
    make_layout(tmp_path / "image", [plain_layer(TAR + bytes(700) + b"garbage")])
    image = f"oci:{tmp_path}/image"
    assert run("cat", image, "hello").out == b"text"
    assert run("verify", image).code == 0


def test_a_pass_of_an_older_release_is_made_again(
    run: Run, tmp_path: Path, cache_dir: Path
) -> None:
    """It has taken a file system for an empty tar, and the store knows the layer as that."""
    honest = plain_layer(bytes(1024), compression="none")
    make_layout(tmp_path / "image", [honest])
    assert run("ls", f"oci:{tmp_path}/image").code == 0
    store = Store(cache_dir)
    record = load_pass(store, honest.digest)
    assert record is not None
    lying = Layer(EROFS, OCI_TAR, {}, digest_of(EROFS))
    old = msgspec.structs.replace(
        record,
        blob_digest=str(lying.digest),
        blob_size=lying.size,
        diff_id=str(lying.diff_id),
        plain_size=lying.size,
        rules=0,
    )
    save_pass(store, old)
    make_layout(tmp_path / "image", [lying], tag="lying")
    done = run("ls", f"oci:{tmp_path}/image:lying")
    assert done.code == 7
    assert re.search("not a tar|an empty tar|few for a tar", done.err)


def test_a_pass_of_an_older_release_is_not_enough_for_a_known_image(
    run: Run, tmp_path: Path, cache_dir: Path
) -> None:
    layer = plain_layer(bytes(1024), compression="none")
    make_layout(tmp_path / "image", [layer])
    assert run("ls", f"oci:{tmp_path}/image").code == 0
    store = Store(cache_dir)
    record = load_pass(store, layer.digest)
    assert record is not None
    save_pass(store, msgspec.structs.replace(record, rules=0, plain_size=5000))
    assert run("ls", f"oci:{tmp_path}/image").code == 0
    assert load_pass(store, layer.digest) == record, "it was made again"


def test_an_image_of_an_older_release_is_refused(run: Run, tmp_path: Path, cache_dir: Path) -> None:
    """Its index is in the store already, made of layers that it should not have been made of."""
    digest = make_layout(tmp_path / "image", [plain_layer(TAR)])
    image = f"oci:{tmp_path}/image"
    assert run("ls", image).code == 0
    other = make_layout(
        tmp_path / "image", [replace(plain_layer(TAR), media_type="application/vnd.erofs.layer.v1")]
    )
    folder = Store(cache_dir).images
    record: dict[str, Any] = json.loads((folder / digest.hex / "record.json").read_text())
    (folder / digest.hex).rename(folder / other.hex)
    record["manifestDigest" if "manifestDigest" in record else "manifest_digest"] = str(other)
    (folder / other.hex / "record.json").write_text(json.dumps(record))
    assert run("ls", image).code == 7


def test_a_pass_says_by_which_rules_it_was_made(run: Run, tmp_path: Path, cache_dir: Path) -> None:
    layer = plain_layer(TAR)
    make_layout(tmp_path / "image", [layer])
    assert run("ls", f"oci:{tmp_path}/image").code == 0
    record = load_pass(Store(cache_dir), layer.digest)
    assert record is not None
    assert record.rules == RULES


@needs_fuse[0]
@needs_fuse[1]
@needs_root[0]
@needs_root[1]
def test_run(tmp_path: Path) -> None:
    layer = replace(plain_layer(TAR), media_type="application/vnd.erofs.layer.v1")
    make_layout(tmp_path / "image", [layer])
    done = Lazyfs(tmp_path)("run", f"oci:{tmp_path}/image", "--", "/hello")
    assert done.returncode == 7, done.stderr
    assert "vnd.erofs.layer.v1" in done.stderr
