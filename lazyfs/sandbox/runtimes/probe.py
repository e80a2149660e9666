"""What a runtime's program is and can do, found by asking it: never by its version number alone.

runsc is asked for ``--version``, ``flags`` and the help of its subcommands; the others have little
that could differ.  What was found is kept by the digest of the program.
"""

import hashlib
import mmap
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import RuntimeFacts
from lazyfs.sandbox.runtimes.programs import OUTPUT_LIMIT, run_program

ASK_SECONDS = 20
RULES = "1"  # raise it when what is found of the same program changes
CPUINFO = Path("/proc/cpuinfo")
SETTLED_SECONDS = 2.0  # a file that is older cannot change within the same tick of its ctime
CPUINFO_LIMIT = 1 << 16  # bytes: the first processor is in them

VERSION_RE = re.compile(r"^(runsc|crun|runc|bubblewrap|bwrap)(?: version)? (\S+)", re.MULTILINE)
FLAG_RE = re.compile(r"^\s{2,}--?([A-Za-z0-9][A-Za-z0-9_-]*)", re.MULTILINE)
SUBCOMMAND_RE = re.compile(r"^\t([a-z][a-z-]*)\s", re.MULTILINE)
PLATFORMS = ("systrap", "ptrace", "kvm")

# Ability → the flag that brings it, of which command ("" is the program itself).
FLAGS = {
    "overlay2": ("", "overlay2"),
    "allow-connected-on-save": ("", "allow-connected-on-save"),
    "net-disconnect-ok": ("", "net-disconnect-ok"),
    "directfs": ("", "directfs"),
    "spec-validation": ("", "restore-spec-validation"),
    "compression": ("checkpoint", "compression"),
    "leave-running": ("checkpoint", "leave-running"),
    "direct": ("restore", "direct"),
    "background": ("restore", "background"),
    "detach": ("restore", "detach"),
    "wait-restore": ("wait", "restore"),
}
COMMANDS = ("checkpoint", "restore", "wait")
# A program without this call inside cannot restore the containers beside the first.
SUBCONTAINERS = b"containerManager.RestoreSubcontainer"

_found: dict[str, RuntimeFacts] = {}
_binaries: dict[tuple[int, ...], tuple[str, bool]] = {}


class _Kept(msgspec.Struct, frozen=True, rename="camel"):
    rules: str
    name: str
    version: str
    binary_digest: str
    platform: str
    abilities: tuple[str, ...]


class _Read(msgspec.Struct, frozen=True, rename="camel"):
    """A program that was hashed, and in which *state* its file was; see ``_read_binary``."""

    state: tuple[int, ...]
    digest: str
    can_subcontainers: bool


def probe_program(path: Path, cache_dir: Path | None = None) -> RuntimeFacts:
    """Return what the program at *path* is and can do.

    *cache_dir* keeps the answers between processes: a small file per program.  Raises
    RuntimeFailed if it cannot be run, Unsupported if it is none of the runtimes.
    """
    digest, can_subcontainers = _read_binary(path, cache_dir)
    facts = _found.get(digest)
    if facts is None and cache_dir is not None:
        facts = _load(cache_dir, digest)
    if facts is None:
        facts = _ask(path, digest, can_subcontainers)
        if cache_dir is not None:
            _save(cache_dir, facts)
    _found[digest] = facts
    return RuntimeFacts(
        name=facts.name,
        path=path,
        version=facts.version,
        binary_digest=digest,
        platform=facts.platform,
        abilities=facts.abilities,
        cpu_features=load_cpu_features(),
    )


def binary_digest(path: Path, cache_dir: Path | None = None) -> str:
    """Return the digest of the program at *path*; as ``probe_program``.  Raises RuntimeFailed."""
    return _read_binary(path, cache_dir)[0]


def _read_binary(path: Path, cache_dir: Path | None) -> tuple[str, bool]:
    """Return a program's digest, and whether it can restore several containers.

    Hashing 60 MB takes as long as saving a small sandbox: a file that has not changed since it was
    read is not read again.  Nobody can give a file that was changed its former ctime.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if key not in _binaries and (kept := _load_read(cache_dir, path)) is not None:
                _binaries[kept.state] = kept.digest, kept.can_subcontainers
            if key not in _binaries:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                    _binaries[key] = digest, data.find(SUBCONTAINERS) >= 0
                if time.time() - found.st_ctime > SETTLED_SECONDS:
                    _save_read(cache_dir, path, _Read(key, *_binaries[key]))
            return _binaries[key]
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise RuntimeFailed(f"cannot run {path}: {reason}") from exc


def _read_path(cache_dir: Path, path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return cache_dir / f"read-{name}.json"


def _load_read(cache_dir: Path | None, path: Path) -> _Read | None:
    if cache_dir is None:
        return None
    try:
        return msgspec.json.decode(_read_path(cache_dir, path).read_bytes(), type=_Read)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _save_read(cache_dir: Path | None, path: Path, read: _Read) -> None:
    if cache_dir is not None:
        _write(_read_path(cache_dir, path), msgspec.json.encode(read))


def _ask(path: Path, digest: str, can_subcontainers: bool) -> RuntimeFacts:
    said = run_program([path, "--version"], seconds=ASK_SECONDS)
    name, version = parse_version(said.out + said.err)
    if not name:
        raise Unsupported(
            f"{path} is not runsc, crun, runc or bwrap: --version prints {said.out[:80]!r}"
        )
    abilities = {"detach"}
    platform = ""
    if name == "runsc":
        texts = {"": _said(path, "flags")}
        for command in COMMANDS:
            texts[command] = _said(path, "help", command)
        abilities = abilities_of(texts, _said(path, "help"))
        if can_subcontainers and "restore" in abilities:
            abilities.add("multi-restore")
        platform = choose_platform(texts[""])
    return RuntimeFacts(name, path, version, digest, platform, frozenset(abilities))


def _said(path: Path, *words: str) -> str:
    done = run_program([path, *words], seconds=ASK_SECONDS)
    return done.out + done.err  # which of them depends on the version


def parse_version(text: str) -> tuple[str, str]:
    """Return a runtime's name and version from what ``--version`` says; "" for no runtime."""
    match = VERSION_RE.search(text[:OUTPUT_LIMIT])
    if match is None:
        return "", ""
    return ("bwrap" if match[1] == "bubblewrap" else match[1]), match[2][:100]


def parse_flags(text: str) -> frozenset[str]:
    """Return the names of the flags that a help text describes."""
    return frozenset(FLAG_RE.findall(text[:OUTPUT_LIMIT]))


def abilities_of(texts: Mapping[str, str], help_text: str) -> set[str]:
    """Return runsc's abilities from its help: command → text, "" for the program's own flags."""
    flags = {command: parse_flags(text) for command, text in texts.items()}
    found = {
        ability
        for ability, (command, flag) in FLAGS.items()
        if flag in flags.get(command, frozenset())
    }
    found |= {"checkpoint", "restore", "fscheckpoint"} & set(
        SUBCOMMAND_RE.findall(help_text[:OUTPUT_LIMIT])
    )
    if "rootless" in flags.get("", frozenset()) and "directfs" in found:
        # Without directfs the sandbox becomes another user, which one user's namespace lacks.
        found.add("rootless")
    if "'dir=" in texts.get("", ""):
        found.add("overlay-dir")
    return found


def choose_platform(flags_text: str) -> str:
    """Return the gVisor platform to use: systrap, else ptrace; kvm only if somebody asks for it."""
    text = flags_text[:OUTPUT_LIMIT]
    start = text.find("-platform string")
    described = text[start : text.find("\n  -", start)] if start >= 0 else ""
    words = re.findall(r"[a-z]+", described)
    return next((each for each in PLATFORMS if each in words), "")


def parse_cpu_features(text: str) -> tuple[str, ...]:
    """Return the first processor's features from the text of /proc/cpuinfo, sorted."""
    for line in text[:CPUINFO_LIMIT].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(sorted(set(value.split())))
    return ()


def load_cpu_features() -> tuple[str, ...]:
    """Return the features of this machine's processors; empty where the kernel tells none."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as file:
            return parse_cpu_features(file.read(CPUINFO_LIMIT))
    except OSError:
        return ()


def _kept_path(cache_dir: Path, digest: str) -> Path:
    return cache_dir / f"{digest.removeprefix('sha256:')}.json"


def _load(cache_dir: Path, digest: str) -> RuntimeFacts | None:
    try:
        kept = msgspec.json.decode(_kept_path(cache_dir, digest).read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if kept.rules != RULES or kept.binary_digest != digest:
        return None
    return RuntimeFacts(
        name=kept.name,
        path=Path(),
        version=kept.version,
        binary_digest=digest,
        platform=kept.platform,
        abilities=frozenset(kept.abilities),
    )


def _save(cache_dir: Path, facts: RuntimeFacts) -> None:
    kept = _Kept(
        rules=RULES,
        name=facts.name,
        version=facts.version,
        binary_digest=facts.binary_digest,
        platform=facts.platform,
        abilities=tuple(sorted(facts.abilities)),
    )
    _write(_kept_path(cache_dir, facts.binary_digest), msgspec.json.encode(kept))


def _write(target: Path, data: bytes) -> None:
    temporary = target.with_suffix(f".{os.getpid()}")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError:
        pass  # it is asked again next time
