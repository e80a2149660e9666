"""The socket side of the fake registry: requests in, answers out, and ways to misbehave.

A thread per connection, HTTP/1.1 with keep-alive, on the standard library's server.  What is
answered is decided elsewhere (``registry.py``); this file only knows how to send it, how to break
off, drip or hang while sending it, and how to end every thread when the server is closed.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_SIZE = 1 << 20
BODY_LIMIT = 1 << 30
TLS_HANDSHAKE = b"\x16"


@dataclass(frozen=True)
class Request:
    """One request; header names in lower case, ``path`` unquoted and without the query.

    ``accepts`` are the lines of Accept as they came; ``headers`` has them in one.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    accepts: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return {k: v[-1] for k, v in parse_qs(urlsplit(self.target).query).items()}


@dataclass(frozen=True)
class FilePart:
    """``size`` bytes of a file from ``offset``: sent by the kernel, never read here."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


@dataclass
class Answer:
    """One answer, and how to misbehave while sending it.

    ``cut`` and ``hang`` are numbers of body bytes after which the connection is closed or nothing
    more is sent until the registry is released; -1 means before the first byte of the head.
    ``drip`` is (bytes, seconds): that little, that far apart.  With ``chunked`` the body's length
    is not announced; ``length`` announces another one.  ``whole`` is the blob that a range is of.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FilePart = b""
    cut: int | None = None
    hang: int | None = None
    drip: tuple[int, float] | None = None
    chunked: bool = False
    length: int | None = None
    whole: bytes | FilePart = b""

    @property
    def size(self) -> int:
        return self.body.size if isinstance(self.body, FilePart) else len(self.body)

    def content(self) -> bytes:
        return self.body.read() if isinstance(self.body, FilePart) else self.body


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"
    fields: dict[str, str]
    accepts: list[str]
    _sent = 0

    def parse_request(self) -> bool:
        """Read the request line and the fields; the library's e-mail parser is far slower."""
        words = self.raw_requestline.decode("latin-1").split()
        if len(words) != 3:
            self.connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            self.close_connection = True
            return False
        self.command, self.path, self.request_version = words
        self.fields, self.accepts = {}, []
        while line := self.rfile.readline(65537).strip():
            name, _, value = line.decode("latin-1").partition(":")
            key = name.strip().lower()
            before = f"{self.fields[key]}, " if key in self.fields else ""  # as RFC 9110 has it
            self.fields[key] = before + value.strip()
            if key == "accept":
                self.accepts.append(value.strip())
        connection = self.fields.get("connection", "").lower()
        self.close_connection = connection == "close" or self.request_version == "HTTP/1.0"
        return True

    def respond(self) -> None:
        body, accepts = self._read_body(), tuple(self.accepts)
        request = Request(self.command, self.path, self.fields, body, accepts)
        answer = self.server.respond(request)
        # Logged before the client can have the answer, and put right once it has been sent.
        correct = self.server.record(request, answer, self._planned(answer))
        self._sent = 0
        try:
            self._send(answer)
        finally:
            correct(self._sent)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = respond

    def _read_body(self) -> bytes:
        size = int(self.fields.get("content-length", "0"))
        if self.fields.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.fields.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline(100).split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline(100)
            self.rfile.readline(100)
            return b"".join(pieces)
        return self.rfile.read(min(size, BODY_LIMIT)) if size else b""

    def _planned(self, answer: Answer) -> int:
        """Return how many bytes of the body are to be sent."""
        size = 0 if self.command == "HEAD" else answer.size
        return max(min(x for x in (answer.cut, answer.hang, size) if x is not None), 0)

    def _send(self, answer: Answer) -> None:
        if answer.hang == -1:
            self._hang()
        if answer.hang == -1 or answer.cut == -1:
            self.close_connection = True
            return
        size = answer.size if self.command != "HEAD" else 0
        stop = self._planned(answer)
        head = self._head(answer)
        if isinstance(answer.body, FilePart) and not (answer.drip or answer.chunked):
            self.connection.sendall(head)
            self._send_file(answer.body, stop)
        else:
            body = memoryview(answer.content())[:stop] if stop else memoryview(b"")
            self._send_bytes(head, body, answer, is_whole=stop == size)
        if answer.hang is not None:
            self._hang()
        if stop < size or answer.hang is not None or answer.length is not None:
            self.close_connection = True

    def _head(self, answer: Answer) -> bytes:
        phrase = HTTPStatus(answer.status).phrase if answer.status in _KNOWN else "Unknown"
        fields = dict(answer.headers)
        if answer.chunked:
            fields["Transfer-Encoding"] = "chunked"
        elif answer.status != 204:
            length = answer.size if answer.length is None else answer.length
            fields.setdefault("Content-Length", str(length))
        if self.close_connection:
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{k}: {v}" for k, v in fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _send_file(self, part: FilePart, size: int) -> None:
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.sendall(FilePart(part.path, part.offset, size).read())
            self._sent += size
            return
        with part.path.open("rb") as stream:
            offset, end = part.offset, part.offset + size
            while offset < end:
                count = os.sendfile(
                    self.connection.fileno(), stream.fileno(), offset, min(end - offset, WRITE_SIZE)
                )
                if count == 0:
                    raise ConnectionAbortedError(f"{part.path}: shorter than announced")
                offset += count
                self._sent += count

    def _send_bytes(self, head: bytes, body: memoryview, answer: Answer, is_whole: bool) -> None:
        if len(body) <= WRITE_SIZE and not (answer.drip or answer.chunked):
            self.connection.sendall(b"".join((head, body)))
            self._sent += len(body)
            return
        self.connection.sendall(head)
        step, pause = answer.drip or (WRITE_SIZE, 0.0)
        for offset in range(0, len(body), step):
            piece = body[offset : offset + step]
            if answer.chunked:
                self.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                self.connection.sendall(piece)
            self._sent += len(piece)
            if pause:
                self.server.released.wait(pause)
        if answer.chunked and is_whole:
            self.connection.sendall(b"0\r\n\r\n")

    def _hang(self) -> None:
        self.server.released.wait(self.server.hang_limit_seconds)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the registry keeps its own log."""


_KNOWN = {int(status) for status in HTTPStatus}


class Server(ThreadingHTTPServer):
    """Threads that end when they are told to; *respond* and *record* come from the registry."""

    daemon_threads = True
    request_queue_size = 128
    hang_limit_seconds = 30.0

    def __init__(
        self,
        address: tuple[str, int],
        respond: Callable[[Request], Answer],
        record: Callable[[Request, Answer, int], Callable[[int], None]],
        context: ssl.SSLContext | None = None,
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)
        self.respond, self.record, self._context = respond, record, context
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        self.connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="fake-registry", daemon=True
        )
        with self._lock:
            self.connections += 1
            self._open[thread] = request
        thread.start()

    def _serve(self, connection: socket.socket, client_address: Any) -> None:
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open[threading.current_thread()] = connection
            elif connection.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
                # A greeting without a newline would be waited for to no end.
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                return
            self.finish_request(connection, client_address)
        except (OSError, ValueError):
            pass  # the client went away, or we are closing
        finally:
            with self._lock:
                self._open.pop(threading.current_thread(), None)
            self.shutdown_request(connection)

    def break_connections(self) -> None:
        """End every connection at once, as a restart of the server does."""
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            with contextlib.suppress(OSError, ValueError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop accepting, end the connections, join the threads."""
        self.released.set()
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + 10
        while True:
            self.break_connections()
            with self._lock:
                threads = list(self._open)
            if not threads:
                return
            threads[0].join(0.05)
            if time.monotonic() > deadline:
                raise RuntimeError(f"fake registry: {len(threads)} connections would not end")
