"""Trees beside a plain way of making them; hostile superblocks, trees and parameters."""

import hashlib
import random
import uuid

import pytest

from lazyfs.trust.detached import sign_detached
from lazyfs.trust.errors import BadSigner
from lazyfs.verity.errors import BadParameters, BadSuperblock, Mismatch
from lazyfs.verity.fsverity import file_digest
from lazyfs.verity.geometry import BLOCK_SIZES, Geometry, Parameters, check_parameters
from lazyfs.verity.path import PathVerifier
from lazyfs.verity.pkcs7 import check_root_signature
from lazyfs.verity.superblock import SIZE, decode_superblock, encode_superblock
from lazyfs.verity.writer import TreeWriter
from tests.verity.test_vectors import blocks, made, verifier

IDENTITY = uuid.UUID(int=1)


def plainly(parameters: Parameters, data: bytes) -> tuple[bytes, bytes]:
    """Return root and tree, level by level in memory."""

    def digest(block: bytes) -> bytes:
        salt = parameters.salt
        joined = salt + block if parameters.hash_type == 1 else block + salt
        return hashlib.new(parameters.algorithm, joined).digest()

    level = [digest(block) for block in blocks(parameters, data)]
    size = parameters.hash_block_size
    count = size // parameters.digest_size
    while count & (count - 1):
        count &= count - 1
    slot = size // count if parameters.hash_type == 1 else parameters.digest_size
    levels: list[bytes] = []
    while len(level) > 1:
        found = [
            b"".join(each.ljust(slot, b"\0") for each in level[at : at + count]).ljust(size, b"\0")
            for at in range(0, len(level), count)
        ]
        levels.insert(0, b"".join(found))
        level = [digest(block) for block in found]
    return level[0], b"".join(levels)


@pytest.mark.parametrize("seed", range(60))
def test_as_made_plainly(seed: int) -> None:
    chance = random.Random(seed)
    data_block = chance.choice((512, 1024, 4096))
    size = chance.randrange(1, 400 * data_block)
    parameters = Parameters(
        data_blocks=-(-size // data_block),
        data_block_size=data_block,
        hash_block_size=chance.choice((512, 1024, 4096)),
        algorithm=chance.choice(("sha256", "sha384", "sha512")),
        salt=chance.randbytes(chance.choice((0, 1, 32, 256))),
        hash_type=chance.choice((0, 1)),
    )
    data = chance.randbytes(size)
    root, tree = made(parameters, data, chance.randrange(1, 2 * size + 2))
    assert (root, tree) == plainly(parameters, data)
    check = verifier(parameters, root, tree)
    order = list(enumerate(blocks(parameters, data)))
    chance.shuffle(order)
    for number, block in order:
        check.verify(number, block)


@pytest.mark.parametrize("seed", range(40))
def test_no_changed_tree_vouches_for_changed_data(seed: int) -> None:
    """Whatever is changed in tree or data: the right data passes, or nothing does."""
    chance = random.Random(seed)
    parameters = Parameters(data_blocks=300, data_block_size=512, hash_block_size=512)
    data = chance.randbytes(300 * 512)
    root, tree = made(parameters, data)
    changed = bytearray(tree)
    for _ in range(chance.randrange(1, 4)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    check = verifier(parameters, root, bytes(changed))
    right = blocks(parameters, data)
    failed = 0
    for number in range(parameters.data_blocks):
        wrong = bytearray(right[number])
        wrong[chance.randrange(512)] ^= 1
        with pytest.raises(Mismatch):
            check.verify(number, bytes(wrong))
        try:
            check.verify(number, right[number])
        except Mismatch:
            failed += 1
    assert failed or bytes(changed) == tree


def test_fewer_blocks_with_the_same_root_are_refused() -> None:
    """The number of blocks is pinned: behind it nothing is verified, whatever the tree has."""
    parameters = Parameters(data_blocks=100)
    data = bytes(100 * 4096)
    root, tree = made(parameters, data)
    shorter = Parameters(data_blocks=93)
    check = verifier(shorter, root, tree)
    check.verify(92, bytes(4096))
    for number in (93, 99, 100, -1):
        with pytest.raises(Mismatch, match="is not one of 93 that are signed"):
            check.verify(number, bytes(4096))


def test_blocks_of_another_size_are_refused() -> None:
    parameters = Parameters(data_blocks=2)
    root, tree = made(parameters, bytes(8192))
    check = verifier(parameters, root, tree)
    for size in (0, 4095, 4097):
        with pytest.raises(Mismatch, match=f"has {size} bytes"):
            check.verify(0, bytes(size))
    short = PathVerifier(parameters, root, lambda number: tree[:100])
    with pytest.raises(Mismatch, match="hash block 0 has 100 bytes"):
        short.verify(0, bytes(4096))
    with pytest.raises(Mismatch, match="the root has 31 bytes"):
        PathVerifier(parameters, root[:31], lambda number: tree)


def test_a_hash_block_is_read_once() -> None:
    parameters = Parameters(data_blocks=129)
    data = random.Random(1).randbytes(129 * 4096)
    root, tree = made(parameters, data)
    read: list[int] = []

    def block(number: int) -> bytes:
        read.append(number)
        return tree[number * 4096 : (number + 1) * 4096]

    check = PathVerifier(parameters, root, block)
    for number, each in enumerate(blocks(parameters, data)):
        check.verify(number, each)
    assert sorted(read) == [0, 1, 2]


def test_a_writer_wants_just_its_data() -> None:
    writer = TreeWriter(Parameters(data_blocks=2))
    writer.update(bytes(4096))
    with pytest.raises(ValueError, match="4096 bytes of data are missing"):
        writer.finish()
    with pytest.raises(ValueError, match="more data than 8192 bytes"):
        writer.update(bytes(4097))


GOOD = Parameters(data_blocks=7, salt=b"salt")


@pytest.mark.parametrize(
    "values",
    [
        {"algorithm": "sha1"},
        {"algorithm": ""},
        {"data_block_size": 0},
        {"data_block_size": 256},
        {"data_block_size": 4097},
        {"hash_block_size": BLOCK_SIZES[-1] * 2},
        {"salt": bytes(257)},
        {"hash_type": 2},
        {"data_blocks": 0},
        {"data_blocks": 1 << 60},
    ],
)
def test_trees_that_cannot_be(values: dict) -> None:
    parameters = Parameters(**({"data_blocks": 1} | values))
    with pytest.raises(BadParameters):
        check_parameters(parameters)
    with pytest.raises(BadParameters):
        Geometry(parameters)


def test_superblocks_are_read_strictly() -> None:
    data = encode_superblock(GOOD, IDENTITY)
    assert decode_superblock(data) == (GOOD, IDENTITY)
    for size in range(SIZE):
        with pytest.raises(BadSuperblock):
            decode_superblock(data[:size])
    known = set(range(16, 32))  # the UUID may be anything
    for at in range(SIZE):
        for bit in (1, 0x80):
            changed = bytearray(data)
            changed[at] ^= bit
            try:
                found, _ = decode_superblock(bytes(changed))
            except BadSuperblock:
                continue
            assert at in known or found != GOOD
    chance = random.Random(3)
    for _ in range(2000):
        junk = bytearray(data)
        for _ in range(chance.randrange(1, 20)):
            junk[chance.randrange(SIZE)] = chance.randrange(256)
        try:
            found, _ = decode_superblock(bytes(junk))
        except BadSuperblock:
            continue
        assert check_parameters(found) == found


@pytest.mark.parametrize(
    "values", [("md5", 4096), ("sha384", 4096), ("sha256", 512), ("sha256", 3)]
)
def test_digests_that_cannot_be(values: tuple[str, int]) -> None:
    with pytest.raises(BadParameters):
        file_digest([b"x"], *values)


@pytest.mark.parametrize("data", [b"", b"\x30\x80", b"\x30\x03\x02\x01\x01", b"\xff" * 100_000])
def test_what_is_no_signature(data: bytes) -> None:
    from lazyfs.verity.errors import BadRootSignature

    with pytest.raises(BadRootSignature):
        check_root_signature(data, b"00", [])


def test_only_keys_that_kernels_take_sign() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.support.trust.signing import Notary

    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    certificate = Notary().leaf.public_bytes(serialization.Encoding.PEM)
    with pytest.raises(BadSigner, match="is not RSA"):
        sign_detached(b"00", certificate, key)
    for pair in ((b"", key), (certificate, b""), (certificate, bytes(100_000))):
        with pytest.raises(BadSigner):
            sign_detached(b"00", *pair)
