"""``lazyfs profile``: shown by files, carried to other machines, refused for another image."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import Digest, parse_digest
from lazyfs.rootfs.layout import LAYOUT_VERSION
from lazyfs.store.layers import load_table
from lazyfs.store.names import NameRecord, load_names, save_name
from lazyfs.store.paths import Store
from lazyfs.store.profiles import (
    BadProfile,
    Profile,
    decode_profile,
    encode_profile,
    load_profile,
    save_profile,
)
from lazyfs.store.usage import images_in
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    hardlink,
    make_layout,
    tar_bytes,
    whiteout,
)
from tests.support.registries.registry import FakeRegistry

BIG = bytes(range(256)) * 40_000  # three chunks of 4 MiB


def put_profile(cache_dir: Path, accesses: Iterable[tuple[int, int]]) -> Digest:
    """Give the one image in the cache a profile; return its manifest digest."""
    store = Store(cache_dir)
    (record,) = images_in(store)
    layers = tuple(layer.toc_digest for layer in record.layers)
    digest = parse_digest(record.manifest_digest)
    profile = Profile(record.manifest_digest, LAYOUT_VERSION, layers, tuple(accesses))
    save_profile(store, digest, profile)
    return digest


@pytest.fixture
def layers() -> list:
    lower = [
        directory("bin"),
        file("bin/sh", b"shell" * 100),
        hardlink("bin/ash", "bin/sh"),
        file("bin/big", BIG),
        file("bin/gone", b"replaced" * 10),
        file(b"bin/\xff\x1b", b"odd"),
    ]
    upper = [whiteout("bin/gone"), file("top", b"top")]
    return [estargz_layer(tar_bytes(lower)), estargz_layer(tar_bytes(upper))]


@pytest.fixture
def image(tmp_path, layers, run) -> str:
    make_layout(tmp_path / "image", layers)
    assert run("ls", f"oci:{tmp_path}/image").code == 0
    return f"oci:{tmp_path}/image"


def chunks_of(cache_dir: Path) -> dict[str, list[tuple[int, int]]]:
    """Return the accesses that each path stands for, found by the chunks' sizes."""
    store = Store(cache_dir)
    (record,) = images_in(store)
    sizes = {500: "sh", 80: "gone", 3: "odd or top", 1: "landmark"}
    found: dict[str, list[tuple[int, int]]] = {}
    for number, layer in enumerate(record.layers):
        table = load_table(store, parse_digest(layer.toc_digest))
        for chunk in range(table.count):
            name = sizes.get(table.size(chunk), "big")
            found.setdefault(f"{name} {number}", []).append((number, chunk))
    return found


def test_files_in_the_order_of_first_reads(run, image, layers, cache_dir):
    chunks = chunks_of(cache_dir)
    accesses = [
        *chunks["odd or top 1"],
        *chunks["big 0"][1:2],
        *chunks["sh 0"],
        *chunks["big 0"][:1],
        *chunks["gone 0"],
        *chunks["odd or top 0"],
        *chunks["landmark 0"],
    ]
    digest = put_profile(cache_dir, accesses)
    found = run("profile", "show", image, "--json").json
    assert found["manifestDigest"] == str(digest)
    assert found["chunks"] == len(accesses)
    files = [(f["path"], f["readSize"], f["size"], f["chunks"]) for f in found["files"]]
    big = 8 << 20
    shell = next(f[0] for f in files if f[2] == 500)
    assert shell in ("/bin/sh", "/bin/ash")
    assert files == [
        ("/top", 3, 3, 1),
        ("/bin/big", big, len(BIG), 2),
        (shell, 500, 500, 1),
        (None, 81, 0, 2),
        ("/bin/\ufffd\x1b", 3, 3, 1),
    ]
    assert base64.b64decode(found["files"][4]["pathBytes"]) == b"/bin/\xff\x1b"
    assert found["readSize"] == sum(f[1] for f in files)
    assert [f["layer"] for f in found["files"][:2]] == [
        str(layers[1].digest),
        str(layers[0].digest),
    ]
    lines = run("profile", "show", image).out.split(b"\n")
    assert lines[1] == b"   8.0 MiB    9.8 MiB  /bin/big"
    assert lines[3].endswith(b"-  (in no file of the image)")
    assert lines[4].endswith(b"/bin/\xff\x1b")


def test_no_request_for_what_is_known(run, tmp_path, layers, cache_dir):
    make_layout(tmp_path / "image", layers)
    with FakeRegistry(tmp_path / "image") as registry:
        name = f"{registry.host}/app:latest"
        assert run("ls", name).code == 0
        digest = put_profile(cache_dir, [(0, 0)])
        registry.forget_requests()
        for spelling in (name, f"{registry.host}/app@{digest}", str(digest), digest.hex[:12]):
            assert run("profile", "show", spelling).code == 0
            assert run("profile", "export", spelling).code == 0
        assert registry.count() == 0
        # A tag that was never mounted here is looked up; its digest is known then.
        assert run("profile", "show", f"{registry.host}/other:latest").code == 0
        assert registry.count() == 1
    assert run("profile", "rm", name).code == 0
    assert run("profile", "rm", name).code == 3
    assert run("profile", "export", name).code == 3


def test_carried_to_another_machine(run, image, cache_dir, tmp_path, monkeypatch):
    digest = put_profile(cache_dir, [(1, 0), (0, 3), (0, 1)])
    exported = tmp_path / "profile.json"
    assert run("profile", "export", image, exported).code == 0
    assert run("profile", "export", image).out == exported.read_bytes()
    assert decode_profile(exported.read_bytes()).accesses == ((1, 0), (0, 3), (0, 1))

    monkeypatch.setenv("LAZYFS_CACHE_DIR", str(tmp_path / "other"))
    assert run("profile", "show", image).code == 3
    # By digest, before anything of the image is here; by its tag, which is looked up.
    for name in (f"{image}@{digest}", image):
        assert run("profile", "import", name, exported).code == 0
        assert load_profile(Store(tmp_path / "other"), digest) == decode_profile(
            exported.read_bytes()
        )
        assert run("profile", "rm", str(digest)).code == 0
    assert run("profile", "import", image, exported).code == 0
    assert run("profile", "show", image).code == 3  # nothing to name the files by
    assert run("ls", image).code == 0
    assert len(run("profile", "show", image, "--json").json["files"]) == 3


def test_a_profile_of_another_image_is_refused(run, image, cache_dir, tmp_path):
    put_profile(cache_dir, [(0, 0)])
    exported = tmp_path / "profile.json"
    assert run("profile", "export", image, exported).code == 0
    make_layout(tmp_path / "second", [estargz_layer(tar_bytes([file("x", b"x")]))])
    done = run("profile", "import", f"oci:{tmp_path}/second", exported)
    assert done.code == 2
    assert "expected sha256:" in done.err
    assert "--platform" in done.err
    assert run("profile", "show", f"oci:{tmp_path}/second").code == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version"),
        ({"layout": 99}, "layout"),
        ({"layers": ["sha256:" + "0" * 64] * 2}, "layers"),
        ({"accesses": [[2, 0]]}, "layer 2"),
        ({"accesses": [[0, 999999]]}, "chunk 999999"),
        ({"accesses": [[0, -1]]}, "chunk -1"),
        ({"accesses": [[0]]}, "accesses"),
        ({"accesses": "all"}, "accesses"),
    ],
)
def test_what_is_no_profile_of_the_image_is_refused(run, image, cache_dir, tmp_path, change, words):
    digest = put_profile(cache_dir, [(0, 0)])
    document = json.loads(run("profile", "export", image).out) | change
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(document))
    done = run("profile", "import", image, bad)
    assert done.code == 7
    assert words in done.err
    assert load_profile(Store(cache_dir), digest).accesses == ((0, 0),)


def test_files_that_cannot_be_read_or_written(run, image, cache_dir, tmp_path):
    put_profile(cache_dir, [(0, 0)])
    assert run("profile", "import", image, tmp_path / "missing").code == 2
    assert run("profile", "export", image, tmp_path / "no/such/folder").code == 1
    assert run("profile", "show", "Bad Name").code == 2


def test_the_platform_chooses(run, tmp_path, cache_dir):
    content = {"linux/amd64": b"amd", "linux/arm64": b"arm"}
    digests = {}
    for platform, data in content.items():
        path = tmp_path / platform.replace("/", "-")
        layer = estargz_layer(tar_bytes([file("x", data)]))
        digests[platform] = make_layout(path, [layer], platform=platform)
    store = Store(cache_dir)
    for platform in content:
        path = tmp_path / platform.replace("/", "-")
        assert run("ls", f"oci:{path}", "--platform", platform).code == 0
    # As if both had come from one index.
    for record in images_in(store):
        save_name(
            store, NameRecord("docker.io/library/x:1", record.platform, record.manifest_digest)
        )
        layers = tuple(layer.toc_digest for layer in record.layers)
        profile = Profile(record.manifest_digest, LAYOUT_VERSION, layers, ((0, 0),))
        save_profile(store, parse_digest(record.manifest_digest), profile)
    assert len([each for each in load_names(store) if each.name.endswith("x:1")]) == 2
    for platform, digest in digests.items():
        found = run("profile", "show", "x:1", "--platform", platform, "--json").json
        assert (found["manifestDigest"], found["platform"]) == (str(digest), platform)
    done = run("profile", "show", "x:1", "--platform", "linux/riscv64")
    assert done.code == 2
    assert str(digests["linux/arm64"]) in done.err


# The format


PROFILE = Profile("sha256:" + "0" * 64, 1, ("sha256:" + "1" * 64,), ((0, 1), (0, 7)))


def test_round_trip():
    assert decode_profile(encode_profile(PROFILE)) == PROFILE


def test_every_truncation_is_refused():
    data = encode_profile(PROFILE).rstrip()
    for size in range(len(data)):
        with pytest.raises(BadProfile):
            decode_profile(data[:size])
    with pytest.raises(BadProfile):
        decode_profile(data + b"x")


@given(st.binary(max_size=200))
def test_junk_is_refused(data):
    with pytest.raises(BadProfile):
        decode_profile(data)


@given(st.integers(0, 200), st.integers(0, 255))
def test_one_byte_that_differs(position, value):
    data = bytearray(encode_profile(PROFILE))
    data[position % len(data)] = value
    try:
        decode_profile(bytes(data))
    except BadProfile:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b'{"x":' + b"[" * 100_000,
        b"[" * 100_000,
        encode_profile(PROFILE)[:-2] + b',"x":' + b"[" * 99_999 + b"]" * 99_999 + b"}",
        b" " * (16 << 20) + b"{}",
        json.dumps(
            {"manifest_digest": "", "layout": 1, "layers": ["a"], "accesses": [[0, 0]] * (1 << 20)}
        ).encode()[:-2]
        + b",[0,0]]}",
    ],
)
def test_too_much_is_refused(data):
    with pytest.raises(BadProfile):
        decode_profile(data)
