"""A slow link on loopback: a TCP proxy with a round-trip time and a bandwidth.

Each direction is one pipe that all connections share.  A piece of n bytes that arrives at time t
leaves the pipe at max(t, when the pipe is free) + n / rate, and is delivered half a round trip
later.  Data is taken from the senders in turns and only while the pipe's queue is short, so that
many connections share the rate fairly and a small request does not wait behind megabytes.  A new
connection costs one more round trip before its first byte, as a TCP handshake does.  Slow start
and loss are not modelled: a new connection may use the whole rate at once.

It runs as a process of its own, so that it takes no turns from what is measured:

    python -m tools.bench.link --target 127.0.0.1:5000 --rtt-ms 20 --mbit 100
    python -m tools.bench.link --check        says how accurate it is on this machine

It prints one JSON line with its port, answers each line on stdin with its counters, and ends when
stdin does, so it cannot outlive its parent.
"""

import argparse
import collections
import json
import os
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

QUEUE_SECONDS = 0.004  # the pipe's queue: enough not to run dry between two turns of the loop
PIECE_SIZE = 16 << 10  # what one connection may send before the next has its turn
FREE_PIECE_SIZE = 512 << 10  # the same without a rate: as few system calls as possible
WINDOW_SIZE = 4 << 20  # bytes of one connection on the way; its sender waits beyond that


@dataclass(slots=True)
class Pipe:
    """One direction of the link: ``rate`` in bytes a second (0: unlimited), ``delay`` seconds."""

    rate: float
    delay: float
    free_at: float = 0.0
    carried_size: int = 0

    def deliver_at(self, now: float, size: int) -> float:
        """Take *size* bytes in at *now*; return when they come out."""
        self.carried_size += size
        if self.rate:
            self.free_at = max(now, self.free_at) + size / self.rate
            now = self.free_at
        return now + self.delay

    def is_full(self, now: float) -> bool:
        return self.free_at - now > QUEUE_SECONDS


@dataclass(slots=True, eq=False)
class Stream:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    pipe: Pipe
    opens_at: float
    # (when, bytes) in order; b"" is the end of the stream.
    flying: collections.deque[tuple[float, memoryview]] = field(default_factory=collections.deque)
    flying_size: int = 0
    is_ended: bool = False
    is_closed: bool = False
    is_blocked: bool = False  # the sink's buffer is full
    other: "Stream | None" = None

    def wants_data(self, now: float) -> bool:
        return not (self.is_ended or self.flying_size >= WINDOW_SIZE or self.pipe.is_full(now))


class Proxy:
    """The event loop; `run` returns when stdin ends."""

    def __init__(self, target: tuple[str, int], *, rtt: float, rate: float, port: int = 0) -> None:
        self.target = target
        self.rtt = rtt
        self.up = Pipe(rate, rtt / 2)
        self.down = Pipe(rate, rtt / 2)
        self.connections = 0
        self.is_limited = bool(rtt or rate)
        self.piece_size = PIECE_SIZE if rate else FREE_PIECE_SIZE
        self.streams: collections.deque[Stream] = collections.deque()
        # epoll rounds time-outs up to whole milliseconds, select does not.
        self.selector = (
            selectors.SelectSelector() if self.is_limited else selectors.DefaultSelector()
        )
        self.listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.interests: dict[socket.socket, int] = {}

    def run(self) -> None:
        """Serve until stdin ends."""
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            wake_at = self._set_interests(now)
            timeout = None if wake_at is None else max(0.0, wake_at - now)
            ready = {key.fileobj for key, mask in self.selector.select(timeout)}
            if sys.stdin.fileno() in ready and not self._answer():
                return
            if self.listener in ready:
                self._accept(time.monotonic())
            self._move(time.monotonic())

    def statistics(self) -> dict[str, int]:
        """Return the counters: sizes in bytes since the start."""
        return {
            "connections": self.connections,
            "sent_size": self.up.carried_size,
            "received_size": self.down.carried_size,
        }

    def _answer(self) -> bool:
        if not os.read(sys.stdin.fileno(), 4096):
            return False
        print(json.dumps(self.statistics()), flush=True)
        return True

    def _accept(self, now: float) -> None:
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(self.target, timeout=10)
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        up = Stream(client, server, self.up, opens_at=now + self.rtt)
        down = Stream(server, client, self.down, opens_at=now + self.rtt)
        up.other, down.other = down, up
        self.streams += (up, down)

    def _set_interests(self, now: float) -> float | None:
        """Tell the selector what to wait for; return when to look again regardless."""
        wanted: dict[socket.socket, int] = {}
        wake_at: float | None = None
        for stream in self.streams:
            if stream.wants_data(now):
                wanted[stream.source] = wanted.get(stream.source, 0) | selectors.EVENT_READ
            elif not stream.is_ended and stream.flying_size < WINDOW_SIZE:
                due = stream.pipe.free_at - QUEUE_SECONDS
                wake_at = due if wake_at is None else min(wake_at, due)
            if stream.is_blocked:
                wanted[stream.sink] = wanted.get(stream.sink, 0) | selectors.EVENT_WRITE
            elif stream.flying:
                due = stream.flying[0][0]
                wake_at = due if wake_at is None else min(wake_at, due)
        for end in self.interests.keys() - wanted.keys():
            self.selector.unregister(end)
        for end, mask in wanted.items():
            if end not in self.interests:
                self.selector.register(end, mask)
            elif self.interests[end] != mask:
                self.selector.modify(end, mask)
        self.interests = wanted
        return wake_at

    def _move(self, now: float) -> None:
        """Deliver what is due, then take in one piece from each sender."""
        for stream in tuple(self.streams):
            self._deliver(stream, now)
        self.streams.rotate(-1)  # the first to be asked for a piece is another one each time
        for stream in tuple(self.streams):
            if not stream.is_closed and stream.wants_data(now):
                self._take(stream, now)
                if not self.is_limited:
                    self._deliver(stream, now)
        if any(stream.is_closed for stream in self.streams):
            self._forget_closed()

    def _take(self, stream: Stream, now: float) -> None:
        try:
            data = stream.source.recv(self.piece_size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        when = stream.pipe.deliver_at(max(now, stream.opens_at), len(data))
        stream.flying.append((when, memoryview(data)))
        stream.flying_size += len(data)
        stream.is_ended = not data

    def _deliver(self, stream: Stream, now: float) -> None:
        stream.is_blocked = False
        while stream.flying and stream.flying[0][0] <= now:
            when, data = stream.flying[0]
            try:
                if data:
                    sent = stream.sink.send(data)
                else:
                    sent = 0
                    stream.is_closed = True
                    stream.sink.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                stream.is_blocked = True
                return
            except OSError:  # the receiver is gone: so is the whole connection
                stream.flying.clear()
                self._break(stream)
                return
            stream.flying_size -= sent
            if sent < len(data):
                stream.flying[0] = (when, data[sent:])
            else:
                stream.flying.popleft()

    @staticmethod
    def _break(stream: Stream) -> None:
        for half in (stream, stream.other):
            if half is not None:
                half.is_ended = half.is_closed = True

    def _forget_closed(self) -> None:
        gone = [
            s for s in self.streams if s.is_closed and s.other is not None and s.other.is_closed
        ]
        for stream in gone:
            self.streams.remove(stream)
        for stream in gone:
            for end in (stream.source, stream.sink):
                if self.interests.pop(end, None) is not None:
                    self.selector.unregister(end)
                end.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.link", description=__doc__)
    parser.add_argument("--target", metavar="HOST:PORT", help="where connections go")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--mbit", type=float, default=0.0, help="10^6 bits a second, 0: no limit")
    parser.add_argument("--port", type=int, default=0, help="where to listen (0: choose)")
    parser.add_argument("--check", action="store_true", help="measure this proxy itself")
    arguments = parser.parse_args()
    if arguments.check:
        from tools.bench.linkcheck import check

        sys.exit(check())
    if not arguments.target:
        parser.error("--target is missing")
    host, _, port = arguments.target.rpartition(":")
    proxy = Proxy(
        (host, int(port)),
        rtt=arguments.rtt_ms / 1000,
        rate=arguments.mbit * 1e6 / 8,
        port=arguments.port,
    )
    print(json.dumps({"port": proxy.port}), flush=True)
    proxy.run()


if __name__ == "__main__":
    main()
