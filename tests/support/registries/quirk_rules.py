"""What registries do otherwise than the specification, as rules of the fake registry.

    misbehave(site, "the quirk", rule)

A rule is a function from a request and the way to the right answer to the answer that is sent, or
None where it has nothing to say; the quirk is met once it has had something to say.
"""

import json
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.registries.registry import FakeRegistry, Proceed
from tests.support.registries.registry_auth import ROUTE_RE, error, scopes_asked
from tests.support.registries.registry_content import OCI_INDEX, OCI_MANIFEST
from tests.support.registries.registry_wire import Answer, Request

NAME = "team/app"
USERS = {"user": "secret"}
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
Rule = Callable[[Request, Proceed], Answer | None]
Change = Callable[[Answer], Answer | None]


@dataclass
class Site:
    """A registry with its peculiarities, and what a user needs to reach it.

    ``storage`` serves the blobs that the registry redirects to, ``mirror`` is asked first where
    there is one; ``met`` are the quirks that answered something.
    """

    registry: FakeRegistry
    storage: FakeRegistry
    mirror: FakeRegistry
    folder: Path
    authfile: Path | None = None
    is_private: bool = False
    hosts_dir: Path | None = None
    met: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    @property
    def image(self) -> str:
        return f"{self.registry.host}/{NAME}"

    def is_first(self, what: str) -> bool:
        """Say whether this is the first time in this command."""
        is_first = what not in self.done
        self.done.add(what)
        return is_first

    def log_in(self, *, token: str | None = None, is_private: bool = False) -> None:
        """Give the user credentials: a password, or an identity *token*."""
        entry = {"auth": "dXNlcjpzZWNyZXQ="} if token is None else {"identitytoken": token}
        self.authfile = self.folder / "auth.json"
        self.authfile.write_text(json.dumps({"auths": {self.registry.host: entry}}))
        self.is_private = is_private

    def use_mirror(self, headers: dict[str, str] | None = None) -> None:
        """Have the mirror asked first, with *headers*; the registry gives no blob of the image."""
        self.hosts_dir = self.folder / "certs.d"
        folder = self.hosts_dir / self.registry.host
        folder.mkdir(parents=True)
        lines = [f'[host."{self.mirror.url}"]', 'capabilities = ["pull", "resolve"]']
        if headers:
            lines.append(f'[host."{self.mirror.url}".header]')
            lines += [f'{name} = ["{value}"]' for name, value in headers.items()]
        (folder / "hosts.toml").write_text("\n".join(lines))

        def refuse(request: Request, proceed: Proceed) -> Answer:
            is_read = request.method == "GET" and request.path.startswith(f"/v2/{NAME}/blobs/")
            of_image = self.mirror.content.blob(NAME, request.path.rpartition("/")[2])
            return error(503, "UNAVAILABLE") if is_read and of_image else proceed(request)

        self.registry.wrap(refuse)


def misbehave(site: Site, what: str, rule: Rule, *, at: FakeRegistry | None = None) -> None:
    """Add *rule* to the registry, or to the one that it is said to be *at*."""

    def wrapped(request: Request, proceed: Proceed) -> Answer:
        right: list[Answer] = []  # asked for once: it may have changed something

        def look(other: Request) -> Answer:
            answer = proceed(other)
            if other is request:
                right.append(answer)
            return answer

        answer = rule(request, look)
        if answer is None:
            return right[0] if right else proceed(request)
        site.met.add(what)
        return answer

    (site.registry if at is None else at).wrap(wrapped)


# What a rule is made of


def kind_of(request: Request) -> str:
    """Return ``manifests``, ``blobs``, ``uploads``, ``referrers``, ``tags`` or ``""``."""
    match = ROUTE_RE.fullmatch(request.path)
    if match is None:
        return ""
    return "uploads" if match["rest"].startswith("uploads/") else match["kind"]


def changed(
    kinds: Collection[str], change: Change, *, status: int | None = 200, method: str | None = None
) -> Rule:
    """Change the answers to requests of some *kinds*."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if kind_of(request) not in kinds or method not in (None, request.method):
            return None
        answer = proceed(request)
        return change(answer) if status in (None, answer.status) else None

    return rule


def without(*names: str) -> Change:
    """Leave header fields out."""
    return lambda answer: replace(
        answer, headers={k: v for k, v in answer.headers.items() if k not in names}
    )


def with_fields(**fields: str) -> Change:
    """Add header fields, or send others; ``_`` stands for ``-``."""
    added = {name.replace("_", "-"): value for name, value in fields.items()}
    return lambda answer: replace(answer, headers={**answer.headers, **added})


def no_length(answer: Answer) -> Answer:
    return replace(answer, chunked=True)


# Tokens and credentials


def tokens(site: Site, *, is_public: bool = True) -> None:
    """Have a token service, which gives anybody tokens to pull and the user all others."""
    site.registry.require_bearer(USERS, is_public=is_public, identity_tokens={"refresh": "user"})
    site.log_in()


def token_answer(change: Callable[[dict], dict]) -> Rule:
    """Change the JSON of a token that is given."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if request.path != "/_token":
            return None
        answer = proceed(request)
        if answer.status != 200:
            return None
        body = json.dumps(change(json.loads(answer.content()))).encode()
        return replace(answer, body=body)

    return rule


def only_last_scope(request: Request, proceed: Proceed) -> Answer | None:
    asked = scopes_asked(request) if request.path == "/_token" else []
    if not asked:
        return None
    path = request.target.partition("?")[0]
    return proceed(replace(request, target=f"{path}?scope={asked[-1]}"))


def no_token_without_scope(request: Request, proceed: Proceed) -> Answer | None:
    if request.path != "/_token":
        return None
    return proceed(request) if scopes_asked(request) else error(401, "UNAUTHORIZED")


def challenge(pattern: str, new: str) -> Rule:
    """Write another WWW-Authenticate: what *pattern* matches becomes *new*."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        answer = proceed(request)
        said = answer.headers.get("WWW-Authenticate")
        if said is None:
            return None
        return with_fields(WWW_Authenticate=re.sub(pattern, new, said))(answer)

    return rule


def too_early(site: Site) -> Rule:
    """Refuse the first request of a command that brings a token."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if "authorization" not in request.headers or not kind_of(request):
            return None
        if not site.is_first("too early"):
            return None
        fields = {k: v for k, v in request.headers.items() if k != "authorization"}
        return proceed(replace(request, headers=fields))

    return rule


def basic_instead(site: Site) -> Rule:
    """Offer only Basic to who brings a token that is no good; tokens end in mid-command."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if not request.headers.get("authorization", "").startswith("Bearer "):
            return None
        if kind_of(request) == "blobs" and site.is_first("tokens end"):
            site.registry.expire_tokens()
        answer = proceed(request)
        if answer.status != 401:
            return None
        return with_fields(WWW_Authenticate='Basic realm="harbor"')(answer)

    return rule


def mount_needs_scope(site: Site) -> Rule:
    """Give a blob to another repository only to who may pull from the first."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        source = request.query.get("from")
        if request.method != "POST" or source is None:
            return None
        allowed = f"repository:{source}:pull" in site.registry.scopes_of(request)
        return proceed(request) if allowed else error(401, "UNAUTHORIZED")

    return rule


# Redirects


def redirects(site: Site, *, refuses_head: bool = False) -> None:
    """Serve blobs from a storage that refuses an Authorization, by URLs that expire."""
    site.registry.redirect_blobs(site.storage.url)
    site.storage.share_signatures(site.registry)


def expiring(site: Site) -> Rule:
    """Let the first signed URL of a command that is used again be of no use."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if request.method != "GET":
            return error(403, "DENIED")
        if request.target not in site.done:
            site.done.add(request.target)
            return None
        return error(403, "DENIED") if site.is_first("expired") else None

    return rule


def storage_needs_none(request: Request, proceed: Proceed) -> Answer | None:
    """Refuse credentials, and be met by any request."""
    return error(400, "INVALID") if "authorization" in request.headers else proceed(request)


# Manifests


def accepting(listed: Callable[[Request], Collection[str]], refusal: int = 404) -> Rule:
    """Serve a manifest only to who accepts its very type, as *listed* reads what is accepted."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        answer = proceed(request)
        if kind_of(request) != "manifests" or request.method != "GET" or answer.status != 200:
            return None
        wanted = answer.headers["Content-Type"].partition(";")[0]
        return answer if wanted in listed(request) else error(refusal, "MANIFEST_UNKNOWN")

    return rule


def lines(request: Request) -> Collection[str]:
    """Each line of Accept is one type."""
    return request.accepts


def first_line(request: Request) -> Collection[str]:
    """Only the first line of Accept is looked at."""
    return [each.strip() for each in request.accepts[0].split(",")] if request.accepts else ()


def plain_types(request: Request) -> Collection[str]:
    """Types with parameters are not understood."""
    return [each.strip() for each in ",".join(request.accepts).split(",")]


def schema1_for_old(request: Request, proceed: Proceed) -> Answer | None:
    if kind_of(request) != "manifests" or request.method != "GET":
        return None
    accepted = ", ".join(request.accepts)
    if OCI_INDEX in accepted or OCI_MANIFEST in accepted:
        return proceed(request)
    return Answer(200, {"Content-Type": SCHEMA1}, b"{}")


def no_head(request: Request, proceed: Proceed) -> Answer | None:
    if kind_of(request) != "manifests":
        return None
    return Answer(405) if request.method == "HEAD" else proceed(request)


def missing_is(status: int, kinds: Collection[str]) -> Rule:
    """Say something else than 404 of what is not there."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        answer = proceed(request)
        if kind_of(request) not in kinds or answer.status != 404:
            return None
        return error(status, "DENIED" if status == 403 else "UNAUTHORIZED")

    return rule


# Blobs


def many_ranges(refusal: int | None) -> Rule:
    """Refuse several ranges in one request; None: send the whole blob."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if "range" not in request.headers:
            return None
        if "," not in request.headers["range"]:
            return proceed(request)
        fields = {k: v for k, v in request.headers.items() if k != "range"}
        return error(refusal, "X") if refusal else proceed(replace(request, headers=fields))

    return rule


def no_ranges(request: Request, proceed: Proceed) -> Answer | None:
    if "range" not in request.headers:
        return None
    return proceed(
        replace(request, headers={k: v for k, v in request.headers.items() if k != "range"})
    )


def unit_lost(request: Request, proceed: Proceed) -> Answer | None:
    answer = proceed(request)
    said = answer.headers.get("Content-Range", "")
    if answer.status != 206:
        return None
    return with_fields(Content_Range=said.removeprefix("bytes "))(answer)


def head_lies(request: Request, proceed: Proceed) -> Answer | None:
    if kind_of(request) != "blobs" or request.method != "HEAD":
        return None
    return Answer(404) if proceed(request).status == 200 else None


def unlisted_is_missing(site: Site) -> Rule:
    """Have no blob that no manifest lists."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        match = ROUTE_RE.fullmatch(request.path)
        if match is None or kind_of(request) != "blobs":
            return None
        answer = proceed(request)
        pushed = [stored.data for stored in site.registry.content.manifests(match["name"])]
        if match["name"] == NAME or any(match["rest"].encode() in data for data in pushed):
            return answer
        return error(404, "BLOB_UNKNOWN")

    return rule


def limited(site: Site, seconds: Callable[[], str]) -> Rule:
    """Answer 429 to one request of a command."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if kind_of(request) != "blobs" or not site.is_first("limited"):
            return None
        return Answer(429, {"Retry-After": seconds()})

    return rule


def epoch() -> str:
    return str(int(time.time()))


# Uploads


def location(change: Callable[[str], str]) -> Rule:
    """Say otherwise where an upload goes on."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        answer = proceed(request)
        if kind_of(request) != "uploads" or answer.status != 202:
            return None
        return with_fields(Location=change(answer.headers["Location"]))(answer)

    return rule


def stale_range(request: Request, proceed: Proceed) -> Answer | None:
    if request.method != "PATCH":
        return None
    answer = proceed(request)
    return with_fields(Range="0-9")(answer) if answer.status == 202 else None


def no_pieces(request: Request, proceed: Proceed) -> Answer | None:
    return error(400, "UNSUPPORTED") if request.method == "PATCH" else None


def only_pieces(request: Request, proceed: Proceed) -> Answer | None:
    is_whole = request.method == "PUT" and kind_of(request) == "uploads" and request.body
    return error(400, "BLOB_UPLOAD_INVALID") if is_whole else None


def body_limit(limit: int) -> Rule:
    """Refuse larger bodies, as if it was the range that was wrong."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if kind_of(request) != "uploads" or len(request.body) <= limit:
            return None
        return error(416, "REQUESTED_RANGE_NOT_SATISFIABLE")

    return rule


# Referrers


def subject_for_tag(site: Site) -> Rule:
    """Take the tag that stands for referrers for the digest that it is made of."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        match = ROUTE_RE.fullmatch(request.path)
        if match is None or not match["rest"].startswith("sha256-") or request.method != "GET":
            return None
        if site.registry.content.manifest(match["name"], match["rest"]) is not None:
            return None
        return proceed(replace(request, target=request.target.replace("sha256-", "sha256:")))

    return rule


def empty_page(request: Request, proceed: Proceed) -> Answer | None:
    """Answer everything with a page for people."""
    if kind_of(request) != "referrers":
        return None
    return Answer(200, {"Content-Type": "text/html"}, b"<html><body>registry</body></html>")


def next_link(change: Callable[[str], str]) -> Rule:
    """Spell the link to the next page otherwise."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        answer = proceed(request)
        said = answer.headers.get("Link")
        return None if said is None else with_fields(Link=change(said))(answer)

    return rule


# Mirrors


def needs(name: str, value: str | None) -> Rule:
    """Serve only requests with the header *name*, or the query parameter if no *value* is given."""

    def rule(request: Request, proceed: Proceed) -> Answer | None:
        if not kind_of(request):
            return None
        if value is None:
            is_there = name in request.query
        else:
            is_there = request.headers.get(name.lower()) == value
        return proceed(request) if is_there else error(404, "NAME_UNKNOWN")

    return rule
