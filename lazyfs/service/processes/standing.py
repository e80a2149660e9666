"""What a mount depends on besides its command line: who a process is, and where it stands.

A process may make a mount for another one only where the two are equal in all of this: a mount
that is made in another mount namespace is not seen, contents that come through another network
namespace come from somebody else.  A difference is never wrong, only slower: the command then
does the work itself.
"""

import os
import sys
import time

import lazyfs

NAMESPACES = ("mnt", "user", "net", "pid")
FIELDS = ("Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp")  # of /proc/self/status
MASK_FIELD = "Umask"
START_TIME = 19  # of the fields after the name in /proc/pid/stat
CAP_WAKE_ALARM = 1 << 35
"""Some sessions have it, their services do not; no mount needs it."""


def standing() -> list[str]:
    """Return where this process stands, to be compared with another's: names, blanks, values.

    Raises OSError.
    """
    status = _status_fields()
    capabilities = int(status.get("CapEff") or "0", 16) & ~CAP_WAKE_ALARM
    status["CapEff"] = format(capabilities, "x")
    return [
        *(f"{name} {os.readlink(f'/proc/self/ns/{name}')}" for name in NAMESPACES),
        *(f"{name} {status.get(name, '')}" for name in FIELDS),
        f"root {_root()}",
    ]


def creation_mask() -> int:
    """Return this process's umask, without changing it.  Raises OSError."""
    return int(_status_fields()[MASK_FIELD], 8)


def build() -> str:
    """Return what distinguishes this lazyfs from one that was installed before or elsewhere.

    Asked again later, it says whether the files have been replaced meanwhile.  Raises OSError.
    """
    found = os.stat(lazyfs.__file__)
    file = f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}"
    encoding = sys.getfilesystemencoding()  # words and variables are to mean the same
    return f"{lazyfs.__version__} {file} {sys.hexversion:x} {encoding} {sys.prefix}"


def process_start() -> float:
    """Return when this process began, in seconds of the monotonic clock."""
    now = time.monotonic()
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[START_TIME])
    except (OSError, IndexError, ValueError):
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)


def _status_fields() -> dict[str, str]:
    with open("/proc/self/status") as file:
        pairs = (line.partition(":") for line in file)
        return {name: " ".join(value.split()) for name, _, value in pairs}


def _root() -> str:
    """Return which directory of which mount the root is; another one after chroot(2)."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(root)
        with open(f"/proc/self/fdinfo/{root}") as file:
            mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(root)
    return f"{found.st_dev}:{found.st_ino}:{mount}"
