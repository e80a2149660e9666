"""Rot that was found, and whoever found it is interrupted: live mounts are told all the same.

What was found is marked in the store by then, so nobody finds it a second time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from lazyfs.cli.cache import cache_verify
from lazyfs.image import verify as image_verify
from lazyfs.registry.source import AccessOptions
from lazyfs.service import dropped, obtain
from lazyfs.service.obtain import _Search
from lazyfs.store.completeness import Survey, survey_layer
from lazyfs.store.paths import Store
from tests.cli.conftest import cache_dir, run
from tests.support.formats.images import layer_from_fixture, make_layout
from tests.support.formats.layers import make_layer
from tests.support.mounts.stores import keep_layer

__all__ = ["cache_dir", "run"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What live mounts are told."""
    messages: list[Mapping[str, Any]] = []

    def tell(runtime: Path, store: Path, found: Mapping[str, Any]) -> list[str]:
        messages.append(dict(found))
        return []

    monkeypatch.setattr(dropped, "tell_mounts", tell)
    monkeypatch.setattr(obtain, "tell_mounts", tell)
    return messages


@pytest.fixture
def image(run, cache_dir: Path, tmp_path: Path) -> str:
    """An image in the cache, whose first chunk has rotted."""
    make_layout(tmp_path / "layout", [layer_from_fixture("real-gnu")])
    assert run("verify", f"oci:{tmp_path / 'layout'}").code == 0
    (content,) = cache_dir.glob("layers/*/content")
    with content.open("r+b") as file:
        file.write(b"rot")
    return f"oci:{tmp_path / 'layout'}"


@pytest.mark.parametrize("words", [(), ("--repair",)])
def test_cache_verify(run, image: str, told, monkeypatch: pytest.MonkeyPatch, words) -> None:
    @contextmanager
    def interrupted(*_: object) -> Iterator[Any]:
        def advance(size: int) -> None:
            raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(cache_verify, "show_progress", interrupted)
    assert run("cache", "verify", *words).code != 0
    (message,) = told
    assert list(message.values()) == [[0]]


def test_verify(run, image: str, told, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_verify.verify_image

    async def interrupted(opened: Any, progress: Any) -> None:
        device = opened.devices[0]
        opened.contents.doubts.dropped(device, [0])
        await real(opened, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(image_verify, "verify_image", interrupted)
    assert run("verify", image).code != 0
    (message,) = told
    assert list(message.values()) == [[0]]


@pytest.mark.anyio
async def test_a_restore(tmp_path: Path, told, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    layer = make_layer([5000, 6000])
    keep_layer(store, layer)
    folder = store.layer_path(layer.toc.digest)
    with (folder / "content").open("r+b") as file:
        file.write(b"rot")
    access, records = AccessOptions(connect_seconds=5, idle_seconds=5), tmp_path / "run"
    asked: Any = None
    search = _Search(tmp_path, access, asked, None, rehash=True, runtime=records)
    record = SimpleNamespace(toc_digest=str(layer.toc.digest))
    prepared: Any = SimpleNamespace(
        is_volatile=False, store_dir=tmp_path, image=SimpleNamespace(layers=(record,))
    )

    def interrupted(*words: Any, **named: Any) -> Survey | None:
        trio.from_thread.run_sync(scope.cancel)
        return survey_layer(*words, **named)

    monkeypatch.setattr(obtain, "survey_layer", interrupted)
    with trio.CancelScope() as scope:
        await search._missing(prepared)
    assert told == [{folder.name: None}]
