"""Mutates cosign's documents and containers' configuration, and looks for wrong answers.

    python -m tests.trust.fuzz_sigstore READER --seconds 60 [--seed N]

A reader may refuse in its own words and nothing else, within a second; what it accepts must mean
what it meant.  A failure is printed with the input in base64.
"""

import argparse
import base64
import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence

import msgspec

from lazyfs.digest import digest_of
from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.sigstore.bundle import parse_bundle, parse_statement
from lazyfs.trust.sigstore.candidates import (
    CERTIFICATE,
    CHAIN,
    ENTRY,
    SIGNATURE,
    Attachment,
    Bundled,
)
from lazyfs.trust.sigstore.payload import parse_payload
from lazyfs.trust.sigstore.policy import requirements_for
from lazyfs.trust.sigstore.policy_reading import parse_policy
from lazyfs.trust.sigstore.registries_d import lookaside_of, parse_registries, uses_attachments
from lazyfs.trust.sigstore.rekor import parse_entries
from tests.support import cosign
from tests.trust import test_cosign_logs
from tests.trust.test_policy_json import WHOLE
from tests.trust.test_registries_d import SPECIFIC

SECONDS_LIMIT = 1.0  # of one input
ASKED = [
    parse_reference(name)
    for name in ("busybox", "a.company.example:5000/x", f"a.example/b@sha256:{'0' * 64}", "oci:/d")
]
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"-1", b"1e9", b"{}", b"[]"),
    *(b"\\u0000", b"\\ud800", b"\xff", b"\x00", b"&a ", b"*a", b"<<: ", b"- ", b"\n  ", b"!!x "),
    *(b'"type":', b'"digest":', b'"subject":', b'"sha256":', b"NaN", b"9" * 40, b"[" * 200),
]


def mutated(data: bytes, choose: random.Random) -> bytes:
    """Return *data* after one to four changes."""
    made = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        at = choose.randint(0, len(made))
        end = min(len(made), at + choose.choice((1, 1, 2, 8, 64)))
        match choose.randrange(6):
            case 0 if at < len(made):
                made[at] ^= 1 << choose.randrange(8)
            case 1:
                del made[at:end]
            case 2:
                made[at:at] = choose.choice(TOKENS)
            case 3:
                made[at:end] = choose.choice(TOKENS)
            case 4:
                start = choose.randint(0, len(made))
                made[at:at] = made[start : start + choose.choice((8, 64, 256))]
            case _:
                made[at:end] = choose.randbytes(end - at)
    return bytes(made)


def expect(is_so: bool, what: object) -> None:
    """Raise AssertionError, telling *what*, unless it *is_so*."""
    assert is_so, what


def read_payload(data: bytes) -> None:
    try:
        parse_payload(data)
    except Malformed:
        pass
    (good,) = cosign.candidates("old-p256")
    assert isinstance(good, Attachment)
    found = msgspec.structs.replace(good, payload=data)
    verdict = cosign.judged(cosign.signed_by("p256"), [found], cosign.image_digest("old-p256"))
    assert verdict.is_allowed == (data == good.payload), verdict


def read_statement(data: bytes) -> None:
    try:
        parse_statement(data)
    except Malformed:
        pass


def read_bundle(data: bytes) -> None:
    try:
        envelope = parse_bundle(data).envelope
    except Malformed:
        envelope = None
    for image, requirement in (
        ("new-p256", cosign.signed_by("p256")),
        ("new-cert", cosign.certified("release@example.test")),
    ):
        (good,) = cosign.candidates(image)
        assert isinstance(good, Bundled)
        found = Bundled(digest_of(data), data)
        verdict = cosign.judged(requirement, [found], cosign.image_digest(image))
        if verdict.is_allowed:
            assert envelope == parse_bundle(good.data).envelope, verdict


def read_certificates(data: bytes) -> None:
    """Read *data* as the certificate and as the chain of a signature; DER in bundles."""
    (good,) = cosign.candidates("old-cert")
    assert isinstance(good, Attachment)
    requirement = cosign.certified("release@example.test")
    digest = cosign.image_digest("old-cert")
    text = data.decode(errors="replace")
    for name in (CERTIFICATE, CHAIN, SIGNATURE):
        noted = {**good.annotations, name: text}
        cosign.judged(requirement, [msgspec.structs.replace(good, annotations=noted)], digest)
    (other,) = cosign.candidates("new-cert")
    assert isinstance(other, Bundled)
    document = json.loads(other.data)
    certificate = document["verificationMaterial"]["certificate"]
    raw = certificate["rawBytes"]
    certificate["rawBytes"] = base64.b64encode(data).decode()
    changed = json.dumps(document).encode()
    verdict = cosign.judged(
        requirement, [Bundled(digest_of(changed), changed)], cosign.image_digest("new-cert")
    )
    assert not verdict.is_allowed or certificate["rawBytes"] == raw, verdict


def read_entry(data: bytes) -> None:
    """Read *data* as the entry of a log, in the old form and in a bundle."""
    found = test_cosign_logs.old()
    good = json.loads(found.annotations[ENTRY])
    noted = {**found.annotations, ENTRY: data.decode(errors="surrogateescape")}
    changed = msgspec.structs.replace(found, annotations=noted)
    if test_cosign_logs.allowed(changed, test_cosign_logs.by_key()):
        assert json.loads(data) == good
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(Malformed):
        parse_entries([document])


def read_policy(data: bytes) -> None:
    try:
        policy = parse_policy(data, "policy.json")
    except PolicyFault as exc:
        expect(exc.message.startswith("policy.json"), exc)
        return
    for reference in ASKED:
        assert requirements_for(policy, reference).requirements


def read_registries(data: bytes) -> None:
    try:
        registries = parse_registries([("x.yaml", data)])
    except PolicyFault as exc:
        expect(exc.message.startswith("x.yaml: "), exc)
        return
    for reference in ASKED:
        uses_attachments(registries, reference)
        lookaside_of(registries, reference)


def seeds_of(*images: str) -> list[bytes]:
    found = [each for image in images for each in cosign.candidates(image)]
    return [each.data if isinstance(each, Bundled) else each.payload for each in found]


def certificates() -> list[bytes]:
    bundle = parse_bundle(seeds_of("new-cert")[0])
    return [cosign.key_file("leaf.crt"), cosign.key_file("ca.crt"), *bundle.certificates]


READERS: dict[str, tuple[Callable[[bytes], None], Callable[[], Sequence[bytes]]]] = {
    "payload": (read_payload, lambda: seeds_of("old-p256", "old-annot")),
    "bundle": (read_bundle, lambda: seeds_of("new-p256", "new-cert", "att-only")),
    "statement": (
        read_statement,
        lambda: [parse_bundle(each).envelope.payload for each in seeds_of("new-annot", "att-only")],
    ),
    "certificates": (read_certificates, certificates),
    "entry": (read_entry, lambda: [test_cosign_logs.old().annotations[ENTRY].encode()]),
    "policy": (
        read_policy,
        lambda: [json.dumps(WHOLE).encode(), json.dumps(WHOLE, indent=1).encode()],
    ),
    "registries": (read_registries, lambda: [SPECIFIC]),
}


def run(name: str, seconds: float, seed: int) -> int:
    """Feed a reader for a while; return how many inputs it had."""
    read, make = READERS[name]
    seeds = list(make())
    for good in seeds:
        read(good)
    choose = random.Random(seed)
    count, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        data = mutated(choose.choice(seeds), choose)
        began = time.process_time()
        try:
            read(data)
            took = time.process_time() - began
            assert took < SECONDS_LIMIT, f"it took {took:.1f} s"
        except BaseException:
            print(f"{name}: {base64.b64encode(data).decode()}", flush=True)
            raise
        count += 1
    return count


def main() -> None:
    """Run one reader, or all of them one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for name in READERS if given.reader == "all" else [given.reader]:
        print(f"{name}: {run(name, given.seconds, given.seed)} inputs", flush=True)


if __name__ == "__main__":
    main()
