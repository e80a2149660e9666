"""Ways in which a registry misbehaves, and the rules that say when.

    registry.faults.add(status(429, {"Retry-After": "1"}), path="/blobs/", times=2)
    registry.faults.add(cut(1000), method="GET", path=str(digest))

A behaviour is a function from the request and the right answer to the answer that is sent.
"""

import gzip
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tests.support.registries.registry_wire import Answer, Request

Behaviour = Callable[[Request, Answer], Answer]


@dataclass
class Rule:
    """When *behaviour* applies: method, substring of the target, then how often.

    The first ``skip`` matches pass unharmed, the next ``times`` (None: all) are hit; ``hits``
    counts those.  ``ranged`` asks for requests with (or without) a Range header.
    """

    behaviour: Behaviour
    method: str | None = None
    path: str = ""
    times: int | None = 1
    skip: int = 0
    ranged: bool | None = None
    hits: int = 0

    def matches(self, request: Request) -> bool:
        return (
            self.method in (None, request.method)
            and self.path in request.target
            and self.ranged in (None, "range" in request.headers)
        )


class Faults:
    """The rules of one registry, in the order in which they were added; the first one wins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def add(
        self,
        behaviour: Behaviour,
        *,
        method: str | None = None,
        path: str = "",
        times: int | None = 1,
        skip: int = 0,
        ranged: bool | None = None,
    ) -> Rule:
        rule = Rule(behaviour, method, path, times, skip, ranged)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def apply(self, request: Request, answer: Answer) -> Answer:
        with self._lock:
            rule = next((rule for rule in self._rules if self._takes(rule, request)), None)
        return answer if rule is None else rule.behaviour(request, answer)

    @staticmethod
    def _takes(rule: Rule, request: Request) -> bool:
        if not rule.matches(request) or rule.times == 0:
            return False
        if rule.skip:
            rule.skip -= 1
            return False
        if rule.times is not None:
            rule.times -= 1
        rule.hits += 1
        return True


def status(
    code: int, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Behaviour:
    """Answer *code*, with a registry's error document unless *body* is given."""
    document = json.dumps({"errors": [{"code": "FAULT", "message": f"injected {code}"}]}).encode()
    content = document if body is None else body

    def behave(request: Request, answer: Answer) -> Answer:
        fields = {"Content-Type": "application/json", **(headers or {})}
        return Answer(code, fields, b"" if request.method == "HEAD" else content)

    return behave


def error(code: int, name: str, message: str) -> Behaviour:
    """Answer *code* with the registry error *name*."""
    return status(code, None, json.dumps({"errors": [{"code": name, "message": message}]}).encode())


def redirect(location: str, code: int = 307) -> Behaviour:
    """Point elsewhere; ``{path}`` in *location* stands for the path that was asked for."""

    def behave(request: Request, answer: Answer) -> Answer:
        return Answer(code, {"Location": location.replace("{path}", request.path)})

    return behave


def cut(after: int) -> Behaviour:
    """Close the connection after *after* bytes of the body (-1: without a word)."""
    return lambda request, answer: replace(answer, cut=after)


def hang(after: int = -1) -> Behaviour:
    """Stop after *after* bytes of the body (-1: before the head) until the registry is released."""
    return lambda request, answer: replace(answer, hang=after)


def drip(piece: int, seconds: float) -> Behaviour:
    """Send *piece* bytes at a time, *seconds* apart."""
    return lambda request, answer: replace(answer, drip=(piece, seconds))


def chunked() -> Behaviour:
    """Send the body in chunks, its length unannounced."""
    return lambda request, answer: replace(answer, chunked=True)


def flip(offset: int, mask: int = 1) -> Behaviour:
    """Flip bits of the blob's byte at *offset*, where the range that is asked for has it."""

    def behave(request: Request, answer: Answer) -> Answer:
        start = _start(answer)
        body = bytearray(answer.content())
        if start <= offset < start + len(body):
            body[offset - start] ^= mask
        return replace(answer, body=bytes(body))

    return behave


def whole() -> Behaviour:
    """Ignore the range: 200 with the whole blob."""

    def behave(request: Request, answer: Answer) -> Answer:
        if answer.status != 206:
            return answer
        fields = {k: v for k, v in answer.headers.items() if k != "Content-Range"}
        return Answer(200, fields, answer.whole)

    return behave


def short(size: int) -> Behaviour:
    """Send only the first *size* bytes of the range, and say so."""

    def behave(request: Request, answer: Answer) -> Answer:
        if answer.status != 206:
            return answer
        body = answer.content()[:size]
        start, total = _start(answer), answer.headers["Content-Range"].rpartition("/")[2]
        spelled = f"bytes {start}-{start + len(body) - 1}/{total}"
        return replace(answer, body=body, headers={**answer.headers, "Content-Range": spelled})

    return behave


def another_range() -> Behaviour:
    """Send as many bytes from the blob's start, and say that they are those asked for."""

    def behave(request: Request, answer: Answer) -> Answer:
        whole = answer.whole if isinstance(answer.whole, bytes) else answer.whole.read()
        return replace(answer, body=whole[: answer.size])

    return behave


def ended_early(size: int) -> Behaviour:
    """End the body in good order after *size* bytes, whatever the head says of the range."""
    return lambda request, answer: replace(answer, body=answer.content()[:size], chunked=True)


def content_range(value: str | None) -> Behaviour:
    """Say another Content-Range (None: none at all)."""

    def behave(request: Request, answer: Answer) -> Answer:
        fields = {k: v for k, v in answer.headers.items() if k != "Content-Range"}
        return replace(
            answer, headers=fields if value is None else {**fields, "Content-Range": value}
        )

    return behave


def overlong(extra: bytes, *, announced: bool = False) -> Behaviour:
    """Send *extra* bytes after the body; chunked, unless the greater length is *announced*."""

    def behave(request: Request, answer: Answer) -> Answer:
        return replace(answer, body=answer.content() + extra, chunked=not announced)

    return behave


def compressed() -> Behaviour:
    """Compress the body although nobody asked for it."""

    def behave(request: Request, answer: Answer) -> Answer:
        fields = {**answer.headers, "Content-Encoding": "gzip"}
        return replace(answer, headers=fields, body=gzip.compress(answer.content()))

    return behave


def replaced(body: bytes) -> Behaviour:
    """Send another body under the same head."""
    return lambda request, answer: replace(answer, body=body)


def headers(extra: Mapping[str, str]) -> Behaviour:
    """Add header fields."""
    return lambda request, answer: replace(answer, headers={**answer.headers, **extra})


def both(first: Behaviour, second: Behaviour) -> Behaviour:
    """Misbehave in two ways at once."""
    return lambda request, answer: second(request, first(request, answer))


def _start(answer: Answer) -> int:
    spelled = answer.headers.get("Content-Range")
    return int(spelled.removeprefix("bytes ").partition("-")[0]) if spelled else 0
