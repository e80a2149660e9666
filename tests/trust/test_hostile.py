"""Every reader of foreign bytes, fed with what is cut off, changed, or too large."""

import itertools
import random

import pytest

from tests.trust.fuzz import READERS, feed, mutations

# Readers for which the beginning of a document can be one: certificates, one after another, and
# attributes of a name.
PREFIXES = {"pem", "identity"}
# These check signatures: fewer documents.
SLOW = {"timestamp", "judge-jws", "judge-cose", "jws", "pem"}


@pytest.mark.parametrize("name", READERS)
def test_what_is_sound_is_read(name: str) -> None:
    reader = READERS[name]()
    for data in reader.seeds():
        assert feed(reader, data)


@pytest.mark.parametrize("name", READERS)
def test_cut_off_at_each_byte(name: str) -> None:
    reader = READERS[name]()
    data = min(reader.seeds(), key=len)
    for size in range(len(data)):
        accepted = feed(reader, data[:size])
        if name.startswith("judge"):
            continue  # it has a verdict upon everything; feed has looked at it
        assert not accepted or name in PREFIXES or not data[size:].strip(), size


@pytest.mark.parametrize("name", READERS)
def test_changed_at_random(name: str) -> None:
    reader = READERS[name]()
    count = 200 if name in SLOW else 1000
    for data in itertools.islice(mutations(reader.seeds(), random.Random(1)), count):
        feed(reader, data)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(1 << 20),
        b"\xff" * (1 << 20),
        b"[" * (1 << 20),
        b'{"a":' * (1 << 18),
        b"\x30\x80" * (1 << 19),
        b"\x81" * (1 << 20),
        b"\xa1\x01" * (1 << 19),
        b"-----BEGIN CERTIFICATE-----\n" * (1 << 15),
        b"C=" + b"\\41" * (1 << 18),
    ],
    ids=range(10),
)
def test_large_nonsense(name: str, data: bytes) -> None:
    feed(READERS[name](), data)


def nested(depth: int) -> bytes:
    from lazyfs.trust import der

    data = b""
    for _ in range(depth):
        data = der.encode(der.SEQUENCE, data)
    return data


@pytest.mark.parametrize("name", READERS)
def test_nesting(name: str) -> None:
    feed(READERS[name](), nested(2000))
