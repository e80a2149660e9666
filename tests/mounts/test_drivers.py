"""Which driver serves, and what is said about it."""

import pytest

from lazyfs.errors import MountFailed
from lazyfs.mount.drivers import PURE, open_session
from tests.support.mounts.mounted import MadeImage, regular
from tests.support.mounts.mounting import available_drivers
from tests.support.mounts.native_image import NativeMadeImage

LAYER = [regular(b"file", b"data")]
has_native = pytest.mark.skipif("native" not in available_drivers(), reason="it is not built")


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    monkeypatch.delenv(PURE, raising=False)


@pytest.mark.parametrize("driver", ["auto", "native"])
@has_native
def test_the_native_driver_where_it_can_serve(tmp_path, driver):
    session = open_session(driver, NativeMadeImage(LAYER), str(tmp_path), threads=3)
    assert (session.driver, session.note) == ("native", "")


def test_the_twin_when_asked_for(tmp_path):
    session = open_session("pyfuse3", NativeMadeImage(LAYER), str(tmp_path))
    assert (session.driver, session.note) == ("pyfuse3", "")


def test_the_twin_without_the_module(tmp_path, monkeypatch):
    monkeypatch.setenv(PURE, "1")
    session = open_session("auto", NativeMadeImage(LAYER), str(tmp_path))
    assert session.driver == "pyfuse3"
    assert session.note.startswith("no native driver: ")
    with pytest.raises(MountFailed, match="driver native is not available") as caught:
        open_session("native", NativeMadeImage(LAYER), str(tmp_path))
    assert "compiler" in caught.value.hint


@has_native
def test_the_twin_for_images_without_files(tmp_path):
    session = open_session("auto", MadeImage(LAYER), str(tmp_path))
    assert session.driver == "pyfuse3"
    assert "this image" in session.note


@has_native
def test_allow_root_is_what_the_native_driver_cannot_keep_to(tmp_path):
    """The kernel has only allow_other, and answers others from what it remembers."""
    session = open_session("native", NativeMadeImage(LAYER), str(tmp_path))
    with pytest.raises(MountFailed, match="every user") as caught:
        session.mount({"ro", "allow_root"})
    assert "pyfuse3" in caught.value.hint
    session = open_session("auto", NativeMadeImage(LAYER), str(tmp_path), is_for_root=True)
    assert (session.driver, session.note) == (
        "pyfuse3",
        "no native driver: it does not support allow_root",
    )
