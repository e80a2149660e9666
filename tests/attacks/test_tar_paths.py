"""Names in a tar that lead elsewhere, by symlinks, whiteouts and links: never out of the root."""

import os
from pathlib import Path

import pytest

from lazyfs.errors import FormatError
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.tar import TarScanner
from lazyfs.formats.tars.toc_json import TocSpeller
from lazyfs.formats.tocs.toc_reader import decode_toc
from tests.support.formats.images import (
    Item,
    directory,
    file,
    hardlink,
    make_layout,
    plain_layer,
    symlink,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root


def names_of(*items: Item) -> list[bytes]:
    """Return the paths of a layer, which a mount would take."""
    members = arrange(TarScanner().feed(tar_bytes(items))).members
    speller = TocSpeller()
    for member in members:
        speller.add(member, "", [])
    decode_toc(speller.document(), expected=None, blob_size=1 << 20)
    return [member.path for member in members]


@pytest.mark.parametrize(
    "target",
    ["/", "..", "../../../..", "/../../..", "a/../../../..", "./../.", "/etc/../../../."],
)
def test_a_symlink_leads_to_the_root_at_most(target: str) -> None:
    found = names_of(directory("a"), symlink("a/l", target), file("a/l/etc/shadow"))
    assert set(found) - {b"a", b"a/l"} in ({b"etc/shadow"}, {b"a/etc/shadow"})


def test_what_a_symlink_of_the_host_would_be_is_a_directory_of_the_image() -> None:
    assert names_of(symlink("l", "/etc"), file("l/passwd")) == [b"l", b"etc/passwd"]


def test_a_hardlink_goes_up_from_where_a_symlink_led() -> None:
    """As the kernel and containerd take it: not by the letters of the name."""
    lead = (directory("usr"), directory("usr/lib"), symlink("a", "usr/lib"))
    with pytest.raises(FormatError, match="not a file before it"):
        names_of(*lead, file("d"), hardlink("e", "a/../d"))
    members = arrange(
        TarScanner().feed(tar_bytes([*lead, file("usr/d"), hardlink("e", "a/../d")]))
    ).members
    (link,) = [member for member in members if member.path == b"e"]
    assert link.link == b"usr/d"
    assert b"e" in names_of(file("d"), hardlink("e", "../../x/../d"))


@pytest.mark.parametrize(
    "items",
    [
        (symlink("a", "a"), file("a/x")),
        (symlink("a", "b"), symlink("b", "a"), file("a/x")),
        (symlink("a", "a/b"), file("a/x")),
        (symlink("a", "b/c"), symlink("b", "a/d"), hardlink("h", "a/x")),
    ],
)
def test_circles_of_symlinks_are_refused(items: tuple[Item, ...]) -> None:
    with pytest.raises(FormatError, match="too many symlinks"):
        names_of(*items)


@pytest.mark.parametrize(
    "items",
    [
        (file(".wh."),),
        (directory("d"), file("d/.wh..")),
        (symlink("l", "d"), file("l/.wh...")),
        (symlink("l", "."), hardlink("h", "l/../../etc/passwd")),
        (symlink("l", "/etc"), hardlink("h", "l/passwd")),
        (hardlink("h", "/etc/passwd"),),
        (directory("d"), hardlink("h", "d")),
        (file("f"), file("f/x")),
        (file("f"), hardlink("f/x", "f")),
        (file(".wh.f"), hardlink("h", ".wh.f")),
    ],
)
def test_what_is_not_in_the_layer_is_refused(items: tuple[Item, ...]) -> None:
    with pytest.raises(
        FormatError,
        match=r"names nothing|not a file before it|a directory",
    ):
        names_of(*items)


def test_a_hardlink_to_a_symlink_is_the_symlink() -> None:
    assert names_of(symlink("s", "/etc/passwd"), hardlink("h", "s")) == [b"s", b"h"]


@needs_fuse[0]
@needs_fuse[1]
@needs_root[0]
@needs_root[1]
def test_a_mount_has_them_inside(tmp_path: Path) -> None:
    items = [symlink("up", "../../.."), file("up/inside", b"1"), symlink("etc2", "/etc")]
    items += [file("etc2/inside", b"2"), hardlink("h", "etc2/inside")]
    make_layout(tmp_path / "image", [plain_layer(tar_bytes(items))])
    lazyfs, point = Lazyfs(tmp_path), tmp_path / "mnt"
    point.mkdir()
    try:
        lazyfs.mount(f"oci:{tmp_path}/image:latest", point)
        assert sorted(os.listdir(point)) == ["etc", "etc2", "h", "inside", "up"]
        assert (point / "inside").read_bytes() == b"1"
        assert (point / "etc" / "inside").read_bytes() == (point / "h").read_bytes() == b"2"
    finally:
        force_unmount(point)
