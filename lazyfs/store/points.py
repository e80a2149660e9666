"""Where in a plain layer decoding can be begun again, for whoever decodes."""

from lazyfs.digest import Digest
from lazyfs.formats.codec import Codec
from lazyfs.formats.compression import BadCompression
from lazyfs.formats.restart import RestartPoint
from lazyfs.formats.spans import Span
from lazyfs.store.paths import Store


class RestartPoints:
    """The restart points of a layer, read when the first one is asked for.

    They are asked for only where content that was here has been evicted, or never was.
    """

    def __init__(self, store: Store, toc_digest: Digest, blob_size: int) -> None:
        self._open = store, toc_digest, blob_size
        self._spans: dict[int, Span] | None = None

    def load(self) -> None:
        """Read them now, while the store is there."""
        # Imported here: most mounts never come so far.
        from lazyfs.store.spans import load_spans  # noqa: PLC0415

        self._spans = {
            span.blob_offset: span
            for span in load_spans(*self._open) or ()
            if span.codec is Codec.DEFLATE
        }

    def __call__(self, blob_offset: int) -> RestartPoint | None:
        """Return the point at *blob_offset*, None if there is none."""
        if self._spans is None:
            self.load()
        assert self._spans is not None
        span = self._spans.get(blob_offset)
        try:
            return None if span is None else span.point()
        except BadCompression:
            return None  # by an index that lies: there is no such point
