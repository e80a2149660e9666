"""The fake registry itself, where the contract does not look: its program, its counters."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.formats import images
from tests.support.registries.registry import FakeRegistry

LAYER = images.plain_layer(images.tar_bytes([images.file("a", b"x" * 5000)]))
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    images.make_layout(path, [LAYER], tag="v1")
    return path


def get(url: str, *, method: str = "GET", span: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method)
    if span is not None:
        request.add_header("Range", span)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextmanager
def program(*arguments: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.registries.registry", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_the_program_serves_a_layout_until_it_is_terminated(layout: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with program(str(layout), "--log", str(log)) as (line, process):
        assert line.startswith("listening on 127.0.0.1:")
        url = "http://" + line.removeprefix("listening on ")
        blob = f"{url}/v2/demo/blobs/{LAYER.digest}"
        assert get(blob, span="bytes=10-19") == (206, LAYER.blob[10:20])
        assert get(f"{url}/v2/demo/manifests/nope")[0] == 404
        statistics = json.loads(get(f"{url}/_stats")[1])
        assert statistics["requests"] == 2
        assert statistics["ranges"] == 1
        assert statistics["blobBytes"] == 10
        assert statistics["statuses"] == {"206": 1, "404": 1}
        assert get(f"{url}/_stats", method="DELETE")[0] == 204
        assert json.loads(get(f"{url}/_stats")[1])["requests"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["method"], line["range"], line["status"]) for line in lines] == [
        ("GET", "bytes=10-19", 206),
        ("GET", None, 404),
    ]


def test_several_layouts_are_repositories(tmp_path: Path) -> None:
    images.make_layout(tmp_path / "team" / "one", [LAYER], tag="v1")
    with FakeRegistry(tmp_path) as registry:
        assert get(f"{registry.url}/v2/team/one/tags/list")[1] == (
            b'{"name": "team/one", "tags": ["v1"]}'
        )
        assert get(f"{registry.url}/v2/team/two/tags/list")[0] == 404
        assert get(f"{registry.url}/v2/../x/tags/list")[0] == 404


def test_a_file_that_is_tampered_with_is_served_as_it_is(layout: Path) -> None:
    with FakeRegistry(layout) as registry:
        url = f"{registry.url}/v2/x/blobs/{LAYER.digest}"
        assert get(url) == (200, LAYER.blob)
        images.tamper_blob(layout, LAYER.digest, 3)
        assert get(url) == (200, images.tampered(LAYER.blob, 3))


@pytest.mark.parametrize(
    ("span", "status", "body"),
    [
        ("bytes=0-0", 206, LAYER.blob[:1]),
        ("bytes=5-", 206, LAYER.blob[5:]),
        ("bytes=-5", 206, LAYER.blob[-5:]),
        ("bytes=0-999999", 206, LAYER.blob),
        ("bytes=0-1,3-4", 200, LAYER.blob),
        ("lines=0-1", 200, LAYER.blob),
        ("bytes=999999-", 416, b""),
    ],
)
def test_ranges(layout: Path, span: str, status: int, body: bytes) -> None:
    with FakeRegistry(layout) as registry:
        assert get(f"{registry.url}/v2/x/blobs/{LAYER.digest}", span=span) == (status, body)


def test_the_log_is_complete_when_the_answer_is_there(layout: Path) -> None:
    with FakeRegistry(layout) as registry:
        for number in range(50):
            get(f"{registry.url}/v2/x/blobs/{LAYER.digest}")
            assert len(registry.requests) == number + 1
            assert registry.requests[-1].size == LAYER.size


def test_closing_ends_what_hangs() -> None:
    from tests.support.registries import faults

    with FakeRegistry() as registry:
        registry.faults.add(faults.hang(), times=None)
        request = urllib.request.Request(f"{registry.url}/v2/")
        with pytest.raises(OSError):
            urllib.request.urlopen(request, timeout=0.2)
