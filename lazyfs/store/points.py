"""Where in a plain layer decoding can be begun again, for whoever decodes."""

from lazyfs.digest import Digest
from lazyfs.formats.codec import Codec
from lazyfs.formats.restart import RestartPoint
from lazyfs.store.paths import Store


class RestartPoints:
    """The restart points of a layer, read when the first one is asked for.

    They are asked for only where content that was here has been evicted, or never was.
    """

    def __init__(self, store: Store, toc_digest: Digest, blob_size: int) -> None:
        self._open = store, toc_digest, blob_size
        self._points: dict[int, RestartPoint] | None = None

    def load(self) -> None:
        """Read them now, while the store is there."""
        # Imported here: most mounts never come so far.
        from lazyfs.store.passes import load_spans  # noqa: PLC0415

        self._points = {
            span.blob_offset: RestartPoint(span.blob_offset, span.bits, span.head, span.window)
            for span in load_spans(*self._open)
            if span.codec is Codec.DEFLATE
        }

    def __call__(self, blob_offset: int) -> RestartPoint | None:
        """Return the point at *blob_offset*, None if there is none."""
        if self._points is None:
            self.load()
        assert self._points is not None
        return self._points.get(blob_offset)
