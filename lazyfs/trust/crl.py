"""Lists of revoked certificates (CRLs).

Spec: RFC 5280, section 5.  A list counts only if it is complete for the certificate in question:
lists of changes, of some reasons, of another kind of certificates, or for other authorities'
certificates are not used, nor such that do not say until when they hold.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from lazyfs.trust import der
from lazyfs.trust.certificates import (
    Certificate,
    check_by,
    full_name_urls,
    parse_time,
    read_extensions,
)
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.questions import LIMITS

SIZE_LIMIT = LIMITS["crl"]
DELTA, DISTRIBUTION_POINT, REASON = "2.5.29.27", "2.5.29.28", "2.5.29.21"
SKEW = timedelta(minutes=5)
REMOVED = 8  # a reason that only lists of changes have
ENUMERATED = 0x0A


class Scope(msgspec.Struct, frozen=True):
    """An issuingDistributionPoint: which certificates a list is about.  Section 5.2.5."""

    urls: tuple[str, ...] = ()
    only_users: bool = False
    only_authorities: bool = False
    is_partial: bool = False


class RevocationList(msgspec.Struct, frozen=True, kw_only=True):
    """A list, nothing of it verified.  ``entries`` is the element that holds them."""

    signed: der.Value
    algorithm: der.Value
    signature: bytes
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    entries: der.Value | None
    scope: Scope


def parse_crl(data: bytes) -> RevocationList:
    """Return the list in *data* (DER).  Raises Malformed.  Entries are not looked at yet."""
    outer = der.read(data, limit=SIZE_LIMIT).parts()
    signed, algorithm, signature = outer.take(der.SEQUENCE), outer.take(), outer.take().bits()
    outer.end()
    parts = signed.parts()
    version = parts.optional(der.INTEGER)
    if version is not None and version.integer() != 1:
        raise Malformed("a revocation list is of an unknown version")
    if parts.take().raw != algorithm.raw:
        raise Malformed("a revocation list names two signature algorithms")
    issuer = parts.take(der.SEQUENCE).raw
    this_update = parse_time(parts.take())
    next_update = None
    if parts.peek() in (der.UTC_TIME, der.GENERALIZED_TIME):
        next_update = parse_time(parts.take())
    entries = parts.optional(der.SEQUENCE)
    scope = _scope(parts.optional(der.context(0)))
    parts.end()
    return RevocationList(
        signed=signed,
        algorithm=algorithm,
        signature=signature,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        entries=entries,
        scope=scope,
    )


def revoked_since(
    data: bytes, certificate: Certificate, issuer: Certificate, now: datetime
) -> datetime | None:
    """Return since when *certificate* is revoked by the list in *data*; None if it is not.

    On hold counts as revoked.  Raises Malformed or BadSignature where the list says nothing about
    the certificate: it is somebody else's, forged, out of date or incomplete.
    """
    if certificate.issuer.raw != issuer.subject.raw:
        raise BadSignature("the list is of another issuer")
    found = parse_current(data, issuer, now)
    _check_scope(found.scope, certificate)
    entry = None if found.entries is None else find_entry(found.entries, certificate.serial)
    return None if entry is None else _since(entry)


def parse_current(data: bytes, issuer: Certificate, now: datetime) -> RevocationList:
    """Parse the DER of a list that *issuer* has signed and that holds now.

    Raises Malformed, BadSignature.
    """
    found = parse_crl(data)
    if found.issuer != issuer.subject.raw:
        raise BadSignature("the list is of another issuer")
    if issuer.usage is not None and "cRLSign" not in issuer.usage.names:
        raise BadSignature(f"{issuer.who} may not sign lists")
    check_by(issuer, found.algorithm, found.signature, found.signed.raw)
    check_period(found.this_update, found.next_update, now)
    return found


def check_period(this_update: datetime, next_update: datetime | None, now: datetime) -> None:
    """Check that an answer holds now, our clock five minutes slow at most.  Raises Malformed."""
    if next_update is None:
        raise Malformed("it does not say until when it holds")
    if now >= next_update:
        raise Malformed(f"it held until {next_update:%Y-%m-%d %H:%M:%S}Z")
    if now + SKEW < this_update:
        raise Malformed(f"it holds from {this_update:%Y-%m-%d %H:%M:%S}Z")


def find_entry(entries: der.Value, serial: int) -> der.Value | None:
    """Return the entry with a serial number; None if there is none.  Raises Malformed.

    There may be a million: they are walked through only if the number's bytes are anywhere in them,
    and nothing is made of an entry but where it ends.
    """
    data, at, last = entries.data, entries.start, entries.end
    wanted = der.encode_integer(serial)
    if data.find(wanted, at, last) < 0:
        return None
    while at < last:
        if data[at] != der.SEQUENCE:
            raise Malformed("an entry of a revocation list is not a sequence")
        start, end = der.bounds(data, at, last)
        if data.startswith(wanted, start, end):
            return der.Value(der.SEQUENCE, data, at, start, end, entries.depth + 1)
        at = end
    return None


def _since(entry: der.Value) -> datetime | None:
    parts = entry.parts()
    parts.take(der.INTEGER)
    since = parse_time(parts.take())
    outer = parts.optional(der.SEQUENCE)
    parts.end()
    for kind, (is_critical, content) in _extensions(outer):
        if kind == REASON and der.read(content, ENUMERATED).body == bytes([REMOVED]):
            raise Malformed("an entry is removed, in a list that is not one of changes")
        if is_critical and kind != REASON:
            raise Malformed(f"an entry has the critical extension {kind}")
    return since


def _extensions(value: der.Value | None) -> Sequence[tuple[str, tuple[bool, bytes]]]:
    """Return an entry's extensions, which have no tag around them."""
    if value is None:
        return []
    wrapped = der.read(der.encode(der.context(0), value.raw), der.context(0))
    return list(read_extensions(wrapped))


def _scope(value: der.Value | None) -> Scope:
    scope = Scope()
    for kind, (is_critical, content) in read_extensions(value):
        if kind == DELTA:
            raise Malformed("the list is one of changes only")
        if kind == DISTRIBUTION_POINT:
            scope = _point(content)
        elif is_critical:
            raise Malformed(f"the list has the critical extension {kind}")
    return scope


def _point(content: bytes) -> Scope:
    parts = der.read(content).parts()
    name = parts.optional(der.context(0))
    urls = () if name is None else tuple(full_name_urls(name))
    flags = {}
    for number in range(1, 6):
        value = parts.optional(der.context(number, constructed=False))
        # [3] is a bit string of reasons, the others are booleans.
        flags[number] = value is not None and (number == 3 or value.body != b"\x00")
    parts.end()
    if name is not None and not urls:
        raise Malformed("the list is for a distribution point that has no address")
    return Scope(urls, flags[1], flags[2], flags[3] or flags[4] or flags[5])


def _check_scope(scope: Scope, certificate: Certificate) -> None:
    """Refuse a list that is about other certificates: of its own kind it may say nothing."""
    if scope.is_partial:
        raise Malformed("the list is not complete, or is about other authorities' certificates")
    if (scope.only_users and certificate.is_authority) or (
        scope.only_authorities and not certificate.is_authority
    ):
        raise Malformed("the list is about another kind of certificates")
    if scope.urls and not set(scope.urls) & set(certificate.crl_urls):
        raise Malformed("the list is for another distribution point")
