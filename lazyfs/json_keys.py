"""JSON documents with a key twice in one object: some readers take the first, others the last.

RFC 8259, section 4, leaves open what an object with two equal names means; msgspec, Go and Python
take the last one, others the first.  Go's encoding/json also takes ``Layers`` for ``layers``.  A
document that is verified by a digest must mean the same to all readers, so such ones are refused.

``check_keys`` reads the document a second time, with the standard library, after msgspec has found
it sound.  Names are compared as they mean, not as they are spelled: ``n\\u0061me`` is ``name``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

Names = Mapping[str, Any]
"""What an object's fields are: by name, the Names of what is in it (or in each item of a list).

None: nothing is known of what is in it, so that only equal names are looked for.
"""


class AmbiguousKeys(ValueError):
    """A document that two readers may understand in two ways."""


class _Object(msgspec.Struct, gc=False):
    """An object as it stands in the document."""

    pairs: list[tuple[str, Any]]


def check_keys(data: bytes | str, names: Names | None = None) -> None:
    """Raise AmbiguousKeys for an object in *data* with two equal names.

    With *names*, those of the document's own fields, also for one that differs from a field's name
    by case alone.  Maps, whose names are anybody's, are not among them.  *data* is sound JSON; for
    what is not, ValueError or RecursionError.
    """
    document = json.loads(data, object_pairs_hook=_Object)
    _check(document, names)


def _check(document: Any, names: Names | None) -> None:
    waiting = [(document, names)]
    while waiting:
        value, known = waiting.pop()
        if isinstance(value, list):
            waiting += [(item, known) for item in value if isinstance(item, (_Object, list))]
        elif isinstance(value, _Object):
            _check_object([name for name, _ in value.pairs], known)
            waiting += [
                (item, None if known is None else known.get(name))
                for name, item in value.pairs
                if isinstance(item, (_Object, list))
            ]


def _check_object(found: Sequence[str], known: Names | None) -> None:
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise AmbiguousKeys(f"the key {twice[:100]!r} occurs twice in one object")
    if known is None:
        return
    folded = {name.casefold(): name for name in known}
    for name in found:
        meant = folded.get(name.casefold(), name)
        if meant != name:
            raise AmbiguousKeys(
                f"got the key {name[:100]!r}, expected {meant!r}: some readers ignore the case"
            )
