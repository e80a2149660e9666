"""What a hostile program in a sandbox tries against the machine: a contract for every runtime.

Each line of ATTACKS is one attempt of tests/support/sandboxes/sandbox_probe.c.  A new runtime is
entered in conftest.py and must hold them all.  The protections are turned off one by one, by their
options, to see the attempts succeed: they are real.
"""

import functools
import json
import os
import stat

import pytest

from lazyfs.sandbox.specs.spec_parts import DEFAULT_CAPABILITIES, NUMBERS
from tests.attacks.conftest import RUNTIMES, WHO, Hostile
from tests.support.mounts.mounting import needs_fuse, needs_root
from tests.support.sandboxes.hostile_image import MARK, ZERO

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

KERNEL = ("crun", "runc", "bwrap")  # they share this machine's kernel with what they run
NODES = (
    *("image-disk", "image-disk-write", "image-zero", "image-zero-linked", "image-zero-moved"),
    *("mknod-root", "mknod-dev", "mknod-shm"),
)
KEYS = (
    *("keyctl-read", "keyctl-link", "keyctl-read-linked", "keyctl-search-session"),
    *("keyctl-search-user", "request-key", "add-key"),
)
CALLS = (
    *("bpf", "perf-event-open", "kexec-load", "userfaultfd", "io-uring-setup"),
    *("open-by-handle-at", "init-module", "mount", "mount-remount", "umount", "move-mount"),
    *("personality", "acct", "quotactl", "swapon", "setns", "unknown-call"),
    *("tiocsti", "tiocsti-high", "signal-host", "ptrace-host"),
)
PATHS = (
    *("proc-sys", "proc-sys-kernel", "sys", "sys-power", "sys-module", "sys-mkdir"),
    *("kcore", "keys", "timer-list", "firmware"),
)
# gVisor answers these itself: what they open is its own kernel's.
OWN = ("unshare", "unshare-mount", "clone", "clone3", "sysrq", "syslog")
ATTACKS = (*NODES, *KEYS, *CALLS, *PATHS, *OWN)
DEFAULT_MASK = sum(1 << NUMBERS[name] for name in DEFAULT_CAPABILITIES)


@pytest.fixture(scope="module")
def attacked(hostile: Hostile):
    """Return what came of all attempts in a sandbox, each of which runs once."""
    return functools.cache(hostile.attack)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails(attacked, runtime, who, attack):
    if runtime == "runsc" and attack in OWN:
        pytest.skip("answered by gVisor's own kernel, never by this machine's")
    result = attacked(runtime, who).get(attack, "never tried")
    if attack == "unshare-mount":
        assert result == "never tried"  # there was no namespace to mount in
    else:
        assert result != "ok"
        assert result != "never tried"


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_privileges(attacked, runtime, who):
    seen = attacked(runtime, who)
    for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"):
        if name in seen:  # gVisor shows not all
            assert int(seen[name], 16) & ~DEFAULT_MASK == 0, name
    assert seen["setuid"] in ("1000", "EINVAL", "EPERM")  # a user may have no second id at all
    if runtime != "runsc":
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert seen["write-root"] == "ok" or who == "user"  # it is a sandbox still
    assert seen["tcgets"] == "ok"


def test_the_disk_is_as_it_was(hostile, attacked):
    for runtime in RUNTIMES:
        if runtime != "runsc":
            hostile.words_of(runtime)
            attacked(runtime, "root")
    with hostile.disk.open("rb") as disk:
        assert disk.read(len(MARK)) == MARK


# Protections that are turned off by name


@pytest.mark.parametrize("runtime", KERNEL)
def test_without_the_profile(attacked, runtime):
    closed = attacked(runtime, "root")
    seen = attacked(runtime, "root", "--security-opt", "seccomp=unconfined")
    assert (closed["Seccomp"], seen["Seccomp"]) == ("2", "0")
    for attack in ("unshare", "clone", "personality", "add-key"):
        assert (attack, seen[attack]) == (attack, "ok")
    # The others hold: devices, keys of others, paths.
    for attack in (*NODES, *PATHS, "keyctl-search-session", "mount"):
        assert (attack, seen[attack]) != (attack, "ok")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("runtime", KERNEL)
def test_keys_are_closed_twice(attacked, runtime, who):
    """By the profile, and by a new session keyring; both must be opened to get at a key."""
    profile = ("--security-opt", "seccomp=unconfined")
    seen = attacked(runtime, who, *profile)
    assert seen["keyctl-search-session"] != "ok"
    assert seen["keyctl-read"] != "ok"
    if runtime == "bwrap" or who == "user":  # others have a user namespace, and no key of it
        opened = attacked(runtime, who, *profile, "--security-opt", "keyring=host")
        assert (opened["keyctl-search-session"], opened["keyctl-read"]) == ("ok", "ok")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_without_the_rule_on_privileges(attacked, runtime):
    seen = attacked(runtime, "root", "--security-opt", "no-new-privileges=false")
    assert (seen["NoNewPrivs"], seen["setuid"]) == ("0", "0")


def test_a_protection_that_cannot_be_turned_off(hostile):
    options = ("--security-opt", "no-new-privileges=false")
    done = hostile.run("bwrap", "root", "euid", options=options)
    assert done.returncode == 54
    assert "bwrap never lets programs gain privileges" in done.stderr


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_without_the_namespace(attacked, runtime):
    """crun mounts the root again without nodev; runc has a list of devices."""
    seen = attacked(runtime, "root", "--security-opt", "userns=host")
    assert (seen["image-disk"] == "ok") == (runtime == "crun")
    for attack in (*KEYS, *CALLS, *PATHS, "mknod-root", "mknod-dev"):
        assert (attack, seen[attack]) != (attack, "ok")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nodes_that_the_capability_makes(attacked, runtime):
    seen = attacked(runtime, "root", "--cap-add", "MKNOD")
    for attack in NODES:
        assert (attack, seen[attack]) != (attack, "ok")


@pytest.mark.parametrize("runtime", KERNEL)
def test_paths_that_are_opened(attacked, runtime):
    seen = attacked(runtime, "root", "--security-opt", "unmask=/proc/sys:/proc/keys")
    assert seen["proc-sys-kernel"] == "ok" or runtime == "bwrap"
    assert seen["sys-power"] != "ok"


@pytest.mark.parametrize("runtime", KERNEL)
def test_a_device_that_is_lent(hostile, runtime):
    seen = hostile.attack(runtime, "root", "--device", "/dev/zero:/dev/lent")
    for attack in NODES:
        assert (attack, seen[attack]) != (attack, "ok")
    done = hostile.run(
        runtime, "root", "open", "/dev/lent", options=("--device", f"{hostile.disk}:/dev/lent")
    )
    assert "open ok" in done.stdout, done.stderr


@pytest.mark.parametrize(("runtime", "said"), [("runc", "open EPERM"), ("crun", ""), ("bwrap", "")])
def test_a_device_that_is_lent_for_reading_only(hostile, runtime, said):
    options = ("--device", f"{hostile.disk}:/dev/lent:r")
    done = hostile.run(runtime, "root", "open-write", "/dev/lent", options=options)
    assert done.stdout.strip() == said, done.stderr
    if not said:
        assert done.returncode == 54
        assert "for both reading and writing" in done.stderr


@pytest.mark.parametrize("runtime", KERNEL)
def test_a_node_in_a_folder_that_is_shown(hostile, runtime):
    """Such as one that a sandbox of another runtime has left in a volume."""
    words = hostile.words_of(runtime)
    shown = hostile.folder / "shown"
    shown.mkdir(exist_ok=True)
    node = shown / "zero"
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(*ZERO))
    os.close(os.open(node, os.O_RDONLY))
    container = {
        "name": "web",
        "image": hostile.image,
        "command": ["/bin/probe", "open", "/here/zero"],
        "volumeMounts": [{"name": "here", "mountPath": "/here"}],
    }
    template = hostile.folder / "shown.json"
    volumes = [{"name": "here", "hostPath": {"path": str(shown)}}]
    template.write_text(json.dumps({"containers": [container], "volumes": volumes}))
    done = hostile.commands["root"]("run", *words, "--attach", template, timeout=90)
    assert done.stdout == "open EACCES\n", done.stderr


@pytest.mark.parametrize("runtime", KERNEL)
def test_a_profile_in_a_file(hostile, runtime):
    profile = hostile.folder / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [], "syscalls": [{"names": ["personality"],'
        ' "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}'
    )
    seen = hostile.attack(runtime, "root", "--security-opt", f"seccomp={profile}")
    assert (seen["personality"], seen["unshare"]) == ("EOPNOTSUPP", "ok")
