"""What a registry and those who push to it can do: an image is refused, with the right exit code,
soon, and with nothing for the terminal but text."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lazyfs.cli.main import cli
from lazyfs.signatures.find import ATTEMPTS, BLOB_LIMIT, LAYER_LIMIT
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    sha256,
    tagged,
    tar_bytes,
)
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer, Request
from tests.support.trust import pki
from tests.support.trust.signing import (
    BUNDLE,
    JWS,
    NOTATION,
    OCI_CONFIG,
    OCI_MANIFEST,
    SIMPLE,
    Cosigner,
    Notary,
    described,
)

NAME = "team/app"
INDEX = "application/vnd.oci.image.index.v1+json"
SECONDS = 30.0  # of processor time, for all that one command does; much less is used
GOOD, USAGE, UNKNOWN, UNTRUSTED = 0, 2, 5, 6
ESCAPE = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\nlevel  trusted\u202e"
Proceed = Callable[[Request], Answer]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    make_layout(path, [estargz_layer(tar_bytes([directory("d"), file("d/f", b"x")]))])
    return path


@pytest.fixture(scope="module")
def notary() -> Notary:
    return Notary()


@pytest.fixture
def subject(layout: Path) -> dict[str, Any]:
    return {key: tagged(layout)[key] for key in ("mediaType", "digest", "size")}


@pytest.fixture
def registry(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAZYFS_CACHE_DIR", str(tmp_path / "cache"))
    with FakeRegistry(layout) as found:
        found.list_referrers()
        yield found


def verdict(registry: FakeRegistry, policy: Path) -> int:
    """Return the exit code that ``trust check`` and ``ls`` agree on, with sound output."""
    image = f"{registry.host}/{NAME}:latest"
    codes = set()
    for words in (("trust", "check", image), ("trust", "check", "--json", image), ("ls", image)):
        began = time.process_time()
        done = CliRunner().invoke(cli, [*words, "--policy", str(policy)])
        assert time.process_time() - began < SECONDS
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.output
        for mark in ("\x1b", "\x07", "\x9b", "\r", "\u202e"):
            assert mark not in done.output, done.output
        assert len(done.output) < 100_000
        codes.add(done.exit_code)
    (code,) = codes
    return int(code)


def answer(registry: FakeRegistry, part: str, given: Callable[[Request], Answer]) -> None:
    """Answer what is asked for below *part* of a path otherwise."""

    def rule(request: Request, proceed: Proceed) -> Answer:
        return given(request) if part in request.path else proceed(request)

    registry.wrap(rule)


def put(registry: FakeRegistry, manifest: dict[str, Any], tag: str | None = None) -> str:
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, **manifest}
    return registry.put_manifest(NAME, json.dumps(document).encode(), OCI_MANIFEST, tag)


def signature(
    registry: FakeRegistry,
    subject: dict[str, Any],
    envelope: bytes,
    changes: dict[str, Any] | None = None,
) -> str:
    """Push *envelope* as notation would; *changes* are to the manifest."""
    for data in (b"{}", envelope):
        registry.put_blob(NAME, data)
    manifest = {
        "config": described(NOTATION, b"{}"),
        "layers": [described(JWS, envelope)],
        "subject": subject,
    }
    return put(registry, {**manifest, **(changes or {})})


def entries(count: int, kind: str = NOTATION) -> list[dict[str, Any]]:
    return [
        described(OCI_MANIFEST, b"%d" % number, artifactType=kind, annotations={"n": "x" * 20})
        for number in range(count)
    ]


def scope(registry: FakeRegistry) -> str:
    return f"{registry.host}/{NAME}"


@pytest.mark.parametrize("kind", ["one list", "pages", "tag schema"])
@pytest.mark.parametrize("is_signed", [False, True])
def test_ten_thousand_referrers(
    registry: FakeRegistry,
    subject: dict[str, Any],
    tmp_path: Path,
    notary: Notary,
    kind: str,
    *,
    is_signed: bool,
) -> None:
    """None is there but, at the end, the good one: it may be seen, or not; nothing runs away."""
    good = [described(OCI_MANIFEST, b"", artifactType=NOTATION)][: int(is_signed)]
    if is_signed:
        digest = notary.sign(registry, NAME, subject)
        stored = registry.content.manifest(NAME, digest)
        assert stored is not None
        good[0].update(digest=digest, size=len(stored.data))
    listed = [*entries(10_000), *good]

    def page(request: Request) -> Answer:
        size = 500 if kind == "pages" else len(listed)
        start = int(request.query.get("from", "0"))
        fields = {"Content-Type": INDEX}
        if start + size < len(listed):
            fields["Link"] = f'<{request.path}?from={start + size}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed[start : start + size]}
        return Answer(200, fields, json.dumps(index).encode())

    if kind == "tag schema":
        registry.referrers = None
        answer(registry, f"manifests/{subject['digest'].replace(':', '-')}", page)
    else:
        answer(registry, "/referrers/", page)
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == UNKNOWN
    # Three commands, each with its list and what is looked at of it.
    assert len(registry.requests) < 3 * (ATTEMPTS + 30)


def test_a_good_signature_among_ten_thousand_other_artifacts(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    """What is no signature by its own account does not take a signature's place."""
    digest = notary.sign(registry, NAME, subject)
    stored = registry.content.manifest(NAME, digest)
    assert stored is not None
    good = described(OCI_MANIFEST, stored.data, artifactType=NOTATION)
    listed = [*entries(900, "application/vnd.example.sbom"), good]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    body = json.dumps(index).encode()
    answer(registry, "/referrers/", lambda _: Answer(200, {"Content-Type": INDEX}, body))
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == GOOD


def test_a_chain_of_a_thousand_certificates(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    certificate = base64.b64encode(pki.root().der).decode()
    envelope = json.loads(notary.envelope(subject))
    envelope["header"]["x5c"] = [*envelope["header"]["x5c"][:1], *[certificate] * 1000]
    data = json.dumps(envelope).encode()
    assert len(data) < BLOB_LIMIT
    signature(registry, subject, data)
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == UNTRUSTED


def test_an_envelope_of_32_mib(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    """It might be the good one, were it looked at."""
    envelope = notary.envelope(subject) + b" " * (32 << 20)
    signature(registry, subject, envelope)
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == UNKNOWN
    digest = sha256(envelope)
    assert sum(each.size for each in registry.requests if digest in each.path) <= 3 * BLOB_LIMIT


def test_an_envelope_longer_than_announced(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    envelope = notary.envelope(subject)
    signature(registry, subject, envelope)
    body = envelope + b" " * (32 << 20)
    answer(registry, f"/blobs/{sha256(envelope)}", lambda _: Answer(200, {}, body, chunked=True))
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) != GOOD
    sent = [each.size for each in registry.requests if sha256(envelope) in each.path]
    assert max(sent) < 16 << 20  # what the sockets hold, and no more


def test_manifests_without_an_end(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    listed = entries(ATTEMPTS)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    body = json.dumps(index).encode()
    answer(registry, "/referrers/", lambda _: Answer(200, {"Content-Type": INDEX}, body))
    endless = b'{"schemaVersion": 2, ' + b" " * (64 << 20)

    def manifest(request: Request) -> Answer:
        return Answer(200, {"Content-Type": OCI_MANIFEST}, endless, chunked=True)

    for each in listed:
        answer(registry, f"/manifests/{each['digest']}", manifest)
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == UNKNOWN


@pytest.mark.parametrize("count", [LAYER_LIMIT, LAYER_LIMIT + 1])
def test_a_manifest_with_many_signatures(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, count: int
) -> None:
    """As many as are looked at are looked at: none is good.  One more, and nobody can tell."""
    signer = Cosigner()
    payloads = [b'{"critical": %d}' % number for number in range(count)]
    for data in (b"{}", *payloads):
        registry.put_blob(NAME, data)
    note = {"dev.cosignproject.cosign/signature": base64.b64encode(b"x" * 70).decode()}
    layers = [described(SIMPLE, data, annotations=note) for data in payloads]
    tag = f"{subject['digest'].replace(':', '-')}.sig"
    put(registry, {"config": described(OCI_CONFIG, b"{}"), "layers": layers}, tag)
    expected = UNTRUSTED if count == LAYER_LIMIT else UNKNOWN
    assert verdict(registry, signer.policy(tmp_path, scope(registry))) == expected


def test_a_signatures_tag_that_names_an_index(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path
) -> None:
    signer = Cosigner()
    signer.sign(registry, NAME, subject["digest"], identity=f"{scope(registry)}:latest")
    tag = f"{subject['digest'].replace(':', '-')}.sig"
    stored = registry.content.manifest(NAME, tag)
    assert stored is not None
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [described(OCI_MANIFEST, stored.data)],
    }
    policy = signer.policy(tmp_path, scope(registry))
    assert verdict(registry, policy) == GOOD
    registry.put_manifest(NAME, json.dumps(index).encode(), INDEX, tag)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAZYFS_CACHE_DIR", str(fresh))
        assert verdict(registry, policy) == UNTRUSTED


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_signatures_tag_that_may_not_be_read(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, status: int
) -> None:
    signer = Cosigner()
    answer(registry, ".sig", lambda _: Answer(status, {"Retry-After": "0"}))
    assert verdict(registry, signer.policy(tmp_path, scope(registry))) == UNKNOWN
    identity = {"type": "matchDigestOnly"}
    signer.bundle(registry, NAME, subject)
    lenient = signer.policy(tmp_path, scope(registry), signedIdentity=identity)
    assert verdict(registry, lenient) == GOOD


PAGE = b"<!doctype html><title>Sign in</title>" + b"<p>x" * 1000


@pytest.mark.parametrize("media_type", ["text/html", "application/json", INDEX, ""])
@pytest.mark.parametrize("has_tag", [False, True])
def test_a_page_for_people_in_the_place_of_the_list(
    registry: FakeRegistry,
    subject: dict[str, Any],
    tmp_path: Path,
    notary: Notary,
    media_type: str,
    *,
    has_tag: bool,
) -> None:
    """One that says it is one means that there is no API; another answer means nothing."""
    digest = notary.sign(registry, NAME, subject)
    stored = registry.content.manifest(NAME, digest)
    assert stored is not None
    fields = {"Content-Type": media_type} if media_type else {}
    answer(registry, "/referrers/", lambda _: Answer(200, fields, PAGE))
    if has_tag:
        listed = [described(OCI_MANIFEST, stored.data)]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        tag = subject["digest"].replace(":", "-")
        registry.put_manifest(NAME, json.dumps(index).encode(), INDEX, tag)
    expected = UNKNOWN
    if media_type == "text/html":
        expected = GOOD if has_tag else UNTRUSTED
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == expected


# Text of strangers


def test_names_of_certificates_with_escapes(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    root = pki.issue(ESCAPE[:60], authority=True)
    leaf = pki.issue(ESCAPE[:60], root)
    signature(
        registry, subject, pki.jws([leaf, root], pki.payload(subject["digest"], subject["size"]))
    )
    policy = notary.policy(tmp_path, scope(registry))
    assert verdict(registry, policy) == UNTRUSTED
    store = policy.parent / "truststore/x509/ca/publisher/second.pem"
    store.write_bytes(root.pem)
    assert verdict(registry, policy) == GOOD


@pytest.mark.parametrize("place", ["layer", "annotations", "payload", "subject"])
def test_manifests_and_envelopes_with_escapes(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary, place: str
) -> None:
    envelope = notary.envelope(subject)
    changes: dict[str, Any] = {}
    if place == "layer":
        changes["layers"] = [{**described(JWS, envelope), "mediaType": f"a/{ESCAPE}"}]
    elif place == "annotations":
        changes["annotations"] = {ESCAPE: ESCAPE}
        envelope = envelope[:-5]
    elif place == "payload":
        envelope = Notary(ESCAPE[:50]).envelope({**subject, "mediaType": ESCAPE})
    else:
        changes["subject"] = {**subject, "mediaType": ESCAPE}
        envelope = envelope.replace(b'"signature":"', f'"{"x"}":"'.encode())
    signature(registry, subject, envelope, changes)
    code = verdict(registry, notary.policy(tmp_path, scope(registry)))
    assert code in (UNKNOWN, UNTRUSTED)


def test_names_that_cosign_signed_with_escapes(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path
) -> None:
    signer = Cosigner()
    signer.sign(registry, NAME, subject["digest"], identity=f"{registry.host}/{ESCAPE}")
    data = json.dumps({"mediaType": f"{BUNDLE}{ESCAPE}", ESCAPE: ESCAPE}).encode()
    for blob in (b"{}", data):
        registry.put_blob(NAME, blob)
    kind = f"{BUNDLE}"
    manifest = {"artifactType": kind, "config": described(OCI_CONFIG, b"{}"), "subject": subject}
    put(registry, {**manifest, "layers": [described(kind, data)]})
    assert verdict(registry, signer.policy(tmp_path, scope(registry))) == UNTRUSTED


def test_an_error_of_the_registry_with_escapes(
    registry: FakeRegistry, subject: dict[str, Any], tmp_path: Path, notary: Notary
) -> None:
    errors = {"errors": [{"code": ESCAPE, "message": ESCAPE, "detail": ESCAPE}]}
    body = json.dumps(errors).encode()
    answer(registry, "/referrers/", lambda _: Answer(403, {}, body))
    assert verdict(registry, notary.policy(tmp_path, scope(registry))) == UNKNOWN


def test_a_policy_with_escapes(registry: FakeRegistry, tmp_path: Path, notary: Notary) -> None:
    path = notary.policy(tmp_path, scope(registry))
    document = json.loads(path.read_bytes())
    for change in ({"name": ESCAPE}, {"trustStores": [f"ca:{ESCAPE}"]}, {"trustedIdentities": []}):
        changed = {**document["trustPolicies"][0], **change}
        path.write_text(json.dumps({"version": "1.0", "trustPolicies": [changed]}))
        assert verdict(registry, path) in (USAGE, UNTRUSTED)
