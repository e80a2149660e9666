"""Signed entry timestamps: that a signature is in a transparency log, shown without asking it.

Rekor signs, for each entry, what was logged and when.  In the old form of cosign's signatures that
lies in the annotation ``dev.sigstore.cosign/bundle``, in the new one among ``tlogEntries``.

Spec: Rekor, openapi.yaml, "inclusionPromise"; types/hashedrekord and types/dsse, version 0.0.1;
RFC 8785 for the bytes that are signed.  What the log says is taken only once its signature is
checked, and it must be about this signature, these signed bytes and this signer.

Importing this module imports cryptography: do so once a policy is in force.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from lazyfs.errors import LazyfsError
from lazyfs.trust import keys
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.sigstore.encoding import encoded, from_base64, members, quote, text
from lazyfs.trust.strict_json import parse_object

ENTRY_LIMIT = 1 << 20  # bytes
ENTRIES_LIMIT = 10
LOG_ID_RE = re.compile(r"[0-9a-f]{64}")
NUMBER_RE = re.compile(r"[0-9]{1,16}")
PEM_RE = re.compile(rb"\s*-----BEGIN ([A-Z ]+)-----\s([A-Za-z0-9+/=\s]+)-----END \1-----\s*")
LATEST = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp())


class Entry(msgspec.Struct, frozen=True):
    """An entry as its signed timestamp covers it; ``promise`` is that signature."""

    body: bytes
    time: int
    index: int
    log: str
    promise: bytes

    @property
    def signed(self) -> bytes:
        """The bytes that the log has signed: RFC 8785; the members are in order."""
        document = {
            "body": base64.b64encode(self.body).decode(),
            "integratedTime": self.time,
            "logID": self.log,
            "logIndex": self.index,
        }
        return json.dumps(document, separators=(",", ":")).encode()


class Logged(msgspec.Struct, frozen=True):
    """What an entry says: who signed (a key or certificate, DER) what, and when it was logged."""

    signer: bytes
    signature: bytes
    digest: str
    moment: datetime


def parse_annotation(spelled: str) -> Entry:
    """Return the entry in the annotation of an old signature.  Raises Malformed."""
    what = "the entry of the log"
    document = members(
        parse_object(encoded(spelled), what, ENTRY_LIMIT),
        what,
        ("SignedEntryTimestamp", "Payload"),
    )
    payload = members(document["Payload"], what, ("body", "integratedTime", "logIndex", "logID"))
    return Entry(
        from_base64(payload["body"], f"{what}: its body"),
        _number(payload["integratedTime"], "integratedTime"),
        _number(payload["logIndex"], "logIndex"),
        _log_id(text(payload["logID"], f"{what}: logID")),
        from_base64(document["SignedEntryTimestamp"], f"{what}: its timestamp"),
    )


def parse_entries(value: Any) -> list[Entry]:
    """Return the entries of a bundle that have a signed timestamp.  Raises Malformed.

    Spec: sigstore_rekor.proto, ``TransparencyLogEntry``.
    """
    what = "the entry of the log"
    if not isinstance(value, list) or len(value) > ENTRIES_LIMIT:
        raise Malformed(f"the bundle's tlogEntries are not a list of at most {ENTRIES_LIMIT}")
    found = []
    for each in value:
        entry = members(each, what, ("logIndex", "logId", "canonicalizedBody"), None)
        if entry.get("inclusionPromise") is None:  # as in the second version of Rekor
            continue
        promise = members(entry["inclusionPromise"], what, ("signedEntryTimestamp",))
        log = from_base64(members(entry["logId"], what, ("keyId",))["keyId"], f"{what}: keyId")
        found.append(
            Entry(
                from_base64(entry["canonicalizedBody"], f"{what}: its body"),
                _number(entry.get("integratedTime"), "integratedTime"),
                _number(entry["logIndex"], "logIndex"),
                _log_id(log.hex()),
                from_base64(promise["signedEntryTimestamp"], f"{what}: its timestamp"),
            )
        )
    return found


def read_entry(entry: Entry, logs: Sequence[keys.PublicKey]) -> Logged:
    """Return what *entry* says, once one of *logs* has signed it.

    Raises BadSignature, and Malformed for an entry of another kind.
    """
    if not any(_is_signed(entry, key) for key in logs):
        raise BadSignature("the entry of the log is not signed by a log that the policy names")
    what = "the entry of the log"
    body = members(
        parse_object(entry.body, what, ENTRY_LIMIT), what, ("apiVersion", "kind", "spec")
    )
    kind = (body["kind"], body["apiVersion"])
    moment = datetime.fromtimestamp(entry.time, UTC)
    if kind == ("hashedrekord", "0.0.1"):
        spec = members(body["spec"], what, ("data", "signature"), None)
        hashed = members(spec["data"], what, ("hash",), None)["hash"]
        signature = members(spec["signature"], what, ("content", "publicKey"), None)
        key = members(signature["publicKey"], what, ("content",), None)["content"]
        return Logged(_der(key), from_base64(signature["content"], what), _sha256(hashed), moment)
    if kind == ("dsse", "0.0.1"):
        spec = members(body["spec"], what, ("payloadHash", "signatures"), None)
        signatures = spec["signatures"]
        if not isinstance(signatures, list) or len(signatures) != 1:
            raise Malformed(f"{what} has not exactly one signature")
        one = members(signatures[0], what, ("signature", "verifier"), None)
        hashed = _sha256(spec["payloadHash"])
        return Logged(_der(one["verifier"]), from_base64(one["signature"], what), hashed, moment)
    raise Malformed(f"{what} is of the kind {quote(kind[0])} {quote(kind[1])}")


def is_about(logged: Logged, signature: bytes, payload: bytes) -> bool:
    """Say whether an entry is about this signature over this payload."""
    digest = hashlib.sha256(payload).hexdigest()
    return logged.signature == signature and logged.digest == digest


def _is_signed(entry: Entry, key: keys.PublicKey) -> bool:
    try:
        keys.verify_ecdsa_der(key, entry.promise, entry.signed, "sha256")
    except LazyfsError:
        return False
    return True


def _number(value: Any, name: str) -> int:
    """Return a number, which ProtoJSON spells as text.  Raises Malformed."""
    if isinstance(value, str) and NUMBER_RE.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value < LATEST:
        raise Malformed(f"the entry of the log: {name} is not a possible number")
    return value


def _log_id(value: str) -> str:
    if LOG_ID_RE.fullmatch(value) is None:
        raise Malformed("the entry of the log: the log's name is not 32 bytes")
    return value


def _sha256(value: Any) -> str:
    what = "the entry of the log"
    hashed = members(value, what, ("algorithm", "value"), None)
    if hashed["algorithm"] != "sha256":
        raise Malformed(f"{what} has a digest of {quote(hashed['algorithm'])}, not sha256")
    return text(hashed["value"], what)


def _der(value: Any) -> bytes:
    """Return what a PEM block in base64 holds.  Raises Malformed."""
    match = PEM_RE.fullmatch(from_base64(value, "the entry of the log"))
    if match is None:
        raise Malformed("the entry of the log names no key or certificate")
    try:
        return base64.b64decode(b"".join(match[2].split()), validate=True)
    except binascii.Error:
        raise Malformed("the entry of the log names no key or certificate") from None
