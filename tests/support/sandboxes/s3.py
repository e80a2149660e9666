"""An S3 service on loopback, and trouble with it: answers that are refused, broken off or lost."""

import os
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
STATUS = {
    "AccessDenied": "403 Forbidden",
    "InternalError": "500 Internal Server Error",
    "SlowDown": "503 Slow Down",
    "NoSuchUpload": "404 Not Found",
    "NotImplemented": "501 Not Implemented",
    "ConditionalRequestConflict": "409 Conflict",
}


@dataclass
class Fault:
    """Trouble with the requests for which *is_meant* (method, path, query), *times* over.

    ``code`` is answered instead of doing it; with ``is_done``, it is done first.  A fault without
    code breaks the connection off; ``cut`` breaks the answer off after so many bytes.
    """

    is_meant: Callable[[str, str, str], bool]
    code: str | None = None
    times: int = 1
    is_done: bool = False
    cut: int | None = None


class S3Server:
    """The service; ``requests`` has method, path and query of each."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        self.is_conditional = True
        self.page_size: int | None = None
        self._lock = threading.Lock()
        self._application: Application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.client = boto3.client("s3", endpoint_url=self.url)  # they take long to make

    def close(self) -> None:
        self.client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self) -> None:
        """Forget what earlier tests wanted."""
        self.faults, self.is_conditional, self.page_size = [], True, None
        self.requests.clear()

    def count(self, method: str, word: str = "") -> int:
        return sum(each[0] == method and word in f"{each[1]}?{each[2]}" for each in self.requests)

    def bucket(self, name: str) -> Any:
        """Make a bucket; return a client for looking into it."""
        self.client.create_bucket(Bucket=name)
        return self.client

    def _answer(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        request = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
        with self._lock:
            self.requests.append(request)
            fault = next((each for each in self.faults if each.is_meant(*request)), None)
            if fault is not None:
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
        if not self.is_conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            environ.pop("HTTP_IF_MATCH", None)
        if self.page_size is not None and "list-type=2" in request[2]:
            environ["QUERY_STRING"] += f"&max-keys={self.page_size}"
        if fault is None:
            return self._application(environ, start)
        if fault.cut is not None:
            return self._cut(environ, start, fault.cut)
        if fault.is_done:
            list(self._application(environ, lambda *arguments: lambda data: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.code is None:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        body = ERROR.format(code=fault.code, message="told to").encode()
        start(STATUS[fault.code], [("Content-Length", str(len(body)))])
        return [] if request[0] == "HEAD" else [body]

    def _cut(self, environ: Environ, start: Callable[..., Any], size: int) -> Iterable[bytes]:
        body = b"".join(self._application(environ, start))
        yield body[:size]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: object) -> None:
        """Say nothing."""


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",  # or it is looked for on the network
}
