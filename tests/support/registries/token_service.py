"""A token service for docker-registry, and a signer of URLs for nginx: both in one thread.

Tokens are JWTs, signed by the openssl program with the key of the certificate that the registry is
told to trust.  ``good_until`` < 0 makes them worthless before they are handed out, as if they had
expired on the way.  URLs are signed as nginx's secure_link wants them.
"""

import base64
import hashlib
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

ISSUER, SERVICE = "tests", "docker-registry"
SECRET = "of tests"
LIFETIME_SECONDS = 60
LEEWAY_SECONDS = 60  # of docker-registry


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class TokenService:
    """Serves ``/token`` and signs everything else; users are ``u`` with the password ``geheim``."""

    def __init__(self, directory: Path) -> None:
        self._key, self.certificate = directory / "token.key", directory / "token.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=tokens"),
                *("-newkey", "rsa:2048", "-keyout", str(self._key)),
                *("-out", str(self.certificate)),
            ],
            check=True,
            timeout=60,
            capture_output=True,
        )
        pem = self.certificate.read_text().splitlines()
        self._chain = "".join(line for line in pem if "CERTIFICATE" not in line)
        self.tokens = 0
        self.spoiled = 0
        self.signed: list[str] = []
        self.url_seconds = 60
        self.store = ""  # where signed URLs lead
        self.realm = ""  # where clients find it
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "TokenService":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        if parts.path != "/token":
            target = self._sign(parts.path)
            handler.send_response(307)
            handler.send_header("Location", target)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        given = handler.headers.get("Authorization")
        if given != "Basic " + base64.b64encode(b"u:geheim").decode():
            body, status = b'{"errors": [{"code": "UNAUTHORIZED"}]}', 401
        else:
            body, status = self._token(parse_qs(parts.query).get("scope", [])), 200
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _sign(self, path: str) -> str:
        """Return the signed URL of a blob: ``/signed/sha256:…``."""
        uri = f"/signed/{path.rpartition('/')[2]}"
        expires = int(time.time()) + self.url_seconds
        digest = hashlib.md5(f"{expires}{uri} {SECRET}".encode(), usedforsecurity=False).digest()
        target = f"{self.store}{uri}?md5={encoded(digest)}&expires={expires}"
        self.signed.append(target)
        return target

    def _token(self, scopes: list[str]) -> bytes:
        self.tokens += 1
        now = int(time.time())
        if self.spoiled:
            self.spoiled -= 1
            now -= LIFETIME_SECONDS + LEEWAY_SECONDS + 10
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "u",
            "jti": str(self.tokens),
            "iat": now,
            "nbf": now - 5,
            "exp": now + LIFETIME_SECONDS,
            "access": access,
        }
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed.encode(),
            check=True,
            timeout=30,
            capture_output=True,
        ).stdout
        token = f"{signed}.{encoded(signature)}"
        return json.dumps({"token": token, "expires_in": LIFETIME_SECONDS}).encode()
