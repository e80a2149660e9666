"""Platforms: one spelling, and what runs what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.oci.platforms import (
    BadPlatform,
    NoPlatform,
    Platform,
    choose,
    normalise,
    parse_platform,
    platform_of_machine,
)

HOST = Platform("linux", "arm64")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/amd64/3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/5", "linux/arm/v5"),
        ("linux/i386", "linux/386"),
        ("macos/aarch64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("x86_64", "linux/amd64"),
        ("riscv64", "linux/riscv64"),
        ("linux", "linux/arm64"),
        ("windows", "windows/arm64"),
    ],
)
def test_parse(text, expected):
    platform = parse_platform(text, host=HOST)
    assert str(platform) == expected
    assert parse_platform(str(platform)) == platform


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/amd 64", "linux/ä", "a\n"])
def test_refused(text):
    with pytest.raises(BadPlatform, match="platform"):
        parse_platform(text, host=HOST)


def test_an_operating_system_alone_needs_a_host():
    with pytest.raises(BadPlatform, match="linux/ARCH"):
        parse_platform("linux")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_machines(machine, expected):
    assert str(platform_of_machine("Linux", machine)) == expected


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/386"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64/v3", ["linux/386", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 2),
        ("linux/amd64/v3", ["linux/386", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm/v8"], 1),
        ("linux/arm64/v9", ["linux/arm/v7", "linux/arm64"], 1),
        ("linux/arm64/v8.2", ["linux/arm64", "linux/arm64/v8.1"], 1),
        ("linux/arm64/v8.2", ["linux/arm/v7", "linux/arm64"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/386", ["linux/amd64", "linux/386"], 1),
        ("linux/amd64", ["unknown/unknown", "windows/amd64", "linux/amd64"], 2),
    ],
)
def test_choose(wanted, offered, expected):
    platforms = [Platform(*text.split("/")) for text in offered]
    assert choose(parse_platform(wanted), platforms) == expected


def test_foreign_spellings_in_an_index():
    offered = [Platform("linux", "aarch64"), Platform("Linux", "x86_64")]
    assert choose(Platform("linux", "amd64"), offered) == 1


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", ["linux/arm64", "windows/amd64"]),
        ("linux/arm/v6", ["linux/arm/v7"]),
        ("linux/386", ["linux/amd64"]),
        ("linux/amd64", ["linux/amd64/v2"]),
        ("linux/amd64", []),
    ],
)
def test_nothing_fits(wanted, offered):
    platforms = [Platform(*text.split("/")) for text in [*offered, "unknown/unknown"]]
    with pytest.raises(NoPlatform, match=f"expected {wanted}") as caught:
        choose(parse_platform(wanted), platforms)
    for text in offered:
        assert text in str(caught.value)
    assert "unknown" not in str(caught.value)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_normalise_is_idempotent(os, architecture, variant):
    platform = normalise(os, architecture, variant)
    assert normalise(platform.os, platform.architecture, platform.variant) == platform
    assert choose(platform, [platform]) == 0
