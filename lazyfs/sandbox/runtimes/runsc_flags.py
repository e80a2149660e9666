"""Options of runsc that a snapshot may bring along: a grammar, and a list by name.

What runsc takes, Go's flag package reads: ``--name``, ``--name=value``, and ``--name value`` for
all that is no bool, which would swallow the word behind it.  So a flag from a snapshot is one word,
has a value where it needs one, and is in the list below.  Everything else is refused by its name:
flags that write files (``--debug-log``, ``--profile-cpu``), name other folders (``--root``), load
configuration (``--pod-init-config``), or take protection away (``--TESTONLY-unsafe-nonroot``).

Pure.  The flags are those of releases 2022-12 to 2026-06 (``runsc flags``).
"""

import re
from enum import StrEnum

FLAG_RE = re.compile(r"--?([A-Za-z][A-Za-z0-9_-]{0,63})(?:=([\x20-\x7e]{0,256}))?")
BOOL = "true|false|1|0|t|f|T|F|TRUE|FALSE|True|False"
NUMBER = r"-?[0-9]{1,9}"

# Name → what its value may be.  They change how fast or how talkative gVisor is, or what it checks.
HARMLESS = {
    "app-huge-pages": BOOL,
    "buffer-pooling": BOOL,
    "cpu-num-from-quota": BOOL,
    "dcache": NUMBER,
    "debug": BOOL,
    "directfs": BOOL,
    "enable-core-tags": BOOL,
    "file-access": "exclusive|shared",
    "file-access-mounts": "exclusive|shared",
    "fuse": BOOL,
    "gso": BOOL,
    "gvisor-gro": rf"{BOOL}|[0-9]{{1,9}}(ns|us|ms|s)",
    "ignore-cgroups": BOOL,
    "lisafs": BOOL,
    "log-packets": BOOL,
    "net-disconnect-ok": BOOL,
    "network-processors-per-channel": "[0-9]{1,3}",
    "num-network-channels": "[0-9]{1,3}",
    "oci-seccomp": BOOL,
    "platform": "systrap|ptrace",
    "qdisc": "none|fifo",
    "ref-leak-mode": "disabled|log-names|log-traces",
    "rx-checksum-offload": BOOL,
    "software-gso": BOOL,
    "strace": BOOL,
    "strace-log-size": "[0-9]{1,6}",
    "tx-checksum-offload": BOOL,
    "vfs2": BOOL,
    "watchdog-action": "log|panic",
}
# The same for flags that open something of the machine to the sandbox: sockets and pipes of the
# host, devices, raw sockets, cgroups, the host's packet filter.
OPENING = {
    "cgroupfs": BOOL,
    "fdlimit": NUMBER,
    "fsgofer-host-uds": BOOL,
    "host-fifo": "none|open",
    "host-uds": "none|open|create|all",
    "net-raw": BOOL,
    "nvproxy": BOOL,
    "platform": "kvm",
    "reproduce-nat": BOOL,
    "reproduce-nftables": BOOL,
    "systemd-cgroup": BOOL,
    "tpuproxy": BOOL,
}


class Verdict(StrEnum):
    """What becomes of a flag that a snapshot brings along."""

    HARMLESS = "harmless"
    OPENING = "opening"  # whoever restores has to allow it
    REFUSED = "refused"  # nobody can allow it by a word


def judge(flag: str) -> Verdict:
    """Return what may become of one word."""
    match = FLAG_RE.fullmatch(flag)
    if match is None:
        return Verdict.REFUSED
    name, value = match[1], match[2]
    for verdict, known in ((Verdict.HARMLESS, HARMLESS), (Verdict.OPENING, OPENING)):
        pattern = known.get(name)
        if pattern is None:
            continue
        if value is None and pattern.startswith(BOOL):
            return verdict
        if value is not None and re.fullmatch(pattern, value):
            return verdict
    return Verdict.REFUSED


def spelled(flag: str) -> str:
    """Return a flag so that it cannot take the word behind it for its value."""
    return flag if "=" in flag else f"{flag}=true"
