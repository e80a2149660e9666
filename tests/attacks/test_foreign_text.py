"""Text of others on its way to a terminal or a log: names, messages, annotations, paths."""

import ast
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cli.log import set_up_logging
from lazyfs.cli.output import print_found, print_line
from lazyfs.printable import printable
from lazyfs.service.record import MountRecord, start_ticks_of
from tests.support.formats.images import (
    OCI_TAR,
    directory,
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.mounts.mounting import ROOT
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer

# A title for the terminal, a colour by C1, a record of its own, text from right to left.
HOSTILE = "a\x1b]0;owned\x07\x9b31m\nforged: all is well\r\u2028\u202etxt.exe\u200b\x7f\U000e0041"


def check(text: str) -> None:
    """See that a terminal has nothing to obey, and that no line begins as others want."""
    assert not [each for each in text if each != "\n" and not each.isprintable()], ascii(text)
    assert not [line for line in text.splitlines() if line.startswith("forged")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é 日本 🚀 ~", "é 日本 🚀 ~"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x00\x1b[31m\x7f\x9b", "\\x00\\x1b[31m\\x7f\\x9b"),
        ("\u202e\u2066\u200f\u061c\ufeff", "\\u202e\\u2066\\u200f\\u061c\\ufeff"),
        ("\xa0\u3000\u2028", "\\xa0\\u3000\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff\ud800", "\\xff\\ud800"),
        (b"\xff\xc3\xa9\n", "\\xffé\\n"),
        ("C:\\x1b", "C:\\x1b"),
    ],
)
def test_what_is_escaped(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


@given(st.one_of(st.text(), st.binary()), st.integers(1, 60))
def test_any_text(text: str | bytes, limit: int) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    short = printable(text, limit)
    assert short.isprintable()
    assert len(short) <= limit
    assert short == shown or short.endswith("…")
    assert short.removesuffix("…") == shown[: len(short.removesuffix("…"))]


def test_a_limit_costs_no_more_than_it_says() -> None:
    assert printable("\x1b" * (64 << 20), 5) == "\\x1b…"


# Views of the command line.


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    return folder


def test_views_of_a_layout_with_such_a_name(run, hostile_folder: Path) -> None:
    names = [directory(HOSTILE), file(f"{HOSTILE}/x", b"1"), file("b", b"2")]
    lazy = estargz_layer(tar_bytes(names))
    plain = plain_layer(tar_bytes([file("c", b"3")]))
    image = f"oci:{hostile_folder}/image"
    make_layout(hostile_folder / "image", [lazy, plain])
    for words in (
        ["inspect", image],
        ["inspect", "--endpoints", image],
        ["-v", "pull", image],
        ["verify", image],
        ["cache", "ls"],
        ["cache", "du"],
        ["cache", "verify"],
        ["resolve", image],
        ["index", "build", image],
        ["index", "show", image],
        ["profile", "show", image],
        ["convert", image, f"oci:{hostile_folder}/converted"],
        ["cat", image, HOSTILE],
        ["cat", image, f"{HOSTILE}/nowhere"],
        ["ls", image, f"nowhere/{HOSTILE}"],
        ["inspect", f"{image}:{HOSTILE}"],
        ["inspect", HOSTILE],
        ["mount", image, hostile_folder / "nowhere"],
        ["attrs", hostile_folder],
        ["status", hostile_folder / "nowhere"],
        ["umount", hostile_folder],
        ["cache", "rm", image],
        ["cache", "rm", HOSTILE],
        ["cache", "prune"],
    ):
        done = run(*words)
        check(done.err)
        check(done.out.decode())
        assert done.out or done.err, words


def test_a_layout_whose_documents_are_hostile(run, tmp_path: Path) -> None:
    image = tmp_path / "image"
    layer = estargz_layer(tar_bytes([file("a", b"1")]))
    annotations = {
        "containerd.io/snapshot/stargz/toc.digest": HOSTILE,
        "io.containers.zstd-chunked.manifest-position": HOSTILE,
    }
    for bent in (
        replace(layer, media_type=HOSTILE),
        replace(layer, media_type=f"{OCI_TAR}+{HOSTILE}", annotations={}),
        replace(layer, annotations=annotations),
    ):
        make_layout(image, [bent], tag="bent")
        for command in ("inspect", "pull", "verify"):
            done = run(command, f"oci:{image}:bent")
            check(done.err)
            check(done.out.decode())
    index = json.loads((image / "index.json").read_text())
    for entry in index["manifests"]:
        entry["annotations"] = {"org.opencontainers.image.ref.name": HOSTILE}
    (image / "index.json").write_text(json.dumps(index))
    done = run("inspect", f"oci:{image}:nowhere")
    assert "owned" in done.err
    check(done.err)
    (image / "index.json").write_text(json.dumps({"schemaVersion": HOSTILE, HOSTILE: 1}))
    check(run("inspect", f"oci:{image}").err)
    (image / "oci-layout").write_text(json.dumps({"imageLayoutVersion": HOSTILE}))
    check(run("inspect", f"oci:{image}").err)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405])
def test_a_registry_that_says_so(run, code: int) -> None:
    errors = {"errors": [{"code": HOSTILE, "message": HOSTILE, "detail": HOSTILE}]}
    header = {"Warning": '299 - "\x9b31m\x85"', "Content-Type": "\x9b31m"}
    body = json.dumps(errors).encode()
    with FakeRegistry() as registry:
        registry.faults.add(lambda request, answer: Answer(code, header, body), times=None)
        done = run("inspect", f"{registry.host}/a/b:latest")
    assert "owned" in done.err
    check(done.err)


def test_a_registry_that_redirects_so(run) -> None:
    with FakeRegistry() as registry:
        registry.faults.add(faults.redirect("http://\x9b31m\x85/x"), times=None)
        done = run("inspect", f"{registry.host}/a/b:latest")
    assert done.code
    check(done.err)


def test_records_of_mounts(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an image's names say of a mount, without its server: what it was asked for, and is."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("LAZYFS_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("LAZYFS_STATE_DIR", str(tmp_path / "state"))
    ticks = start_ticks_of(os.getpid())
    assert ticks is not None
    texts = dict.fromkeys(
        ("mountpoint", "requested", "resolved", "manifest_digest", "platform", "cache_dir",
         "log_path", "driver", "started"), HOSTILE,
    )  # fmt: skip
    record = MountRecord(mount_id="ab", pid=os.getpid(), start_ticks=ticks, **texts)
    (runtime / "ab.json").write_bytes(record.encode())
    done = run("status")
    assert "owned" in done.text
    check(done.text)
    check(done.err)
    assert run("status", "--json").json["mounts"][0]["requested"] == HOSTILE


def test_lines_and_documents(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE)
    print_line(HOSTILE, err=True)
    print_found({"a": HOSTILE}, [HOSTILE, "b"], as_json=False)
    out, err = capsys.readouterr()
    check(out + err)
    assert len(out.splitlines()) == 3
    print_found({"a": HOSTILE}, [], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": HOSTILE}


# The log.


@pytest.mark.parametrize("is_server", [False, True])
def test_records_of_the_log(capsys: pytest.CaptureFixture[str], is_server: bool) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging(0, is_server=is_server, environment={})
        logging.getLogger("lazyfs.x").warning("layer %s", HOSTILE)
        (line,) = capsys.readouterr().err.splitlines()
        check(line)
        try:
            raise ValueError("ours")
        except ValueError:
            logging.getLogger("lazyfs.x").exception("%s", HOSTILE)
        first, *trace = capsys.readouterr().err.splitlines()
        check(first)
        assert trace[0] == "Traceback (most recent call last):"
        assert trace[-1] == "ValueError: ours"
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


# No view may forget it.

BYTES = {
    "cat.py": "a file's bytes",
    "ls.py": "names as they are, for programs; a terminal gets them escaped",
    "profile.py": "the same, and a profile's bytes",
    "mount.py": "the mountpoint that the user gave",
    "output.py": "the function itself",
}


def test_every_view_prints_through_it() -> None:
    found = []
    paths = sorted((ROOT / "lazyfs" / "cli").rglob("*.py"))
    assert {path.name for path in paths} >= set(BYTES)  # the commands lie in folders of their own
    for path in paths:
        if path.name in BYTES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "print"):
                words = ast.unparse(node)
                if "json.dumps(" not in words and "printable(" not in words:
                    found.append(f"{path.name}:{node.lineno}: {words}")
    ours = "print(before, file=sys.stderr)"  # how a command is used
    assert [each for each in found if not each.endswith(ours)] == []
