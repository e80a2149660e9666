"""The referrers API of the fake registry."""

import json
from dataclasses import dataclass
from urllib.parse import quote

from tests.support.registries.registry_content import OCI_INDEX, Content, Stored
from tests.support.registries.registry_wire import Answer, Request


def described(stored: Stored) -> dict | None:
    """Return how a manifest is listed among its subject's referrers; None if it has no subject."""
    document = json.loads(stored.data)
    if not isinstance(document, dict) or "subject" not in document:
        return None
    listed = {
        "mediaType": stored.media_type,
        "digest": stored.digest,
        "size": len(stored.data),
        "artifactType": document.get("artifactType") or document["config"]["mediaType"],
    }
    if document.get("annotations"):
        listed["annotations"] = document["annotations"]
    return listed


@dataclass
class ReferrersApi:
    """Lists in pages of *page_size*; filters only if *filters*, and then says so."""

    content: Content
    page_size: int = 1000
    filters: bool = False

    def answer(self, request: Request, name: str, digest: str) -> Answer:
        found = []
        for stored in self.content.manifests(name):
            listed = described(stored)
            if listed and json.loads(stored.data)["subject"]["digest"] == digest:
                found.append(listed)
        fields = {"Content-Type": OCI_INDEX}
        wanted = request.query.get("artifactType")
        if wanted and self.filters:
            found = [each for each in found if each["artifactType"] == wanted]
            fields["OCI-Filters-Applied"] = "artifactType"
        start = int(request.query.get("from", "0"))
        if start + self.page_size < len(found):
            query = f"from={start + self.page_size}" + (
                f"&artifactType={quote(wanted)}" if wanted else ""
            )
            fields["Link"] = f'</v2/{name}/referrers/{digest}?{query}>; rel="next"'
        page = found[start : start + self.page_size]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        return Answer(200, fields, json.dumps(index).encode())
