"""The server of one mount: opens the image, mounts, answers until the mount is gone.

Tasks, all in one nursery: the driver (its end ends the rest), the signals, the control socket,
the keeper, prefetching.  A signal to end unmounts, lazily if the mount is in use, and so does any
failure.  A server that is killed, or meets a bug of its own, is succeeded by another one where it
has a keeper; without one a server that is killed leaves a dead mount behind.
"""

import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import trio

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.fetch.ahead.prefetch import FORECASTING, Limits
from lazyfs.fetch.origins.early import Early, Foreseen, open_early
from lazyfs.fetch.profile import RECORD_SECONDS
from lazyfs.fetch.throttle import Throttle
from lazyfs.image.again import is_here, prepare_again
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Prepared
from lazyfs.interrupts import run_trio
from lazyfs.mount.connection import renewed
from lazyfs.mount.drivers import open_session
from lazyfs.mount.options import fuse_options
from lazyfs.mount.session import PyfuseSession
from lazyfs.service.care import Care
from lazyfs.service.dropped import QUESTION, TELL_SECONDS
from lazyfs.service.listening import Actions, serve_control
from lazyfs.service.processes.control import Status, encode_message
from lazyfs.service.processes.keeping import Keeping, Legacy
from lazyfs.service.processes.memory import keep_small, set_up_memory
from lazyfs.service.processes.settings import MountSettings as MountSettings
from lazyfs.service.processes.supervise import ChannelClosed, Link
from lazyfs.service.record import (
    BadRuntimeDirectory,
    MountRecord,
    devices_path,
    remove_record,
    remove_stale,
    save_record,
    socket_path,
    start_ticks_of,
)
from lazyfs.service.upkeep import Upkeep

log = logging.getLogger(__name__)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
CRASHED = 1


class Succession(msgspec.Struct, frozen=True):
    """What a server goes on with whose predecessor died: its legacy, and the link to the keeper."""

    legacy: Legacy
    link: int
    history: str


class _Server(msgspec.Struct):
    settings: MountSettings
    prepared: Prepared
    image: OpenImage
    session: PyfuseSession
    keeping: Keeping
    upkeep: Upkeep
    care: Care
    give_way: trio.Event = msgspec.field(default_factory=trio.Event)
    started: str = ""
    ready_seconds: float | None = None
    started_clock: float = msgspec.field(default_factory=time.monotonic)


def serve(settings: MountSettings, link: Link) -> None:
    """Wait for the prepared image, mount it, and serve until the mount is gone."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    set_up_memory()
    os.chdir(settings.working_directory)
    run_trio(_serve_prepared, settings, link)


def succeed(succession: Succession) -> None:
    """Serve a mount whose server has died, until the mount is gone."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    set_up_memory()
    legacy = succession.legacy
    try:
        os.chdir(legacy.settings.working_directory)
    except OSError as error:
        log.warning("%s: %s", legacy.settings.working_directory, error.strerror)
    trio.run(_serve_again, legacy.settings, legacy.prepared, succession)


async def _serve_again(settings: MountSettings, prepared: Prepared, succession: Succession) -> None:
    """Serve what another server has served, also where the store has lost it meanwhile."""
    if not is_here(prepared):
        prepared = await prepare_again(
            prepared, settings.access, cache_dir=settings.cache_dir, patience=settings.patience
        )
    await _serve(settings, prepared, None, succession)


async def _serve_prepared(settings: MountSettings, link: Link) -> None:
    """Begin with what can begin while the image is prepared; then serve it."""
    async with open_early(is_watched=settings.patience > 0) as early:
        await trio.lowlevel.wait_readable(link.fileno())
        foreseen = link.wait_foreseen()
        if foreseen is not None:
            if settings.prefetch != "none":
                is_profiled = settings.prefetch in FORECASTING and not settings.background_limit
                early.begin(Foreseen.decode(foreseen), settings.access, is_profiled=is_profiled)
            await trio.lowlevel.wait_readable(link.fileno())
        prepared = Prepared.decode(link.wait_prepared())
        await _serve(settings, prepared, link, None, early)


async def _serve(
    settings: MountSettings,
    prepared: Prepared,
    link: Link | None,
    succession: Succession | None,
    early: Early | None = None,
) -> None:
    failure: BaseException | None = None
    # Signals first: from the moment of the mount on, none may end us without unmounting.
    with trio.open_signal_receiver(*ENDING_SIGNALS) as signals:
        async with open_image(
            *(prepared, settings.access),
            mount_id=settings.mount_id,
            early=early,
            patience=settings.patience,
            catches_gaps=settings.prefetch == "all" and not prepared.is_volatile,
        ) as image:
            prepared = image.prepared  # it may have been prepared again
            session = _open_session(settings, image)
            if succession is None:
                session.mount(fuse_options(settings.options, prepared.resolved))
                keeping = Keeping(settings, prepared, session, image)
            else:
                keeping = _take_over(settings, prepared, session, image, succession)
                # The dead server's record stays until ours takes its place: who has found rot in
                # the store tells the mounts that have one.
            counts = image.contents.statistics
            upkeep = Upkeep(image.store, settings.cache_size, lambda: counts.content_size)
            care = Care(image, session, settings.runtime_dir, is_successor=succession is not None)
            server = _Server(settings, prepared, image, session, keeping, upkeep, care)
            if succession is not None:
                server.started = succession.legacy.started
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_drive, session, nursery.cancel_scope)
                    nursery.start_soon(_end_on_signal, signals, session, nursery.cancel_scope)
                    is_new = early is not None and early.origin is not None
                    await _begin(server, nursery, link, is_new=is_new)
            except* (ChannelClosed, LazyfsError) as group:
                failure = _first(group)
            except* Exception:
                if not keeping.is_kept:
                    raise
                log.exception("%s: a bug ends this server", session.mountpoint)
                os._exit(CRASHED)  # the keeper starts another one
            finally:
                remove_record(settings.runtime_dir, settings.mount_id)
                await _end(server)
        if not prepared.is_volatile:
            await upkeep.look()  # the image is closed: its own layers may go now
    if failure is not None:
        raise failure


def _open_session(settings: MountSettings, image: OpenImage) -> PyfuseSession:
    options = settings.options
    session = open_session(
        settings.driver,
        image,
        settings.mountpoint,
        threads=options.threads,
        max_read=options.max_read,
        folder=str(devices_path(settings.runtime_dir, settings.mount_id)),
        is_for_root=options.allow_root,
    )
    if options.max_read is not None and session.driver != "native":
        log.warning("option max_read: driver %s cannot limit reads; ignored", session.driver)
    return session


async def _end(server: "_Server") -> None:
    """Say what was read, if that is wanted, and leave the mount; nothing interrupts it."""
    with trio.CancelScope(shield=True):
        if server.settings.says_statistics and server.started:
            await _say_statistics(server)
        await server.keeping.end()  # first: its copies would keep the connection alive
        await _leave(server.session)
        await server.care.finish()


def _take_over(
    settings: MountSettings,
    prepared: Prepared,
    session: PyfuseSession,
    image: OpenImage,
    succession: Succession,
) -> Keeping:
    """Adopt the connection that a dead server left."""
    legacy, connection = succession.legacy, succession.legacy.connection
    if not connection.can_resend:
        connection = renewed(connection)
    session.adopt(connection)
    for device in image.devices:
        device.content.was_shown = True  # the kernel has what the dead server had read
    for pin in legacy.pins:
        os.close(pin)  # the keeper has them, and the image is open
    return Keeping(
        settings,
        prepared,
        session,
        image,
        link=succession.link,
        history=succession.history,
        is_outdated=connection != legacy.connection,
    )


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _drive(session: PyfuseSession, everything: trio.CancelScope) -> None:
    await session.serve()
    log.debug("%s: unmounted", session.mountpoint)
    everything.cancel()


async def _end_on_signal(
    signals: AsyncIterator[int], session: PyfuseSession, everything: trio.CancelScope
) -> None:
    async for number in signals:
        log.info("%s: ending on signal %d", session.mountpoint, number)
        try:
            await session.unmount()
        except LazyfsError as error:
            log.error("%s", error)
        everything.cancel()


async def _leave(session: PyfuseSession) -> None:
    """Let go of the connection, then unmount what is still mounted.

    In this order: nobody answers any more, and unmounting must not wait for somebody who does.
    """
    session.close()
    try:
        await session.unmount()
    except LazyfsError as error:
        log.error("%s", error)


async def _begin(
    server: _Server, nursery: trio.Nursery, link: Link | None, *, is_new: bool
) -> None:
    """Go live, and prefetch.

    Of a *new* image requests go out first, and the mount becomes live meanwhile.  Of one that was
    here prefetching begins with looking into what is stored, which nobody should wait for.
    """
    if is_new:
        nursery.start_soon(_prefetch, server)
    await _go_live(server, nursery, link)
    if not is_new:
        nursery.start_soon(_prefetch, server)


async def _go_live(server: _Server, nursery: trio.Nursery, link: Link | None) -> None:
    """Wait for the kernel's greeting, then say that the mount is live and start the extras.

    Without *link* this server succeeds another one, and nobody waits to be told.
    """
    settings = server.settings
    await server.session.wait_ready()
    server.started = server.started or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    remove_stale(settings.runtime_dir, server.session.mountpoint)
    try:
        path = socket_path(settings.runtime_dir, settings.mount_id)
        await nursery.start(serve_control, path, partial(_status_of, server), _actions(server))
        save_record(settings.runtime_dir, _record_of(server))
    except BadRuntimeDirectory as error:
        if link is not None:
            raise
        log.error("%s; `lazyfs status` does not see this mount", error.message)
    await server.keeping.begin(server.started)
    if link is not None:
        link.announce_ready()
        if settings.begun is not None:
            server.ready_seconds = time.monotonic() - settings.begun
    nursery.start_soon(server.keeping.run)
    nursery.start_soon(_give_way, server)
    nursery.start_soon(server.care.run)
    nursery.start_soon(keep_small, partial(_activity, server.image))
    if link is not None:  # a successor has not seen the first reads
        nursery.start_soon(_keep_profile, server)


async def _prefetch(server: _Server) -> None:
    rate = server.settings.background_limit
    throttle = Throttle(rate) if rate else None
    is_stored = not server.prepared.is_volatile
    try:
        await server.image.recall_trees()
        await server.image.prefetch(
            server.settings.prefetch,
            Limits(throttle, server.upkeep.make_room if is_stored else None),
        )
        if server.settings.prefetch == "all" and not server.image.is_compared:
            # Imported here: once for a layer, and long after the mount is live.
            from lazyfs.image.one_tree import compare_trees  # noqa: PLC0415

            await compare_trees(server.image)
    except Exception:  # what nobody has asked for must not end the mount
        log.exception("prefetch failed")
    if is_stored:
        await server.upkeep.look()
        await server.upkeep.run()


async def _keep_profile(server: _Server) -> None:
    """Save the profile when its time is over, and at the end if that comes first."""
    try:
        await trio.sleep(RECORD_SECONDS)
    finally:
        server.image.save_profile()


async def _give_way(server: _Server) -> None:
    """When that is asked for, end at once and leave the mount to a successor."""
    await server.give_way.wait()
    log.info("%s: making way for another server", server.session.mountpoint)
    await server.care.finish()
    await server.keeping.plan_succession()
    server.image.save_profile()
    os._exit(0)  # what was not answered is handed out again


def _activity(image: OpenImage) -> int:
    """Return a count that grows with everything that is fetched."""
    counts = image.contents.statistics
    return counts.requests


def _record_of(server: _Server) -> MountRecord:
    settings, prepared = server.settings, server.prepared
    return MountRecord(
        mount_id=settings.mount_id,
        pid=os.getpid(),
        start_ticks=start_ticks_of(os.getpid()) or 0,
        mountpoint=server.session.mountpoint,
        requested=prepared.wanted,
        resolved=prepared.resolved,
        manifest_digest=prepared.image.manifest_digest,
        platform=prepared.image.platform,
        cache_dir=str(settings.cache_dir),
        log_path=str(settings.log_path),
        driver=server.session.driver,
        started=server.started,
        device=server.session.device or "",
        attributes={
            name.decode(): value.decode("utf-8", "surrogateescape")
            for name, value in server.image.attributes.items()
            if isinstance(value, bytes)
        },
    )


def _status_of(server: _Server) -> Status:
    """Return what looks at a server, in a thread: it may take milliseconds."""
    driver = server.session.statistics()

    def status() -> dict[str, Any]:
        facts = server.image.statistics()
        if driver:  # it answers hits by itself
            hits = driver["reads"] - driver["misses"]
            facts["reads"] |= {"hits": hits, "misses": driver["misses"]}
        return {
            "type": "status",
            "mountpoint": server.session.mountpoint,
            "mountId": server.settings.mount_id,
            "pid": os.getpid(),
            "driver": server.session.driver,
            "driverNote": server.session.note,
            "started": server.started,
            "uptimeSeconds": round(time.monotonic() - server.started_clock, 1),
            "readySeconds": server.ready_seconds,
            "cacheDir": str(server.settings.cache_dir),
            "cacheSize": _size_of(server),
            "backgroundLimit": server.settings.background_limit or None,
            "log": str(server.settings.log_path),
            **server.keeping.facts(),
            **facts,
        }

    return status


def _size_of(server: _Server) -> int | None:
    try:
        return server.settings.cache_size.size_in(server.image.store.root)
    except StoreError:
        return None  # the disk does not say


async def _say_statistics(server: _Server) -> None:
    """Write a last status to standard error, which may be the log."""
    try:
        document = await trio.to_thread.run_sync(_status_of(server))
        sys.stderr.write(encode_message(document | {"type": "statistics"}).decode())
        sys.stderr.flush()
    except Exception:  # the mount must be left all the same
        log.exception("statistics failed")


def _actions(server: _Server) -> Actions:
    """Return what answers bring about, on the event loop: before, and after they are sent."""
    return Actions(
        {"profile-saved": server.image.save_profile},
        {"restarting": server.give_way.set},
        {QUESTION: (server.care.answer, TELL_SECONDS)},
    )
