"""The words after -o."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.mount.options import (
    FLAGS,
    IGNORED,
    BadMountOption,
    MountOptions,
    escape_value,
    fuse_options,
    is_allow_other_permitted,
    parse_options,
    split_words,
)

ALWAYS = {"ro", "default_permissions", "subtype=lazyfs"}


def test_nothing_given():
    assert parse_options([]) == MountOptions()
    assert fuse_options(MountOptions(), "x@sha256:1") == ALWAYS | {"fsname=x@sha256:1"}


def test_what_fstab_and_systemd_add_is_ignored():
    line = "ro,noauto,x-systemd.automount,_netdev,nofail,users,X-mount.mkdir,comment=mine"
    assert parse_options([line]) == MountOptions()


def test_mount_fuse3_adds_dev_and_suid():
    assert parse_options(["ro,dev,suid"]).flags == ("dev", "suid")


@pytest.mark.parametrize("word", sorted(IGNORED))
def test_words_for_others(word):
    assert parse_options([word]) == MountOptions()


@pytest.mark.parametrize("word", sorted(FLAGS))
def test_flags_reach_libfuse(word):
    options = parse_options([word])
    assert fuse_options(options, "s") == ALWAYS | {"fsname=s", word}


@pytest.mark.parametrize("word", ["allow_other", "allow_root", "auto_unmount"])
def test_switches_reach_libfuse(word):
    assert word in fuse_options(parse_options([word]), "s")


def test_the_last_of_opposite_flags_counts():
    assert parse_options(["suid,nosuid"]).flags == ("nosuid",)
    assert parse_options(["nosuid", "suid"]).flags == ("suid",)
    assert parse_options(["noexec,nodev,exec"]).flags == ("nodev", "exec")


def test_settings_of_the_command_line():
    options = parse_options(["platform=linux/arm64,plain_http", "cache_dir=/c,prefetch=all"])
    assert options.settings == {
        "platform": "linux/arm64",
        "plain_http": "",
        "cache_dir": "/c",
        "prefetch": "all",
    }


@pytest.mark.parametrize(
    "word",
    [
        "rw",
        "allow_others",
        "unknown",
        "unknown=1",
        "allow_other=1",
        "max_read",
        "max_read=",
        "max_read=0",
        "max_read=4095",
        "max_read=1048577",
        "max_read=-4096",
        "max_read=٤٠٩٦",
        "max_read=99999999999999999999",
        "threads=0",
        "threads=17",
        "threads=-1",
        "threads=",
        "fsname=",
        "subtype=other",
        "platform",
        "plain_http=1",
        "allow_other,allow_root",
        " ro",
    ],
)
def test_refused(word):
    with pytest.raises(BadMountOption) as caught:
        parse_options([word])
    assert re.search("got|unknown option|cannot be used together|read-only", str(caught.value))


def test_the_unknown_word_is_named():
    with pytest.raises(BadMountOption, match="allow_others"):
        parse_options(["ro,allow_others"])


def test_sizes():
    assert parse_options(["threads=4"]).threads == 4
    assert parse_options(["max_read=4096"]).max_read == 4096
    assert parse_options(["max_read=1048576"]).max_read == 1048576
    # libfuse 3.14 would end the connection: its greeting, which pyfuse3 writes, says 0
    assert fuse_options(parse_options(["max_read=65536"]), "s") == ALWAYS | {"fsname=s"}


def test_the_source_of_the_mount():
    assert "fsname=mine" in fuse_options(parse_options(["fsname=mine"]), "s")
    assert parse_options([r"fsname=a\,b\\c"]).fsname == r"a,b\c"


def unescape(text: str) -> list[str]:
    """Split as libfuse's fuse_opt.c does."""
    return list(split_words([text]))


@given(st.text())
def test_a_source_cannot_add_options(source):
    (word,) = fuse_options(MountOptions(), source) - ALWAYS
    assert word.isascii()
    assert word.isprintable()
    assert unescape(word) == ["fsname=" + "".join(c if " " <= c <= "~" else "?" for c in source)]


@given(st.lists(st.text("abc,\\= ", max_size=8), min_size=1))
def test_words_survive_escaping(words):
    assert unescape(",".join(escape_value(word) for word in words)) == words


@given(st.lists(st.text(max_size=60), max_size=4))
def test_anything_is_understood_or_refused(values):
    try:
        options = parse_options(values)
    except BadMountOption:
        return
    fuse_options(options, "s")


WORDS = [*sorted(FLAGS | IGNORED), "allow_other", "max_read=8192", "fsname=a", "x-y=z"]


@given(st.lists(st.sampled_from(WORDS)))
def test_one_value_or_many_mean_the_same(words):
    assert parse_options([",".join(words)]) == parse_options(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("#user_allow_other\n", False),
        ("user_allow_other\n", True),
        ("mount_max = 1000\n  user_allow_other  ", True),
        ("user_allow_other = 1", False),
    ],
)
def test_fuse_conf(text, expected):
    assert is_allow_other_permitted(text) is expected
