"""JSON documents: strict reading, the canonical form, and what two of them differ in.

A document is read to the end before anything is made of it.  What JSON leaves open is refused:
keys that appear twice, numbers that are no integers below 2^53, text that is not Unicode.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from lazyfs.digest import digest_of
from lazyfs.errors import LazyfsError

NUMBER_LIMIT = 1 << 53
DEPTH_LIMIT = 64
SHOWN = 80  # characters of a value that a message quotes
LONGEST = 1000  # characters of a message, whatever is in the document
# Numbers that are longer are out of range whatever they are, and int() would take its time.
DIGITS_LIMIT = 17

WHERE_RE = re.compile(r"(?s)(.*?)(?: - at `(?:key in )?\$(.*)`)?")
UNKNOWN_RE = re.compile(r"(?s)Object contains unknown field `(.*)`")
MISSING_RE = re.compile(r"Object missing required field `(.*)`")
MATCHING_RE = re.compile(r"Expected `str` matching regex '(.*)'")
STEP_RE = re.compile(r"\.?([^.\[\]]+)|\[([0-9]+|\.\.\.)\]")
# msgspec's names of types, and what messages call them.
WORDS = {
    "str": "text",
    "int": "an integer",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
WORDS_RE = re.compile(rf"\b(?<!-)({'|'.join(WORDS)})\b(?=$| \||, | of | [<>=])")

Made = TypeVar("Made")
Complaint = Callable[[str], LazyfsError]


class _Fault(msgspec.Struct, frozen=True):
    """Stands in a document for what must not be there."""

    text: str


class Difference(msgspec.Struct, frozen=True):
    """What differs at ``path``; None: nothing is there.  Values are JSON's types."""

    path: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: {quote(self.was)} -> {quote(self.now)}"


def quote(value: Any) -> str:
    """Return *value* as messages show it: JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, default=str)
    return cut(text, SHOWN)


def cut(text: str, limit: int = LONGEST) -> str:
    """Return *text* as messages show it: cut where it is long."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def canonical(document: Any) -> bytes:
    """Return the canonical form: UTF-8, keys sorted, no white space."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def canonical_digest(document: Any) -> str:
    """Return the sha256 of a document's canonical form, as text."""
    return str(digest_of(canonical(document)))


def parse_json(data: bytes, complain: Complaint) -> Any:
    """Return the document in *data*; raise what *complain* makes of what is wrong with it."""
    try:
        document = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_float=lambda text: _Fault(f"must be an integer, not {text[:SHOWN]}"),
            parse_int=_integer,
            parse_constant=lambda text: _Fault(f"must be an integer, not {text}"),
        )
    except (ValueError, RecursionError) as exc:
        raise complain(f"not valid JSON: {exc}: {data[:40]!r}") from exc
    check_document(document, complain)
    return document


def check_document(document: Any, complain: Complaint) -> None:
    """Raise what *complain* makes of the first thing that no document may have."""
    for path, value in _walk(document):
        if isinstance(value, _Fault):
            raise complain(f"{path}: {value.text}")
        if path.depth > DEPTH_LIMIT:
            raise complain(f"document: nested more than {DEPTH_LIMIT} levels deep")
        if isinstance(value, int) and not -NUMBER_LIMIT < value < NUMBER_LIMIT:
            raise complain(
                f"{path}: an integer of {value.bit_length()} bits; at most 53 are allowed"
            )
        words = [value] if isinstance(value, str) else value if isinstance(value, dict) else ()
        if not all(isinstance(word, str) and _is_unicode(word) for word in words):
            raise complain(f"{path}: text is not valid Unicode (unpaired surrogate)")


def make(kind: type[Made], document: Any, complain: Complaint, meanings: Mapping[str, str]) -> Made:
    """Return *document* as a *kind*; *meanings* says in words what a pattern wants.

    Raises what *complain* makes of "PATH: must be …, not …", PATH as in "images[0].name".
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as exc:
        raise complain(_told(str(exc), document, kind, meanings)) from exc
    except RecursionError as exc:
        raise complain("document: nested too deeply") from exc


def differences(was: Any, now: Any, path: str = "") -> Iterator[Difference]:
    """Yield what differs between two documents, in the order of paths.

    Lists of objects that all have a "name" are compared name by name: "images[web].digest"; lists
    of words that are not equally long as wholes.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif _is_list(was) and _is_list(now) and not _are_words(was, now):
        before, after = _by_name(was), _by_name(now)
        if before is None or after is None:
            before, after = dict(enumerate(was)), dict(enumerate(now))
        for name in [*before, *(name for name in after if name not in before)]:
            yield from differences(before.get(name), after.get(name), f"{path}[{name}]")
    elif was != now or isinstance(was, bool) != isinstance(now, bool):
        yield Difference(path, was, now)


def _walk(document: Any) -> Iterator[tuple["_Place", Any]]:
    """Yield each value with its place, down to the level that is too deep."""
    waiting: list[tuple[_Place, Any]] = [(_Place(None, "", 0), document)]
    while waiting:
        place, value = waiting.pop()
        yield place, value
        if isinstance(value, dict | list):
            members = value.items() if isinstance(value, dict) else enumerate(value)
            level = place.depth + 1
            waiting += [(_Place(place, step, level), inner) for step, inner in members]


class _Place(msgspec.Struct, frozen=True):
    """A place in a document; spelled out only for a message, since keys can be long."""

    parent: "_Place | None"
    step: str | int
    depth: int

    def __str__(self) -> str:
        if self.parent is None:
            return "document"
        before = "" if self.parent.parent is None else str(self.parent)
        if isinstance(self.step, int):
            return f"{before}[{self.step}]"
        step = self.step if self.step.isidentifier() and len(self.step) < SHOWN else None
        return f"{before}.{step or quote(self.step)}".removeprefix(".")


def _object(pairs: list[tuple[str, Any]]) -> Any:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        return _Fault(f"the key {quote(twice)} appears more than once")
    return members


def _integer(text: str) -> int | _Fault:
    if len(text) > DIGITS_LIMIT:
        return _Fault(f"an integer of {len(text)} digits; it must be below 2^53")
    return int(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _are_words(was: Sequence[Any], now: Sequence[Any]) -> bool:
    """Say whether two lists have nothing in them whose place would tell anything."""
    return len(was) != len(now) and all(isinstance(each, str | int) for each in [*was, *now])


def _by_name(items: Sequence[Any]) -> dict[Any, Any] | None:
    if not items or not all(isinstance(item, dict) and "name" in item for item in items):
        return None if items else {}
    named = {str(item["name"]): item for item in items}
    return named if len(named) == len(items) else None


def _told(text: str, document: Any, kind: Any, meanings: Mapping[str, str]) -> str:
    """Return msgspec's message in plain words: the place, what must be there, what is."""
    match = WHERE_RE.fullmatch(text)
    what, place = (match[1], match[2] or "") if match else (text, "")
    place = place.removeprefix(".")
    got = _at(document, place)
    if unknown := UNKNOWN_RE.fullmatch(what):
        known = fields_of(kind, place)
        name = cut(unknown[1], SHOWN)
        close = get_close_matches(name, known, 1, 0.6)
        near = f"; did you mean {close[0]}?" if close else ";"
        field = f"{place}.{name}" if place else name
        return f"{field}: unknown field{near} known fields: {', '.join(known)}"
    if missing := MISSING_RE.fullmatch(what):
        return f"{place}.{missing[1]}: missing".removeprefix(".")
    expected = what.removeprefix("Expected ").partition(", got")[0].replace("`", "")
    expected = WORDS_RE.sub(lambda word: WORDS[word[0]], expected).replace(" | ", " or ")
    if pattern := MATCHING_RE.fullmatch(what):
        expected = meanings.get(pattern[1].replace("\\\\", "\\"), expected)
    # Of an object with free names the message has no name.
    shown = "" if "..." in place else f", not {quote(got)}"
    return f"{place or 'document'}: must be {expected}{shown}"


def fields_of(kind: Any, place: str) -> list[str]:
    """Return the names that an object at *place* in a document of *kind* may have."""
    info: Any = msgspec.inspect.type_info(kind)
    for step in [*STEP_RE.finditer(place), None]:
        while not isinstance(info, msgspec.inspect.StructType):
            inner = _inner(info)
            if inner is None:
                return []
            info = inner
        if step is None:
            break
        if step[1] is not None:
            info = next(each.type for each in info.fields if each.encode_name == step[1])
    return [each.encode_name for each in info.fields]


def _inner(info: Any) -> Any:
    """Return what a list holds, or the object that a union may be."""
    if isinstance(info, msgspec.inspect.Metadata):
        return info.type
    if isinstance(info, msgspec.inspect.UnionType):
        kinds = [each for each in info.types if not isinstance(each, msgspec.inspect.NoneType)]
        return next((each for each in kinds if _inner(each) or _is_struct(each)), None)
    return getattr(info, "item_type", getattr(info, "value_type", None))


def _is_struct(info: Any) -> bool:
    return isinstance(info, msgspec.inspect.StructType)


def _at(document: Any, place: str) -> Any:
    """Return the value at *place*; None where there is none."""
    for step in STEP_RE.finditer(place):
        try:
            document = document[int(step[2])] if step[2] else document[step[1]]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return document
