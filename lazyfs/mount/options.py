"""Options of mount(8): the words after ``-o``.

Pure: words in, ``MountOptions`` out, and from there the options that libfuse wants.  What a word
may be follows mount(8), mount.fuse3(8) and what fstab lines carry for systemd.
"""

from collections.abc import Iterable, Iterator

import msgspec

from lazyfs.errors import UsageError

SUBTYPE = "lazyfs"
FILESYSTEM_TYPE = "fuse.lazyfs"
EROFS = "erofs"  # the type of a mount by the kernel

# Words for others than us (mount(8), systemd.mount(5), mount.fuse3(8)), or for the way a mount
# behaves that cannot be otherwise here: nothing is ever written.
IGNORED = frozenset(
    (
        *("defaults", "auto", "noauto", "user", "nouser", "users", "group", "owner", "nofail"),
        *("_netdev", "async", "sync", "dirsync", "atime", "relatime", "norelatime", "strictatime"),
        *("nostrictatime", "nodiratime", "diratime", "lazytime", "nolazytime", "loud", "silent"),
        *("nonempty", "ro", "default_permissions"),
    )
)
IGNORED_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=", "context=")

# Words that libfuse hands to the kernel as they are.
FLAGS = frozenset(["suid", "nosuid", "dev", "nodev", "exec", "noexec", "noatime"])
OPPOSITES = {
    "suid": "nosuid",
    "nosuid": "suid",
    "dev": "nodev",
    "nodev": "dev",
    "exec": "noexec",
    "noexec": "exec",
}

# Words with a value that are options of ``lazyfs mount`` too.
SETTINGS = frozenset(
    (
        *("platform", "cache_dir", "authfile", "cert_dir", "hosts_dir", "prefetch", "driver"),
        *("cache_size", "background_limit", "patience", "index", "requested", "verify"),
        *("policy", "trust_store", "revocation", "max_signature_age"),
    )
)
SWITCHES = frozenset(
    ["plain_http", "insecure_skip_verify", "anonymous", "offline", "require_newer"]
)

MAX_READ_LIMITS = (4096, 1 << 20)
MAX_THREADS = 16


class BadMountOption(UsageError):
    """A word after ``-o`` that is unknown, malformed or contradicts another."""

    code = "E_MOUNT_OPTION"


class MountOptions(msgspec.Struct, frozen=True):
    """What the words after ``-o`` mean.

    ``flags`` go to the kernel; ``settings`` are words that stand for options of the command line
    (``plain_http`` has the value ``""``).  Sizes are in bytes.  ``max_read`` and ``threads``
    are for the native driver.
    """

    allow_other: bool = False
    allow_root: bool = False
    auto_unmount: bool = False
    max_read: int | None = None
    threads: int | None = None
    fsname: str | None = None
    flags: tuple[str, ...] = ()
    settings: dict[str, str] = msgspec.field(default_factory=dict)


def split_words(values: Iterable[str]) -> Iterator[str]:
    """Yield the words of comma-separated *values*; ``\\,`` is a comma and ``\\\\`` a backslash."""
    for value in values:
        word = ""
        letters = iter(value)
        for letter in letters:
            if letter == "\\":
                word += next(letters, "\\")
            elif letter == ",":
                yield word
                word = ""
            else:
                word += letter
        yield word


def parse_options(values: Iterable[str]) -> MountOptions:
    """Return what the ``-o`` *values* mean; of two that contradict each other the last counts.

    Raises BadMountOption.
    """
    switches = dict.fromkeys(("allow_other", "allow_root", "auto_unmount"), False)
    flags: dict[str, None] = {}
    settings: dict[str, str] = {}
    max_read: int | None = None
    threads: int | None = None
    fsname: str | None = None
    for word in split_words(values):
        name, equals, value = word.partition("=")
        if not word or word in IGNORED or word.startswith(IGNORED_PREFIXES):
            continue
        if word in switches:
            switches[word] = True
        elif word in FLAGS:
            flags.pop(OPPOSITES.get(word, ""), None)
            flags[word] = None
        elif word == "rw":
            raise BadMountOption("option rw: a mounted image is read-only")
        elif name == "max_read" and equals:
            max_read = parse_max_read(value)
        elif name == "threads" and equals:
            threads = parse_threads(value)
        elif name == "fsname" and value:
            fsname = value
        elif name == "subtype" and equals:
            if value != SUBTYPE:
                raise BadMountOption(f"option subtype: got {value!r}, expected {SUBTYPE}")
        elif name in SETTINGS and value:
            settings[name] = value
        elif word in SWITCHES:
            settings[word] = ""
        else:
            raise BadMountOption(
                f"unknown option {word[:200]!r}",
                hint="`lazyfs mount --help` lists the options",
            )
    if switches["allow_other"] and switches["allow_root"]:
        raise BadMountOption("options allow_other and allow_root cannot be used together")
    return MountOptions(
        **switches,
        max_read=max_read,
        threads=threads,
        fsname=fsname,
        flags=tuple(flags),
        settings=settings,
    )


def parse_max_read(text: str) -> int:
    """Return the size that *text* gives in bytes."""
    low, high = MAX_READ_LIMITS
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise BadMountOption(f"option max_read: got {text[:40]!r}, expected {low} to {high} bytes")
    return int(text)


def parse_threads(text: str) -> int:
    """Return the number of threads of the native driver that *text* gives."""
    if not (text.isascii() and text.isdigit() and len(text) < 3 and 0 < int(text) <= MAX_THREADS):
        raise BadMountOption(f"option threads: got {text[:40]!r}, expected 1 to {MAX_THREADS}")
    return int(text)


def escape_value(text: str) -> str:
    """Return *text* as the value of an option of libfuse, which splits at commas.

    The binding encodes options as ASCII, and control characters would garble the mount table:
    both become question marks.
    """
    shown = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return shown.replace("\\", "\\\\").replace(",", "\\,")


def fuse_options(options: MountOptions, source: str) -> set[str]:
    """Return the options for libfuse; *source* names the mount where no fsname was given.

    ``max_read`` is not among them: libfuse ends the connection when the number in its greeting
    differs, and a driver that cannot set that one has to do without.
    """
    words = {
        "ro",
        "default_permissions",  # the modes of the tree are real: the kernel checks them
        f"subtype={SUBTYPE}",
        f"fsname={escape_value(options.fsname or source)}",
        *options.flags,
    }
    words.update(
        name for name in ("allow_other", "allow_root", "auto_unmount") if getattr(options, name)
    )
    return words


def is_allow_other_permitted(fuse_conf: str) -> bool:
    """Say whether the text of ``/etc/fuse.conf`` lets ordinary users give allow_other."""
    return any(line.strip() == "user_allow_other" for line in fuse_conf.splitlines())
