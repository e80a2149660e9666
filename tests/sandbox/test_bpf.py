"""Seccomp profiles as programs: what a machine of our own, and the kernel, make of them."""

import errno
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.errors import Unsupported
from lazyfs.sandbox.specs.bpf import AUDIT, COMPARISONS, compile_profile
from lazyfs.sandbox.specs.seccomp import TIOCSTI, default_profile
from lazyfs.sandbox.specs.spec_parts import DEFAULT_CAPABILITIES
from lazyfs.sandbox.specs.syscalls import known_names, numbers

X86_64, X86, AARCH64 = "SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"
ALLOWED, KILLED = "allowed", "killed"
COMPARE = {0x15: lambda a, k: a == k, 0x25: lambda a, k: a > k, 0x35: lambda a, k: a >= k}


def execute(program: bytes, audit: int, number: int, arguments=()) -> str | int:
    """Run a program as the kernel does; return "allowed", "killed", or an errno."""
    arguments = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *arguments)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    for _ in range(len(code)):
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            assert k % 4 == 0
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            at += k
        elif operation == 0x06:
            if k == 0x7FFF0000:
                return ALLOWED
            return KILLED if k == 0x80000000 else k & 0xFFFF
        else:
            at += if_true if COMPARE[operation](accumulator, k) else if_false
    raise AssertionError("the program has no end")


def asker(capabilities=DEFAULT_CAPABILITIES, machine="x86_64", architecture=X86_64):
    """Return a function that says what the default profile does with a call."""
    program = compile_profile(default_profile(capabilities, machine), machine)
    table = numbers(architecture)

    def ask(name: str, *arguments: int) -> str | int:
        return execute(program, AUDIT[architecture], table[name], arguments)

    return ask


@pytest.mark.parametrize(
    ("machine", "architecture"), [("x86_64", X86_64), ("x86_64", X86), ("aarch64", AARCH64)]
)
def test_what_the_default_allows_and_refuses(machine, architecture):
    ask = asker(machine=machine, architecture=architecture)
    for name in ("read", "execve", "ptrace", "chroot", "mknodat", "openat2", "seccomp"):
        assert ask(name) == ALLOWED
    for name in ("keyctl", "add_key", "request_key", "bpf", "perf_event_open", "kexec_load",
                 "mount", "umount2", "setns", "pivot_root", "userfaultfd", "io_uring_setup",
                 "open_by_handle_at", "init_module", "reboot", "swapon", "acct"):  # fmt: skip
        assert ask(name) == errno.EPERM, name
    assert ask("clone3") == errno.ENOSYS  # and clone is used


@pytest.mark.parametrize("bit", [0x20000, *(1 << n for n in range(25, 31) if n != 24)])
@pytest.mark.parametrize("name", ["clone", "unshare"])
def test_no_namespace_of_any_kind(name, bit):
    ask = asker()
    others = {0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000}
    assert (ask(name, bit) == errno.EPERM) == (bit in others)
    assert ask(name, bit | 0x11) == errno.EPERM
    assert ask(name, 0x400 | 1 << 40) == ALLOWED
    assert ask("unshare", 0x80) == errno.EPERM  # a time namespace; clone has a signal there
    assert ask("clone", 0x80) == ALLOWED
    assert asker({"CAP_SYS_ADMIN"})(name, bit) == ALLOWED


def test_terminals_are_not_typed_into():
    ask = asker()
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):
        assert ask("ioctl", 0, high | TIOCSTI) == errno.EPERM
        assert ask("ioctl", 0, high | 0x541C) == errno.EPERM
    for request in (0, 0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x80005412, 0xFFFFFFFF):
        assert ask("ioctl", 0, request) == ALLOWED
    assert ask("socket", 40) == ask("socket", 1 << 32 | 40) == errno.EAFNOSUPPORT
    assert ask("socket", 1) == ask("socket", 16) == ask("socket", 2) == ALLOWED


def test_personalities():
    ask = asker()
    assert [ask("personality", n) for n in (0, 8, 0x20000, 0xFFFFFFFF)] == [ALLOWED] * 4
    assert ask("personality", 0x400000) == ask("personality", 1 << 32) == errno.ENOSYS


def test_what_capabilities_open():
    assert asker({"CAP_SYS_CHROOT"})("chroot") == ALLOWED
    assert asker(())("chroot") == errno.EPERM
    admin = asker({"CAP_SYS_ADMIN"})
    assert admin("mount") == admin("clone3") == admin("bpf") == ALLOWED
    assert admin("keyctl") == admin("io_uring_setup") == errno.EPERM


def test_other_architectures_and_unknown_numbers():
    program = compile_profile(default_profile((), "x86_64"), "x86_64")
    assert execute(program, 0x40000028, 0) == KILLED  # ARM's calls on a machine that has none
    assert execute(program, AUDIT[X86_64], 5000) == errno.ENOSYS
    assert execute(program, AUDIT[X86_64], 0x40000000) == errno.ENOSYS  # read of x32
    assert execute(program, AUDIT[X86_64], 0xFFFFFFFF) == errno.ENOSYS
    with pytest.raises(Unsupported, match="not of riscv64"):
        compile_profile(default_profile((), "riscv64"), "riscv64")


def test_each_call_gets_what_the_profile_says():
    """Every number of each architecture, against the profile read naively."""
    for machine, architecture in (("x86_64", X86_64), ("x86_64", X86), ("aarch64", AARCH64)):
        profile = default_profile(DEFAULT_CAPABILITIES, machine)
        program = compile_profile(profile, machine)
        plain = {
            name: ALLOWED if entry["action"] == "SCMP_ACT_ALLOW" else entry["errnoRet"]
            for entry in profile["syscalls"]
            if not entry.get("args")
            for name in entry["names"]
        }
        names = {number: name for name, number in numbers(architecture).items()}
        special = {"clone", "unshare", "ioctl", "personality", "socket"}
        for number in range(700):
            name = names.get(number)
            if name not in special:
                expected = plain.get(name, errno.ENOSYS)
                assert execute(program, AUDIT[architecture], number) == expected, (number, name)


def test_the_profile_names_only_calls_that_exist_and_each_once():
    profile = default_profile(DEFAULT_CAPABILITIES, "x86_64")
    plain = [name for each in profile["syscalls"] if not each.get("args") for name in each["names"]]
    assert len(plain) == len(set(plain))
    unknown = set(plain) - known_names()
    assert unknown <= {"fstatat64", "futimesat", "ugetrlimit"} | {"send", "recv"}, unknown


MEANING = {
    "SCMP_CMP_EQ": lambda a, v, s: a == v,
    "SCMP_CMP_NE": lambda a, v, s: a != v,
    "SCMP_CMP_GT": lambda a, v, s: a > v,
    "SCMP_CMP_GE": lambda a, v, s: a >= v,
    "SCMP_CMP_LT": lambda a, v, s: a < v,
    "SCMP_CMP_LE": lambda a, v, s: a <= v,
    "SCMP_CMP_MASKED_EQ": lambda a, v, s: a & v == s,
}
EDGES = st.sampled_from([0, 1, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1])
VALUES = EDGES | st.integers(0, (1 << 64) - 1)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(COMPARISONS)), VALUES, VALUES),
             min_size=1, max_size=3),
    st.lists(VALUES, min_size=6, max_size=6),
)  # fmt: skip
def test_comparisons_are_those_of_64_bits(conditions, arguments):
    arguments[conditions[0][0]] = random.choice([arguments[0], conditions[0][2]])
    args = [{"index": i, "op": o, "value": v, "valueTwo": s} for i, o, v, s in conditions]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args}],
    }
    program = compile_profile(profile, "x86_64")
    holds = all(MEANING[o](arguments[i], v, s) for i, o, v, s in conditions)
    got = execute(program, AUDIT[X86_64], 0, arguments)
    assert got == (ALLOWED if holds else errno.EPERM)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(JSON, JSON, JSON)
def test_any_profile_is_compiled_or_refused(entries, names, args):
    for syscalls in (
        entries,
        [{"names": names, "action": "SCMP_ACT_ALLOW"}],
        [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args}],
    ):
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}
        try:
            program = compile_profile(profile, "x86_64")
        except (Unsupported, ValueError, KeyError, TypeError, AttributeError):
            continue
        assert execute(program, AUDIT[X86_64], 0) in (ALLOWED, errno.EPERM)


def test_a_program_that_is_too_long_is_refused():
    condition = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 1}]
    entry = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": condition}
    entries = [entry | {"args": [condition[0] | {"value": number}]} for number in range(1000)]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries}
    with pytest.raises(Unsupported, match="limit of 4096"):
        compile_profile(profile, "x86_64")
