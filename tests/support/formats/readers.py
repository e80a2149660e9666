"""What every reader of foreign bytes must stand.

``check_fixed`` is for fixed-size structures, ``check_document`` for whole documents,
``check_reader`` for streams that arrive in pieces.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pytest

T = TypeVar("T")


def check_fixed(
    parse: Callable[[bytes], T], data: bytes, expected: T, error: type[Exception]
) -> None:
    """The exact bytes pass; cut anywhere, or with anything more, they raise *error*."""
    assert parse(data) == expected
    check_document(parse, data, error)
    for junk in (b"\0", b"x", data):
        with pytest.raises(error):
            parse(data + junk)
        with pytest.raises(error):
            parse(junk + data)


def check_document(
    parse: Callable[[bytes], object], data: bytes, error: type[Exception], *, step: int = 1
) -> None:
    """Cut at each offset (or each *step*-th), a document raises *error*."""
    parse(data)
    for size in range(0, len(data), step):
        with pytest.raises(error):
            parse(data[:size])


def check_flips(
    parse: Callable[[bytes], object],
    data: bytes,
    errors: type[Exception] | tuple[type[Exception], ...],
    *,
    count: int = 500,
) -> int:
    """With any bit flipped a document is read, or raises one of *errors*; return how many raise."""
    rng = random.Random(count)
    refused = 0
    for _ in range(count):
        bent = bytearray(data)
        bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
        try:
            parse(bytes(bent))
        except errors:
            refused += 1
    return refused


def cuts(data: bytes, *, seed: int = 0) -> Iterator[list[bytes]]:
    """Yield *data* in pieces: whole, byte by byte, in odd sizes, with empty pieces."""
    yield [data]
    if len(data) <= 200_000:
        yield [data[at : at + 1] for at in range(len(data))]
    for size in (7, 1021, 65_537):
        if len(data) // size <= 200_000:
            yield [data[at : at + size] for at in range(0, len(data), size)]
    rng = random.Random(seed)
    pieces = []
    at = 0
    while at < len(data):
        size = rng.choice((0, 1, 13, 512, 40_000))
        pieces.append(data[at : at + size])
        at += size
    yield pieces


def check_reader(
    read: Callable[[Iterable[bytes]], T],
    data: bytes,
    expected: T,
    *,
    is_partial: Callable[[T], bool],
    step: int = 1,
) -> None:
    """A stream gives *expected* however it is cut and whatever follows it.

    Truncated (at each *step*-th offset) it gives something that *is_partial* accepts.
    """
    for pieces in cuts(data):
        assert read(pieces) == expected
    for junk in (b"\0", b"\x1f\x8b\x08", data):
        assert read([data + junk]) == expected
        assert read([data, junk]) == expected
    for size in range(0, len(data), step):
        assert is_partial(read([data[:size]]))
