"""The slow link: what goes in comes out, not sooner than it may."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tools.bench.linkcheck import answering_server, ask
from tools.bench.processes import RunningLink

SECONDS = 20


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, and closes after its client has."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(SECONDS)
    listener.close()


@pytest.fixture
def bytes_port() -> Iterator[int]:
    with answering_server() as port:
        yield port


@pytest.mark.parametrize(("rtt_ms", "mbit"), [(0, 0), (2, 0), (0, 400), (2, 400)])
def test_bytes_and_the_end_pass_unchanged(echo_port: int, rtt_ms: float, mbit: float) -> None:
    sent = bytes(range(256)) * 4096
    with (
        RunningLink(f"127.0.0.1:{echo_port}", rtt_ms=rtt_ms, mbit=mbit) as link,
        socket.create_connection(("127.0.0.1", link.port), SECONDS) as connection,
    ):
        writer = threading.Thread(
            target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR))
        )
        writer.start()
        received = bytearray()
        while piece := connection.recv(1 << 16):
            received += piece
        writer.join(SECONDS)
        counted = link.statistics()
    assert bytes(received) == sent
    assert counted == {"connections": 1, "sent_size": len(sent), "received_size": len(sent)}


def test_a_round_trip_takes_its_time_and_connecting_another(bytes_port: int) -> None:
    with RunningLink(f"127.0.0.1:{bytes_port}", rtt_ms=30, mbit=0) as link:
        started = time.perf_counter()
        with socket.create_connection(("127.0.0.1", link.port), SECONDS) as connection:
            ask(connection, 1)
            first = time.perf_counter() - started
            second = ask(connection, 1)
    assert first >= 0.060
    assert 0.030 <= second < first


def test_all_connections_share_the_rate(bytes_port: int) -> None:
    with RunningLink(f"127.0.0.1:{bytes_port}", rtt_ms=0, mbit=40) as link:
        opened = [socket.create_connection(("127.0.0.1", link.port), SECONDS) for _ in range(4)]
        threads = [threading.Thread(target=ask, args=(c, 250_000)) for c in opened]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        seconds = time.perf_counter() - started
        for connection in opened:
            connection.close()
    assert seconds >= 0.2 * 0.97  # 1 MB at 5 MB/s, whoever it is for


def test_a_small_question_does_not_wait_behind_megabytes(bytes_port: int) -> None:
    """The queue is short: 2 MB of others' are on their way, which takes 0.4 s."""
    with RunningLink(f"127.0.0.1:{bytes_port}", rtt_ms=0, mbit=40) as link:
        bulk = socket.create_connection(("127.0.0.1", link.port), SECONDS)
        small = socket.create_connection(("127.0.0.1", link.port), SECONDS)
        with bulk, small:
            ask(small, 1)
            thread = threading.Thread(target=ask, args=(bulk, 2_000_000))
            thread.start()
            ask(bulk_started := small, 1)
            seconds = ask(bulk_started, 1)
            assert thread.is_alive()
            thread.join(SECONDS)
    assert seconds < 0.2


def test_a_client_that_leaves_takes_its_connection_along(echo_port: int) -> None:
    """The echo server takes one connection at a time: the second waits for the first to end."""
    with RunningLink(f"127.0.0.1:{echo_port}", rtt_ms=0, mbit=0) as link:
        first = socket.create_connection(("127.0.0.1", link.port), SECONDS)
        first.sendall(b"x" * 100_000)
        first.close()  # unread bytes: a reset
        with socket.create_connection(("127.0.0.1", link.port), SECONDS) as second:
            second.sendall(b"hello")
            assert second.recv(5) == b"hello"


def test_a_target_that_is_down_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        RunningLink(f"127.0.0.1:{port}", rtt_ms=0, mbit=0) as link,
        socket.create_connection(("127.0.0.1", link.port), SECONDS) as connection,
    ):
        assert connection.recv(1) == b""


def test_the_link_ends_with_its_parent() -> None:
    with RunningLink("127.0.0.1:9", rtt_ms=0, mbit=0) as link:
        assert link.process.stdin is not None
        link.process.stdin.close()
        assert link.process.wait(SECONDS) == 0
