"""Platforms: one spelling, and what runs what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.oci.platforms import (
    BadPlatform,
    Platform,
    normalise,
    parse_platform,
    platform_of_machine,
    runs,
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


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_normalise_is_idempotent(os, architecture, variant):
    platform = normalise(os, architecture, variant)
    assert normalise(platform.os, platform.architecture, platform.variant) == platform
    assert runs(platform, platform)
