"""JWS envelopes: flattened JSON, signed over the text as it came.

Spec: Notary Project, signature-envelope-jws.md; RFC 7515, sections 4.1.11, 5.2 and 7.2.2.
"""

import base64
import binascii
import re
from datetime import datetime
from typing import Any

from lazyfs.trust.errors import Malformed
from lazyfs.trust.notation.envelope import (
    AUTHENTIC_TIME,
    ENVELOPE_LIMIT,
    EXPIRY,
    SIGNING_TIME,
    TIMESTAMP,
    Envelope,
    Headers,
    check_headers,
    parse_chain,
    parse_target,
    parse_time,
)
from lazyfs.trust.strict_json import parse_object

MEDIA_TYPE = "application/jose+json"
BASE64URL_RE = re.compile(r"[A-Za-z0-9_-]*")
TIMES = (SIGNING_TIME, AUTHENTIC_TIME, EXPIRY)


def parse_jws(data: bytes) -> Envelope:
    """Return the envelope in *data*, nothing of it verified.  Raises Malformed.

    Unknown members beside the four are ignored, as RFC 7515 demands.
    """
    document = parse_object(data, "the JWS envelope", ENVELOPE_LIMIT)
    words = [document.get(name) for name in ("protected", "payload", "signature")]
    protected, payload, signature = (_decode(word) for word in words)
    header = document.get("header")
    if not isinstance(header, dict):
        raise Malformed("the JWS envelope has no unprotected header")
    named = parse_object(protected, "the protected header")
    if both := named.keys() & header.keys():
        raise Malformed(f"{sorted(both)[0][:60]!r} is in both headers")
    rules = check_headers(_headers(named), frozenset())
    return Envelope(
        format="notation/jws",
        algorithm=str(named.get("alg")),
        message=f"{words[0]}.{words[1]}".encode("ascii"),
        signature=signature,
        chain=parse_chain(_chain(header.get("x5c"))),
        target=parse_target(payload),
        scheme=rules.scheme,
        signing_time=rules.signing_time,
        expiry=rules.expiry,
        plugin=rules.plugin,
        timestamp=_timestamp(header.get(TIMESTAMP)),
    )


def _headers(named: dict[str, Any]) -> Headers:
    critical = named.get("crit")
    if not isinstance(critical, list) or not all(isinstance(name, str) for name in critical):
        raise Malformed("the protected header does not say what is critical")
    return Headers(
        algorithm=str(named.get("alg")),
        content_type=named.get("cty"),
        critical=critical,
        named=named,
        times={name: _time(named[name]) for name in TIMES if name in named},
    )


def _time(value: Any) -> datetime:
    if not isinstance(value, str):
        raise Malformed("a time in the protected header is not text")
    return parse_time(value)


def _chain(found: Any) -> list[bytes]:
    if not isinstance(found, list):
        raise Malformed("the certificate chain is missing")
    return [_standard(text) for text in found]


def _timestamp(found: Any) -> bytes | None:
    return None if found is None or found == "" else _standard(found)


def _decode(text: Any) -> bytes:
    """Return the bytes of base64url without padding.  RFC 7515, section 2."""
    if not isinstance(text, str) or not BASE64URL_RE.fullmatch(text):
        raise Malformed("a part of the JWS envelope is not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise Malformed("a part of the JWS envelope is not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise Malformed("a part of the JWS envelope has stray bits at its end")
    return data


def _standard(text: Any) -> bytes:
    """Return the bytes of ordinary base64, with padding."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise Malformed("a certificate or the time-stamp is not base64") from None
