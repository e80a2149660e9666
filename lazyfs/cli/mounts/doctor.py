"""``lazyfs doctor``: what this machine can do, and what one loses without the rest."""

import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lazyfs.cli.options import default_state_dir, json_option, s3_endpoint_option
from lazyfs.cli.output import print_line

if TYPE_CHECKING:
    from lazyfs.snapshot.stores.objects import ObjectStore

FUSE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
NAME_WIDTH = 16
ASK_SECONDS = 20
PROBE = b"written by lazyfs doctor, and left by mistake"
RUNTIMES = ("runsc", "crun", "runc", "bwrap")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    ``means`` says what does not work where it is missing; ``is_needed``: nothing mounts without it.
    """

    name: str
    is_ok: bool
    found: str
    means: str | None = None
    is_needed: bool = False
    facts: dict[str, Any] = msgspec.field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        means = None if self.is_ok else self.means
        return {
            "name": self.name,
            "ok": self.is_ok,
            "found": self.found,
            "means": means,
            "needed": self.is_needed,
            **self.facts,
        }


@click.command()
@click.argument("store", required=False)
@click.option(
    "--runsc",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The runsc to check.  [default: the one on the PATH]",
)
@s3_endpoint_option
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    store: str | None,
    runsc: Path | None,
    s3_endpoint: str | None,
    as_json: bool,
) -> None:
    """Show what works on this machine for this user, what is missing, and what you lose without it.

    With STORE (/path, file:///path or s3://bucket/prefix), also check that snapshots can be stored
    there.  This writes a probe object and removes it.

    A table shows which protections hold, as found by a program that tried to get around them in a
    sandbox of each runtime.

    The exit code is 8 if nothing can be mounted, else that of the error with STORE, else 0, even
    if something else is missing.
    """
    from lazyfs.cli.mounts import doctor_protections
    from lazyfs.sandbox.runtimes.runtimes import Chooser

    findings = [*machine(), *sandboxes(default_state_dir(), runsc)]
    there = tuple(each.name for each in findings if each.name in RUNTIMES and each.is_ok)
    tried = doctor_protections.look(there, Chooser(default_state_dir()), {"runsc": runsc})
    status = 0 if all(each.is_ok for each in findings if each.is_needed) else 8
    if store is not None:
        finding, code = look_at_store(store, s3_endpoint)
        findings.append(finding)
        status = status or code
    if as_json:
        found = [each.document() for each in findings]
        click.echo(
            json.dumps({"type": "doctor", "findings": found, "confinement": tried}, indent=2)
        )
    else:
        for each in findings:
            print_line(
                f"{'ok' if each.is_ok else 'missing':7}  {each.name:{NAME_WIDTH}}  {each.found}"
            )
            if not each.is_ok and each.means is not None:
                print_line(f"{'':{NAME_WIDTH + 11}}{each.means}")
        doctor_protections.show(tried)
    ctx.exit(status)


# Mounting


def machine() -> Iterator[Finding]:
    """Yield what mounts need."""
    yield _fuse()
    yield _fusermount()
    yield _native()
    yield _erofs()
    yield _user_attributes(default_state_dir())


def _fuse() -> Finding:
    means = "nothing can be mounted. As root: modprobe fuse; chmod 666 /dev/fuse"
    release = os.uname().release
    if not FUSE.exists():
        return Finding(
            "fuse", False, f"{FUSE} does not exist, Linux {release}", means, is_needed=True
        )
    try:
        os.close(os.open(FUSE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        found = f"{FUSE}: {error.strerror}, Linux {release}"
        return Finding("fuse", False, found, means, is_needed=True)
    return Finding("fuse", True, f"{FUSE} can be opened, Linux {release}", is_needed=True)


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    if os.geteuid() == 0:
        found = f"{path or 'not installed'}; root does not need it"
        return Finding("fusermount3", True, found)
    if path is None:
        means = "only root, or root in a user namespace, can mount. Install it: apt install fuse3"
        return Finding(
            "fusermount3", False, "not installed", means, is_needed=not _has_mount_right()
        )
    if not os.stat(path).st_mode & stat.S_ISUID:
        means = f"users other than root cannot mount. As root: chmod u+s {path}"
        return Finding("fusermount3", False, f"{path}, not setuid", means, is_needed=True)
    others = "-o allow_other works" if _may_allow_other() else "mounts for this user only"
    return Finding("fusermount3", True, f"{path}, {others}")


def _has_mount_right() -> bool:
    """Say whether this process has CAP_SYS_ADMIN, bit 21, in its user namespace."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 21 & 1)
    return False


def _may_allow_other() -> bool:
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return "user_allow_other" in (line.strip() for line in lines)


def _native() -> Finding:
    try:
        import lazyfs.mount.native  # noqa: F401
    except ImportError as error:
        means = "mounts are served by pyfuse3, which reads cached content several times slower"
        return Finding("native driver", False, str(error), means)
    return Finding("native driver", True, "compiled")


def _erofs() -> Finding:
    from lazyfs.errors import MountFailed
    from lazyfs.mount.kernel import check_erofs

    try:
        check_erofs(os.uname().release)
    except MountFailed as error:
        means = "--driver erofs does not work; the other drivers do not need it"
        return Finding("erofs", False, error.message.removeprefix("driver erofs: "), means)
    return Finding("erofs", True, "the kernel can mount rootfs indexes: --driver erofs")


def _user_attributes(folder: Path) -> Finding:
    """Look whether the state directory's filesystem keeps user.* attributes."""
    while not folder.exists():
        folder = folder.parent
    means = "without root, --overlay root:dir=PATH does not work"
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.setxattr(file.name, "user.lazyfs.probe", b"1")
    except OSError as error:
        return Finding("user xattrs", False, f"{folder}: {error.strerror}", means)
    return Finding("user xattrs", True, f"supported by the filesystem of {folder}")


# Sandboxes


def sandboxes(state_dir: Path, runsc: Path | None = None) -> Iterator[Finding]:
    """Yield what sandboxes need: what runs them, and user namespaces for those without root."""
    yield _user_namespaces()
    found = [_runtime(name, runsc if name == "runsc" else None, state_dir) for name in RUNTIMES]
    yield from found
    if not any(each.is_ok for each in found):
        means = (
            "no sandbox can be started. Install one: apt install runsc, crun, runc or bubblewrap"
        )
        yield Finding("sandboxes", False, "no runtime found", means)


def _user_namespaces() -> Finding:
    from lazyfs.documents.errors import RuntimeFailed
    from lazyfs.sandbox.runtimes.programs import run_program

    means = "without root, no sandbox can be started"
    words = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    try:
        done = run_program(words, seconds=ASK_SECONDS)
    except RuntimeFailed as error:
        return Finding("user namespaces", False, error.message, means)
    if done.status != 0:
        return Finding("user namespaces", False, done.err.strip()[:200], means)
    return Finding("user namespaces", True, "this user can create them")


def _runtime(name: str, path: Path | None, state_dir: Path) -> Finding:
    from lazyfs.documents.errors import SnapshotError
    from lazyfs.sandbox.runtimes.runtimes import Chooser

    means = f"--runtime {name} does not work"
    if name == "runsc":
        means += "; sandboxes cannot be checkpointed and restored"
    try:
        facts = Chooser(state_dir)(name, path=path).probe()
    except SnapshotError as error:
        return Finding(name, False, error.message, means)
    abilities = sorted(facts.abilities)
    platform = f", {facts.platform}" if facts.platform else ""
    found = f"{facts.version} at {facts.path}{platform}: {', '.join(describe(facts.abilities))}"
    is_rootless = name != "runsc" or "rootless" in facts.abilities
    is_ok = os.geteuid() == 0 or is_rootless
    return Finding(
        name,
        is_ok,
        found,
        f"without root, {means}. Install a newer version",
        facts={
            "path": str(facts.path),
            "version": facts.version,
            "binaryDigest": facts.binary_digest,
            "platform": facts.platform,
            "abilities": abilities,
        },
    )


def describe(abilities: frozenset[str]) -> Iterator[str]:
    """Yield what a runtime can do, in words."""
    yield "runs"
    if {"checkpoint", "restore"} <= abilities:
        yield "checkpoints"
        yield (
            "restores several containers"
            if "multi-restore" in abilities
            else "restores one container"
        )
        if "compression" not in abilities:
            yield "compresses its files itself"
        if "rootless" in abilities:
            yield "works without root"
        if "background" in abilities:
            yield "loads memory in the background"


# The store


def look_at_store(url: str, s3_endpoint: str | None) -> tuple[Finding, int]:
    """Look whether snapshots can be kept at *url*; return that, and an exit code."""
    from lazyfs.cli.main import exit_code_of
    from lazyfs.documents.errors import SnapshotError
    from lazyfs.snapshot.stores.stores import open_objects

    try:
        objects = open_objects(url, s3_endpoint=s3_endpoint)
        absent = _absent_folders(objects)
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            objects.put_if_absent(probe, PROBE)
            try:
                is_conditional = objects.is_conditional()
            finally:
                objects.delete(probe)
        finally:
            for folder in absent:
                with suppress(OSError):
                    folder.rmdir()
    except SnapshotError as error:
        means = "snapshots cannot be stored there" + (f"; {error.hint}" if error.hint else "")
        return Finding("store", False, error.message, means), exit_code_of(error)
    facts = {"url": url, "conditional": is_conditional}
    if is_conditional:
        will = "; does not exist yet, the first snapshot creates it" if len(absent) > 1 else ""
        return Finding("store", True, f"{url}: conditional writes work{will}", facts=facts), 0
    means = "if two machines move one pointer at the same time, one of the moves may be lost"
    found = f"{url}: conditional writes do not work"
    return Finding("store", False, found, means, facts=facts), 0


def _absent_folders(objects: "ObjectStore") -> list[Path]:
    """Return the folders that the first write makes, innermost first."""
    from lazyfs.snapshot.stores.directory_store import TEMPORARY, DirectoryStore

    if not isinstance(objects, DirectoryStore):
        return []
    folders = (objects.path / TEMPORARY, objects.path, *objects.path.parents)
    return [folder for folder in folders if not os.path.lexists(folder)]
