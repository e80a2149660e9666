"""What veritysetup, OpenSSL and fsverity made: the same bytes, and the same verdicts."""

import functools
import json
import lzma
import uuid
from pathlib import Path
from typing import Any

import pytest

from lazyfs.trust.certificates import Certificate, parse_certificates
from lazyfs.verity.errors import BadRootSignature, Mismatch
from lazyfs.verity.fsverity import FileDigest, file_digest
from lazyfs.verity.geometry import Geometry, Parameters
from lazyfs.verity.path import PathVerifier
from lazyfs.verity.pkcs7 import check_root_signature, signed_text
from lazyfs.verity.superblock import decode_superblock, encode_superblock, tree_offset
from lazyfs.verity.writer import TreeWriter

VECTORS = Path(__file__).parents[1] / "fixtures" / "trust" / "verity"
INDEX: dict[str, Any] = json.loads((VECTORS / "index.json").read_bytes())
TREES = {each["id"]: each for each in INDEX["trees"]}
SIGNATURES = {each["id"]: each for each in INDEX["pkcs7"]}
# "accept or reject": what lazyfs has chosen.
CHOSEN = {"keyid": "reject"}

# Data byte i is i mod 256.  Bytes, algorithm, block sizes, salt, type, bytes of the tree, root.
COUNTED = [
    (4096, "sha256", 4096, 4096, "00" * 32, 1, 0,
     "417609691790ba3b2cda734926edda699a79c71fe3b3530505a445d080cf7b2e"),
    (12288, "sha256", 4096, 4096, "", 1, 4096,
     "1557a0dfedc07097971fbc66ac7c54f41e3422974fd68e1b0bffb56de19d2649"),
    (528384, "sha256", 4096, 4096, "00" * 32, 1, 12288,
     "6d5800601fb174b7595cc5b5f280d2c8c2254ad3463dbdc252dce69d71327373"),
    (10240, "sha256", 512, 512, "00" * 32, 1, 1536,
     "d90bd70be508687cef92da5694aaf0bfbf89833a26b3deb76e1907af8b1c1a7d"),
    (10240, "sha256", 512, 4096, "", 1, 4096,
     "b0ac48285599b20feb9e2421e15cffebb23e4293a4185a78123c1bf5b31a0c61"),
    (819200, "sha256", 4096, 4096, "616263", 0, 12288,
     "ba28b93c8b9814831dfffdf0142c081a7ba66855d538c2ad7c83ae0155aabcaa"),
    (532480, "sha384", 4096, 4096, "0102", 1, 16384,
     "546723b17fc3c054ac4d6715affa1bac6ce39d45f505dcab872ca231686462"
     "38d12bb9558fc15ba3dc7c75f22050bc74"),
    (532480, "sha512", 4096, 4096, "0102", 1, 16384,
     "0d3e9e4ea0e7738f97527acb1268482c0c0ac4e191f8abcddc9bd8ab434c73f3"
     "dfe66bc4d8daf9283c96a5de02d03d3290aa8b668de237ca18151249a32dd610"),
]  # fmt: skip


@functools.cache
def image(name: str) -> bytes:
    (found,) = (each for each in INDEX["images"] if each["id"] == name)
    return lzma.decompress((VECTORS / found["file"]).read_bytes())


def parameters_of(tree: dict[str, Any]) -> Parameters:
    salt = tree["salt"]
    return Parameters(
        data_blocks=tree["data_blocks"],
        data_block_size=tree["data_block"],
        hash_block_size=tree["hash_block"],
        algorithm=tree["algorithm"],
        salt=b"" if salt in (None, "-") else bytes.fromhex(salt),
        hash_type=tree["hash_type"],
    )


def made(parameters: Parameters, data: bytes, step: int = 100_003) -> tuple[bytes, bytes]:
    """Return the root and the tree of *data*, which comes in pieces of *step* bytes."""
    blocks: dict[int, bytes] = {}
    writer = TreeWriter(parameters, lambda offset, block: blocks.update({offset: block}))
    for start in range(0, len(data), step):
        writer.update(data[start : start + step])
    root = writer.finish()
    assert writer.finish() == root
    size = Geometry(parameters).tree_size
    assert sorted(blocks) == list(range(0, size, parameters.hash_block_size))
    return root, b"".join(blocks[offset] for offset in sorted(blocks))


def verifier(parameters: Parameters, root: bytes, tree: bytes) -> PathVerifier:
    size = parameters.hash_block_size
    return PathVerifier(parameters, root, lambda number: tree[number * size : (number + 1) * size])


def blocks(parameters: Parameters, data: bytes) -> list[bytes]:
    size = parameters.data_block_size
    padded = data.ljust(parameters.data_size, b"\0")
    return [padded[start : start + size] for start in range(0, parameters.data_size, size)]


@pytest.mark.parametrize("name", TREES)
def test_the_same_tree_as_veritysetup(name: str) -> None:
    found = TREES[name]
    parameters = parameters_of(found)
    root, tree = made(parameters, image(found["image"]))
    assert root.hex() == found["root"]
    stored = (VECTORS / found["hash_file"]).read_bytes()
    if not found["superblock"]:
        assert stored == tree
        return
    identity = uuid.UUID(found["uuid"])
    start = tree_offset(0, parameters.hash_block_size)
    assert stored == encode_superblock(parameters, identity).ljust(start, b"\0") + tree
    assert decode_superblock(stored) == (parameters, identity)


@pytest.mark.parametrize("name", TREES)
def test_every_block_is_right_and_a_changed_one_is_not(name: str) -> None:
    found = TREES[name]
    parameters = parameters_of(found)
    data = image(found["image"])
    root, tree = made(parameters, data)
    check = verifier(parameters, root, tree)
    for number, block in enumerate(blocks(parameters, data)):
        check.verify(number, block)
    wrong = bytearray(data)
    wrong[found["corrupt_byte"]] ^= 1
    number = found["corrupt_byte"] // parameters.data_block_size
    fresh = verifier(parameters, root, tree)
    with pytest.raises(Mismatch, match=f"data block {number} "):
        fresh.verify(number, blocks(parameters, bytes(wrong))[number])
    assert made(parameters, bytes(wrong))[0] != root


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{row[0]}-{row[1]}-{row[5]}")
def test_counted_bytes(row: tuple[Any, ...]) -> None:
    size, algorithm, data_block, hash_block, salt, hash_type, tree_size, root = row
    parameters = Parameters(
        data_blocks=size // data_block,
        data_block_size=data_block,
        hash_block_size=hash_block,
        algorithm=algorithm,
        salt=bytes.fromhex(salt),
        hash_type=hash_type,
    )
    data = bytes(range(256)) * (size // 256)
    for step in (size, 1, 4097) if size < 20_000 else (size, 4097):
        got, tree = made(parameters, data, step)
        assert (got.hex(), len(tree)) == (root, tree_size)
    assert Geometry(parameters).tree_size == tree_size


def certificates() -> list[Certificate]:
    names = ("signer.crt", "signer4096.crt", "signer-ec.crt")
    data = b"".join((VECTORS / "pkcs7" / name).read_bytes() for name in names)
    return parse_certificates(data, 10)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_over_a_root(name: str) -> None:
    found = SIGNATURES[name]
    data = (VECTORS / found["file"]).read_bytes()
    message = signed_text(bytes.fromhex(found["root"]))
    wanted = CHOSEN.get(name, found["recommended"].partition(" ")[0])
    if wanted == "accept":
        assert check_root_signature(data, message, certificates())
        with pytest.raises(BadRootSignature):
            check_root_signature(data, message.replace(b"c", b"d"), certificates())
        with pytest.raises(BadRootSignature, match="nobody who is trusted"):
            check_root_signature(data, message, [])
        return
    with pytest.raises(BadRootSignature):
        check_root_signature(data, message, certificates())


@pytest.mark.parametrize(
    "found", INDEX["fsverity"], ids=lambda found: f"{found['image']}-{found['alg']}"
)
def test_the_same_digest_as_fsverity(found: dict[str, Any]) -> None:
    data = b"" if found["image"] is None else image(found["image"])
    for step in (len(data) or 1, 4096, 5000):
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        digest = file_digest(pieces, found["alg"], found["block"])
        assert digest.value.hex() == found["digest"]
    if found.get("sig"):
        signature = (VECTORS / found["sig"]).read_bytes()
        assert check_root_signature(signature, digest.signed_bytes(), certificates())
        other = FileDigest(digest.algorithm, bytes(len(digest.value)))
        with pytest.raises(BadRootSignature):
            check_root_signature(signature, other.signed_bytes(), certificates())
