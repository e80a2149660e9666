"""What of an OCI config becomes an option of bwrap."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.template import Container, EnvVar, Template
from lazyfs.sandbox.runtimes.bubblewrap import bounded, build_options, seccomp_program
from lazyfs.sandbox.specs.spec import build_spec

BUNDLE = Path("/state/box/bundles/main")


def spec_of(**fields) -> dict:
    container = Container(name="main", image="x", **({"command": ("/bin/sh",)} | fields))
    template = Template(name="box", containers=(container,))
    return build_spec(
        container, {}, template, is_root=True, sandbox_id="box.main", runtime_name="bwrap"
    )


def options_of(spec, *, is_root=True, is_writable=True) -> list[str]:
    return build_options(spec, BUNDLE, is_root=is_root, is_writable=is_writable)


def pairs(options: list[str], name: str) -> list[str]:
    return [options[at + 1] for at, word in enumerate(options) if word == name]


def triples(options: list[str], name: str) -> list[tuple[str, str]]:
    return [(options[at + 1], options[at + 2]) for at, word in enumerate(options) if word == name]


def test_the_program_comes_last_with_its_words():
    options = options_of(spec_of(command=("/bin/echo", "--bind", "-x")))
    assert options[-4:] == ["--", "/bin/echo", "--bind", "-x"]


def test_environment_and_place():
    env = (EnvVar(name="A", value="1=2"), EnvVar(name="B", value=""))
    options = options_of(spec_of(env=env, working_dir="/srv"))
    assert "--clearenv" in options
    assert {("A", "1=2"), ("B", "")} <= set(triples(options, "--setenv"))
    assert pairs(options, "--chdir") == ["/srv"]
    assert pairs(options, "--hostname") == ["box-main"]


def test_every_namespace_of_the_config():
    options = options_of(spec_of())
    kinds = {"--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"}
    assert kinds <= set(options)
    spec = spec_of()
    spec["linux"]["namespaces"] = [{"type": "pid"}]
    options = options_of(spec)
    assert kinds & set(options) == {"--unshare-pid"}
    assert "--hostname" not in options  # it would be the host's


def test_the_root_is_written_only_where_both_allow_it():
    assert triples(options_of(spec_of()), "--bind") == [(f"{BUNDLE}/rootfs", "/")]
    assert (f"{BUNDLE}/rootfs", "/") in triples(
        options_of(spec_of(), is_writable=False), "--ro-bind"
    )
    spec = spec_of()
    spec["root"]["readonly"] = True
    assert (f"{BUNDLE}/rootfs", "/") in triples(options_of(spec), "--ro-bind")


def test_mounts():
    spec = spec_of()
    spec["mounts"] += [
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]},
        {"destination": "/out", "type": "bind", "source": "near", "options": ["rbind", "rw"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ]
    options = options_of(spec)
    assert pairs(options, "--proc") == ["/proc"]
    assert pairs(options, "--dev") == ["/dev"]
    assert "/run" in pairs(options, "--tmpfs")
    assert ("/srv", "/data") in triples(options, "--ro-bind")
    assert ("/sys", "/sys") in triples(options, "--ro-bind")
    assert (f"{BUNDLE}/near", "/out") in triples(options, "--bind")
    assert not [word for word in options if "cgroup" in word and word != "--unshare-cgroup-try"]
    spec["mounts"].append({"destination": "/x", "type": "ext4", "source": "/dev/sda"})
    with pytest.raises(Unsupported, match="mount on /x: type 'ext4'"):
        options_of(spec)


def test_only_the_capabilities_of_the_config():
    options = options_of(spec_of())
    assert pairs(options, "--cap-drop") == ["ALL"]
    assert set(pairs(options, "--cap-add")) == set(spec_of()["process"]["capabilities"]["bounding"])
    assert options.index("--cap-drop") < options.index("--cap-add")


def test_users():
    assert "--uid" not in options_of(spec_of())
    with pytest.raises(Unsupported, match="cannot run programs as user 1000:1000"):
        options_of(spec_of(user="1000:1000"))
    options = options_of(spec_of(user="1000:1001"), is_root=False)
    assert (pairs(options, "--uid"), pairs(options, "--gid")) == (["1000"], ["1001"])
    assert "--unshare-user" in options


def test_hidden_paths_are_covered_where_they_are():
    spec = spec_of()
    spec["linux"]["maskedPaths"] = ["/proc/version", "/proc/sys", "/proc/not-here"]
    options = options_of(spec)
    assert ("/dev/null", "/proc/version") in triples(options, "--ro-bind")
    assert "/proc/sys" in pairs(options, "--tmpfs")
    assert pairs(options, "--remount-ro") == ["/dev", "/proc/sys"]
    assert ("/proc/sys", "/proc/sys") not in triples(options, "--ro-bind")
    assert ("/proc/sysrq-trigger", "/proc/sysrq-trigger") in triples(options, "--ro-bind") or (
        not os.path.exists("/proc/sysrq-trigger")
    )
    assert not any("not-here" in word for word in options)
    assert os.path.exists("/proc/version")


def test_what_is_no_config():
    odd = {"process": {"args": ["x"], "user": {"uid": "root"}}}
    for spec in (odd, {}, {"process": {}}, {"process": {"args": 1}}, {"process": None}):
        with pytest.raises(RuntimeFailed, match=r"bwrap: config.json is not valid"):
            options_of(spec)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(spec_of())), JSON), JSON, JSON)
def test_any_config_is_used_or_refused(changes, user, mounts):
    spec = spec_of() | {"mounts": mounts}
    spec["process"]["user"] = user
    for candidate in (spec, spec | changes):
        try:
            options = options_of(candidate)
        except (RuntimeFailed, Unsupported):
            continue
        assert all(isinstance(word, str) for word in options)


def test_sizes_and_devices():
    spec = spec_of()
    spec["mounts"] += [
        {"destination": "/run", "type": "tmpfs", "options": ["size=64k"]},
        {"destination": "/x", "type": "tmpfs", "options": ["size=10%"]},
        {"destination": "/dev/lent", "source": "/dev/null", "type": "bind", "options": ["dev"]},
    ]
    options = options_of(spec)
    place = options.index("/run")
    assert options[place - 3 : place] == ["--size", "65536", "--tmpfs"]
    assert options[options.index("/x") - 2] != "--size"
    assert ("/dev/null", "/dev/lent") in triples(options, "--dev-bind")
    # What --dev makes has no size: nothing can be written to it but in what has one.
    place = options.index("/dev/shm")
    assert options[place - 5 : place] == ["--size", str(64 << 20), "--perms", "1777", "--tmpfs"]
    assert options.index("--remount-ro") > options.index("/dev/lent")


def test_the_bounding_set():
    words = bounded(spec_of())
    kept = words[-1].removeprefix("--bounding-set=-all,+").split(",+")
    assert {f"CAP_{name.upper()}" for name in kept} == {
        *spec_of()["process"]["capabilities"]["bounding"]
    }
    assert "+sys_admin" in words[1]


def test_the_profile_is_compiled():
    spec = spec_of()
    program = seccomp_program(spec)
    assert program is not None
    assert len(program) % 8 == 0
    del spec["linux"]["seccomp"]
    assert seccomp_program(spec) is None
    for odd in ({}, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [1]}, 5):
        spec["linux"]["seccomp"] = odd
        with pytest.raises(RuntimeFailed, match="seccomp profile"):
            seccomp_program(spec)
