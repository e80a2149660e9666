"""Where in a plain layer decoding can be begun again, for whoever decodes."""

from lazyfs.digest import Digest
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.compression import BadCompression
from lazyfs.formats.streams.restart import RestartPoint
from lazyfs.formats.streams.spans import Span
from lazyfs.store.paths import Store


class RestartPoints:
    """The restart points of a layer, read when the first one is asked for.

    They are asked for only where content that was here has been evicted, or never was.
    """

    def __init__(self, store: Store, toc_digest: Digest, blob_size: int) -> None:
        self._open = store, toc_digest, blob_size
        self._spans: dict[int, Span] | None = None

    @property
    def are_here(self) -> bool:
        """Whether they have been read."""
        return self._spans is not None

    def load(self) -> bool:
        """Read them, if that was not done; say whether they are here."""
        if self._spans is not None:
            return True
        # Imported here: most mounts never come so far.
        from lazyfs.store.spans import load_spans  # noqa: PLC0415

        spans = load_spans(*self._open)
        if spans is not None:
            self._spans = {span.blob_offset: span for span in spans if span.codec is Codec.DEFLATE}
        return spans is not None

    def __call__(self, blob_offset: int) -> RestartPoint | None:
        """Return the point at *blob_offset*, None if there is none."""
        if self._spans is None:
            self.load()
        span = None if self._spans is None else self._spans.get(blob_offset)
        try:
            return None if span is None else span.point()
        except BadCompression:
            return None  # by an index that lies: there is no such point
