"""The little of the distribution protocol that the bench needs: push a layout, pull an image.

Standard library only, plain HTTP, one connection per caller: it is what lazyfs is compared with,
so it shares nothing with it.
"""

import hashlib
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tools.images import layout

PIECE_SIZE = 1 << 20
SECONDS = 120


class RegistryFailed(RuntimeError):
    """The registry's answer was not the one that was needed."""


class Connection:
    """One keep-alive connection to ``host:port``."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=SECONDS)

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def request(
        self, method: str, path: str, *, body: Any = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask, and yield the answer; its body is read to the end, so the connection stays good."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body=body, headers=fields)
        response = self.connection.getresponse()
        try:
            yield response
        finally:
            response.read()

    def expect(self, status: int, method: str, path: str, **arguments: Any) -> tuple[Any, bytes]:
        """Ask, and return headers and body; RegistryFailed if the status is not *status*."""
        with self.request(method, path, **arguments) as response:
            data = response.read()
            if response.status != status:
                raise RegistryFailed(
                    f"{method} {path}: got {response.status} {data[:200]!r}, expected {status}"
                )
            return response.headers, data

    def manifest(self, name: str, tag: str) -> dict[str, Any]:
        """Return a manifest, not verified: there is nothing to verify a tag against."""
        _, data = self.expect(200, "GET", f"/v2/{name}/manifests/{tag}", Accept=layout.MANIFEST)
        document: dict[str, Any] = json.loads(data)
        return document

    def save_blob(self, name: str, digest: str, target: Path) -> None:
        """Store a blob at *target*, its digest checked as it arrives."""
        sha256 = hashlib.sha256()
        with self.request("GET", f"/v2/{name}/blobs/{digest}") as response:
            if response.status != 200:
                raise RegistryFailed(f"blob {digest}: got {response.status}, expected 200")
            with target.open("wb") as file:
                while piece := response.read(PIECE_SIZE):
                    sha256.update(piece)
                    file.write(piece)
        if f"sha256:{sha256.hexdigest()}" != digest:
            raise RegistryFailed(f"blob {digest}: got sha256:{sha256.hexdigest()}")


def push(address: str, name: str, folder: Path, tag: str) -> None:
    """Push image *tag* of the layout in *folder* as ``address/name:tag``; skip what is there."""
    manifest = layout.read_tagged(folder, tag)
    data = layout.tagged_bytes(folder, tag)
    connection = Connection(address)
    try:
        for blob in [manifest["config"], *manifest["layers"]]:
            with connection.request("HEAD", f"/v2/{name}/blobs/{blob['digest']}") as response:
                if response.status == 200:
                    continue
            headers, _ = connection.expect(202, "POST", f"/v2/{name}/blobs/uploads/")
            where = urlsplit(headers["Location"])
            query = f"{where.query}&" if where.query else ""
            with layout.blob_path(folder, blob["digest"]).open("rb") as file:
                connection.expect(
                    201,
                    "PUT",
                    f"{where.path}?{query}digest={blob['digest']}",
                    body=file,
                    Content_Length=str(blob["size"]),
                    Content_Type="application/octet-stream",
                )
        path = f"/v2/{name}/manifests/{tag}"
        connection.expect(201, "PUT", path, body=data, Content_Type=layout.MANIFEST)
    finally:
        connection.close()
