"""The seam to httpx: TLS, proxies, timeouts, closed connections."""

import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import trio
import trio.lowlevel

from lazyfs.errors import LazyfsError
from lazyfs.fetch.origins.outage import is_away
from lazyfs.registry.answers.rate import Rate
from lazyfs.registry.config.errors import (
    TEMPORARY,
    BadAnswer,
    ConnectionTrouble,
    Missing,
    Refused,
    Silent,
    TlsRefused,
    TooLarge,
)
from lazyfs.registry.source import AccessOptions, SourceStatistics
from lazyfs.registry.transport import Transport, translated
from tests.support.registries import certificates, faults
from tests.support.registries.certificates import Certificates
from tests.support.registries.clients import FAST, NAME, ONCE, connected, read_range, stored
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 3000


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that sends the same bytes to everybody and hangs up; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


async def exchange(url: str, options: AccessOptions | None = None) -> bytes:
    transport = Transport(options or AccessOptions(), SourceStatistics())
    try:
        answer = await transport.send("GET", url, {})
        try:
            return await answer.read(1 << 20)
        finally:
            await answer.aclose()
    finally:
        await transport.aclose()


# What is no HTTP.


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ConnectionTrouble),
        (b"220 mail.example ESMTP\r\n", ConnectionTrouble),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", ConnectionTrouble),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", ConnectionTrouble),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ConnectionTrouble),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, ConnectionTrouble),
        (b"\x15\x03\x01\x00\x02\x02\x46", ConnectionTrouble),
    ],
)
async def test_answers_that_are_no_http(answer: bytes, error: type[Exception]) -> None:
    with answering(answer) as url, pytest.raises(error):
        await exchange(url)


async def test_headers_of_one_name_are_joined() -> None:
    head = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nX-B: \xe9\r\nContent-Length: 0\r\n\r\n"
    with answering(head) as url:
        transport = Transport(AccessOptions(), SourceStatistics())
        answer = await transport.send("GET", url, {})
        assert (answer.headers["x-a"], answer.headers["x-b"]) == ("1, 2", "é")
        await answer.aclose()
        await transport.aclose()


async def test_a_body_that_ends_with_the_connection() -> None:
    with answering(b"HTTP/1.0 200 OK\r\n\r\nthe body") as url:
        assert await exchange(url) == b"the body"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://", "http://a b/", "x" * 10])
async def test_urls_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(BadAnswer):
        await exchange(url)


async def test_headers_that_would_smuggle_are_refused(registry: FakeRegistry) -> None:
    transport = Transport(AccessOptions(), SourceStatistics())
    with pytest.raises(BadAnswer):
        await transport.send("GET", registry.url, {"x": "a\r\nX-Evil: b"})
    await transport.aclose()
    assert registry.requests == []


# Time.


async def test_a_host_that_does_not_answer_at_all() -> None:
    # A full backlog: the kernel drops what comes, as a firewall does.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host = "127.0.0.1:%d" % listener.getsockname()[1]  # noqa: UP031
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        try:
            async with connected(host, policy=ONCE, connect_seconds=0.2) as client:
                with pytest.raises(Silent, match="no connection within"), trio.fail_after(5):
                    await client.fetch_manifest("v1")
        finally:
            for connection in waiting:
                connection.close()


async def test_the_reason_is_the_machines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with pytest.raises(ConnectionTrouble) as told:
        await exchange(url)
    assert told.value.message == f"cannot reach 127.0.0.1:{port}: connection refused (GET {url})"


# What lasts, and what passes.

LASTS = (
    "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired",
    "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1000)",
    "[SSL] record layer failure (_ssl.c:1006)",
    "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure (_ssl.c:1000)",
    "[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version (_ssl.c:1000)",
    "[SSL: TLSV1_UNRECOGNIZED_NAME] tlsv1 unrecognized name (_ssl.c:1000)",
    "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:2580)",
    "[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol (_ssl.c:1000)",
)
PASSES = (
    ssl.SSLError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol"),
    ssl.SSLError(1, "[SSL: TLSV1_ALERT_INTERNAL_ERROR] tlsv1 alert internal error (_ssl.c:1000)"),
    # A network that is away knows no names.
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ConnectionResetError(104, "CERTIFICATE_VERIFY_FAILED is what somebody else said"),
)
KINDS = [httpx.ConnectError, httpx.ReadError]


def met(kind: type[httpx.HTTPError], cause: OSError) -> LazyfsError:
    error = kind("what httpx says")
    error.__cause__ = cause
    return translated(error, "GET https://r.example/v2/")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", LASTS)
def test_what_lasts_is_told_at_once(kind: type[httpx.HTTPError], said: str) -> None:
    error = met(kind, ssl.SSLError(1, said))
    assert isinstance(error, TlsRefused)
    assert not isinstance(error, TEMPORARY)
    assert not is_away(error), "no reader waits for it"
    assert error.message.startswith("cannot reach r.example: ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cause", PASSES)
def test_what_may_pass_is_waited_for(kind: type[httpx.HTTPError], cause: OSError) -> None:
    error = met(kind, cause)
    assert isinstance(error, ConnectionTrouble)
    assert is_away(error)


@pytest.mark.parametrize(
    ("said", "is_lasting"),
    [
        ("407 Proxy Authentication Required", True),
        ("403 Forbidden", True),
        ("408 Request Timeout", False),
        ("429 Too Many Requests", False),
        ("503 Service Unavailable", False),
        ("4030 is not a status", False),
    ],
)
def test_a_proxy_that_refuses(said: str, is_lasting: bool) -> None:
    error = translated(httpx.ProxyError(said), "GET https://r.example/v2/")
    assert isinstance(error, Refused if is_lasting else ConnectionTrouble)
    assert is_away(error) == (not is_lasting)


async def test_redirects_that_lead_nowhere_are_followed_once(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.redirect("{path}"), times=None)
    async with connected(registry) as client:
        with pytest.raises(Refused, match=r"more than 5 redirects, the last to http://127") as told:
            await read_range(client, blob, 0, 10)
        assert client.statistics.retries == 0
    assert not is_away(told.value)


# TLS.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if reason := certificates.why_missing():
        pytest.skip(reason)
    return certificates.make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def speaking_https(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loopback is plain http by rule: make it an ordinary host for once."""
    monkeypatch.setattr("lazyfs.registry.config.endpoints.is_loopback", lambda registry: False)
    yield
    monkeypatch.undo()


async def test_https_with_an_authority_of_ones_own(
    made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"SSL_CERT_FILE": str(made.authority)}
    with speaking_https(monkeypatch), FakeRegistry(tls=made.server) as registry:
        blob = stored(registry, DATA)
        async with connected(registry, environment=environment) as client:
            assert await read_range(client, blob, 10, 500_000) == DATA[10:500_000]
            async with client.open_range(blob, 0, len(DATA)) as body:
                await anext(body)
            assert await read_range(client, blob, 10, 20) == DATA[10:20]


async def test_an_unknown_authority_is_refused_with_a_hint(
    made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaking_https(monkeypatch), FakeRegistry(tls=made.server) as registry:
        async with connected(registry, policy=ONCE) as client:
            with pytest.raises(TlsRefused, match="CERTIFICATE_VERIFY_FAILED") as caught:
                await client.fetch_manifest("v1")
        assert "SSL_CERT_FILE" in str(caught.value)
        assert registry.requests == []


async def test_https_to_a_plain_http_registry_hints_at_the_option(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaking_https(monkeypatch):
        async with connected(registry, policy=ONCE) as client:
            with pytest.raises(TlsRefused) as caught:
                await client.fetch_manifest("v1")
    assert "--plain-http" in str(caught.value)


async def test_a_redirect_from_https_to_http_is_refused(
    made: Certificates, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"SSL_CERT_FILE": str(made.authority)}
    with speaking_https(monkeypatch), FakeRegistry(tls=made.server) as secure:
        blob = stored(secure, DATA)
        stored(registry, DATA)
        secure.faults.add(faults.redirect(registry.url + "{path}"), times=None)
        async with connected(secure, policy=ONCE, environment=environment) as client:
            with pytest.raises(Refused, match="from https to http") as caught:
                await read_range(client, blob, 0, 10)
    assert "no longer be encrypted" in str(caught.value)
    assert registry.requests == []


# Proxies.


async def test_a_proxy_is_asked(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake registry takes the place of the proxy: it sees the whole URL."""
    monkeypatch.setattr("lazyfs.registry.config.endpoints.is_loopback", lambda registry: True)
    environment = {"http_proxy": registry.url}
    async with connected("registry.invalid:5000", environment=environment) as client:
        with pytest.raises(Missing):
            await client.fetch_manifest("v1")
    assert registry.requests[0].target == f"http://registry.invalid:5000/v2/{NAME}/manifests/v1"
    assert registry.requests[0].headers["host"] == "registry.invalid:5000"


async def test_nothing_of_the_process_environment_counts(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    blob = stored(registry, DATA)
    async with connected(registry, policy=FAST) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]


# Closing.


async def test_closing_ends_the_connections(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        await read_range(client, blob, 0, 10)
        await client.aclose()
        await client.aclose()
        assert await read_range(client, blob, 0, 10) == DATA[:10], "a new connection is made"
    assert registry.connections == 2


# Compressed unasked, and other addresses.


async def test_a_compressed_document_is_inflated_whole(registry: FakeRegistry) -> None:
    document = b'{"schemaVersion": 2, "config": {}}' + b" " * 1000
    registry.put_manifest(NAME, document, "application/x", "v1")
    members = gzip.compress(document[:500]) + gzip.compress(document[500:])

    def sending(body: bytes) -> None:
        registry.faults.clear()
        coded = {"Content-Encoding": "gzip"}
        registry.faults.add(faults.both(faults.replaced(body), faults.headers(coded)), times=None)

    async with connected(registry, policy=ONCE) as client:
        for body in (gzip.compress(document), members):
            sending(body)
            assert (await client.fetch_manifest("v1")).data == document
        for body in (members[:-1], members[:40], members + b"x", b"\x1f\x8b"):
            sending(body)
            with pytest.raises(BadAnswer, match="gzip"):
                await client.fetch_manifest("v1")
        sending(gzip.compress(b" " * (5 << 20)))
        with pytest.raises(TooLarge):
            await client.fetch_manifest("v1")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"chunked, chunked"])
async def test_a_transfer_that_is_compressed_is_refused(coding: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + coding + b"\r\n\r\n"
    with answering(answer) as url, pytest.raises((BadAnswer, ConnectionTrouble)):
        await exchange(url)


async def test_a_head_that_drips_is_given_up(registry: FakeRegistry) -> None:
    """A header line every now and then keeps no reader waiting longer than silence does."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stop.wait(0.02):
                try:
                    connection.sendall(b"X-More: to come\r\n")
                except OSError:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    options = AccessOptions(connect_seconds=0.2, idle_seconds=0.2)
    with listener, trio.fail_after(10), pytest.raises(Silent, match="no complete response head"):
        await exchange(f"http://127.0.0.1:{listener.getsockname()[1]}/", options)
    stop.set()
    thread.join(10)


async def test_ipv6() -> None:
    try:
        registry = FakeRegistry(address="::1").start()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with contextlib.closing(registry):
        assert registry.host.startswith("[::1]:")
        registry.redirect_blobs()
        blob = stored(registry, DATA)
        async with connected(registry) as client:
            assert await read_range(client, blob, 5, 500) == DATA[5:500]


async def test_how_slow_is_too_slow() -> None:
    rate = Rate(30.0)
    assert rate.judge(30 * 511, 30.0) == 512
    assert rate.judge(30 * 512, 30.0) is None
    rate.learn(1 << 20, 0.0)
    assert rate.judge(30 * 99_000, 30.0) == 100_000, "a hundredth of what counts as fast"
    assert rate.judge(30 * 40_000, 30.0) == 50_000, "less is expected each time"
    assert rate.judge(30 * 40_000, 30.0) is None
