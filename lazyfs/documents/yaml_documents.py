"""YAML (and so JSON) read strictly: plain values, no key twice, aliases within bounds.

Besides values there are the places of scalars in the text, for changing one and nothing else.
"""

import re
from collections.abc import Iterator
from typing import Any, TypeGuard

import msgspec
import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lazyfs.documents.documents import Complaint, check_document, cut, quote

# A template has a few hundred values; aliases can make billions of a few lines.
NODES_LIMIT = 20_000
DEPTH_LIMIT = 32
PROPERTIES_RE = re.compile(r"(?:[&!]\S*\s+)+")  # an anchor or a tag before a scalar
TAG = "tag:yaml.org,2002:"


class Scalar(msgspec.Struct, frozen=True):
    """A scalar in a text: its value, and the characters that spell it, quotes included.

    ``style`` is YAML's: "'" or '"' for quoted, "|" or ">" for blocks, "" for plain.
    """

    value: str
    start: int
    end: int
    style: str


def parse_yaml(text: str, complain: Complaint) -> Any:
    """Return the document in *text* as JSON's types; times stay text.

    Raises what *complain* makes of what is wrong with it, with its line.
    """
    node = _compose(text, complain)
    document = None if node is None else _Reading(complain).value(node, 0)
    check_document(document, complain)
    return document


def scalars(text: str, complain: Complaint) -> dict[str, Scalar]:
    """Return the scalars of *text* by their places: "containers[0].image"."""
    node = _compose(text, complain)
    if node is None:
        return {}
    found: dict[str, Scalar] = {}
    for place, scalar in _scalars(node, "", complain, 0):
        if len(found) >= NODES_LIMIT:
            raise complain(f"more than {NODES_LIMIT} values")
        start, end = scalar.start_mark.index, scalar.end_mark.index
        if properties := PROPERTIES_RE.match(text, start, end):
            start = properties.end()
        found[place] = Scalar(scalar.value, start, end, scalar.style or "")
    return found


class _Reading:
    """Makes values of nodes, and counts them."""

    def __init__(self, complain: Complaint) -> None:
        self._complain = complain
        self._nodes = 0
        self._constructor = SafeConstructor()

    def value(self, node: Node, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > NODES_LIMIT or depth > DEPTH_LIMIT:
            raise self._complain(
                f"{_line(node)}: more than {NODES_LIMIT} values or {DEPTH_LIMIT} levels"
                " (aliases count each time)"
            )
        if isinstance(node, MappingNode):
            return self._object(node, depth)
        if isinstance(node, SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        assert isinstance(node, ScalarNode)
        return self._scalar(node)

    def _object(self, node: MappingNode, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{TAG}merge":
                merged = self._merged(value_node, depth) | merged
                continue
            key = self._key(key_node)
            if key in members:
                raise self._complain(
                    f"{_line(key_node)}: the key {quote(key)} appears more than once"
                )
            members[key] = self.value(value_node, depth + 1)
        return merged | members

    def _merged(self, node: Node, depth: int) -> dict[str, Any]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in sources:
            value = self.value(source, depth + 1)
            if not isinstance(value, dict):
                raise self._complain(f"{_line(node)}: only keys can be merged, not {quote(value)}")
            merged = value | merged
        return merged

    def _key(self, node: Node) -> str:
        value = self._scalar(node) if isinstance(node, ScalarNode) else None
        if not isinstance(value, str):
            raise self._complain(f"{_line(node)}: a key must be text, not {quote(value)}")
        return value

    def _scalar(self, node: ScalarNode) -> Any:
        kind = node.tag.removeprefix(TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return self._constructor.construct_yaml_bool(node)
            if kind == "int":
                return self._constructor.construct_yaml_int(node)
        except (ValueError, KeyError, yaml.YAMLError) as exc:
            raise self._complain(
                f"{_line(node)}: {quote(node.value)} is not valid: {cut(str(exc))}"
            ) from exc
        if kind not in ("str", "timestamp"):
            raise self._complain(
                f"{_line(node)}: must be text, an integer, true, false or null, not"
                f" {quote(node.value)} ({cut(kind, 40)})"
            )
        return node.value


def _compose(text: str, complain: Complaint) -> Node | None:
    try:
        node: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise complain(f"{where}not valid YAML: {cut(exc.problem or str(exc))}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        reason = " ".join(str(exc).split())  # some of PyYAML's are on several lines
        raise complain(f"not valid YAML: {cut(reason)}") from exc
    return node


def _scalars(
    node: Node, place: str, complain: Complaint, depth: int
) -> Iterator[tuple[str, ScalarNode]]:
    if depth > DEPTH_LIMIT:
        raise complain(f"{_line(node)}: nested more than {DEPTH_LIMIT} levels deep")
    if isinstance(node, ScalarNode):
        yield place, node
    elif isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            yield from _scalars(item, f"{place}[{number}]", complain, depth + 1)
    elif _is_mapping(node):
        merges = [value for key, value in node.value if key.tag == f"{TAG}merge"]
        for value in merges:  # what stands here itself comes later and replaces it
            yield from _scalars(value, place, complain, depth + 1)
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.tag != f"{TAG}merge":
                below = f"{place}.{key.value}" if place else key.value
                yield from _scalars(value, below, complain, depth + 1)


def _is_mapping(node: Node) -> TypeGuard[MappingNode]:
    return isinstance(node, MappingNode)


def _line(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"
