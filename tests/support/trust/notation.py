"""The vectors of tests/fixtures/trust/notation, and what judges them."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from lazyfs.digest import parse_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.notation.artifact import Candidate
from lazyfs.trust.notation.judge import Request, judge
from lazyfs.trust.notation.policy import StoreName, parse_policy
from lazyfs.trust.questions import Answers, Away, Question, refused_url
from lazyfs.trust.verdict import Verdict

NOTATION = Path(__file__).parents[2] / "fixtures" / "trust" / "notation"


class FixtureStores:
    """The trust stores of the vectors."""

    def files(self, store: StoreName) -> Sequence[tuple[str, bytes]]:
        folder = NOTATION / "truststore" / "x509" / store.kind / store.name
        if store.name == "empty":
            return []
        if not folder.is_dir():
            raise PolicyFault(f"trust store {store} does not exist")
        return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


class FixtureServers:
    """The servers of the vectors: lists by name, OCSP answers by serial number."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def answers(self, question: Question) -> Answers:
        self.asked.append(question)
        if (refused := refused_url(question.url)) is not None:
            return Away(refused)
        if question.kind == "crl":
            path = NOTATION / "crl" / question.url.rpartition("/")[2]
        else:
            path = NOTATION / "ocsp" / f"{question.serial:x}.der"
        return [path.read_bytes()] if path.exists() else Away("HTTP 404")


class Vectors:
    """All cases, and the layout they are in."""

    def __init__(self) -> None:
        self.index = json.loads((NOTATION / "index.json").read_bytes())
        self.cases: dict[str, dict[str, Any]] = {each["id"]: each for each in self.index["cases"]}
        self.now = datetime.fromisoformat(self.index["verified_at"])
        with tarfile.open(NOTATION / "layout.tar.xz") as tar:
            files = {
                member.name: stream.read()
                for member in tar
                if (stream := tar.extractfile(member)) is not None
            }
        self.blobs = {name.rpartition("/")[2]: data for name, data in files.items()}
        layout = json.loads(self.blobs.pop("index.json"))
        self.images: dict[str, Descriptor] = {}
        self.referrers: dict[str, list[Candidate]] = {}
        for entry in layout["manifests"]:
            self._sort(entry)

    def _sort(self, entry: dict[str, Any]) -> None:
        digest = parse_digest(entry["digest"])
        data = self.blobs[digest.hex]
        document = json.loads(data)
        for each in [entry, *document.get("manifests", [])]:
            described = Descriptor(each["mediaType"], parse_digest(each["digest"]), each["size"])
            self.images[each["digest"]] = described
        if "subject" in document:
            envelope = self.blobs[document["layers"][0]["digest"].partition(":")[2]]
            subject = document["subject"]["digest"]
            self.referrers.setdefault(subject, []).append(Candidate(digest, data, envelope))

    def policy(self, name: str, level: str = "strict") -> bytes:
        """Return a policy's bytes at another level; one for all repositories stays as it is."""
        document = json.loads((NOTATION / "policies" / f"{name}.json").read_bytes())
        for statement in document["trustPolicies"]:
            if level != "skip":
                statement["signatureVerification"]["level"] = level
            elif statement["registryScopes"] != ["*"]:
                statement["signatureVerification"] = {"level": "skip"}
                del statement["trustStores"], statement["trustedIdentities"]
        return json.dumps(document).encode()

    def candidates(self, case: str) -> list[Candidate]:
        return self.referrers.get(self.cases[case]["digest"], [])

    def envelope(self, case: str) -> bytes:
        return self.candidates(case)[0].envelope

    def request(self, case: str, **changes: Any) -> Request:
        digest = self.cases[case]["digest"]
        reference = parse_reference(f"{self.index['scope']}@{digest}")
        given: dict[str, Any] = {
            "reference": reference,
            "image": self.images[digest],
            "now": self.now,
            **changes,
        }
        return Request(**given)

    def judge(self, case: str, level: str = "strict", policy: str | None = None) -> Verdict:
        """Return the verdict on a case.  Raises PolicyFault."""
        data = self.policy(policy or self.cases[case]["policy"], level)
        return judge(
            parse_policy(data, "trustpolicy.json"),
            FixtureStores(),
            self.request(case),
            self.candidates(case),
            FixtureServers(),
        )


@cache
def vectors() -> Vectors:
    """Return the vectors, unpacked once."""
    return Vectors()


def certificates() -> Iterator[bytes]:
    """Yield the files of all trust stores."""
    for path in sorted((NOTATION / "truststore").rglob("*")):
        if path.is_file():
            yield path.read_bytes()
