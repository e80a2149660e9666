"""What a signature envelope says, in whichever of the two encodings, and what makes it sound.

Spec: Notary Project, signature-specification.md, "Signature Attributes" and "Payload".  ``jws.py``
and ``cose.py`` turn bytes into ``Headers`` and an ``Envelope``; the rules that both share are here.
An unknown critical attribute is refused, as the specification demands and notation 1.3.2 does not.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec

from lazyfs.digest import BadDigest, Digest, parse_digest
from lazyfs.printable import printable
from lazyfs.trust import keys
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.certificates import parse_certificate as parse_one
from lazyfs.trust.errors import Malformed
from lazyfs.trust.strict_json import parse_object

ENVELOPE_LIMIT = 1 << 20  # bytes
CHAIN_LIMIT = 10  # certificates
PAYLOAD_TYPE = "application/vnd.cncf.notary.payload.v1+json"
X509, SIGNING_AUTHORITY = "notary.x509", "notary.x509.signingAuthority"

PREFIX = "io.cncf.notary."
SCHEME = f"{PREFIX}signingScheme"
SIGNING_TIME = f"{PREFIX}signingTime"
AUTHENTIC_TIME = f"{PREFIX}authenticSigningTime"
EXPIRY = f"{PREFIX}expiry"
PLUGIN = f"{PREFIX}verificationPlugin"
PLUGIN_VERSION = f"{PREFIX}verificationPluginMinVersion"
TIMESTAMP = f"{PREFIX}timestampSignature"
UNDERSTOOD = {SCHEME, SIGNING_TIME, AUTHENTIC_TIME, EXPIRY, PLUGIN, PLUGIN_VERSION}

# RFC 3339, section 5.6.
TIME_RE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?(?:[Zz]|([+-])(\d\d):(\d\d))"
)
LAST_SECOND = 253402300799  # of the year 9999


class Headers(msgspec.Struct, frozen=True, kw_only=True):
    """The signed attributes, alike for both encodings.  ``critical`` are those so marked."""

    algorithm: str
    content_type: Any
    critical: Sequence[int | str]
    named: Mapping[str, Any]
    """All attributes whose name is text."""
    times: Mapping[str, datetime]
    """Those of them that are moments, read."""


class Target(msgspec.Struct, frozen=True):
    """What was signed: a descriptor.  ``annotations`` are the user's metadata."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str]


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A signature whose bytes are sound; nothing of it is verified yet.

    ``message`` is what was signed, ``chain`` the certificates, leaf first, as they came.
    ``timestamp`` is the countersignature, a CMS message.
    """

    format: str
    algorithm: str
    message: bytes
    signature: bytes
    chain: tuple[Certificate, ...]
    target: Target
    scheme: str
    signing_time: datetime
    expiry: datetime | None
    plugin: str | None
    timestamp: bytes | None

    @property
    def leaf(self) -> Certificate:
        """The certificate of the signer."""
        return self.chain[0]

    @property
    def is_by_authority(self) -> bool:
        """Whether the signing time is vouched for by a signing authority."""
        return self.scheme == SIGNING_AUTHORITY

    def verify(self) -> None:
        """Check the signature with the leaf's key.  Raises BadSignature, Malformed.

        The key alone decides upon the algorithm ("Algorithm Selection"); the one that the envelope
        names must be the same.
        """
        key = self.leaf.key
        chosen = algorithm_of(key)
        if key is None or chosen is None:
            raise Malformed(f"certificate {self.leaf.who} has a key that must not sign")
        name, hash_name, check = chosen
        if self.algorithm != name:
            named = printable(self.algorithm, 40)
            raise Malformed(f"the algorithm is {named}, and the certificate's key asks for {name}")
        check(key, self.signature, self.message, hash_name)


Check = Callable[[keys.PublicKey, bytes, bytes, str], None]
RSA_ALGORITHMS = {2048: ("PS256", "sha256"), 3072: ("PS384", "sha384"), 4096: ("PS512", "sha512")}
EC_ALGORITHMS = {"sha256": "ES256", "sha384": "ES384", "sha512": "ES512"}


def algorithm_of(key: keys.PublicKey | None) -> tuple[str, str, Check] | None:
    """Return the name, the hash and the check of the one algorithm for a key; None: no key for it.

    Spec: signature-specification.md, "Algorithm Selection".
    """
    if key is None:
        return None
    if (hash_name := keys.curve_hash(key)) is not None:
        return EC_ALGORITHMS[hash_name], hash_name, keys.verify_ecdsa_raw
    bits = getattr(key, "key_size", 0)
    if bits not in RSA_ALGORITHMS:
        return None
    name, hash_name = RSA_ALGORITHMS[bits]
    return name, hash_name, keys.verify_pss


class Rules(msgspec.Struct, frozen=True):
    """What ``check_headers`` has found."""

    scheme: str
    signing_time: datetime
    expiry: datetime | None
    plugin: str | None


def check_headers(headers: Headers, understood: frozenset[int | str]) -> Rules:
    """Check the signed attributes; *understood* are names of the encoding that may be critical.

    Raises Malformed.
    """
    if headers.content_type != PAYLOAD_TYPE:
        raise Malformed(f"the payload is of type {_show(headers.content_type)}")
    named = headers.named
    scheme = named.get(SCHEME)
    if scheme not in (X509, SIGNING_AUTHORITY):
        raise Malformed(f"the signing scheme {_show(scheme)} is unknown")
    is_by_authority = scheme == SIGNING_AUTHORITY
    wanted, other = (
        (AUTHENTIC_TIME, SIGNING_TIME) if is_by_authority else (SIGNING_TIME, AUTHENTIC_TIME)
    )
    times = headers.times
    if other in times:
        raise Malformed(f"{other} does not go with the signing scheme {scheme}")
    signing_time, expiry = times.get(wanted), times.get(EXPIRY)
    if signing_time is None:
        raise Malformed(f"{wanted} is missing")
    if expiry is not None and expiry <= signing_time:
        raise Malformed("the signature expires before it is made")
    must = {SCHEME} | ({EXPIRY, AUTHENTIC_TIME} & times.keys())
    _check_critical(headers, must, understood)
    plugin = named.get(PLUGIN)
    if plugin is None and PLUGIN_VERSION in named:
        plugin = ""
    if plugin is not None and not isinstance(plugin, str):
        raise Malformed(f"{PLUGIN} is not text")
    return Rules(scheme, signing_time, expiry, plugin)


def _check_critical(headers: Headers, must: set[str], understood: frozenset[int | str]) -> None:
    critical = headers.critical
    if missing := sorted(must - set(critical)):
        raise Malformed(f"{missing[0]} is not marked as critical")
    if len(set(critical)) != len(critical):
        raise Malformed("an attribute is marked as critical twice")
    for name in critical:
        if isinstance(name, str) and name not in headers.named and name not in understood:
            raise Malformed(f"{_show(name)} is marked as critical and absent")
        if name not in UNDERSTOOD and name not in understood:
            raise Malformed(f"the critical attribute {_show(name)} is unknown")


def parse_time(text: str) -> datetime:
    """Return a time of RFC 3339, in UTC, cut at whole seconds.  Raises Malformed."""
    match = TIME_RE.fullmatch(text)
    if match is None:
        raise Malformed(f"{_show(text)} is not a time of RFC 3339")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    offset = timedelta(hours=int(match[8] or 0), minutes=int(match[9] or 0))
    try:
        zone = timezone(-offset if match[7] == "-" else offset)
        return datetime(year, month, day, hour, minute, second, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Malformed(f"{_show(text)} is not in the calendar") from None


def epoch_time(seconds: Any) -> datetime:
    """Return a time given in seconds since 1970.  Raises Malformed."""
    if type(seconds) is not int or not 0 <= seconds <= LAST_SECOND:
        raise Malformed("a time is not a number of seconds since 1970, up to the year 9999")
    return datetime.fromtimestamp(seconds, UTC)


def parse_target(payload: bytes) -> Target:
    """Return what the payload says was signed.  Raises Malformed.

    Spec: signature-specification.md, "Payload".  Unknown names are allowed, other case is not.
    """
    found = parse_object(payload, "the payload").get("targetArtifact")
    if not isinstance(found, dict):
        raise Malformed("the payload has no targetArtifact")
    media_type, size = found.get("mediaType"), found.get("size")
    annotations = found.get("annotations") or {}
    if not isinstance(media_type, str) or type(size) is not int or size < 0:
        raise Malformed("the payload's targetArtifact lacks its mediaType or its size")
    if not isinstance(annotations, dict) or not all(
        isinstance(value, str) for value in annotations.values()
    ):
        raise Malformed("the payload's annotations are not text")
    try:
        digest = parse_digest(str(found.get("digest")))
    except BadDigest as exc:
        raise Malformed("the payload's targetArtifact lacks its digest") from exc
    return Target(media_type, digest, size, annotations)


def parse_chain(found: Sequence[bytes]) -> tuple[Certificate, ...]:
    """Return the certificates of an envelope, in its order.  Raises Malformed."""
    if not found:
        raise Malformed("the certificate chain is missing")
    if len(found) > CHAIN_LIMIT:
        raise Malformed(f"the certificate chain is longer than {CHAIN_LIMIT}")
    return tuple(parse_one(data) for data in found)


def _show(value: Any) -> str:
    return printable(value if isinstance(value, str) else repr(value), 100)
