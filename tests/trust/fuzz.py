"""Readers of foreign bytes, fed with bytes that are nearly right.

    python -m tests.trust.fuzz READER --seconds N [--seed N]

Every reader may raise errors of lazyfs and nothing else, quickly.  What a reader accepts is checked
as far as that can be said without it: see ``Reader.check``.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from lazyfs.digest import digest_of
from lazyfs.errors import LazyfsError
from lazyfs.trust import cbor, cms, crl, der, keys, ocsp, timestamp
from lazyfs.trust.certificates import Certificate, parse_certificate, parse_certificates
from lazyfs.trust.notation.artifact import Candidate, wanted_envelope
from lazyfs.trust.notation.cose import parse_cose
from lazyfs.trust.notation.identities import parse_identity
from lazyfs.trust.notation.judge import judge
from lazyfs.trust.notation.jws import parse_jws
from lazyfs.trust.notation.policy import parse_policy
from lazyfs.trust.strict_json import parse
from tests.support.trust.notation import (
    NOTATION,
    FixtureServers,
    FixtureStores,
    certificates,
    vectors,
)

SLOW = 1.0  # seconds of CPU for one document
# What formats are made of, to be put in somewhere.
MORSELS = [
    b"", b"\0", b"\xff", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x9b" + b"\xff" * 8,
    b"\xbf", b"\x5f", b"\xc1\x1b\x7f" + b"\xff" * 7, b"\x18\x0f99991231235959Z",
    b"\x02\x01\x00", b"\x05\x00", b'"', b"\\ud800", b"{", b"[" * 100, b"null", b"1e999", b"-1",
    b"=", b"\\", b'"a":1,"a":1,', b"9" * 50,
]  # fmt: skip


class Reader(NamedTuple):
    """What reads, what it is fed with, and what must be true of what it accepts."""

    read: Callable[[bytes], Any]
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes, Any], bool] = lambda _data, _found: True


def walk(data: bytes) -> int:
    """Read a DER document to its last element; return their number."""

    def inside(value: der.Value) -> int:
        if not value.tag & der.CONSTRUCTED:
            return 1
        return 1 + sum(inside(part) for part in value.parts())

    return inside(der.read(data, None))


def of_trees(data: bytes, found: int) -> bool:
    return 0 < found <= len(data)


def files(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((NOTATION / folder).iterdir())]


def envelopes(kind: str) -> list[bytes]:
    names = [f"{kind}-{key}" for key in ("p256", "rsa2048", "tsa-tsa", "meta", "expiry-far")]
    return [vectors().envelope(name) for name in names]


@cache
def raw_certificates() -> list[bytes]:
    chains = [parse_jws(data).chain for data in envelopes("jws")]
    found = [each for data in certificates() for each in parse_certificates(data, 100)]
    return [each.raw for each in (*found, *(each for chain in chains for each in chain))]


def keys_of_certificates() -> list[bytes]:
    return [parse_certificate(data).spki.raw for data in raw_certificates()]


def tokens() -> list[bytes]:
    stamp = parse_jws(vectors().envelope("jws-tsa-tsa")).timestamp
    assert stamp is not None
    return [stamp]


def statements() -> list[bytes]:
    content = cms.parse_signed_data(tokens()[0]).content
    assert content is not None
    return [content]


def manifests() -> list[bytes]:
    return [vectors().candidates(case)[0].manifest for case in ("jws-p256", "artifacttype-form")]


def identities() -> list[bytes]:
    return [b"C=DE, ST=Berlin, O=Acme\\, Inc., CN=a\\20b", b"O=x,S=y,C=\\C3\\BC"]


def policies() -> list[bytes]:
    return [path.read_bytes() for path in sorted((NOTATION / "policies").iterdir())]


def verify_stamp(data: bytes) -> Any:
    """Check a time-stamp; a changed one must not be taken for another time."""
    return timestamp.verify_token(data, *stamped())


@cache
def stamped() -> tuple[bytes, Sequence[Certificate]]:
    """Return what the time-stamp is of, and whose word is taken."""
    envelope = parse_jws(vectors().envelope("jws-tsa-tsa"))
    roots = parse_certificates((NOTATION / "truststore/x509/tsa/main/tsa.pem").read_bytes(), 9)
    return envelope.signature, roots


@cache
def stamp_found() -> Any:
    return verify_stamp(tokens()[0])


def is_same_time(_data: bytes, found: Any) -> bool:
    return bool((found.earliest, found.latest) == (stamp_found().earliest, stamp_found().latest))


def judge_case(case: str) -> Callable[[bytes], Any]:
    """Return what judges an envelope in the place of the one in a case."""
    found = vectors()
    good = found.candidates(case)[0]
    policy = parse_policy(found.policy(found.cases[case]["policy"]), "FILE")
    request = found.request(case)

    def run(data: bytes) -> Any:
        document = json.loads(good.manifest)
        document["layers"][0].update(digest=str(digest_of(data)), size=len(data))
        manifest = json.dumps(document).encode()
        candidate = Candidate(digest_of(manifest), manifest, data)
        return judge(policy, FixtureStores(), request, [candidate], FixtureServers())

    return run


def message_is_kept(case: str) -> Callable[[bytes, Any], bool]:
    """Return what says whether an accepted envelope signs what the original signs."""
    parse_one = parse_jws if case.startswith("jws") else parse_cose
    original = parse_one(vectors().envelope(case))

    def check(data: bytes, verdict: Any) -> bool:
        if not verdict.is_allowed:
            return True
        found = parse_one(data)
        return (found.message, found.target) == (original.message, original.target)

    return check


READERS: dict[str, Callable[[], Reader]] = {
    "json": lambda: Reader(lambda data: parse(data, "it"), lambda: [*policies(), *manifests()]),
    "der": lambda: Reader(walk, lambda: [*raw_certificates(), *files("crl"), *tokens()], of_trees),
    "cbor": lambda: Reader(cbor.decode, lambda: envelopes("cose")),
    "spki": lambda: Reader(keys.load_spki, keys_of_certificates),
    "certificate": lambda: Reader(parse_certificate, raw_certificates),
    "pem": lambda: Reader(lambda data: parse_certificates(data, 100), lambda: list(certificates())),
    "crl": lambda: Reader(read_crl, lambda: files("crl")),
    "ocsp": lambda: Reader(ocsp.parse_answer, lambda: files("ocsp")),
    "cms": lambda: Reader(cms.parse_signed_data, tokens),
    "tstinfo": lambda: Reader(timestamp.parse_statement, statements),
    "timestamp": lambda: Reader(verify_stamp, tokens, is_same_time),
    "jws": lambda: Reader(parse_jws, lambda: envelopes("jws")),
    "cose": lambda: Reader(parse_cose, lambda: envelopes("cose")),
    "manifest": lambda: Reader(read_manifest, manifests),
    "policy": lambda: Reader(lambda data: parse_policy(data, "FILE"), policies),
    "identity": lambda: Reader(
        lambda data: parse_identity(data.decode("utf-8", "replace")), identities
    ),
    "judge-jws": lambda: Reader(
        judge_case("jws-p256"),
        lambda: [vectors().envelope("jws-p256")],
        message_is_kept("jws-p256"),
    ),
    "judge-cose": lambda: Reader(
        judge_case("cose-p256"),
        lambda: [vectors().envelope("cose-p256")],
        message_is_kept("cose-p256"),
    ),
}


def read_crl(data: bytes) -> Any:
    found = crl.parse_crl(data)
    if found.entries is not None:
        for serial in (0, 1, 0x30):
            crl.find_entry(found.entries, serial)
    return found


def read_manifest(data: bytes) -> Any:
    return wanted_envelope(digest_of(data), data, digest_of(b""))


def mutations(seeds: Sequence[bytes], random_: random.Random) -> Iterator[bytes]:
    """Yield changed documents, for ever."""
    while True:
        data = bytearray(random_.choice(seeds))
        for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
            _change(data, seeds, random_)
        yield bytes(data)


def _change(data: bytearray, seeds: Sequence[bytes], random_: random.Random) -> None:
    at = random_.randrange(len(data) + 1)
    to = min(len(data), at + random_.choice((1, 1, 2, 4, 16, 200)))
    kind = random_.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << random_.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))
    elif kind == 2:
        del data[at:to]
    elif kind == 3:
        data[at:at] = data[at:to]
    elif kind == 4:
        data[at:at] = random_.choice(MORSELS)
    elif kind == 5:
        data[at:to] = random_.choice(MORSELS)
    elif kind == 6:
        other = random_.choice(seeds)
        begin = random_.randrange(len(other) + 1)
        data[at:to] = other[begin : begin + (to - at)]
    else:
        del data[at:]


def feed(reader: Reader, data: bytes) -> bool:
    """Give *data* to a reader; say whether it accepts.

    Raises AssertionError, and whatever the reader should not raise.
    """
    began = time.thread_time()
    found, message = None, None
    try:
        found = reader.read(data)
    except LazyfsError as exc:
        message = exc.message
    spent = time.thread_time() - began
    assert spent < SLOW, f"{spent} s for one document"
    if message is None:
        assert reader.check(data, found), "accepted what it should not"
        return True
    assert "\n" not in message, message
    assert len(message) < 2000, message
    return False


def main() -> int:
    """Feed one reader for some seconds; print what it could not stand."""
    from tests.trust.sigstore import fuzz_sigstore

    readers = READERS | fuzz_sigstore.READERS
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=readers)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    given = parser.parse_args()
    reader = readers[given.reader]()
    counts = {True: 0, False: 0}
    until = time.monotonic() + given.seconds
    for data in mutations(reader.seeds(), random.Random(given.seed)):
        try:
            counts[feed(reader, data)] += 1
        except BaseException:
            print(f"{given.reader}, seed {given.seed}: {data.hex()}", file=sys.stderr)
            raise
        if time.monotonic() > until:
            break
    print(f"{given.reader}: {counts[True]} accepted, {counts[False]} refused, seed {given.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
