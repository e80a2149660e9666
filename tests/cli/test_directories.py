"""Where things are kept, for users and for root."""

from pathlib import Path

import pytest

from lazyfs.cli.directories import cache_directory, runtime_directory, state_directory

USER = {"HOME": "/home/u"}


def test_a_user_without_variables():
    assert cache_directory(USER, 1000) == "/home/u/.cache/lazyfs"
    assert state_directory(USER, 1000) == "/home/u/.local/state/lazyfs"
    assert runtime_directory(USER, 1000) == "/home/u/.local/state/lazyfs/run"


def test_a_user_of_a_desktop():
    variables = USER | {
        "XDG_CACHE_HOME": "/c",
        "XDG_STATE_HOME": "/s",
        "XDG_RUNTIME_DIR": "/run/user/1000",
    }
    assert cache_directory(variables, 1000) == "/c/lazyfs"
    assert state_directory(variables, 1000) == "/s/lazyfs"
    assert runtime_directory(variables, 1000) == "/run/user/1000/lazyfs"


def test_root():
    variables = {"HOME": "/root", "XDG_CACHE_HOME": "/c", "XDG_RUNTIME_DIR": "/run/user/0"}
    assert cache_directory(variables, 0) == "/var/cache/lazyfs"
    assert state_directory(variables, 0) == "/var/lib/lazyfs"
    assert runtime_directory(variables, 0) == "/run/lazyfs"


def test_a_unit_of_systemd():
    variables = {"CACHE_DIRECTORY": "/var/cache/a:/var/cache/b", "STATE_DIRECTORY": "/var/lib/a"}
    assert cache_directory(variables, 0) == "/var/cache/a"
    assert state_directory(variables, 0) == "/var/lib/a"


@pytest.mark.parametrize("uid", [0, 1000])
def test_our_own_variables_come_first(uid):
    variables = USER | {
        "XDG_CACHE_HOME": "/c",
        "CACHE_DIRECTORY": "/d",
        "LAZYFS_CACHE_DIR": "/own",
        "LAZYFS_STATE_DIR": "/state",
        "LAZYFS_RUNTIME_DIR": "/runtime",
    }
    assert cache_directory(variables, uid) == "/own"
    assert state_directory(variables, uid) == "/state"
    assert runtime_directory(variables, uid) == "/runtime"


def test_paths_are_absolute():
    variables = {"LAZYFS_CACHE_DIR": "here", "XDG_STATE_HOME": "relative", "HOME": "/h"}
    assert cache_directory(variables, 1000) == str(Path.cwd() / "here")
    assert state_directory(variables, 1000) == "/h/.local/state/lazyfs"
    assert runtime_directory({"XDG_RUNTIME_DIR": "relative"}, 1000).startswith("/")
    assert cache_directory({}, 1000) == "/.cache/lazyfs"
