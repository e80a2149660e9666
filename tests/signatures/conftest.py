"""A layout of two images, a registry that lists referrers, and a publisher."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.signing import Notary


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    for tag in ("single", "many"):
        entries = [directory("d"), file("d/file", tag.encode())]
        make_layout(path, [estargz_layer(tar_bytes(entries))], tag=tag, index=tag == "many")
    return path


@pytest.fixture
def registry(layout: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as found:
        found.list_referrers()
        yield found


@pytest.fixture(scope="module")
def notary() -> Notary:
    return Notary()
