"""Measure the link itself: what it says it does, beside what a client sees."""

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tools.bench.processes import RunningLink

ALLOWED = 0.05
BURST_SIZE = 64 << 10


@contextmanager
def answering_server() -> Iterator[int]:
    """Serve on loopback: eight bytes in, that number of bytes out; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def answer(connection: socket.socket) -> None:
        zeros = bytes(BURST_SIZE)
        with connection:
            while asked := connection.recv(8, socket.MSG_WAITALL):
                size = int.from_bytes(asked, "big")
                while size > 0:
                    size -= connection.send(zeros[: min(size, BURST_SIZE)])

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def ask(connection: socket.socket, size: int) -> float:
    """Ask for *size* bytes and read them; return the seconds it took."""
    started = time.perf_counter()
    connection.sendall(size.to_bytes(8, "big"))
    buffer = bytearray(BURST_SIZE * 4)
    while size:
        size -= connection.recv_into(buffer, min(size, len(buffer)))
    return time.perf_counter() - started


def round_trip(port: int) -> float:
    """Return the median seconds of a small question on an open connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        ask(connection, 1)
        return statistics.median(ask(connection, 1) for _ in range(15))


def first_answer(port: int) -> float:
    """Return the median seconds from connecting to the first byte."""

    def once() -> float:
        started = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            ask(connection, 1)
            return time.perf_counter() - started

    return statistics.median(once() for _ in range(9))


def throughput(port: int, size: int, connections: int) -> float:
    """Return bytes a second of *connections* that read *size* bytes together."""
    opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    for connection in opened:
        ask(connection, 1)
    share = size // connections
    threads = [threading.Thread(target=ask, args=(c, share)) for c in opened]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for connection in opened:
        connection.close()
    return share * connections / seconds


def check() -> int:
    """Print the table; return 0 when every line is within ALLOWED."""
    is_good = True

    def line(what: str, expected: float, got: float, unit: str) -> None:
        nonlocal is_good
        off = got / expected - 1
        is_good &= abs(off) <= ALLOWED
        print(f"{what:44} expected {expected:8.2f}  got {got:8.2f} {unit}  {off:+6.1%}")

    with answering_server() as server:
        for rtt_ms, mbit in ((20, 100), (50, 100), (100, 20)):
            with RunningLink(f"127.0.0.1:{server}", rtt_ms=rtt_ms, mbit=mbit) as link:
                name = f"{rtt_ms} ms, {mbit} Mbit/s"
                size = mbit * 250_000  # two seconds' worth
                # The last byte arrives half a round trip after it left, and asking cost the other.
                share = 2 / (2 + rtt_ms / 1000)
                line(f"{name}: round trip", rtt_ms, 1e3 * round_trip(link.port), "ms")
                line(f"{name}: connect, ask", 2 * rtt_ms, 1e3 * first_answer(link.port), "ms")
                for n in (1, 8):
                    got = throughput(link.port, size, n) * 8e-6
                    line(f"{name}: {n} connections", mbit * share, got, "Mbit/s")
        with RunningLink(f"127.0.0.1:{server}", rtt_ms=0, mbit=0) as link:
            rate = throughput(link.port, 2 << 30, 1) / 1e6
            print(f"{'no limits: 1 connection':44} {rate:.0f} MB/s")
            print(f"{'no limits: round trip':44} {1e3 * round_trip(link.port):.3f} ms")
    return 0 if is_good else 1
