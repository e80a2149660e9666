"""Profiles as podman and docker write them: what holds on which machine, and hostile ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.errors import TemplateInvalid, Unsupported
from lazyfs.sandbox.specs.bpf import compile_profile
from lazyfs.sandbox.specs.seccomp_file import load_profile, parse_profile

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x"},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_BPF"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {"name": "write", "action": "SCMP_ACT_ALLOW"},
    ],
}


def parse(document, capabilities=(), machine="x86_64", release="6.1.0-1"):
    return parse_profile(json.dumps(document).encode(), capabilities, machine, release)


def actions(profile) -> dict[str, str]:
    return {name: each["action"] for each in profile["syscalls"] for name in each["names"]}


def test_what_holds_here():
    found = parse(PROFILE)
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert actions(found) == {
        "read": "SCMP_ACT_ALLOW",
        "bpf": "SCMP_ACT_ERRNO",
        "ptrace": "SCMP_ACT_ALLOW",
        "arch_prctl": "SCMP_ACT_ALLOW",
        "write": "SCMP_ACT_ALLOW",
    }
    assert all("includes" not in each and "comment" not in each for each in found["syscalls"])
    assert actions(parse(PROFILE, {"CAP_BPF"}))["bpf"] == "SCMP_ACT_ALLOW"
    elsewhere = actions(parse(PROFILE, machine="aarch64", release="4.4.0"))
    assert not {"ptrace", "arch_prctl"} & elsewhere.keys()


def test_the_one_of_this_machine_can_be_compiled():
    try:
        profile = load_profile_of_containers()
    except TemplateInvalid:
        pytest.skip("containers-common is not installed")
    assert len(compile_profile(profile, "x86_64")) % 8 == 0


def load_profile_of_containers():
    from pathlib import Path

    return load_profile(Path("/usr/share/containers/seccomp.json"), {"CAP_CHOWN"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["a"]}]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [' + b"1," * 600_000 + b"1]}",
    ],
)
def test_what_is_no_profile(data):
    with pytest.raises(TemplateInvalid, match="seccomp profile file: "):
        parse_profile(data, (), "x86_64", "6.1")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TemplateInvalid, match="No such file"):
        load_profile(tmp_path / "nothing", ())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


ENTRY = ("names", "name", "action", "args", "includes", "excludes")


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(PROFILE, JSON)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(ENTRY, JSON)),
)
def test_any_document(document, entry):
    for each in (document, document | {"syscalls": [entry]}):
        try:
            compile_profile(parse(each), "x86_64")
        except (TemplateInvalid, Unsupported, KeyError, TypeError, ValueError, AttributeError):
            pass
