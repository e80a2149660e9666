"""Asking a registry for referrers, and keeping the list where it does not do so itself.

Without the API (404) the list is an index under a tag, which whoever pushes a referrer maintains:
read, add, write, read again, since others may do the same at the same moment.
"""

import logging
from urllib.parse import quote

import msgspec

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import AccessDenied, FormatError, NotFound
from lazyfs.oci.manifest import DOCUMENT_LIMIT, OCI_INDEX
from lazyfs.registry.answers.links import parse_next
from lazyfs.registry.answers.referrers import (
    ENTRY_LIMIT,
    PAGE_LIMIT,
    SIZE_LIMIT,
    Referrer,
    Referrers,
    Support,
    add_referrer,
    choose,
    decode_page,
    lists,
    tag_of,
)
from lazyfs.registry.config.errors import BadAnswer, Denied, Unsettled
from lazyfs.registry.config.hosts import next_url, origin_of
from lazyfs.registry.place import Place
from lazyfs.registry.redirects import discard

log = logging.getLogger(__name__)

ADD_TRIES = 5
TAGS_A_PAGE = 1000
ABSENT = frozenset({400, 404, 405, 406, 410, 501})
"""What registries without the API answer.  The specification says 404; old ones did not know."""


async def ask_referrers(place: Place, subject: Digest, artifact_type: str | None) -> Referrers:
    """Return what *place* knows; raises where it cannot be told."""
    listed = await _ask_api(place, subject, artifact_type)
    return await _ask_tag(place, subject, artifact_type) if listed is None else listed


async def _ask_api(place: Place, subject: Digest, artifact_type: str | None) -> Referrers | None:
    """Return the list, None if there is no API."""
    url: str | None = place.endpoint.address(f"referrers/{subject}")
    if artifact_type is not None:
        url = f"{url}{'&' if place.endpoint.query else '?'}artifactType={quote(artifact_type)}"
    found = []
    size = 0
    for page_number in range(PAGE_LIMIT):
        assert url is not None
        answer = await place.exchanger.request(
            "GET", url, place.scope, ABSENT | {200}, headers={"accept": OCI_INDEX}
        )
        is_page = answer.headers.get("content-type", "").lower().startswith("text/")
        if answer.status != 200 or (is_page and page_number == 0):  # some show people a page
            await discard(answer)
            if page_number == 0:
                return None
            raise BadAnswer(f"{answer}: got status {answer.status} for a later page, expected 200")
        try:
            data = await answer.read(SIZE_LIMIT)
        finally:
            await answer.aclose()
        page = decode_page(data, answer.headers.get("content-type"), str(answer))
        found += choose(page.manifests, artifact_type)
        size += len(data)
        target = parse_next(answer.headers.get("link"))
        if target is None:
            return Referrers(tuple(found[:ENTRY_LIMIT]), Support.API, len(found) > ENTRY_LIMIT)
        url = next_url(url, target)
        if origin_of(url) != origin_of(place.endpoint.url):
            raise BadAnswer(f"{answer}: the next page is on another host")
        if size > SIZE_LIMIT or len(found) > ENTRY_LIMIT:
            break
    return Referrers(tuple(found[:ENTRY_LIMIT]), Support.API, is_truncated=True)


async def _ask_tag(place: Place, subject: Digest, artifact_type: str | None) -> Referrers:
    try:
        data, _ = await _read_tag(place, subject, place.scope)
    except Denied as error:
        # Artifactory answers 403 for a tag that is missing; who may not read has been told before.
        log.debug("%s", error.message)
        data = None
    if data is None:
        return Referrers((), Support.NONE)
    page = decode_page(data, None, f"{place.endpoint.repository}:{tag_of(subject)}")
    found = choose(page.manifests, artifact_type)
    return Referrers(tuple(found[:ENTRY_LIMIT]), Support.TAG, len(found) > ENTRY_LIMIT)


async def _read_tag(place: Place, subject: Digest, scope: str) -> tuple[bytes | None, str | None]:
    """Return the index under the tag, None if there is none, and its ETag.  Raises Denied.

    GitLab takes the tag for the digest that it is made of, and serves the subject itself.
    """
    url = place.endpoint.address(f"manifests/{tag_of(subject)}")
    try:
        answer = await place.exchanger.request(
            "GET", url, scope, {200}, headers={"accept": OCI_INDEX}
        )
    except NotFound:
        return None, None
    try:
        data = await answer.read(DOCUMENT_LIMIT)
    finally:
        await answer.aclose()
    if digest_of(data, subject.algorithm) == subject:
        return None, None
    return data, answer.headers.get("etag")


async def add_to_tag(place: Place, referrer: Referrer, scope: str) -> None:
    """See that the tag of a subject lists *referrer*.

    Raises Denied where it cannot be told what is listed already: it would be lost.
    """
    for _ in range(ADD_TRIES):
        data, etag = await _read_to_write(place, referrer.subject, scope)
        if data is not None and lists(data, referrer.digest):
            return
        await _write_tag(place, referrer, add_referrer(data, referrer), etag, scope)
        # Whether it is still there is seen in the next round.
    data, _ = await _read_to_write(place, referrer.subject, scope)
    if data is None or not lists(data, referrer.digest):
        raise Unsettled(
            f"referrers of {referrer.subject}: the index lost {referrer.digest} again after each "
            f"of {ADD_TRIES} tries to add it",
            hint="other clients are writing the same tag; push again",
        )


async def _read_to_write(
    place: Place, subject: Digest, scope: str
) -> tuple[bytes | None, str | None]:
    """Return what ``_read_tag`` does; nothing is taken for absent that may only be hidden.

    A 403 can mean both.  That the tag is missing is believed where the list of tags says so, too.
    """
    try:
        return await _read_tag(place, subject, scope)
    except Denied as error:
        tag = tag_of(subject)
        tags = await _all_tags(place, scope)
        if tags is not None and tag not in tags:
            return None, None
        raise Denied(
            f"referrers of {subject}: {error.message}",
            hint=f"tag {tag} may list what others have pushed, and writing it unread would drop "
            "that: log in as somebody who may read it",
        ) from error


async def _all_tags(place: Place, scope: str) -> set[str] | None:
    """Return the tags of the repository, None where they cannot all be had.

    Spec: OCI distribution-spec, "Listing Tags".
    """
    url = place.endpoint.address("tags/list")
    url = f"{url}{'&' if place.endpoint.query else '?'}n={TAGS_A_PAGE}"
    tags: set[str] = set()
    for _ in range(PAGE_LIMIT):
        try:
            answer = await place.exchanger.request("GET", url, scope, {200})
            try:
                page = msgspec.json.decode(await answer.read(SIZE_LIMIT), type=_Tags)
            finally:
                await answer.aclose()
        except (NotFound, AccessDenied, FormatError, ValueError, RecursionError):
            return None
        tags |= set(page.tags or ())
        target = parse_next(answer.headers.get("link"))
        if target is None:
            return tags
        url = next_url(url, target)
        if origin_of(url) != origin_of(place.endpoint.url):
            return None
    return None


class _Tags(msgspec.Struct):
    tags: list[str] | None


async def _write_tag(
    place: Place, referrer: Referrer, data: bytes, etag: str | None, scope: str
) -> None:
    url = place.endpoint.address(f"manifests/{tag_of(referrer.subject)}")
    headers = {"content-type": OCI_INDEX}
    if etag is not None:
        headers["if-match"] = etag
    answer = await place.exchanger.request(
        "PUT", url, scope, {200, 201, 412}, headers=headers, content=data
    )
    await discard(answer)
    if answer.status == 412:
        log.debug("%s: the index has changed in the meantime", answer)
