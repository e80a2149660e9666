"""Take the compression off a plain layer, for whoever needs no spans of it.

The reader is that of a full pass, so that what one command takes, another does not refuse.  No I/O
here: callers bring a ``read``.
"""

from collections.abc import Callable, Iterator

from lazyfs.formats.streams.spans import HEAD_SIZE, NO_SPANS, READ_SIZE, Span, open_stream

Read = Callable[[int], bytes]


def decompress(read: Read) -> Iterator[bytes]:
    """Yield the uncompressed layer in pieces of at most READ_SIZE bytes.

    *read* returns up to the asked number of bytes, and none only at the end.
    """
    head = b""
    while len(head) < HEAD_SIZE and (more := read(READ_SIZE)):
        head += more
    stream = open_stream(head, NO_SPANS)
    try:
        while head:
            for item in stream.feed(head):
                assert not isinstance(item, Span)
                yield item
            head = read(READ_SIZE)
        stream.finish()
    finally:
        stream.close()
