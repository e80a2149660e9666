"""``lazyfs ls`` and ``lazyfs cat``: an image without a mount."""

import base64
import os
import pty
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.support.formats.estargz import contents_of, members_of
from tests.support.formats.images import (
    blob_path,
    directory,
    estargz_layer,
    file,
    layer_from_fixture,
    make_layout,
    opaque,
    source_tar,
    symlink,
    tamper_blob,
    tar_bytes,
    whiteout,
)
from tests.support.registries.registry import FakeRegistry


@pytest.fixture
def edge(tmp_path) -> str:
    make_layout(tmp_path / "image", [layer_from_fixture("edge-chunk4k")])
    return f"oci:{tmp_path}/image"


def make(tmp_path, *layers) -> str:
    make_layout(tmp_path / "image", [estargz_layer(tar_bytes(items)) for items in layers])
    return f"oci:{tmp_path}/image"


class TestLs:
    def test_names_are_sorted(self, run, edge):
        members = {name for name in members_of(source_tar("edge")) if b"/" not in name}
        assert run("ls", edge).out.splitlines() == sorted(members | {b"noparent"})

    def test_layers_are_merged(self, run, tmp_path):
        image = make(
            tmp_path,
            [file("a"), file("b"), directory("d"), file("d/old")],
            [whiteout("a"), opaque("d"), file("d/new")],
        )
        assert run("ls", image).text.split() == ["b", "d"]
        assert run("ls", image, "d").text.split() == ["new"]

    def test_long(self, run, edge):
        lines = run("ls", "-l", edge, "devs").text.splitlines()
        assert lines[0].split() == [
            *("crw-------", "1", "0", "0", "259,70000", "2023-11-14T22:13:20Z", "bigminor")
        ]
        assert lines[2].startswith("brw-rw----")
        (line,) = run("ls", "-l", edge, "sl/rel").text.splitlines()
        assert line.endswith("sl/rel -> ../dir/small.txt")

    def test_times_beyond_the_calendar(self, run, edge):
        text = run("ls", "-l", edge, "time").text
        assert "1969-12-31T23:59:59Z neg" in text
        assert "2200-01-01T00:00:00Z y2200" in text

    def test_json(self, run, edge):
        found = run("ls", "--json", edge, "dir").json
        assert found["path"] == "dir"
        entry = next(e for e in found["entries"] if e["name"] == "one-chunk")
        layer = layer_from_fixture("edge-chunk4k")
        assert entry == {
            "name": "one-chunk",
            "kind": "file",
            "mode": 0o644,
            "uid": 0,
            "gid": 0,
            "nlink": 1,
            "size": 4096,
            "mtime": 1_700_000_000,
            "mtimeNanoseconds": 0,
            "layer": str(layer.digest),
            "digest": "sha256:b897f6ad8f612aedb92bafd257b6a896bb81950bd14de7ef727dcaf16e6a62c0",
        }
        kinds = {e["name"]: e for e in run("ls", "--json", edge, "devs").json["entries"]}
        assert kinds["null"]["kind"] == "char"
        assert (kinds["null"]["devMajor"], kinds["null"]["devMinor"]) == (1, 3)

    def test_names_that_are_not_text(self, run, tmp_path):
        image = make(tmp_path, [file(b"\xff\n"), symlink("s", b"\xfe")])
        assert run("ls", image).out == b"s\n\xff\n\n"
        entries = run("ls", "--json", image).json["entries"]
        assert base64.b64decode(entries[1]["nameBytes"]) == b"\xff\n"
        assert base64.b64decode(entries[0]["linkBytes"]) == b"\xfe"

    def test_symlinks_to_directories(self, run, tmp_path):
        image = make(tmp_path, [directory("d"), file("d/x"), symlink("s", "/d"), symlink("n", "q")])
        assert run("ls", image, "s").text == "x\n"
        assert run("ls", "-l", image, "s").text.endswith("s -> /d\n")
        assert run("ls", "-l", image, "s/").text.endswith(" x\n")
        assert run("ls", image, "n").text == "n\n"

    @pytest.mark.parametrize("path", ["nope", "dir/small.txt/x", "sl/dangling/", "../nope"])
    def test_missing(self, run, edge, path):
        done = run("ls", edge, path)
        assert (done.code, done.out) == (3, b"")
        assert path in done.err

    def test_an_empty_directory(self, run, tmp_path):
        image = make(tmp_path, [directory("d")])
        for words in (["ls"], ["ls", "-l"]):
            done = run(*words, image, "d")
            assert (done.code, done.out) == (0, b"")
        assert run("ls", "--json", image, "d").json["entries"] == []

    def test_a_terminal_gets_nothing_that_it_obeys(self, tmp_path):
        image = make(tmp_path, [file(b"a\x1b]0;owned\x07\xffb")])
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "lazyfs", "ls", image]
        environment = {**os.environ, "LAZYFS_CACHE_DIR": str(tmp_path / "cache")}
        process = subprocess.Popen(command, stdout=follower, env=environment)
        os.close(follower)
        try:
            shown = b""
            while select.select([leader], [], [], 20)[0]:
                try:
                    shown += os.read(leader, 1000)
                except OSError:  # the other side is gone
                    break
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            os.close(leader)
        assert shown == rb"a\x1b]0;owned\x07\xffb" + b"\r\n"


class TestCat:
    def test_every_file(self, run, edge):
        files = {p: d for p, d in contents_of(source_tar("edge")).items() if b"\xff" not in p}
        paths = [os.fsdecode(path) for path in files if b"/.wh" not in path]
        assert run("cat", edge, *paths).out == b"".join(files[os.fsencode(p)] for p in paths)

    def test_only_what_is_needed_is_fetched(self, run, tmp_path):
        big = os.urandom(6 << 20)
        make_layout(
            tmp_path / "image",
            [estargz_layer(tar_bytes([file("big", big), file("small", b"small")]))],
        )
        with FakeRegistry(tmp_path / "image") as registry:
            assert run("cat", f"{registry.host}/app", "small").out == b"small"
            assert registry.statistics()["bytes"] < 1 << 20
            assert run("cat", f"{registry.host}/app", "big").out == big
            registry.forget_requests()
            assert run("cat", f"{registry.host}/app", "big", "/small").out == big + b"small"
            assert registry.statistics()["blobBytes"] == 0

    def test_symlinks_stay_inside(self, run, tmp_path):
        image = make(
            tmp_path,
            [
                directory("etc"),
                file("etc/passwd", b"of the image\n"),
                symlink("up", "../../../etc/passwd"),
                symlink("abs", "/etc/passwd"),
                symlink("loop", "loop"),
                symlink("out", "/../../proc/self/environ"),
            ],
        )
        for path in ("up", "abs", "../../etc/passwd", "/etc/../etc/passwd"):
            assert run("cat", image, path).out == b"of the image\n"
        assert run("cat", image, "loop").code == 3
        assert run("cat", image, "out").code == 3

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("nope", "does not exist"),
            ("dir", "it is a directory"),
            ("/", "it is a directory"),
            ("devs/null", "it is a char"),
            ("devs/fifo", "it is a fifo"),
            ("sl/dangling", "does not exist"),
            ("dir/small.txt/", "is not a directory"),
        ],
    )
    def test_no_file(self, run, edge, path, reason):
        done = run("cat", edge, path)
        assert (done.code, done.out) == (3, b"")
        assert reason in done.err

    def test_a_damaged_chunk(self, run, tmp_path, edge):
        layer = layer_from_fixture("edge-chunk4k")
        contents = contents_of(source_tar("edge"))[b"dir/chunky.bin"]
        tamper_blob(tmp_path / "image", layer.digest, 30_000)
        done = run("cat", edge, "dir/chunky.bin")
        assert done.code == 6
        assert not done.out
        assert "sha256" in done.err
        assert run("cat", edge, "dir/small.txt").code == 0
        assert contents not in done.out

    def test_a_missing_blob(self, run, tmp_path, edge):
        assert run("ls", edge).code == 0
        blob_path(tmp_path / "image", layer_from_fixture("edge-chunk4k").digest).unlink()
        assert run("ls", edge).code == 0
        assert run("cat", edge, "dir/small.txt").code == 3

    def test_an_image_that_cannot_be_mounted_lazily(self, run, tmp_path):
        layer = replace(layer_from_fixture("edge-default"), annotations={})
        make_layout(tmp_path / "image", [layer])
        done = run("cat", f"oci:{tmp_path}/image", "dir/small.txt")
        assert (done.code, done.out) == (0, b"second entry wins main\n")

    def test_a_reader_that_leaves(self, tmp_path):
        image = make(tmp_path, [file("zeros", bytes(20 << 20))])
        environment = {**os.environ, "LAZYFS_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "lazyfs", "cat", image, "zeros"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            try:
                assert process.stdout.read(10) == bytes(10)
                process.stdout.close()
                assert process.wait(30) == 1
                assert process.stderr.read() == b""
            finally:
                process.kill()
