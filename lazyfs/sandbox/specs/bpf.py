"""Seccomp profiles as programs of classic BPF, which the kernel runs at each system call.

Sources: seccomp(2), "struct seccomp_data"; the kernel's Documentation/networking/filter.rst.
Pure.  For runtimes that take a program and no profile; the others have libseccomp for this.

A program looks at the architecture, then searches the call's number by halves, then compares
arguments.  Jumps lead forwards; a conditional one reaches 255 instructions, so that those that may
lead further are two: it skips a plain jump, which reaches any.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from lazyfs.documents.errors import Unsupported
from lazyfs.sandbox.specs.syscalls import has_table, numbers

LIMIT = 4096  # instructions: BPF_MAXINSNS
LOAD, AND, RETURN, ALWAYS = 0x20, 0x54, 0x06, 0x05  # ld [k], and #k, ret #k, ja
IF_EQUAL, IF_GREATER, IF_NOT_LESS = 0x15, 0x25, 0x35  # jeq, jgt, jge
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
WORD = 0xFFFFFFFF
X32_BIT = 0x40000000  # in the number of a call of x86-64
EPERM, ENOSYS = 1, 38
AUDIT = {  # linux/audit.h
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
}
KILLS = ("SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS")


class Condition(msgspec.Struct, frozen=True):
    """What an argument must be: as ``seccomp_rule_add(3)``'s comparisons, of 64 bits."""

    index: int
    operation: str
    value: int
    second: int = 0


class Rule(msgspec.Struct, frozen=True):
    """What becomes of a call all of whose conditions hold."""

    action: int
    conditions: tuple[Condition, ...] = ()


Rules = tuple[Rule, ...]


class Program:
    """Instructions whose jumps lead to labels that are set later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | None]] = []  # code, skipped, k, label
        self._labels: list[int] = []

    def label(self) -> int:
        """Return a new label, not set yet."""
        self._labels.append(-1)
        return len(self._labels) - 1

    def set(self, label: int) -> None:
        """Have *label* mean the next instruction."""
        self._labels[label] = len(self._code)

    def add(self, code: int, k: int) -> None:
        """Add an instruction that does not jump."""
        self._code.append((code, 0, k, None))

    def jump(self, label: int) -> None:
        """Go to *label*."""
        self._code.append((ALWAYS, 0, 0, label))

    def jump_if(self, code: int, k: int, label: int) -> None:
        """Go to *label* if the comparison holds, and on if it does not."""
        self._code.append((code, 1, k, None))
        self.jump(label)

    def jump_unless(self, code: int, k: int, label: int) -> None:
        """Go to *label* if the comparison does not hold."""
        self._code.append((code, 2, k, None))
        self.jump(label)

    def assemble(self) -> bytes:
        """Return the instructions as the kernel reads them (struct sock_filter, little-endian)."""
        if len(self._code) > LIMIT:
            raise Unsupported(
                f"seccomp profile: {len(self._code)} instructions are more than the kernel's "
                f"limit of {LIMIT}"
            )
        data = bytearray()
        for place, (code, skipped, k, label) in enumerate(self._code):
            if label is not None:
                k = self._labels[label] - place - 1
                assert k >= 0, "jumps lead forwards"
            # Skipped where it does not hold (1), or where it does (2).
            data += struct.pack("<HBBI", code, skipped == 2, skipped == 1, k & WORD)
        return bytes(data)


def compile_profile(profile: Mapping[str, Any], machine: str) -> bytes:
    """Return the program of an OCI profile for *machine*, uname(2)'s word.

    Raises Unsupported for machines and actions that are not known here, ValueError, KeyError,
    TypeError or AttributeError for what is no profile.
    """
    from lazyfs.sandbox.specs.syscalls import ARCHITECTURES  # noqa: PLC0415

    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    wanted = [each for each in ARCHITECTURES.get(machine, ()) if has_table(each)]
    if not wanted:
        known = ", ".join(ARCHITECTURES)
        raise Unsupported(
            f"seccomp profile: lazyfs knows the system calls of {known}, not of {machine}",
            hint="use --runtime crun or runc, or --security-opt seccomp=unconfined",
        )
    listed = profile.get("architectures")
    if listed:
        wanted = [wanted[0], *(each for each in wanted[1:] if each in listed)]
    program = Program()
    sections = [(each, program.label()) for each in wanted]
    program.add(LOAD, ARCHITECTURE_AT)
    for architecture, label in sections:
        program.jump_if(IF_EQUAL, AUDIT[architecture], label)
    program.add(RETURN, KILL)
    for architecture, label in sections:
        program.set(label)
        _section(program, architecture, _rules(profile, architecture), default)
    return program.assemble()


def _rules(profile: Mapping[str, Any], architecture: str) -> dict[int, Rules]:
    """Return number → rules in their order: those with conditions come first."""
    known = numbers(architecture)
    found: dict[int, list[Rule]] = {}
    for entry in profile.get("syscalls") or ():
        action = _action(entry["action"], entry.get("errnoRet"))
        conditions = tuple(map(_condition, entry.get("args") or ()))
        for name in entry["names"]:
            if name in known:
                found.setdefault(known[name], []).append(Rule(action, conditions))
    return {
        number: tuple(sorted(rules, key=lambda rule: not rule.conditions))
        for number, rules in found.items()
    }


def _action(name: str, code: int | None) -> int:
    if name == "SCMP_ACT_ALLOW" or name == "SCMP_ACT_LOG":
        return ALLOW
    if name == "SCMP_ACT_ERRNO":
        return ERRNO | (EPERM if code is None else int(code) & 0xFFF)
    if name in KILLS:
        return KILL
    raise Unsupported(f"seccomp profile: bwrap does not support the action {str(name)[:40]!r}")


def _condition(argument: Mapping[str, Any]) -> Condition:
    index, operation = int(argument["index"]), str(argument["op"])
    if not 0 <= index < 6:
        raise ValueError(f"a system call has no argument {index}")
    values = [int(argument.get(key) or 0) & (1 << 64) - 1 for key in ("value", "valueTwo")]
    if operation not in COMPARISONS:
        raise ValueError(f"unknown comparison {operation[:40]!r}")
    return Condition(index, operation, *values)


# Sections


def _section(program: Program, architecture: str, rules: Mapping[int, Rules], default: int) -> None:
    """Add what decides for the calls of an architecture."""
    program.add(LOAD, NUMBER_AT)
    if architecture == "SCMP_ARCH_X86_64":
        x32 = program.label()
        program.jump_if(IF_NOT_LESS, X32_BIT, x32)
    blocks: dict[Rules, int] = {}
    _search(program, list(_ranges(rules, default)), blocks)
    for decision, label in blocks.items():
        program.set(label)
        _decide(program, decision, default)
    if architecture == "SCMP_ARCH_X86_64":
        program.set(x32)
        program.add(RETURN, ERRNO | ENOSYS)


def _ranges(rules: Mapping[int, Rules], default: int) -> Iterator[tuple[int, Rules]]:
    """Yield where another decision begins, and which: for all numbers, in their order."""
    otherwise = (Rule(default),)
    before: Rules | None = None
    following = 0
    for number in sorted(rules):
        if number > following and before != otherwise:
            before = otherwise
            yield following, otherwise
        if rules[number] != before:
            before = rules[number]
            yield number, before
        following = number + 1
    if before != otherwise:
        yield following, otherwise


def _search(
    program: Program, ranges: Sequence[tuple[int, Rules]], blocks: dict[Rules, int]
) -> None:
    """Add the search of a number, which is loaded, by halves."""
    if len(ranges) == 1:
        decision = ranges[0][1]
        if decision not in blocks:
            blocks[decision] = program.label()
        program.jump(blocks[decision])
        return
    half = len(ranges) // 2
    upper = program.label()
    program.jump_if(IF_NOT_LESS, ranges[half][0], upper)
    _search(program, ranges[:half], blocks)
    program.set(upper)
    _search(program, ranges[half:], blocks)


def _decide(program: Program, rules: Rules, default: int) -> None:
    for rule in rules:
        if not rule.conditions:
            program.add(RETURN, rule.action)
            return
        following = program.label()
        for condition in rule.conditions:
            COMPARISONS[condition.operation](program, condition, following)
        program.add(RETURN, rule.action)
        program.set(following)
    program.add(RETURN, default)


# Comparisons of 64 bits, by halves: they go on if they hold, and to a label if they do not.


def _halves(value: int) -> tuple[int, int]:
    return value >> 32, value & WORD


def _load(program: Program, condition: Condition, half: int) -> None:
    """Load an argument's upper (0) or lower (1) half; little-endian."""
    program.add(LOAD, ARGUMENTS_AT + 8 * condition.index + 4 * (1 - half))


def _masked(program: Program, condition: Condition, otherwise: int) -> None:
    halves = zip(_halves(condition.value), _halves(condition.second), strict=True)
    for half, (mask, expected) in enumerate(halves):
        if mask == 0 and expected == 0:
            continue
        _load(program, condition, half)
        program.add(AND, mask)
        program.jump_unless(IF_EQUAL, expected, otherwise)


def _equal(program: Program, condition: Condition, otherwise: int) -> None:
    for half, expected in enumerate(_halves(condition.value)):
        _load(program, condition, half)
        program.jump_unless(IF_EQUAL, expected, otherwise)


def _not_equal(program: Program, condition: Condition, otherwise: int) -> None:
    differs = program.label()
    _equal(program, condition, differs)
    program.jump(otherwise)
    program.set(differs)


def _above(code: int, *, is_reversed: bool = False) -> Callable[[Program, Condition, int], None]:
    """Compare: the upper halves decide unless they are the same."""

    def compare(program: Program, condition: Condition, otherwise: int) -> None:
        upper, lower = _halves(condition.value)
        holds = program.label()
        passes, fails = (otherwise, holds) if is_reversed else (holds, otherwise)
        _load(program, condition, 0)
        program.jump_if(IF_GREATER, upper, passes)
        program.jump_unless(IF_EQUAL, upper, fails)
        _load(program, condition, 1)
        program.jump_if(code, lower, passes)
        program.jump(fails)
        program.set(holds)

    return compare


COMPARISONS: dict[str, Callable[[Program, Condition, int], None]] = {
    "SCMP_CMP_EQ": _equal,
    "SCMP_CMP_NE": _not_equal,
    "SCMP_CMP_MASKED_EQ": _masked,
    "SCMP_CMP_GT": _above(IF_GREATER),
    "SCMP_CMP_GE": _above(IF_NOT_LESS),
    "SCMP_CMP_LE": _above(IF_GREATER, is_reversed=True),
    "SCMP_CMP_LT": _above(IF_NOT_LESS, is_reversed=True),
}
