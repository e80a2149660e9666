"""Every command that talks to a registry passes, whatever the registry does its own way.

The profiles and the reports that describe them are in tests/support/registries/quirks.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.registries.quirk_commands import COMMANDS, make_images, run_command
from tests.support.registries.quirk_rules import Site
from tests.support.registries.quirks import QUIRKS, quirks_of, registries, site_of


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder)
    return folder


@pytest.mark.parametrize("registry", registries())
def test_every_command_passes(registry: str, layouts: Path, tmp_path: Path) -> None:
    with site_of(registry, layouts, tmp_path) as site:
        for command in COMMANDS:
            run_command(command, site)
    assert site.met == {quirk.what for quirk in quirks_of(registry)}


def test_each_has_a_report_and_is_listed_once() -> None:
    assert all(quirk.report for quirk in QUIRKS)
    listed = [(quirk.registry, quirk.what) for quirk in QUIRKS]
    assert len(set(listed)) == len(listed)


@pytest.fixture
def site(layouts: Path, tmp_path: Path) -> Iterator[Site]:
    with site_of("none", layouts, tmp_path) as site:
        yield site


@pytest.mark.parametrize("command", COMMANDS)
def test_and_on_one_without(command: str, site: Site) -> None:
    run_command(command, site)
