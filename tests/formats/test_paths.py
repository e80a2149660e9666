"""Names brought to one form, and names that are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tocs.paths import normalise_path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"usr/bin/", b"usr/bin"),
        (b"./usr/bin", b"usr/bin"),
        (b"/usr//bin", b"usr/bin"),
        (b"./", b""),
        (b".", b""),
        (b"/", b""),
        (b"", b""),
        (b"x/../a", b"a"),
        (b"../../etc/passwd", b"etc/passwd"),
        (b"a/../../b", b"b"),
        (b"a/./b", b"a/b"),
        (b"a/.", b"a"),
        (b"a/..", b""),
        (b"...", b"..."),
        (b"a/...", b"a/..."),
        (b".wh.x", b".wh.x"),
        (b"a/.wh..wh..opq", b"a/.wh..wh..opq"),
        (b"root/.bashrc", b"root/.bashrc"),
        (b"..a/b..", b"..a/b.."),
        (b" / ", b" / "),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"a\\..\\b", b"a\\..\\b"),
    ],
)
def test_normalise(name, path):
    assert normalise_path(name, DEFAULT_LIMITS) == path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"a\0b", "NUL"),
        (b"x" * 256, "component of 256"),
        (b"a/" + b"x" * 256 + b"/b", "component of 256"),
        (b"/".join([b"x" * 100] * 41), "path of 4140"),
        (b"a/" * 1024 + b"a", "1025 levels"),
    ],
)
def test_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        normalise_path(name, DEFAULT_LIMITS)


def test_limits_are_inclusive():
    limits = Limits(path_size=300, component_size=255, depth=3)
    assert normalise_path(b"x" * 255, limits) == b"x" * 255
    assert normalise_path(b"x" * 200 + b"/" + b"y" * 99, limits)
    with pytest.raises(ValueError, match="path of 301"):
        normalise_path(b"x" * 200 + b"/" + b"y" * 100, limits)


@given(st.lists(st.sampled_from([b"", b".", b"..", b"a", b".b", b"c..", b"\xff"]), max_size=12))
def test_never_leaves_the_root(components):
    path = normalise_path(b"/".join(components), DEFAULT_LIMITS)
    for component in path.split(b"/") if path else []:
        assert component not in (b"", b".", b"..")
    assert normalise_path(path, DEFAULT_LIMITS) == path


@given(st.binary(max_size=400))
def test_any_bytes(name):
    try:
        path = normalise_path(name, DEFAULT_LIMITS)
    except ValueError:
        return
    assert not path.startswith(b"/")
    assert b"\0" not in path
