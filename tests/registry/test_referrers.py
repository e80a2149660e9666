"""Referrers: the API, the tag that stands for it, and what a pusher does where there is no API."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import AccessDenied, LazyfsError, Unavailable
from lazyfs.oci.manifest import OCI_INDEX, OCI_MANIFEST
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.answers.links import parse_next
from lazyfs.registry.answers.referrers import Support, add_referrer, lists, referrer_of, tag_of
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.config.endpoints import ALL, PULL, Endpoint
from lazyfs.registry.config.errors import BadAnswer, Unsettled
from lazyfs.registry.source import AccessOptions
from tests.support.registries import faults
from tests.support.registries.clients import FAST, NAME, ONCE, connected
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer, Request

SUBJECT = digest_of(b"subject")
EMPTY = {
    "mediaType": "application/vnd.oci.empty.v1+json",
    "digest": str(digest_of(b"{}")),
    "size": 2,
}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def artifact(kind: str, note: str = "", subject: Digest | None = SUBJECT) -> bytes:
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": EMPTY,
        "layers": [EMPTY],
    }
    if subject is not None:
        document["subject"] = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 7}
    if note:
        document["annotations"] = {"note": note}
    return json.dumps(document).encode()


async def push(client: RegistryClient, *kinds: str) -> list[Digest]:
    return [
        await client.push_manifest(artifact(kind, f"{number}"), OCI_MANIFEST, None)
        for number, kind in enumerate(kinds)
    ]


# Asking


@pytest.mark.anyio
async def test_the_three_answers(registry: FakeRegistry) -> None:
    async with connected(registry, policy=ONCE) as client:
        none = await client.fetch_referrers(SUBJECT)
        assert (none.found, none.support) == ((), Support.NONE)
        registry.list_referrers()
        empty = await client.fetch_referrers(SUBJECT)
        assert (empty.found, empty.support) == ((), Support.API)
        for code, family in ((429, Unavailable), (500, Unavailable), (401, AccessDenied)):
            registry.faults.add(faults.status(code))
            with pytest.raises(family):
                await client.fetch_referrers(SUBJECT)


@pytest.mark.anyio
async def test_a_tag_that_cannot_be_read_is_no_answer(registry: FakeRegistry) -> None:
    registry.faults.add(faults.status(503), path="/manifests/", times=None)
    async with connected(registry) as client:
        with pytest.raises(Unavailable):
            await client.fetch_referrers(SUBJECT)


@pytest.mark.anyio
@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("page_size", [1, 2, 1000])
async def test_pages_and_filters(registry: FakeRegistry, filters: bool, page_size: int) -> None:
    registry.list_referrers(page_size=page_size, filters=filters)
    async with connected(registry) as client:
        first, _, third, _ = await push(client, "a/b+json", "other", "a/b+json", "other")
        found = await client.fetch_referrers(SUBJECT, "a/b+json")
        assert [each.digest for each in found.found] == [first, third]
        assert found.found[0].annotations == {"note": "0"}
        assert found.found[0].artifact_type == "a/b+json"
        assert (found.support, found.is_truncated) == (Support.API, False)
        assert len((await client.fetch_referrers(SUBJECT)).found) == 4
    assert registry.count("GET", "artifactType=a/b%2Bjson") >= 1


@pytest.mark.anyio
async def test_no_more_pages_than_enough(registry: FakeRegistry) -> None:
    registry.list_referrers(page_size=1)
    async with connected(registry) as client:
        await push(client, *["x"] * 20)
        registry.forget_requests()
        found = await client.fetch_referrers(SUBJECT)
    assert len(found.found) == 16
    assert found.is_truncated
    assert len(registry.requests) == 16


def links(target: str) -> faults.Behaviour:
    return faults.headers({"Link": f'<{target}>; rel="next"'})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (links("http://127.0.0.2:1/x"), "another host"),
        (links("ftp://x"), "http"),
        (faults.replaced(b"<html>"), "not a valid manifest"),
        (
            faults.replaced(b'{"schemaVersion": 2, "config": {}, "layers": []}'),
            "not a valid manifest",
        ),
        (
            faults.replaced(b'{"schemaVersion": 2, "manifests": [{"digest": "x"}]}'),
            "not a valid manifest",
        ),
    ],
)
async def test_a_page_that_is_none_is_no_answer(
    registry: FakeRegistry, behaviour: faults.Behaviour, says: str
) -> None:
    registry.list_referrers()
    registry.faults.add(behaviour, path="/referrers/", times=None)
    async with connected(registry, policy=ONCE) as client:
        with pytest.raises(BadAnswer, match=says):
            await client.fetch_referrers(SUBJECT)


@pytest.mark.anyio
async def test_a_later_page_that_is_missing_is_no_answer(registry: FakeRegistry) -> None:
    registry.list_referrers(page_size=1)
    async with connected(registry, policy=ONCE) as client:
        await push(client, "x", "x")
        registry.faults.add(faults.status(404), path="from=1")
        with pytest.raises(BadAnswer, match="later page"):
            await client.fetch_referrers(SUBJECT)


@pytest.mark.anyio
@pytest.mark.parametrize("code", [400, 404, 405, 501])
async def test_old_registries_say_in_several_ways_that_there_is_no_api(
    registry: FakeRegistry, code: int
) -> None:
    registry.faults.add(faults.status(code), path="/referrers/", times=None)
    async with connected(registry, policy=ONCE) as client:
        (pushed,) = await push(client, "x")
        found = await client.fetch_referrers(SUBJECT)
    assert [each.digest for each in found.found] == [pushed]
    assert found.support is Support.TAG


@pytest.mark.anyio
async def test_mirrors_are_asked_only_if_they_may_be() -> None:
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        mirror.list_referrers()
        origin.list_referrers()
        async with connected(origin) as client:
            (pushed,) = await push(client, "x")
        reference = parse_reference(f"{origin.host}/{NAME}")
        assert isinstance(reference, Reference)
        for capabilities, asked in ((frozenset({PULL}), 0), (ALL, 1)):
            endpoints = [
                Endpoint(mirror.url, "m", NAME, is_origin=False, capabilities=capabilities),
                Endpoint(origin.url, "r", NAME),
            ]
            client = RegistryClient(reference, AccessOptions(), policy=FAST, endpoints=endpoints)
            found = await client.fetch_referrers(SUBJECT)
            assert len(mirror.requests) == asked
            assert len(found.found) == (0 if asked else 1), "the mirror's word, if it is asked"
            await client.aclose()
        mirror.faults.add(faults.status(500), times=None)
        client = RegistryClient(reference, AccessOptions(), policy=FAST, endpoints=endpoints)
        assert [each.digest for each in (await client.fetch_referrers(SUBJECT)).found] == [pushed]
        origin.referrers = None
        with pytest.raises(Unavailable):
            await client.fetch_referrers(SUBJECT)
        await client.aclose()


# Pushing


@pytest.mark.anyio
async def test_with_the_api_nothing_is_added(registry: FakeRegistry) -> None:
    registry.list_referrers()
    async with connected(registry, plain_http=True) as client:
        await push(client, "x")
    assert [each.method for each in registry.requests] == ["PUT"]


@pytest.mark.anyio
async def test_without_the_api_the_tag_is_kept(registry: FakeRegistry) -> None:
    async with connected(registry) as client:
        pushed = await push(client, "a", "b")
        again = await push(client, "a", "b")
        assert pushed == again
        assert (await client.push_manifest(artifact("x", subject=None), OCI_MANIFEST, "t")) not in (
            pushed
        )
        document = await client.fetch_manifest(tag_of(SUBJECT))
        found = await client.fetch_referrers(SUBJECT, "b")
    assert document.media_type == OCI_INDEX
    index = json.loads(document.data)
    assert [each["digest"] for each in index["manifests"]] == [str(each) for each in pushed]
    assert index["manifests"][0]["artifactType"] == "a"
    assert index["manifests"][1]["annotations"] == {"note": "1"}
    assert [each.digest for each in found.found] == pushed[1:]


@pytest.mark.anyio
async def test_who_writes_at_the_same_moment_is_not_lost(registry: FakeRegistry) -> None:
    """Somebody else's entry comes between our reading and our writing; theirs overwrites ours."""
    other = artifact("theirs")
    theirs = referrer_of(other, OCI_MANIFEST, digest_of(other))
    assert theirs is not None

    def overwritten(request: Request, answer: Answer) -> Answer:
        registry.put_manifest(NAME, add_referrer(None, theirs), OCI_INDEX, tag_of(SUBJECT))
        return answer

    registry.faults.add(overwritten, method="PUT", path=tag_of(SUBJECT), times=2)
    async with connected(registry) as client:
        (pushed,) = await push(client, "ours")
        found = await client.fetch_referrers(SUBJECT)
    assert {each.digest for each in found.found} == {pushed, theirs.digest}


@pytest.mark.anyio
async def test_a_changed_tag_is_read_again(registry: FakeRegistry) -> None:
    registry.faults.add(faults.headers({"ETag": '"1"'}), method="GET", path="/manifests/", times=9)
    registry.faults.add(faults.status(412), method="PUT", path=tag_of(SUBJECT), times=1)
    async with connected(registry) as client:
        await push(client, "a")
        (pushed,) = await push(client, "b")
        found = await client.fetch_referrers(SUBJECT)
    assert pushed in {each.digest for each in found.found}
    puts = [each for each in registry.requests if each.method == "PUT" and "sha256-" in each.path]
    assert puts[-1].headers["if-match"] == '"1"'


@pytest.mark.anyio
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("listing", ["listed", "hidden", "no list", "no document", "no tags"])
async def test_what_others_have_listed_is_not_overwritten_unread(
    registry: FakeRegistry, status: int, listing: str
) -> None:
    """The tag is there, and may not be read: only a list without it says that it is missing."""
    theirs = referrer_of(artifact("theirs"), OCI_MANIFEST, digest_of(b"theirs"))
    assert theirs is not None
    kept = add_referrer(None, theirs)
    registry.put_manifest(NAME, kept, OCI_INDEX, tag_of(SUBJECT))
    registry.faults.add(
        faults.error(status, "DENIED", "no"), method="GET", path=tag_of(SUBJECT), times=None
    )
    answers = {"hidden": faults.status(403), "no list": faults.status(404)}
    bodies = {"no document": b"<html>", "no tags": b"{}"}
    if listing in answers:
        registry.faults.add(answers[listing], path="tags/list", times=None)
    if listing in bodies:
        behaviour = saying(bodies[listing])
        registry.faults.add(behaviour, path="tags/list", times=None)
    async with connected(registry) as client:
        with pytest.raises(AccessDenied, match=f"referrers of {SUBJECT}: ") as told:
            await push(client, "ours")
    assert "may list what others have pushed" in (told.value.hint or "")
    registry.faults.clear()
    async with connected(registry) as client:
        assert (await client.fetch_manifest(tag_of(SUBJECT))).data == kept


@pytest.mark.anyio
async def test_a_tag_that_no_list_has_is_missing(registry: FakeRegistry) -> None:
    """As Artifactory has it: 403 for what is not there."""
    registry.put_manifest(NAME, artifact("x", subject=None), OCI_MANIFEST, "other")
    registry.faults.add(faults.status(403), method="GET", path=tag_of(SUBJECT), times=1)
    async with connected(registry) as client:
        (digest,) = await push(client, "ours")
        assert lists((await client.fetch_manifest(tag_of(SUBJECT))).data, digest)


def saying(body: bytes) -> faults.Behaviour:
    return lambda request, answer: Answer(200, {"Content-Type": "application/json"}, body)


@pytest.mark.anyio
async def test_a_tag_that_never_stays_is_given_up(registry: FakeRegistry) -> None:
    def lost(request: Request, answer: Answer) -> Answer:
        empty = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
        registry.put_manifest(NAME, empty, OCI_INDEX, tag_of(SUBJECT))
        return answer

    registry.faults.add(lost, method="PUT", path=tag_of(SUBJECT), times=None)
    async with connected(registry) as client:
        with pytest.raises(Unsettled):
            await push(client, "a")


@pytest.mark.anyio
async def test_a_tag_that_is_something_else_is_not_overwritten(registry: FakeRegistry) -> None:
    kept = artifact("an image", subject=None)
    registry.put_manifest(NAME, kept, OCI_MANIFEST, tag_of(SUBJECT))
    async with connected(registry, policy=ONCE) as client:
        with pytest.raises(BadAnswer):
            await push(client, "a")
        assert (await client.fetch_manifest(tag_of(SUBJECT))).data == kept


def test_what_others_wrote_is_kept() -> None:
    pushed = artifact("x")
    referrer = referrer_of(pushed, OCI_MANIFEST, digest_of(pushed))
    assert referrer is not None
    old = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "annotations": {"a": "b"},
        "manifests": [{"digest": str(SUBJECT), "size": 1, "mediaType": OCI_MANIFEST, "new": [1]}],
    }
    added = add_referrer(json.dumps(old).encode(), referrer)
    document = json.loads(added)
    assert document["annotations"] == {"a": "b"}
    assert document["manifests"][0]["new"] == [1]
    assert lists(added, referrer.digest)
    assert not lists(json.dumps(old).encode(), referrer.digest)


@given(st.binary(max_size=100) | st.dictionaries(
    st.sampled_from(["subject", "config", "artifactType", "annotations"]),
    st.none() | st.text() | st.dictionaries(st.sampled_from(["digest", "mediaType"]), st.text()),
).map(lambda pairs: json.dumps(pairs).encode()))  # fmt: skip
def test_any_bytes_have_a_subject_or_none(data: bytes) -> None:
    found = referrer_of(data, OCI_MANIFEST, digest_of(data))
    assert found is None or found.descriptor["size"] == len(data)


@given(st.binary(max_size=200))
def test_any_index_is_added_to_or_refused(data: bytes) -> None:
    pushed = artifact("x")
    referrer = referrer_of(pushed, OCI_MANIFEST, digest_of(pushed))
    assert referrer is not None
    try:
        added = add_referrer(data, referrer)
    except LazyfsError:
        return
    assert lists(added, referrer.digest)


# Link


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ('</v2/x?n=1>; rel="next"', "/v2/x?n=1"),
        ("</v2/x>;rel=next", "/v2/x"),
        ('<a>; rel="prev", <b>; title="x, y; z"; rel="first next"', "b"),
        ('<a>; REL="NEXT"', "a"),
        ('<a>; rel="prev"; rel="next"', None),
        ("<a>", None),
        ('a; rel="next"', None),
        ('<a b>; rel="next"', None),
        ("", None),
        (None, None),
        ("<a>; rel=next, " * 5000, None),
    ],
)
def test_links(header: str | None, target: str | None) -> None:
    assert parse_next(header) == target


@given(st.text(alphabet='<>;,="\\ \trelnxtab', max_size=200) | st.text(max_size=100))
def test_any_link_is_read(header: str) -> None:
    target = parse_next(header)
    assert target is None or f"<{target}>" in header


def test_the_tag_of_a_subject() -> None:
    assert tag_of(SUBJECT) == f"sha256-{SUBJECT.hex}"
    assert len(tag_of(Digest("sha512", "a" * 128))) == len("sha512-") + 64
