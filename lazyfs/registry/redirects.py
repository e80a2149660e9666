"""Following redirects, without sending secrets to another host.

Authorization is sent to one origin only, whatever a redirect says: another host would learn it,
and object stores refuse a request that is both signed and authorised.  The same holds for a body
that is a secret, as that of a request for a token is.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lazyfs.errors import LazyfsError
from lazyfs.registry.config.errors import ERROR_BODY_LIMIT, Refused, redact_url
from lazyfs.registry.config.hosts import Origin, next_url, origin_of
from lazyfs.registry.transport import Answer, Body, Transport

REDIRECTS = frozenset({301, 302, 303, 307, 308})
BODY_REDIRECTS = frozenset({307, 308})
"""The redirects that keep the method and the body of a request that has one."""

HOPS = 5


async def follow(
    transport: Transport,
    method: str,
    url: str,
    headers: Mapping[str, str],
    content: bytes | Body | None = None,
    *,
    authorization: str | None,
    origin: Origin,
    own: Iterable[tuple[str, str]] = (),
    others: Mapping[Origin, str] = MappingProxyType({}),
    notice: Callable[[Answer], None] = lambda answer: None,
    is_secret: bool = False,
) -> Answer:
    """Return the first answer that is no redirect; the caller closes it.

    *authorization* and the *own* headers go to *origin* only, what *others* have been given of
    their own to each of them, and so does *content* if it
    *is_secret*: a redirect to elsewhere is refused then.  *notice* sees every answer on the way.
    """
    followed = REDIRECTS if content is None else BODY_REDIRECTS
    first = url
    for _ in range(HOPS + 1):
        fields = dict(headers)
        if origin_of(url) == origin:
            fields.update(own)
            if authorization is not None:
                fields["authorization"] = authorization
        elif origin_of(url) in others:
            fields["authorization"] = others[origin_of(url)]
        answer = await transport.send(method, url, fields, content)
        notice(answer)
        if answer.status not in followed:
            return answer
        try:
            url = next_url(url, answer.headers.get("location"))
        finally:
            await discard(answer)
        if is_secret and origin_of(url) != origin:
            raise Refused(
                f"{method} {redact_url(first)}: redirected to {redact_url(url)}, but the "
                "request carries credentials for the first host only",
                hint="nothing was sent there; the token service must answer at its own address",
                status=answer.status,
            )
    raise Refused(
        f"{method} {redact_url(first)}: more than {HOPS} redirects, the last to {redact_url(url)}"
    )


async def discard(answer: Answer) -> bytes:
    """Read the little that is left of a body, so that its connection can be used again."""
    try:
        return await answer.read_some(ERROR_BODY_LIMIT)
    except LazyfsError:
        return b""  # the status has been said; the body was only a courtesy
    finally:
        await answer.aclose()
