"""Answers of an S3 service that is not trusted: bounded, plain XML, without redirects.

botocore reads whole every answer but an object's bytes, and hands it to an XML parser.  It is kept
from answers that never end and from documents that define entities, of which a few make gigabytes;
S3 has no use for either.  It follows no ``Location`` by itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lazyfs.snapshot.stores.keys import BadKey, check_key
from lazyfs.snapshot.stores.objects import Stored

LONGEST_ANSWER = 4 << 20  # bytes: of a page of 1000 keys, or an error
PIECE_SIZE = 64 << 10
MOST_KEYS = 1_000_000  # of one listing
# What no answer of S3 has in it: a document type, and NUL, which other encodings could hide one in.
FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY", b"\0")
ODD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class OddAnswer(Exception):
    """An answer that no S3 service gives."""


def bound_answers(client: Any, broken: Callable[[Exception], Exception]) -> None:
    """Have *client*, of botocore, take no answer that is too long or no plain XML.

    *broken* makes the error of a connection that broke while an answer was read, which is tried
    again.  Raises OddAnswer from the client's methods.
    """
    session = client._endpoint.http_session

    def send(request: Any, **_: Any) -> Any:
        is_streamed = request.stream_output
        request.stream_output = True  # or all of it would have been read when this returns
        answer = session.send(request)
        if not is_streamed or answer.status_code >= 300:
            try:
                answer._content = read_bounded(answer.raw.stream(PIECE_SIZE))
            except OddAnswer:
                answer.raw.close()
                raise
            except Exception as error:
                raise broken(error) from error
        return answer

    client.meta.events.register("before-send.s3", send)


def read_bounded(pieces: Iterable[bytes]) -> bytes:
    """Return an answer's bytes; raise OddAnswer where they are too many, or define entities."""
    found = bytearray()
    for piece in pieces:
        found += piece
        if len(found) > LONGEST_ANSWER:
            raise OddAnswer(f"the answer is longer than {LONGEST_ANSWER} bytes")
    data = bytes(found)
    if any(each in data for each in FORBIDDEN):
        raise OddAnswer("the answer has a document type declaration")
    return data


class Pages:
    """Where a listing is: *items* names what a page has, *tokens* what goes with the next request.

    ``more`` are the parameters of that.
    """

    def __init__(self, items: str, tokens: Mapping[str, str]) -> None:
        self._items = items
        self._tokens = tokens
        self._left = MOST_KEYS
        self.more: dict[str, str] = {}
        self.is_last = False

    def turn(self, answer: Any) -> None:
        """Take note of a page; raise OddAnswer where they go round in a circle, or never end."""
        before = self.more
        self.is_last = not answer.get("IsTruncated")
        self.more = {name: answer.get(token, "") for name, token in self._tokens.items()}
        self._left -= max(len(answer.get(self._items, ())), 1)
        if not self.is_last and (self.more == before or self._left < 0):
            raise OddAnswer("the listing does not end")


def page_of(answer: Any, prefix: str, wanted: str) -> list[Stored]:
    """Return the objects of a page of a listing whose keys begin with *prefix* + *wanted*.

    Keys are those behind *prefix*; what can be no key of ours is left out.  Raises what ODD has.
    """
    found = []
    for each in answer.get("Contents", ()):
        key, size = each["Key"], int(each["Size"])
        if not key.startswith(prefix + wanted) or not is_key(key.removeprefix(prefix)):
            continue
        if size < 0:
            raise ValueError(f"an object has {size} bytes")
        found.append(Stored(key.removeprefix(prefix), size, each["LastModified"].timestamp()))
    return found


def is_key(text: str) -> bool:
    """Say whether *text* can be a key of ours."""
    try:
        check_key(text)
    except BadKey:
        return False
    return True
