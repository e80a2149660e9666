"""Made-up trees that compress as real files do: a few large files, or very many small ones.

Everything follows from a seed, so the same call makes the same bytes on every machine.
"""

import functools
import random
import tarfile
from collections.abc import Iterator

from tools.images.tree import Node, Tree, add_parents, file

BLOCK_SIZE = 256 << 10


def large_files(*, count: int = 6, total_size: int = 1 << 30) -> Tree:
    """Return *count* files of together *total_size* bytes, about half of it compressible."""
    size = total_size // count
    tree: Tree = {}
    for n in range(count):
        pieces = functools.partial(_blocks, n, size)
        tree[f"srv/data/part-{n}.bin"] = Node(tarfile.REGTYPE, 0o644, size=size, pieces=pieces)
    add_parents(tree)
    return tree


def small_files(*, count: int = 100_000, median_size: int = 2500) -> Tree:
    """Return *count* text-like files, sizes spread as in real trees, 40 to a directory."""
    chance = random.Random(1)
    text = _text(chance, 4 << 20)
    tree: Tree = {}
    for n in range(count):
        size = min(int(chance.lognormvariate(0, 1.1) * median_size), 1 << 20)
        start = chance.randrange(len(text) - size)
        head = f"// module {n} of package {n // 40}\n".encode()
        path = f"srv/modules/{n // 4000:02d}/package-{n // 40:04d}/lib/module-{n:06d}.js"
        tree[path] = file(head + text[start : start + size])
    add_parents(tree)
    return tree


def _text(chance: random.Random, size: int) -> bytes:
    """Return words as frequent as words are: gzip makes a third of it."""
    letters = "etaoinshrdlucmfwypvbgkjqxz_"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 11))) for _ in range(6000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    ends = [" ", " ", " ", "(", ")", ", ", ".", " = ", ";\n", ";\n    "]
    parts: list[str] = []
    length = 0
    while length < size:
        for word in chance.choices(words, weights, k=1000):
            parts.append(word + ends[chance.randrange(len(ends))])
            length += len(parts[-1])
    return "".join(parts).encode()[:size]


def _blocks(seed: int, size: int) -> Iterator[bytes]:
    """Yield *size* bytes: noise and text in turns, no block twice."""
    chance = random.Random(f"large-{seed}")
    text = _text(chance, 2 << 20)
    while size > 0:
        if chance.random() < 0.5:
            block = chance.randbytes(min(BLOCK_SIZE, size))
        else:
            start = chance.randrange(len(text) - BLOCK_SIZE)
            block = (chance.randbytes(16) + text[start : start + BLOCK_SIZE - 16])[:size]
        size -= len(block)
        yield block
