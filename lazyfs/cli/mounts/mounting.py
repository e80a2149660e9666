"""The work of ``lazyfs mount``, in the command or in ``lazyfs serve``: check, prepare, serve."""

import gc
import os
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from lazyfs.cli.options import VERIFY_MODES, default_runtime_dir, default_state_dir
from lazyfs.cli.output import print_line
from lazyfs.cli.quantities import parse_budget, parse_duration, parse_rate
from lazyfs.cli.request import DRIVERS, PREFETCH_MODES, MountRequest
from lazyfs.cli.trust_options import parse_trust
from lazyfs.errors import MountFailed, UsageError
from lazyfs.interrupts import run_trio
from lazyfs.mount.options import MountOptions, is_allow_other_permitted, parse_options
from lazyfs.mount.point import (
    check_covers_none,
    check_fuse_device,
    prepare_mountpoint,
    real_path,
)
from lazyfs.service.identity import end_stuck, remove_abandoned
from lazyfs.service.processes.supervise import Link, Tell, run_in_background, run_in_foreground
from lazyfs.service.processes.systemd import notify
from lazyfs.service.record import make_runtime_directory

if TYPE_CHECKING:
    from lazyfs.digest import Digest
    from lazyfs.fetch.origins.early import Foreseen
    from lazyfs.image.build import Foresee
    from lazyfs.image.prepare import Prepared
    from lazyfs.registry.source import AccessOptions
    from lazyfs.service.server import MountSettings
    from lazyfs.store.upkeep.budget import Budget
    from lazyfs.trust.options import TrustOptions

FUSE_CONF = "/etc/fuse.conf"
KEPT_LOGS = 50
TRUST_WORDS = {"policy", "trust_store", "revocation", "require_newer", "max_signature_age"}

Announce = Callable[[str], None]
Confirm = Callable[[], None]


def make_mount(request: MountRequest, announce: Announce, confirm: Confirm | None = None) -> None:
    """Make the mount; return when it is live, or in the foreground when it is gone.

    *announce* gets the mountpoint when the mount is live; *confirm* is called before, and undoes
    the mount by raising.
    """
    gc.disable()  # starting up makes little garbage; a server turns it on again
    making = _decide(request)
    image, access = request.image, making.access
    import_for_both(image, access)
    prepare = partial(
        _prepare,
        image,
        _original(image, making.options.settings),
        making.wanted["platform"],
        making.wanted["cache_dir"],
        access,
        making.wanted["verify"],
        making.wanted["index"],
        _known(request, making.wanted),
    )
    if request.foreground:

        def go_live() -> None:
            announce(making.mountpoint)
            notify(os.environ, "READY=1", f"STATUS={image} on {making.mountpoint}")

        run_in_foreground(prepare, partial(making.serve, log_path=Path("/dev/stderr")), go_live)
        return
    log_path = make_log(default_state_dir() / "log", making.mount_id)
    try:
        run_in_background(prepare, partial(making.serve, log_path=log_path), log_path, confirm)
    except BaseException:
        remove_empty(log_path)
        raise
    announce(making.mountpoint)


class _Making(NamedTuple):
    """A mount that is being made: what is wanted, the words after ``-o`` counted in.

    ``patience`` in seconds, ``background_limit`` in bytes a second.
    """

    request: MountRequest
    options: MountOptions
    wanted: dict[str, Any]
    cache_size: "Budget"
    background_limit: int
    patience: float
    mountpoint: str
    mount_id: str
    runtime_dir: Path
    access: "AccessOptions"

    def serve(self, link: Link, log_path: Path) -> None:
        """Serve the mount, in the process that is to be its server, until it is gone."""
        from lazyfs.cli.log import set_up_logging
        from lazyfs.service.server import serve

        # --quiet is about what the user sees: the log of a server in the background is needed
        # when something has gone wrong.
        request = self.request
        verbosity = request.verbosity if request.foreground else max(request.verbosity, 0)
        set_up_logging(verbosity, as_json=request.log_json, is_server=True)
        serve(self.settings(log_path, verbosity), link)
        if not request.foreground:
            remove_empty(log_path)

    def settings(self, log_path: Path, verbosity: int) -> "MountSettings":
        """Return what the server is told."""
        from lazyfs.service.server import MountSettings

        request, wanted = self.request, self.wanted
        stays = is_relative(request.image) or request.foreground
        return MountSettings(
            mountpoint=self.mountpoint,
            mount_id=self.mount_id,
            cache_dir=wanted["cache_dir"],
            runtime_dir=self.runtime_dir,
            log_path=log_path,
            access=self.access,
            options=self.options,
            prefetch=wanted["prefetch"],
            driver=wanted["driver"],
            working_directory=os.getcwd() if stays else "/",
            cache_size=self.cache_size,
            background_limit=self.background_limit,
            patience=self.patience,
            begun=request.begun,
            says_statistics=request.stats,
            verbosity=verbosity,
            is_log_json=request.log_json,
        )


def _decide(request: MountRequest) -> _Making:
    """Return what is wanted, once it is known that it can be mounted."""
    options = parse_options(request.words)
    wanted = _with_settings(
        options.settings,
        cache_dir=request.cache_dir,
        platform=request.platform,
        prefetch=request.prefetch,
        driver=request.driver,
        cache_size=request.cache_size,
        background_limit=request.background_limit,
        patience=request.patience,
        verify=request.verify,
        index=request.pinned,
    )
    cache_size = parse_budget(wanted["cache_size"])
    background_limit = parse_rate(wanted["background_limit"])
    patience = parse_duration(wanted["patience"])
    check_mountable(request.directory, options)
    mount_id = os.urandom(8).hex()
    runtime_dir = default_runtime_dir()
    make_runtime_directory(runtime_dir)
    mountpoint = real_path(request.directory)
    own = {"cache": wanted["cache_dir"], "runtime directory": runtime_dir}
    check_covers_none(mountpoint, own | {"state directory": default_state_dir()})
    access = _with_access(request.access, options.settings)
    if access.is_offline:
        wanted["prefetch"] = "none"
    return _Making(
        request,
        options,
        wanted,
        cache_size,
        background_limit,
        patience,
        mountpoint,
        mount_id,
        runtime_dir,
        access,
    )


def import_for_both(image: str, access: "AccessOptions") -> None:
    """Import what preparing and serving both need, as long as they are one process.

    Preparing is what takes long, so nothing is lost by importing this first, and the server need
    not do it again.
    """
    from lazyfs.image import prepare  # noqa: F401
    from lazyfs.oci.reference import Reference, parse_reference

    reference = parse_reference(image)
    if isinstance(reference, Reference) and not (reference.digest or access.is_offline):
        # Its registry will be asked.  One that is known by digest may need no request at all.
        from lazyfs.registry import client  # noqa: F401


def check_mountable(directory: str, options: MountOptions) -> None:
    """Raise the errors that can be found before anything is fetched."""
    check_fuse_device()
    if (options.allow_other or options.allow_root) and os.geteuid() != 0:
        try:
            text = Path(FUSE_CONF).read_text(errors="replace")
        except OSError:
            text = ""
        if not is_allow_other_permitted(text):
            raise MountFailed(
                f"option allow_other: {FUSE_CONF} does not contain user_allow_other, which mounts "
                "by users other than root need",
                hint=f"as root: echo user_allow_other >> {FUSE_CONF}; or mount without this option",
            )
    end_stuck(default_runtime_dir(), real_path(directory))
    if remove_abandoned(default_runtime_dir(), real_path(directory)) or prepare_mountpoint(
        directory
    ):
        print_line(f"lazyfs: {directory}: removed a mount whose server had died", err=True)


def is_relative(image: str) -> bool:
    """Say whether *image* is a layout on disk, named from the working directory."""
    return image.startswith("oci:") and not image.startswith("oci:/")


def make_log(folder: Path, mount_id: str) -> Path:
    """Make the log of a mount, and remove the oldest ones beyond the number that is kept.

    Where there can be none, that is said, and the mount goes without.
    """
    name = f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{mount_id}.log"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / name
        path.touch(mode=0o600)
        for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
    except OSError as error:
        print_line(f"lazyfs: log directory {folder}: {error.strerror}; there is no log", err=True)
        return Path(os.devnull)
    return path


def remove_empty(log_path: Path) -> None:
    """Remove a log that has nothing to tell; nothing but a file, since there may be none."""
    try:
        found = log_path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size == 0:
            log_path.unlink()
    except OSError:
        pass


def _with_settings(settings: dict[str, str], **given: Any) -> dict[str, Any]:
    """Return *given* with what the words after ``-o`` say instead."""
    result = given | {
        name: Path(text).absolute() if name == "cache_dir" else text
        for name, text in settings.items()
        if name in given
    }
    for name, values in (
        ("prefetch", PREFETCH_MODES),
        ("driver", DRIVERS),
        ("verify", VERIFY_MODES),
    ):
        if result[name] not in values:
            raise UsageError(f"option {name}: {result[name]!r} is not one of {', '.join(values)}")
    return result


def _with_access(access: "AccessOptions", settings: dict[str, str]) -> "AccessOptions":
    """Return *access* with what the words after ``-o`` say instead."""

    def path(name: str, given: Path | None) -> Path | None:
        return Path(settings[name]).absolute() if name in settings else given

    return replace(
        access,
        authfile=path("authfile", access.authfile),
        cert_dir=path("cert_dir", access.cert_dir),
        hosts_dir=path("hosts_dir", access.hosts_dir),
        plain_http=access.plain_http or "plain_http" in settings,
        is_verified=access.is_verified and "insecure_skip_verify" not in settings,
        is_anonymous=access.is_anonymous or "anonymous" in settings,
        is_offline=access.is_offline or "offline" in settings,
        trust=_with_trust(access.trust, settings),
    )


def _with_trust(trust: "TrustOptions", settings: dict[str, str]) -> "TrustOptions":
    """Return *trust* with what the words after ``-o`` say instead."""
    if not settings.keys() & TRUST_WORDS:
        return trust
    said = parse_trust(
        settings.get("policy"),
        Path(settings["trust_store"]) if "trust_store" in settings else None,
        settings.get("revocation", trust.revocation),
        trust.is_newer_required or "require_newer" in settings,
        settings.get("max_signature_age"),
    )
    return replace(
        said,
        policy=trust.policy if said.policy is None else said.policy,
        trust_store=trust.trust_store if said.trust_store is None else said.trust_store,
        max_age=trust.max_age if said.max_age is None else said.max_age,
    )


def _original(image: str, settings: dict[str, str]) -> str | None:
    """Return the reference that the user typed, if the caller has resolved it to *image*."""
    from lazyfs.oci.reference import parse_reference

    words = settings.get("requested")
    if words is None:
        return None
    parse_reference(words)
    if parse_reference(image).digest is None:
        raise UsageError(
            f"option requested: {image} is not named by digest",
            hint="without a digest, the mount shows the reference that it was given",
        )
    return words


def _known(request: MountRequest, wanted: dict[str, Any]) -> bytes | None:
    """Return what the caller has prepared, None if this mount's options need other work."""
    is_same = wanted["cache_dir"] == request.cache_dir
    is_usual = (wanted["verify"], wanted["index"], wanted["platform"]) == ("toc", None, None)
    return request.prepared if is_same and is_usual else None


def _prepare(
    image: str,
    original: str | None,
    platform: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    verify: str,
    pinned: str | None,
    known: bytes | None,
    tell: Tell,
) -> bytes:
    import msgspec

    def foresee(foreseen: "Foreseen") -> None:
        tell(foreseen.encode())

    if known is None:
        prepared = prepare_shown(
            image, platform, cache_dir, access, verify, pinned, foresee=foresee
        )
    else:
        from lazyfs.image.prepare import Prepared

        prepared = Prepared.decode(known)
    if original is not None:
        prepared = msgspec.structs.replace(prepared, original=original)
    if sys.stderr.isatty():
        print_line(f"lazyfs: {prepared.wanted} → {prepared.resolved}", err=True)
    return prepared.encode()


def prepare_shown(
    image: str,
    platform: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    verify: str = "toc",
    pinned: str | None = None,
    foresee: "Foresee" = lambda foreseen: None,
) -> "Prepared":
    """Prepare an image; show progress where layers have to be downloaded whole."""
    from contextlib import ExitStack

    from lazyfs.image.layers.plain import PlainOptions
    from lazyfs.image.prepare import Request, prepare

    with ExitStack() as stack:
        advance: list[Callable[[int], None]] = []

        def begin(total: int) -> None:
            from lazyfs.cli.progress import show_progress

            advance.append(stack.enter_context(show_progress("auto", image, total)))

        plain = PlainOptions(
            pinned=None if pinned is None else _pin(pinned),
            progress=lambda size: advance[0](size),
            on_total=begin,
        )
        request = Request(image, platform, cache_dir, access, verify, plain)
        return run_trio(partial(prepare, request, foresee=foresee))


def _pin(text: str) -> "Digest":
    from lazyfs.digest import BadDigest, parse_digest

    try:
        return parse_digest(text)
    except BadDigest as exc:
        raise UsageError(
            f"option --index: {exc.message}", hint="`lazyfs index show IMAGE` lists them"
        ) from exc
