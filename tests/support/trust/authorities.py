"""A server that answers as the authority of certificates: lists of what is revoked, or OCSP."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class Authority:
    """Answers *body* with *status*; ``asked`` has the headers of each request."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.fields: dict[str, str] = {}
        self.asked: list[dict[str, str]] = []
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                authority.asked.append(dict(self.headers) | {"body": self.rfile.read(length).hex()})
                self.send_response(authority.status)
                for name, value in authority.fields.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(authority.body)))
                self.end_headers()
                try:
                    self.wfile.write(authority.body)
                except ConnectionError:
                    pass  # who asked has had enough

            do_POST = do_GET

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/crl"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
