"""COSE envelopes: a tagged COSE_Sign1.

Spec: Notary Project, signature-envelope-cose.md; RFC 9052, sections 3, 4.2 and 4.4; RFC 9360 for
``x5chain``, which is taken as an array and from the unprotected header only, as notation does.
"""

from datetime import datetime
from typing import Any

from lazyfs.trust import cbor
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
    epoch_time,
    parse_chain,
    parse_target,
)

MEDIA_TYPE = "application/cose"
SIGN1, EPOCH = 18, 1  # tags
ALGORITHM, CRITICAL, CONTENT_TYPE, CHAIN = 1, 2, 3, 33  # labels
ALGORITHMS = {-7: "ES256", -35: "ES384", -36: "ES512", -37: "PS256", -38: "PS384", -39: "PS512"}
# May be marked as critical, needlessly: every reader has to understand them.
UNDERSTOOD: frozenset[int | str] = frozenset({ALGORITHM, CONTENT_TYPE})
TIMES = (SIGNING_TIME, AUTHENTIC_TIME, EXPIRY)


def parse_cose(data: bytes) -> Envelope:
    """Return the envelope in *data*, nothing of it verified.  Raises Malformed."""
    document = cbor.decode(data, ENVELOPE_LIMIT)
    if not isinstance(document, cbor.Tagged) or document.tag != SIGN1:
        raise Malformed("the COSE envelope is not a tagged COSE_Sign1")
    parts = document.value
    if not isinstance(parts, list) or len(parts) != 4:
        raise Malformed("the COSE envelope does not have four parts")
    protected, unprotected, payload, signature = parts
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)):
        raise Malformed("a part of the COSE envelope is missing")
    signed = cbor.decode(protected)
    if not isinstance(signed, dict) or not isinstance(unprotected, dict):
        raise Malformed("a header of the COSE envelope is not a map")
    if signed.keys() & unprotected.keys():
        raise Malformed("an attribute is in both headers")
    rules = check_headers(_headers(signed), UNDERSTOOD)
    chain = unprotected.get(CHAIN)
    if not isinstance(chain, list) or not all(isinstance(each, bytes) for each in chain):
        raise Malformed("the certificate chain is missing")
    timestamp = unprotected.get(TIMESTAMP)
    if timestamp is not None and not isinstance(timestamp, bytes):
        raise Malformed("the time-stamp is not a byte string")
    return Envelope(
        format="notation/cose",
        algorithm=_algorithm(signed),
        message=signed_bytes(protected, payload),
        signature=signature,
        chain=parse_chain(chain),
        target=parse_target(payload),
        scheme=rules.scheme,
        signing_time=rules.signing_time,
        expiry=rules.expiry,
        plugin=rules.plugin,
        timestamp=timestamp or None,
    )


def signed_bytes(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure that is signed: its context, header, no external data, payload."""
    return b"".join(
        (b"\x84\x6aSignature1", _head(protected), protected, b"\x40", _head(payload), payload)
    )


def _headers(signed: dict[int | str, Any]) -> Headers:
    critical = signed.get(CRITICAL)
    if not isinstance(critical, list) or not all(type(name) in (int, str) for name in critical):
        raise Malformed("the protected header does not say what is critical")
    if any(type(name) is int and name not in signed for name in critical):
        raise Malformed("an attribute is marked as critical and absent")
    named = {name: value for name, value in signed.items() if isinstance(name, str)}
    return Headers(
        algorithm=_algorithm(signed),
        content_type=signed.get(CONTENT_TYPE),
        critical=critical,
        named=named,
        times={name: _time(named[name]) for name in TIMES if name in named},
    )


def _algorithm(signed: dict[int | str, Any]) -> str:
    number = signed.get(ALGORITHM)
    return ALGORITHMS.get(number, str(number)) if type(number) is int else "none"


def _time(value: Any) -> datetime:
    if not isinstance(value, cbor.Tagged) or value.tag != EPOCH:
        raise Malformed("a time in the protected header is not tagged as one")
    return epoch_time(value.value)


def _head(data: bytes) -> bytes:
    """Return what stands before a byte string.  RFC 8949, section 3."""
    size = len(data)
    if size < 24:
        return bytes([0x40 | size])
    if size < 1 << 8:
        return bytes([0x58, size])
    if size < 1 << 16:
        return b"\x59" + size.to_bytes(2)
    return b"\x5a" + size.to_bytes(4)
