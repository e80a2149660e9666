"""A registry for tests, the demo and the bench: real sockets on loopback, in a thread.

    with FakeRegistry(layout) as registry:
        reference = f"{registry.host}/demo:latest"

It follows the distribution specification as far as lazyfs uses it (pull, ranges, monolithic push,
token and basic authentication, redirects to signed URLs) and misbehaves on demand: see
``faults.py``.  ``python -m tests.support.registries.registry DIR`` serves a layout until it is
terminated.
"""

import argparse
import json
import re
import signal
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.support.registries.faults import Faults
from tests.support.registries.registry_auth import (
    ROUTE_RE,
    Bearer,
    Signed,
    basic_header,
    document,
    error,
)
from tests.support.registries.registry_content import DIGEST_RE, Content, digest_text, subject_of
from tests.support.registries.registry_referrers import ReferrersApi
from tests.support.registries.registry_uploads import Uploads
from tests.support.registries.registry_wire import Answer, FilePart, Request, Server

Proceed = Callable[[Request], Answer]
Rule = Callable[[Request, Proceed], Answer]
"""Answers a request; *proceed* gives the right answer, or that to another request."""

RANGE_RE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Logged:
    """One request as it was answered; ``size`` counts the body's bytes that were sent."""

    method: str
    path: str
    range: str | None
    status: int
    size: int
    headers: Mapping[str, str] = field(repr=False)
    target: str = ""


class FakeRegistry:
    """A registry on loopback *address*; a context manager, or ``start`` and ``close``.

    ``directory`` holds one OCI layout (served under every repository name) or several.  ``log``
    receives a line of JSON per request.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        port: int = 0,
        address: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        log: IO[str] | None = None,
    ) -> None:
        self.content = Content(None if directory is None else Path(directory))
        self.faults = Faults()
        self.requests: list[Logged] = []
        self._log = log
        self._lock = threading.Lock()
        self._scheme = "https" if tls else "http"
        self._server = Server((address, port), self.respond, self._record, tls)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.uploads = Uploads(self.content)
        self.referrers: ReferrersApi | None = None
        self._basic: dict[str, str] | None = None
        self._bearer: Bearer | None = None
        self._signed: Signed | None = None
        self._warnings: list[str] = []
        self._rules: list[Rule] = []

    # Life

    def __enter__(self) -> "FakeRegistry":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> "FakeRegistry":
        self._thread.start()
        return self

    def close(self) -> None:
        self._server.close()
        self._thread.join(10)

    def release(self) -> None:
        """Let every hanging and dripping answer end at once."""
        self._server.released.set()

    def release_once(self) -> None:
        """Let the answers that hang or drip now end; later ones may again."""
        self._server.released.set()
        self._server.released = threading.Event()

    def break_connections(self) -> None:
        """End all connections, as a restart does."""
        self._server.break_connections()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def host(self) -> str:
        address = self._server.server_address[0]
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}"

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        return self._server.connections

    # Content

    def put_blob(self, name: str, data: bytes, digest: str | None = None) -> str:
        return self.content.put_blob(name, data, digest)

    def put_manifest(self, name: str, data: bytes, media_type: str, tag: str | None = None) -> str:
        return self.content.put_manifest(name, data, media_type, tag)

    # Behaviour

    def require_basic(self, users: Mapping[str, str]) -> None:
        """Ask for a user name and a password."""
        self._basic = dict(users)

    def require_bearer(
        self,
        users: Mapping[str, str] | None = None,
        *,
        lifetime_seconds: float = 300,
        identity_tokens: Mapping[str, str] | None = None,
        realm: str | None = None,
        is_public: bool = False,
    ) -> None:
        """Ask for tokens from a token service, by default this server's ``/_token``.

        ``users`` are known there by password, ``identity_tokens`` (token → user) by refresh token;
        with *is_public* anybody gets tokens for pulling.
        """
        self._bearer = Bearer(
            dict(users or {}),
            dict(identity_tokens or {}),
            lifetime_seconds,
            realm or f"{self.url}/_token",
            is_public,
        )

    def expire_tokens(self) -> None:
        """Forget every token that was handed out."""
        if self._bearer:
            self._bearer.tokens.clear()

    def share_tokens(self, other: "FakeRegistry") -> None:
        """Accept the tokens that *other*'s token service hands out."""
        if self._bearer is None or other._bearer is None:
            raise ValueError("share_tokens: both registries must require tokens")
        self._bearer.tokens = other._bearer.tokens

    @property
    def tokens_issued(self) -> int:
        return self._bearer.issued if self._bearer else 0

    def redirect_blobs(self, base: str | None = None, *, refusal: int = 403) -> None:
        """Answer blobs with 307 to signed URLs under *base* (default: relative, this server).

        A signed URL is served by whichever fake registry it names, if that one has the blob and
        knows the signature (``share_signatures``); an expired one is refused with *refusal*.
        """
        known = self._signed.known if self._signed else set()
        self._signed = Signed(base or "", refusal, known)

    def share_signatures(self, other: "FakeRegistry") -> None:
        """Serve the URLs that *other* signs, from its content."""
        other_signed = other._signed
        if other_signed is None:
            raise ValueError("share_signatures: the other registry does not sign yet")
        self._signed = other_signed
        self.content = other.content
        self.uploads.content = other.content

    def expire_signed_urls(self) -> None:
        if self._signed:
            self._signed.known.clear()

    def allow_upload(self, session: str) -> None:
        """Accept a PUT to the upload *session*, as if a POST had begun it."""
        self.uploads.sessions[session] = bytearray()

    def list_referrers(self, **options: Any) -> None:
        """Have the referrers API; *options* are those of ``ReferrersApi``."""
        self.referrers = ReferrersApi(self.content, **options)

    def warn(self, text: str) -> None:
        """Send a Warning header with every answer from now on."""
        self._warnings.append(text)

    def wrap(self, rule: Rule) -> None:
        """Have *rule* answer all requests; one that was added before goes around it."""
        self._rules.append(rule)

    def scopes_of(self, request: Request) -> frozenset[str]:
        """Return what the token that came with *request* is good for."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        return (
            self._bearer.tokens.get(token, (0.0, frozenset()))[1] if self._bearer else frozenset()
        )

    # Numbers

    def count(self, method: str | None = None, path: str = "", status: int | None = None) -> int:
        """Return how many logged requests match."""
        with self._lock:
            return sum(
                method in (None, entry.method)
                and path in entry.target
                and status in (None, entry.status)
                for entry in self.requests
            )

    def statistics(self) -> dict[str, Any]:
        with self._lock:
            entries = list(self.requests)
        return {
            "requests": len(entries),
            "bytes": sum(entry.size for entry in entries),
            "ranges": sum(entry.range is not None for entry in entries),
            "blobBytes": sum(e.size for e in entries if "/blobs/" in e.path and e.method == "GET"),
            "connections": self.connections,
            "statuses": dict(Counter(str(entry.status) for entry in entries)),
            "methods": dict(Counter(entry.method for entry in entries)),
        }

    def forget_requests(self) -> None:
        with self._lock:
            self.requests.clear()

    def _record(self, request: Request, answer: Answer, size: int) -> Callable[[int], None]:
        """Log a request; the function returned puts the number of bytes right and writes it."""
        entry = Logged(
            request.method,
            request.path,
            request.headers.get("range"),
            answer.status,
            size,
            dict(request.headers),
            request.target,
        )
        if request.path != "/_stats":
            with self._lock:
                self.requests.append(entry)

        def correct(sent: int) -> None:
            entry.size = sent
            if self._log is not None and request.path != "/_stats":
                shown = {k: v for k, v in asdict(entry).items() if k not in ("headers", "target")}
                with self._lock:
                    print(json.dumps(shown), file=self._log, flush=True)

        return correct

    # Answers

    def respond(self, request: Request) -> Answer:
        """Return the answer to *request*, faults applied."""
        if request.path == "/_stats":
            return self._stats(request)
        answer = self.faults.apply(request, self._ruled(request, 0))
        for text in self._warnings:
            answer.headers["Warning"] = f'299 - "{text}"'
        return answer

    def _ruled(self, request: Request, number: int) -> Answer:
        if number == len(self._rules):
            return self._answer(request)
        return self._rules[number](request, lambda other: self._ruled(other, number + 1))

    def _answer(self, request: Request) -> Answer:
        if request.path == "/_token":
            return self._bearer.token(request) if self._bearer else error(404, "NOT_FOUND")
        if request.path.startswith("/_signed/"):
            return self._signed_blob(request)
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.path == "/v2/":
            return document({})
        match = ROUTE_RE.fullmatch(request.path)
        if match is None:
            return error(404, "NOT_FOUND")
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if kind == "tags":
            tags = self.content.tags(name)
            if tags is None:
                return error(404, "NAME_UNKNOWN")
            return document({"name": name, "tags": tags})
        if kind == "manifests":
            return self._manifest(request, name, rest)
        if rest.startswith("uploads/"):
            return self.uploads.answer(request, name, rest.removeprefix("uploads/"))
        if kind == "referrers":
            if self.referrers is None:
                return error(404, "NOT_FOUND")
            return self.referrers.answer(request, name, rest)
        return self._blob(request, name, rest)

    def _refusal(self, request: Request) -> Answer | None:
        given = request.headers.get("authorization", "")
        if self._bearer is not None:
            return self._bearer.refusal(request, given)
        if self._basic is not None and given not in map(basic_header, self._basic.items()):
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="fake registry"'})
        return None

    def _manifest(self, request: Request, name: str, reference: str) -> Answer:
        if request.method == "PUT":
            is_digest = DIGEST_RE.fullmatch(reference) is not None
            if is_digest and digest_text(request.body, reference.partition(":")[0]) != reference:
                return error(400, "DIGEST_INVALID")
            media_type = request.headers.get("content-type", "")
            tag = None if is_digest else reference
            digest = self.content.put_manifest(name, request.body, media_type, tag)
            fields = {
                "Location": f"/v2/{name}/manifests/{digest}",
                "Docker-Content-Digest": digest,
            }
            subject = subject_of(request.body)
            if subject is not None and self.referrers is not None:
                fields["OCI-Subject"] = subject
            return Answer(201, fields)
        if request.method == "DELETE":
            is_gone = self.content.remove_manifest(name, reference)
            return Answer(202) if is_gone else error(404, "MANIFEST_UNKNOWN")
        stored = self.content.manifest(name, reference)
        if stored is None:
            return error(404, "MANIFEST_UNKNOWN")
        fields = {"Content-Type": stored.media_type, "Docker-Content-Digest": stored.digest}
        if request.method == "HEAD":
            return Answer(200, {**fields, "Content-Length": str(len(stored.data))})
        return Answer(200, fields, stored.data)

    def _blob(self, request: Request, name: str, digest: str) -> Answer:
        blob = self.content.blob(name, digest)
        if blob is None:
            return error(404, "BLOB_UNKNOWN")
        if self._signed is not None and request.method == "GET":
            return Answer(307, {"Location": self._signed.sign(name, digest)})
        return _ranged(request, blob, digest)

    def _signed_blob(self, request: Request) -> Answer:
        if "authorization" in request.headers:
            return Answer(400, {}, b"<Error>only one auth mechanism allowed</Error>")
        if self._signed is None or request.query.get("signature") not in self._signed.known:
            return Answer(
                self._signed.refusal if self._signed else 404, {}, b"<Error>expired</Error>"
            )
        name, _, digest = request.path.removeprefix("/_signed/").rpartition("/")
        blob = self.content.blob(name, digest)
        return error(404, "BLOB_UNKNOWN") if blob is None else _ranged(request, blob, digest)

    def _stats(self, request: Request) -> Answer:
        if request.method == "DELETE":
            self.forget_requests()
            return Answer(204)
        return document(self.statistics())


# Ranges


def _ranged(request: Request, blob: bytes | FilePart, digest: str) -> Answer:
    """Return a blob, or the one range of it that *request* asks for."""
    size = blob.size if isinstance(blob, FilePart) else len(blob)
    fields = {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "Accept-Ranges": "bytes",
    }
    if request.method == "HEAD":
        return Answer(200, {**fields, "Content-Length": str(size)})
    match = RANGE_RE.fullmatch(request.headers.get("range", ""))
    if match is None or match[0] == "bytes=-":
        return Answer(200, fields, blob)
    if match[1]:
        start, stop = int(match[1]), min(int(match[2] or size), size - 1) + 1
    else:
        start, stop = max(size - int(match[2]), 0), size
    if start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{size}"})
    fields["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if isinstance(blob, FilePart):
        part: bytes | FilePart = FilePart(blob.path, start, stop - start)
    else:
        part = bytes(memoryview(blob)[start:stop])
    return Answer(206, fields, part, whole=blob)


def main() -> None:
    """Serve a directory until SIGTERM or SIGINT; the first line says where."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.registries.registry")
    parser.add_argument("directory", help="an OCI layout, or a directory of layouts")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=argparse.FileType("w"), help="one line of JSON per request")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    registry = FakeRegistry(arguments.directory, port=arguments.port, log=arguments.log)
    with registry:
        print(f"listening on {registry.host}", flush=True)
        while not stop.wait(0.5):
            pass
    sys.exit(0)


if __name__ == "__main__":
    main()
