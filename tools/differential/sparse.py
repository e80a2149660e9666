"""Sparse files in tars, of every format."""

import random

from tools.differential.headers import Header, Record, base_256, built, extended, padded, summed

Pieces = list[tuple[int, int]]
FORMATS = ["0.0", "0.1", "0.1 without version", "1.0", "old"]


def sparse_member(rng: random.Random, path: bytes, *, is_odd: bool) -> bytes:
    """Return a sparse file with its headers; an odd one may contradict itself."""
    pieces, size = _pieces(rng)
    format_ = rng.choice(FORMATS[:-1] if not is_odd else FORMATS)
    data = rng.randbytes(sum(length for _, length in pieces))
    if is_odd and rng.random() < 0.2:
        pieces, size, data = _bent(rng, pieces, size, data)
    if format_ == "old":
        return old_sparse(rng, path, pieces, size, data)
    return pax_sparse(rng, format_, path, pieces, size, data)


def _pieces(rng: random.Random) -> tuple[Pieces, int]:
    pieces: Pieces = []
    at = 0
    for _ in range(rng.choice([0, 1, 2, 3, 5, 30])):
        at += rng.choice([0, 0, 1, 512, 5000])
        length = rng.choice([0, 1, 100, 512, 1600])
        pieces.append((at, length))
        at += length
    return pieces, at + rng.choice([0, 0, 1, 4096, 20_000])


def _bent(rng: random.Random, pieces: Pieces, size: int, data: bytes) -> tuple[Pieces, int, bytes]:
    way = rng.randrange(5)
    if way == 0:
        return pieces, size - 1, data
    if way == 1:
        return pieces, size, data + b"more"
    if way == 2:
        return pieces, size, data[:-1]
    if way == 3:
        return pieces[::-1], size, data
    return [*pieces, (size, -1)], size, data


def pax_sparse(
    rng: random.Random, format_: str, path: bytes, pieces: Pieces, size: int, data: bytes
) -> bytes:
    records: list[Record] = []
    pairs = [b"%d" % number for pair in pieces for number in pair]
    key = rng.choice([b"GNU.sparse.size", b"GNU.sparse.realsize"])
    name = b"GNUSparseFile.0/" + path[:80]
    if format_ == "1.0":
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (key, b"%d" % size)]
        lines = [b"%d" % len(pieces), *pairs]
        data = padded(b"".join(line + b"\n" for line in lines)) + data
    else:
        records += [(key, b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pieces))]
        if format_ != "0.1 without version":
            records += [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", format_[-1:].encode())]
        if format_ == "0.0":
            for offset, length in pieces:
                records.append((b"GNU.sparse.offset", b"%d" % offset))
                records.append((b"GNU.sparse.numbytes", b"%d" % length))
        else:
            records.append((b"GNU.sparse.map", b",".join(pairs)))
    if rng.random() < 0.8 or len(path) > 100:
        records.append((b"GNU.sparse.name", path))
    else:
        name = path
    header = Header(name, b"0", len(data), mode=0o640)
    return extended(records) + built(header) + padded(data)


def old_sparse(rng: random.Random, path: bytes, pieces: Pieces, size: int, data: bytes) -> bytes:
    pieces = [(max(offset, 0), max(length, 0)) for offset, length in pieces]
    block = bytearray(built(Header(path[:100], b"S", len(data), mode=0o640, dialect="gnu")))
    _put_pairs(block, 386, pieces[:4])
    block[483:495] = b"%011o\0" % max(size, 0)
    rest = pieces[4:]
    block[482] = bool(rest)
    out = [summed(block)]
    while rest:
        more = bytearray(512)
        _put_pairs(more, 0, rest[:21])
        rest = rest[21:]
        more[504] = bool(rest)
        out.append(bytes(more))
    return b"".join(out) + padded(data)


def _put_pairs(block: bytearray, start: int, pieces: Pieces) -> None:
    for number, (offset, length) in enumerate(pieces):
        at = start + 24 * number
        block[at : at + 12] = base_256(offset, 12) if number % 2 else b"%011o\0" % offset
        block[at + 12 : at + 24] = b"%011o\0" % length
