"""Link headers: where the next page is.  No I/O here.

Spec: RFC 8288, section 3.  Reading stops at the first malformed part; earlier links are used.
"""

import re

HEADER_LIMIT = 16 << 10
TARGET_RE = re.compile(r"[ \t,]*<([^<>\"\s]*)>")
PARAMETER_RE = re.compile(
    r"[ \t]*;[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)"
    r"(?:[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;,\"]+)))?"
)


def parse_next(header: str | None) -> str | None:
    """Return the target of the first link whose relation is ``next``, None if there is none."""
    if header is None or len(header) > HEADER_LIMIT:
        return None
    position = 0
    while (target := TARGET_RE.match(header, position)) is not None:
        position = target.end()
        relation = None
        while (parameter := PARAMETER_RE.match(header, position)) is not None:
            position = parameter.end()
            if parameter[1].lower() == "rel" and relation is None:
                relation = parameter[2] if parameter[2] is not None else parameter[3]
        if "next" in (relation or "").lower().split():
            return target[1]
    return None
