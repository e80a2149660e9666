"""Pull an image and unpack it, as fast as plain means allow: the bench's own baseline.

    python -m tools.bench.puller 127.0.0.1:5000/python:plain DEST

All layers are downloaded at once, each over a connection of its own and hashed on the way; each is
unpacked by tar as soon as it and those below it are there.  Whiteouts are not applied: the images
of the bench have none.
"""

import subprocess
import sys
import threading
from pathlib import Path

from tools.bench.distribution import Connection

SECONDS = 600


def pull(reference: str, destination: Path) -> None:
    """Leave the root filesystem of ``host:port/name:tag`` in *destination*."""
    address, _, rest = reference.partition("/")
    name, _, tag = rest.rpartition(":")
    destination.mkdir(parents=True)
    connection = Connection(address)
    layers = connection.manifest(name, tag)["layers"]
    downloads = [_Download(address, name, layer["digest"], destination) for layer in layers[1:]]
    # The first layer takes the connection that is open already.
    first = _Download(address, name, layers[0]["digest"], destination, connection)
    for download in (first, *downloads):
        blob = download.wait()
        subprocess.run(
            ["tar", "-x", "-z", "-p", "-f", str(blob), "-C", str(destination)],
            check=True,
            timeout=SECONDS,
        )
        blob.unlink()


class _Download:
    """One blob on its way, in a thread."""

    def __init__(
        self,
        address: str,
        name: str,
        digest: str,
        folder: Path,
        connection: Connection | None = None,
    ) -> None:
        self.blob = folder.with_name(f"{folder.name}-{digest[7:23]}.tar.gz")
        self.connection = connection or Connection(address)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(name, digest))
        self.thread.start()

    def _run(self, name: str, digest: str) -> None:
        try:
            self.connection.save_blob(name, digest, self.blob)
        except Exception as exc:
            self.error = exc
        finally:
            self.connection.close()

    def wait(self) -> Path:
        """Return where the verified blob is."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.blob


if __name__ == "__main__":
    pull(sys.argv[1], Path(sys.argv[2]))
