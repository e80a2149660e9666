"""How blobs get into the fake registry: whole, in pieces, or from another repository."""

import re
import secrets
from dataclasses import dataclass, field

from tests.support.registries.registry_auth import error
from tests.support.registries.registry_content import Content, digest_text
from tests.support.registries.registry_wire import Answer, FilePart, Request

PIECE_RE = re.compile(r"(\d+)-(\d+)")


@dataclass
class Uploads:
    """Sessions, by name, with what has arrived.

    ``body_limit`` is the largest body of one request (413 beyond), ``least_piece`` the smallest
    piece that is announced, ``mounts`` whether blobs are taken from other repositories.
    """

    content: Content
    sessions: dict[str, bytearray] = field(default_factory=dict)
    body_limit: int | None = None
    least_piece: int | None = None
    mounts: bool = True

    def answer(self, request: Request, name: str, session: str) -> Answer:
        if self.body_limit is not None and len(request.body) > self.body_limit:
            return error(413, "SIZE_INVALID_FOR_PROXY")
        if request.method == "POST":
            return self._begin(request, name)
        if session not in self.sessions:
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "PATCH":
            return self._piece(request, name, session)
        if request.method == "GET":
            return self._state(204, name, session)
        if request.method == "PUT":
            return self._finish(request, name, session)
        return error(405, "UNSUPPORTED")

    def _begin(self, request: Request, name: str) -> Answer:
        mounted = request.query.get("mount")
        if mounted and self.mounts:
            blob = self.content.blob(request.query.get("from", ""), mounted)
            if blob is not None:
                data = blob.read() if isinstance(blob, FilePart) else blob
                self.content.put_blob(name, data)
                return Answer(201, {"Location": f"/v2/{name}/blobs/{mounted}"})
        session = secrets.token_hex(8)
        self.sessions[session] = bytearray()
        return self._state(202, name, session)

    def _state(self, status: int, name: str, session: str) -> Answer:
        arrived = len(self.sessions[session])
        fields = {
            "Location": f"/v2/{name}/blobs/uploads/{session}?state={arrived}",
            "Range": f"0-{max(arrived - 1, 0)}",
        }
        if self.least_piece is not None:
            fields["OCI-Chunk-Min-Length"] = str(self.least_piece)
        return Answer(status, fields)

    def _piece(self, request: Request, name: str, session: str) -> Answer:
        arrived = self.sessions[session]
        if "content-range" not in request.headers:  # as Docker and cosign push: all in one stream
            arrived += request.body
            return self._state(202, name, session)
        match = PIECE_RE.fullmatch(request.headers["content-range"])
        if match is None or int(match[1]) != len(arrived):
            return error(416, "BLOB_UPLOAD_INVALID", {"Range": f"0-{max(len(arrived) - 1, 0)}"})
        if int(match[2]) - int(match[1]) + 1 != len(request.body):
            return error(400, "SIZE_INVALID")
        arrived += request.body
        return self._state(202, name, session)

    def _finish(self, request: Request, name: str, session: str) -> Answer:
        digest = request.query.get("digest", "")
        data = bytes(self.sessions[session]) + request.body
        if digest_text(data, digest.partition(":")[0] or "sha256") != digest:
            return error(400, "DIGEST_INVALID")
        del self.sessions[session]
        self.content.put_blob(name, data)
        location = f"/v2/{name}/blobs/{digest}"
        return Answer(201, {"Location": location, "Docker-Content-Digest": digest})
