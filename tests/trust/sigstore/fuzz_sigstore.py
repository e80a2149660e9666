"""What ``tests.trust.fuzz`` feeds of cosign's documents and of containers' configuration.

What a reader accepts must mean what it meant: a changed signature must not count.
"""

import base64
import contextlib
import json
from collections.abc import Callable

import msgspec

from lazyfs.digest import digest_of
from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import Malformed
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
from tests.support.trust import cosign
from tests.trust.fuzz import Reader
from tests.trust.sigstore import test_cosign_logs
from tests.trust.sigstore.test_policy_json import WHOLE
from tests.trust.sigstore.test_registries_d import SPECIFIC

ASKED = [
    parse_reference(name)
    for name in ("busybox", "a.company.example:5000/x", f"a.example/b@sha256:{'0' * 64}", "oci:/d")
]


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
    policy = parse_policy(data, "policy.json")
    for reference in ASKED:
        assert requirements_for(policy, reference).requirements


def read_registries(data: bytes) -> None:
    registries = parse_registries([("x.yaml", data)])
    for reference in ASKED:
        uses_attachments(registries, reference)
        lookaside_of(registries, reference)


def seeds_of(*images: str) -> list[bytes]:
    found = [each for image in images for each in cosign.candidates(image)]
    return [each.data if isinstance(each, Bundled) else each.payload for each in found]


def certificates() -> list[bytes]:
    bundle = parse_bundle(seeds_of("new-cert")[0])
    return [cosign.key_file("leaf.crt"), cosign.key_file("ca.crt"), *bundle.certificates]


READERS: dict[str, Callable[[], Reader]] = {
    "cosign-payload": lambda: Reader(read_payload, lambda: seeds_of("old-p256", "old-annot")),
    "bundle": lambda: Reader(read_bundle, lambda: seeds_of("new-p256", "new-cert", "att-only")),
    "statement": lambda: Reader(
        parse_statement,
        lambda: [parse_bundle(each).envelope.payload for each in seeds_of("new-annot", "att-only")],
    ),
    "pki": lambda: Reader(read_certificates, certificates),
    "log-entry": lambda: Reader(
        read_entry, lambda: [test_cosign_logs.old().annotations[ENTRY].encode()]
    ),
    "policy-json": lambda: Reader(
        read_policy, lambda: [json.dumps(WHOLE).encode(), json.dumps(WHOLE, indent=1).encode()]
    ),
    "registries-d": lambda: Reader(read_registries, lambda: [SPECIFIC]),
}
"""More readers for ``tests.trust.fuzz``."""
