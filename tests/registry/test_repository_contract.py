"""The suite of ``support/registries/repositories.py`` for the fake registry and for layouts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.layout import ImageLayout
from lazyfs.registry.source import AccessOptions
from tests.support.registries.clients import FAST, NAME
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.repositories import Place, RepositoryContract


class TestLayout(RepositoryContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return lambda: ImageLayout(str(tmp_path / "layout"), create=True)


class TestFakeRegistry(RepositoryContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with FakeRegistry() as registry:
            reference = parse_reference(f"{registry.host}/{NAME}")
            assert isinstance(reference, Reference)
            yield lambda: RegistryClient(reference, AccessOptions(), policy=FAST)


class TestFakeRegistryWithTokens(RepositoryContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with FakeRegistry() as registry:
            registry.require_bearer({"u": "p"})
            authfile = tmp_path / "auth.json"
            authfile.write_text('{"auths": {"%s": {"auth": "dTpw"}}}' % registry.host)  # noqa: UP031
            reference = parse_reference(f"{registry.host}/{NAME}")
            assert isinstance(reference, Reference)
            options = AccessOptions(authfile=authfile)
            yield lambda: RegistryClient(reference, options, policy=FAST)
