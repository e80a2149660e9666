"""``lazyfs optimize``: convert an image so that what a program reads comes first."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.images.conversion import Wanted, advice_of, conversion_options, convert_and_print
from lazyfs.cli.options import default_runtime_dir, json_option, platform_option
from lazyfs.cli.output import print_line
from lazyfs.cli.request import DRIVERS, MountRequest
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import LazyfsError, MountFailed, UsageError
from lazyfs.interrupts import uninterrupted
from lazyfs.service.processes.standing import process_start

if TYPE_CHECKING:
    from lazyfs.registry.source import AccessOptions

WAIT_SECONDS = 30.0


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Stop the command after this time; convert by what it has read until then.",
)
@click.option(
    "--driver", type=click.Choice(DRIVERS), default="auto", show_default=True, hidden=True
)
@conversion_options
@platform_option
@access_options
@trust_options
@json_option
@click.pass_context
def optimize(
    ctx: click.Context,
    source: str,
    destination: str,
    words: tuple[str, ...],
    timeout: float,
    driver: str,
    wanted: Wanted,
    platform: str | None,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Make DST from SRC as `lazyfs convert` does, putting first the files that COMMAND reads.

    Mounts SRC privately, runs COMMAND in it (by default the image's own command), unmounts, and
    converts.  Mounts of DST prefetch those files.  Nothing but DST is left behind, even after an
    error.
    """
    from lazyfs.cli.images.conversion import writer_options

    if access.trust.is_newer_required:
        raise UsageError(
            "--require-newer has no meaning here: the cache is a new one, and knows no signature",
            hint="`lazyfs pull --require-newer SRC` first says whether an older image was put back",
        )
    writer_options(wanted)  # wrong options are reported before anything is fetched
    with uninterrupted() as held:
        folder = Path(tempfile.mkdtemp(prefix="lazyfs-optimize-"))
        try:
            request = MountRequest(
                image=source,
                directory=str(folder / "rootfs"),
                foreground=False,
                cache_dir=folder / "cache",
                platform=platform,
                access=access,
                words=(),
                driver=driver,
                prefetch="none",
                cache_size="90%",
                background_limit="0",
                begun=process_start(),
                stats=False,
                verbosity=ctx.obj["verbosity"],
                log_json=ctx.obj["log_json"],
            )
            (folder / "rootfs").mkdir()
            with _mounted(request, held) as config, held.opened():
                _watch(folder / "rootfs", config(), words, timeout)
            with held.opened():
                convert_and_print(
                    source,
                    destination,
                    wanted,
                    access,
                    platform,
                    cache_dir=folder / "cache",
                    as_json=as_json,
                    advise=advice_of(folder / "cache"),
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _watch(root: Path, config: Mapping[str, Any], words: tuple[str, ...], seconds: float) -> None:
    from lazyfs.service.workload import build_command, find_bwrap, run_for, words_of

    chosen = words_of(config, words)
    line = build_command(root, config, chosen, bwrap=find_bwrap())
    if not run_for(line, seconds):
        print_line(f"lazyfs: {chosen[0]}: stopped after {seconds:g} s", err=True)


@contextmanager
def _mounted(
    request: MountRequest, held: uninterrupted
) -> Iterator[Callable[[], Mapping[str, Any]]]:
    """Mount, and unmount in every case; yields what returns the image's config."""
    from lazyfs.cli.mounts.mounting import make_mount
    from lazyfs.mount.point import real_path, state_of, unmount
    from lazyfs.service.record import find_record, remove_stale, wait_server_end

    runtime_dir = default_runtime_dir()
    mountpoint = real_path(request.directory)

    def config() -> Mapping[str, Any]:
        from lazyfs.digest import parse_digest
        from lazyfs.oci.config import decode_config
        from lazyfs.store.blobs import load_blob
        from lazyfs.store.images import load_record
        from lazyfs.store.paths import Store

        store = Store(request.cache_dir)
        record = find_record(runtime_dir, mountpoint)
        digest = None if record is None else parse_digest(record.manifest_digest)
        image = None if digest is None else load_record(store.image_path(digest))
        data = None if image is None else load_blob(store, parse_digest(image.config_digest))
        return {} if data is None else decode_config(data).raw

    try:
        with held.opened():
            make_mount(request, lambda _: None)
        yield config
    finally:
        _, entry = state_of(mountpoint)
        if entry is not None:
            record = find_record(runtime_dir, mountpoint)
            try:
                unmount(mountpoint)
            except LazyfsError:
                unmount(mountpoint, lazy=True)
            if record is not None and not wait_server_end(record, WAIT_SECONDS):
                state, _ = state_of(mountpoint)
                raise MountFailed(
                    f"{mountpoint}: its server, pid {record.pid}, has not ended within"
                    f" {WAIT_SECONDS:g} s (mount {state.name.lower()})"
                )
            remove_stale(runtime_dir, mountpoint)
