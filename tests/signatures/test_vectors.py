"""The vectors of notation and cosign by the command, from layouts and from registries."""

import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.x509 import ocsp

from lazyfs.cli.main import cli
from tests.support.registries.registry import FakeRegistry
from tests.support.trust import cosign
from tests.support.trust.notation import NOTATION
from tests.trust.notation.test_vectors import (
    CASES,
    DOCUMENTS,
    INDEX,
    MISCONFIGURED,
    REFUSED,
    UNKNOWN,
    expected,
)

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
REPOSITORY = "team/app"
SAMPLE = sorted(CASES)[::12]
"""From the layout, where every manifest is looked into for each case."""


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder)  # vectors of our own
    (found,) = folder.rglob("oci-layout")
    return found.parent


def manifests_of(layout: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    for listed in json.loads((layout / "index.json").read_bytes())["manifests"]:
        yield listed, (layout / "blobs" / listed["digest"].replace(":", "/")).read_bytes()


def filled(registry: FakeRegistry, layout: Path, *, has_api: bool) -> None:
    """Push a layout's manifests; list referrers by the API, or under the tags of the schema."""
    listed: dict[str, list[dict[str, Any]]] = {}
    for described, data in manifests_of(layout):
        tag = described.get("annotations", {}).get("org.opencontainers.image.ref.name")
        registry.content.put_manifest(REPOSITORY, data, described["mediaType"], tag)
        subject = json.loads(data).get("subject")
        if subject is not None:
            entry = {key: described[key] for key in ("mediaType", "digest", "size")}
            listed.setdefault(subject["digest"], []).append(entry)
    if has_api:
        registry.list_referrers()
        return
    for digest, entries in listed.items():
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        tag = digest.replace(":", "-")
        registry.content.put_manifest(REPOSITORY, json.dumps(index).encode(), OCI_INDEX, tag)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(NOTATION / "layout.tar.xz", tmp_path_factory.mktemp("notation"))


@pytest.fixture(scope="module", params=["referrers API", "tag schema"])
def registry(layout: Path, request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as found:
        filled(found, layout, has_api=request.param == "referrers API")
        yield found


@pytest.fixture(scope="module")
def authorities() -> Iterator[str]:
    """A proxy that has the vectors' revocation lists and OCSP answers, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            path = NOTATION / "crl" / name
            self._answer(path if "crl.fixtures.test" in self.path else Path("/nowhere"), 404)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["content-length"]))
            serial = ocsp.load_der_ocsp_request(asked).serial_number
            names = {path.stem.lower(): path for path in (NOTATION / "ocsp").iterdir()}
            self._answer(names.get(f"{serial:x}", Path("/nowhere")), 500)

        def _answer(self, path: Path, otherwise: int) -> None:
            data = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if path.is_file() else otherwise)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(autouse=True)
def environment(authorities: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", authorities)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "store").symlink_to(NOTATION / "truststore")


def policy_of(case: str, level: str, folder: Path) -> Path:
    document = json.loads((NOTATION / "policies" / f"{CASES[case]['policy']}.json").read_bytes())
    for statement in document["trustPolicies"]:
        statement["signatureVerification"]["level"] = level
    path = folder / "trustpolicy.json"
    path.write_text(json.dumps(document))
    return path


def checked(*words: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(cli, ["trust", "check", "--json", *map(str, words)])
    text = done.stdout or done.stderr
    return done.exit_code, json.loads(text.strip().splitlines()[-1] if not done.stdout else text)


def check_case(case: str, level: str, image: str, folder: Path) -> None:
    code, found = checked(
        image,
        *("--policy", policy_of(case, level, folder), "--trust-store", folder / "store"),
        *("--as", INDEX["scope"], "--at", INDEX["verified_at"], "--revocation", "online"),
    )
    if case in MISCONFIGURED:
        assert code == 2
    elif expected(case, level) == "accept":
        assert (code, found["verdict"]) == (0, "trusted")
        assert found["reasons"] == []
    elif case in UNKNOWN:
        assert (code, found["verdict"]) == (5, "unknown")
    else:
        assert (code, found["verdict"]) == (6, "untrusted"), found
        assert found["reasons"]


@pytest.mark.parametrize("case", SAMPLE)
def test_from_a_layout(case: str, layout: Path, tmp_path: Path) -> None:
    check_case(case, "strict", f"oci:{layout}@{CASES[case]['digest']}", tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_from_a_registry(case: str, registry: FakeRegistry, tmp_path: Path) -> None:
    image = f"{registry.host}/{REPOSITORY}@{CASES[case]['digest']}"
    check_case(case, "strict", image, tmp_path)


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if "document" in each], ids=lambda each: each["id"]
)
def test_a_policy_document(document: dict[str, Any], tmp_path: Path) -> None:
    """Some that notation refuses are only found wanting when they are used."""
    path = tmp_path / "trustpolicy.json"
    path.write_text(document["document"])
    done = CliRunner().invoke(cli, ["trust", "policy", "check", str(path)])
    if document["expected"] == "accept" and document["id"] not in REFUSED:
        assert done.exit_code == 0, done.output
        assert "is a valid policy of notation" in done.stdout
    elif done.exit_code != 0:
        assert done.exit_code == 2
        assert str(path) in done.stderr


@pytest.fixture(scope="module", params=["referrers", "tags"])
def cosigned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, FakeRegistry]]:
    archive = cosign.VECTORS / f"layout-{request.param}.tar.xz"
    layout = unpacked(archive, tmp_path_factory.mktemp("cosign"))
    with FakeRegistry(layout) as found:
        if request.param == "referrers":
            filled(found, layout, has_api=True)
        yield request.param, found


COSIGN = {each["id"]: each for each in cosign.index()["cases"]}


@pytest.mark.parametrize("case", COSIGN)
def test_cosign_from_a_registry(
    case: str, cosigned: tuple[str, FakeRegistry], tmp_path: Path
) -> None:
    kind, registry = cosigned
    found = COSIGN[case]
    image = f"{registry.host}/{REPOSITORY}@{found['digest']}"
    words: list[object] = []
    if "--certificate-identity" in found["args"]:
        identity = found["args"][found["args"].index("--certificate-identity") + 1]
        policy = {"default": [cosign.certified(identity)]}
        path = tmp_path / "policy.json"
        path.write_text(json.dumps(policy))
        words = ["--policy", path]
    else:
        words = ["--key", cosign.VECTORS / "keys" / f"{found['key']}.pub"]
        words += found["args"] if "-a" in found["args"] else []
    code, document = checked(image, *words)
    name = "olareg" if kind == "referrers" else "docker-registry"
    exits = [each["exit"] for key, each in found.items() if key.endswith(f"/{name}")]
    advice = str(found.get("recommended", ""))
    is_good = advice.startswith("accept") if advice else 0 in exits
    if "tlog" in case:  # lazyfs asks for no transparency log
        is_good = True
    if not exits:  # not tried by cosign with this registry
        is_good = document["verdict"] == "trusted"
    assert (code == 0) == is_good, document
    assert document["verdict"] == ("trusted" if is_good else "untrusted")
