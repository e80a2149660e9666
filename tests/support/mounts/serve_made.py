"""Serve a made image in a process of its own, commanded over standard input.

    python -m tests.support.mounts.serve_made MOUNTPOINT [OPTION…]

Prints ``ready``; then answers each line of JSON with one: ``{"do": "log"}``, ``{"do": "forget"}``,
``{"do": "cold", "device": 1}``, ``{"do": "warm"}``, ``{"do": "open"}``, ``{"do": "waiting"}``,
``{"do": "fault", "device": 2}``, ``{"do": "mend"}``, ``{"do": "full"}``, ``{"do": "statistics"}``,
``{"do": "touches"}``, ``{"do": "mark", "device": 1, "chunk": 2}``, ``{"do": "reached"}``.
SIGTERM unmounts.  The option ``driver=native`` chooses that one.

A process of its own, because a page fault on one's own mount cannot be answered.
"""

import json
import logging
import os
import random
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import trio

from lazyfs.errors import VerificationFailed
from lazyfs.formats.tocs.toc import Kind
from lazyfs.mount.drivers import open_session
from lazyfs.mount.options import MountOptions, fuse_options, parse_options
from lazyfs.mount.session import PyfuseSession
from tests.support.mounts.mounted import MadeImage, other, regular
from tests.support.mounts.native_image import NativeMadeImage

BIG = random.Random(1).randbytes(3_000_001)
ACL_HEADER = (2).to_bytes(4, "little")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL as the kernel keeps it: entries of tag, permissions, id."""
    return ACL_HEADER + b"".join(
        tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + id_.to_bytes(4, "little")
        for tag, permissions, id_ in entries
    )


NOBODY_MAY_READ = acl(
    (1, 6, 0xFFFFFFFF), (2, 4, 65534), (4, 0, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)
)


def sample_image(make: type[MadeImage] = MadeImage) -> MadeImage:
    """Return the image that is served; the same in every process."""
    executable = Path("/bin/true").read_bytes()
    bottom = [
        other(b"bin", Kind.DIRECTORY),
        regular(b"bin/true", executable, mode=0o755),
        regular(b"bin/script", b"#!/bin/sh\nexit 42\n", mode=0o755),
        regular(b"big", BIG),
        regular(b"empty"),
        regular(b"secret", b"for root's eyes", mode=0o600),
        regular(
            b"shared", b"by acl", 0o640, xattrs=((b"system.posix_acl_access", NOBODY_MAY_READ),)
        ),
        regular(
            b"suid",
            executable,
            mode=0o4755,
            xattrs=((b"security.capability", b"\1\0\0\2" + bytes(16)),),
        ),
        other(b"link", Kind.SYMLINK, 0o777, link=b"bin/true"),
        other(b"broken", Kind.SYMLINK, 0o777, link=b"nowhere"),
        other(b"hard", Kind.HARDLINK, link=b"big"),
        other(b"null", Kind.CHAR, 0o666, dev_major=1, dev_minor=3),
        other(b"disk", Kind.BLOCK, 0o660, dev_major=259, dev_minor=70000),
        other(b"pipe", Kind.FIFO, 0o600, mtime_seconds=-86400, mtime_nanoseconds=5),
        other(b"sticky", Kind.DIRECTORY, 0o1777, uid=12345, gid=70000),
        other(b"many", Kind.DIRECTORY),
        *(regular(b"many/%04d" % n, b"%d" % n) for n in range(1000)),
        regular("ünïcode \n\t\"'".encode(), b"odd"),
        regular(b"latin\xe91", b"not UTF-8", xattrs=((b"user.note", b"\0\xff"),)),
    ]
    top = [regular(b"top", b"other layer" * 1000), regular(b"deep/er/and/deeper/file", b"deep")]
    attributes = {b"user.lazyfs.verify": b"on-read", b"user.lazyfs.health": lambda: b"ok"}
    return make(bottom, top, attributes=attributes)


def answer(image: MadeImage, session: PyfuseSession, command: dict) -> object:
    contents = image.contents
    match command["do"]:
        case "log":
            return contents.log
        case "forget":
            contents.log.clear()
        case "cold":
            contents.chill(command["device"])
        case "warm":
            contents.warm()
        case "open":
            contents.gate.set()
        case "waiting":
            return contents.waiting
        case "fault":
            contents.break_(command["device"], VerificationFailed("chunk: got other bytes"))
        case "full":
            contents.is_full = True
        case "statistics":
            return session.statistics()
        case "touches":
            return contents.touches
        case "mark":
            contents.marks[command["device"]] = command["chunk"]
        case "reached":
            return contents.reached_marks
        case "mend":
            contents.mend()
    return None


def descriptors() -> list[str]:
    """Return what this process has open."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return names


async def obey(image: MadeImage, session: PyfuseSession) -> None:
    pending = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as commands:
        async for data in commands:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                print(json.dumps(answer(image, session, json.loads(line))), flush=True)


async def serve(session: PyfuseSession, image: MadeImage) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def drive() -> None:
                await session.serve()
                nursery.cancel_scope.cancel()

            nursery.start_soon(drive)
            await session.wait_ready()
            print("ready", flush=True)
            nursery.start_soon(obey, image, session)
            async for _ in signals:
                await session.unmount()
                nursery.cancel_scope.cancel()


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    mountpoint, *words = sys.argv[1:]
    options = parse_options(words)
    image = sample_image(NativeMadeImage)
    driver = options.settings.get("driver", "pyfuse3")
    # The kernel mounts none on tmpfs; one without a name is not left behind when a test kills us.
    with tempfile.TemporaryFile(dir="/var/tmp") as index:
        index.write(image.image)
        index.flush()
        image.index_path = f"/proc/self/fd/{index.fileno()}"
        for states in image.contents.states.values():
            states[:1] = b"\0"  # not complete, or the kernel would read the files without us
        session = open_session(
            driver,
            image,
            mountpoint,
            threads=options.threads,
            max_read=options.max_read,
            folder=mountpoint + ".devices",
        )
        image.contents.warm()
        run(session, image, options)
    left = {"/dev/fuse", "anon_inode:[eventfd]"} & set(descriptors())
    if left:
        sys.exit(f"left open: {left}")


def run(session: PyfuseSession, image: MadeImage, options: MountOptions) -> None:
    session.mount(fuse_options(options, "made"))
    try:
        trio.run(serve, session, image)
    finally:
        session.close()


if __name__ == "__main__":
    main()
