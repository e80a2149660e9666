"""``lazyfs mount``: returns when the mount is live.

Runs in a process of its own, or in a child of ``lazyfs serve`` that has taken the place of one.
"""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import (
    cache_dir_option,
    index_option,
    json_option,
    patience_option,
    platform_option,
    verify_option,
)
from lazyfs.cli.request import DRIVERS, PREFETCH_MODES, MountRequest
from lazyfs.cli.trust_options import trust_options
from lazyfs.service.processes.standing import process_start

if TYPE_CHECKING:
    from lazyfs.registry.config.access import AccessOptions


@click.command()
@click.argument("image")
@click.argument("directory", type=click.Path(file_okay=True))
@click.option("-f", "--foreground", is_flag=True, help="Serve in this process until unmounted.")
@cache_dir_option
@platform_option
@access_options
@trust_options
@click.option(
    "-o",
    "words",
    multiple=True,
    metavar="OPTION[,OPTION…]",
    help="Options of mount(8): allow_other, allow_root, auto_unmount, fsname=, max_read=, "
    "threads=, [no]suid, [no]dev, [no]exec, noatime; and platform=, cache_dir=, authfile=, "
    "cert_dir=, hosts_dir=, plain_http, insecure_skip_verify, anonymous, offline, prefetch=, "
    "cache_size=, background_limit=, patience=, driver=, verify=, index=, policy=, trust_store=, "
    "revocation=, require_newer, max_signature_age= like the options above "
    "and below; "
    "requested=REFERENCE, what the mount is to say was asked for, where IMAGE is its digest.",
)
@verify_option
@index_option
@click.option(
    "--driver", type=click.Choice(DRIVERS), default="auto", show_default=True, help="How to serve."
)
@click.option(
    "--prefetch",
    type=click.Choice(PREFETCH_MODES),
    default="all",
    show_default=True,
    help="What to fetch before it is read. none: nothing. landmark: the files that the image's "
    "producer marked. profile: what was read first last time, and what a starting program names. "
    "all: that, then everything else.",
)
@click.option(
    "--background-limit",
    envvar="LAZYFS_BACKGROUND_LIMIT",
    show_envvar=True,
    default="0",
    metavar="RATE",
    help="Bandwidth limit of prefetching: 10MB/s, 100Mbit/s.  [default: 0, no limit]",
)
@click.option(
    "--cache-size",
    envvar="LAZYFS_CACHE_SIZE",
    show_envvar=True,
    default="20%",
    show_default=True,
    metavar="SIZE",
    help="Size limit of the cache: 512MiB, 10GB, or a share of its filesystem.  The least recently "
    "used contents are evicted first; mounted images are not.",
)
@patience_option
@click.option(
    "--stats",
    is_flag=True,
    help="After unmounting, write what was fetched and read to the log, or in the foreground to "
    "standard error: a line of JSON with the fields of `lazyfs status --json`.",
)
@json_option
@click.option(
    "--service/--no-service",
    "use_service",
    default=True,
    envvar="LAZYFS_SERVICE",
    show_envvar=True,
    help="Whether to let lazyfs serve make the mount if it is running.  [default: service]",
)
@click.pass_context
def mount(
    ctx: click.Context,
    image: str,
    directory: str,
    foreground: bool,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    words: tuple[str, ...],
    verify_mode: str,
    pinned: str | None,
    driver: str,
    prefetch: str,
    background_limit: str,
    cache_size: str,
    patience: str,
    stats: bool,
    as_json: bool,
    use_service: bool,
) -> None:
    """Mount IMAGE on DIRECTORY.

    IMAGE is a reference such as python:3.12 or ghcr.io/org/app@sha256:…, or oci:PATH[:TAG] for an
    OCI image layout on disk.  Prints the mountpoint when the mount is live.
    """
    client = ctx.obj.get("client")
    if client is not None and (foreground or not use_service):
        client.turn_away("--foreground or --no-service")  # foreground: in the command's process
    request = MountRequest(
        image=image,
        directory=directory,
        foreground=foreground,
        cache_dir=cache_dir,
        platform=platform,
        access=access,
        words=words,
        driver=driver,
        prefetch=prefetch,
        cache_size=cache_size,
        background_limit=background_limit,
        begun=process_start() if client is None else client.begun,
        stats=stats,
        verbosity=ctx.obj["verbosity"],
        log_json=ctx.obj["log_json"],
        verify=verify_mode,
        pinned=pinned,
        prepared=ctx.obj.get("prepared"),
        patience=patience,
    )
    from lazyfs.cli.mounts.mounting import make_mount

    make_mount(
        request,
        partial(announce, as_json=as_json),
        None if client is None else client.confirm,
    )


def announce(mountpoint: str, *, as_json: bool) -> None:
    """Print the mountpoint, whose name may be anything."""
    if as_json:
        import json

        click.echo(json.dumps({"mountpoint": mountpoint}))
    else:
        click.echo(os.fsencode(mountpoint))
