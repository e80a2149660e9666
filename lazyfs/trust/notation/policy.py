"""Trust policies: ``trustpolicy.json`` and ``trustpolicy.oci.json``.

Spec: Notary Project, trust-store-trust-policy.md, "Trust Policy".  A document is judged as a whole:
any fault refuses it, whichever image was asked for.  Stricter than notation 1.3.2 in four points: a
name twice in one object, a known name in other case, text behind the document, and ``skip`` for
every repository, which would switch all signatures off without a word.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import msgspec

from lazyfs.oci.reference import DOMAIN_RE, PATH_COMPONENT_RE
from lazyfs.printable import printable
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.notation.identities import Identity, parse_identity
from lazyfs.trust.strict_json import parse_object

SIZE_LIMIT = 1 << 20  # bytes of a document
STATEMENTS_LIMIT = 1000
ITEMS_LIMIT = 1000  # of a list in a statement
VERSION = "1.0"
EVERY = "*"
SUBJECT = "x509.subject"
SHOWN = 100

Action = Literal["enforce", "log", "skip"]
Level = Literal["strict", "permissive", "audit", "skip"]
StoreKind = Literal["ca", "signingAuthority", "tsa"]

# What a level does about a failed check.  "Signature Verification Details".
LEVELS: dict[str, dict[str, Action]] = {
    "strict": {
        "authenticity": "enforce",
        "authenticTimestamp": "enforce",
        "expiry": "enforce",
        "revocation": "enforce",
    },
    "permissive": {
        "authenticity": "enforce",
        "authenticTimestamp": "log",
        "expiry": "log",
        "revocation": "log",
    },
    "audit": {
        "authenticity": "log",
        "authenticTimestamp": "log",
        "expiry": "log",
        "revocation": "log",
    },
    "skip": {},
}
NAMES = {
    "document": ("version", "trustPolicies"),
    "statement": (
        "name", "registryScopes", "signatureVerification", "trustStores", "trustedIdentities",
    ),
    "verification": ("level", "override", "verifyTimestamp"),
}  # fmt: skip
STORE_NAME_RE = re.compile(r"[a-zA-Z0-9_.-]+")


class StoreName(msgspec.Struct, frozen=True, order=True):
    """A trust store: ``ca:acme`` is the directory ``truststore/x509/ca/acme``."""

    kind: StoreKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the images in some repositories.

    ``actions`` says by check what its failure does.  ``identities`` are None for every identity,
    and may be empty where the policy names only kinds that nobody knows.  With
    ``always_timestamp`` a countersignature is demanded while certificates are valid, too.
    """

    name: str
    scopes: tuple[str, ...]
    level: Level
    actions: Mapping[str, Action]
    always_timestamp: bool
    stores: tuple[StoreName, ...]
    identities: tuple[Identity, ...] | None


class Policy(msgspec.Struct, frozen=True):
    """A trust policy; ``file`` names it in messages."""

    file: str
    statements: tuple[Statement, ...]

    def statement_for(self, scope: str) -> Statement | None:
        """Return what is asked of a repository: its own statement, else the one for all."""
        for wanted in (scope, EVERY):
            for statement in self.statements:
                if wanted in statement.scopes:
                    return statement
        return None


def fold_scope(name: str) -> str:
    """Return a repository's name with its host in lower case: hosts have no case (RFC 3986)."""
    host, slash, path = name.partition("/")
    return f"{host.lower()}{slash}{path}"


def parse_policy(data: bytes, file: str) -> Policy:
    """Return the policy in *data*; *file* names it in messages.  Raises PolicyFault."""
    try:
        document = parse_object(data, file, SIZE_LIMIT)
    except Malformed as exc:
        raise PolicyFault(exc.message) from exc
    try:
        return Policy(file, _statements(document))
    except Malformed as exc:
        raise PolicyFault(f"{file}: {exc.message}") from exc


def _statements(document: dict[str, Any]) -> tuple[Statement, ...]:
    _check_names(document, "document")
    version = document.get("version")
    if version != VERSION:
        raise Malformed(f"version: must be {VERSION!r}, not {_quote(version)}")
    found = document.get("trustPolicies")
    if not isinstance(found, list) or not 0 < len(found) <= STATEMENTS_LIMIT:
        raise Malformed(f"trustPolicies: must be a list of 1 to {STATEMENTS_LIMIT} statements")
    statements = tuple(_statement(each, at) for at, each in enumerate(found))
    if (name := _twice(each.name for each in statements)) is not None:
        raise Malformed(f"trustPolicies: two statements have the name {_quote(name)}")
    if (scope := _twice(scope for each in statements for scope in each.scopes)) is not None:
        raise Malformed(f"registryScopes: {_quote(scope)} is in two places")
    return statements


def _statement(found: Any, at: int) -> Statement:
    if not isinstance(found, dict):
        raise Malformed(f"trustPolicies[{at}]: must be an object")
    _check_names(found, "statement")
    name = found.get("name")
    if not isinstance(name, str) or not name:
        raise Malformed(f"trustPolicies[{at}]: a statement has no name")
    try:
        return _rules(found, name)
    except Malformed as exc:
        raise Malformed(f"statement {_quote(name)}: {exc.message}") from exc


def _rules(found: dict[str, Any], name: str) -> Statement:
    scopes = _scopes(found)
    level, actions, always = _verification(found.get("signatureVerification"))
    stores = tuple(_store(each) for each in _texts(found, "trustStores"))
    identities = _texts(found, "trustedIdentities")
    if level == "skip":
        if stores or identities:
            raise Malformed("level skip: there must be no trustStores and no trustedIdentities")
        if EVERY in scopes:
            raise Malformed(
                'level skip: must not be for all repositories ("*"); name those to be skipped'
            )
    elif not stores or not identities:
        raise Malformed("trustStores and trustedIdentities: both must be there")
    return Statement(
        name=name,
        scopes=scopes,
        level=level,
        actions=actions,
        always_timestamp=always,
        stores=stores,
        identities=_identities(identities),
    )


def _scopes(found: dict[str, Any]) -> tuple[str, ...]:
    scopes = _texts(found, "registryScopes")
    if not scopes:
        raise Malformed("registryScopes: must name a repository")
    if EVERY in scopes and len(scopes) > 1:
        raise Malformed('registryScopes: "*" must stand alone')
    return tuple(scope if scope == EVERY else _scope(scope) for scope in scopes)


def _scope(scope: str) -> str:
    host, _, path = scope.partition("/")
    if not DOMAIN_RE.fullmatch(host) or not all(
        PATH_COMPONENT_RE.fullmatch(component) for component in path.split("/")
    ):
        raise Malformed(
            f"registryScopes: {_quote(scope)} is not a repository (HOST/PATH, without tag,"
            ' digest, scheme or wildcards), and not "*"'
        )
    return fold_scope(scope)


def _verification(found: Any) -> tuple[Level, Mapping[str, Action], bool]:
    if not isinstance(found, dict):
        raise Malformed("signatureVerification: must be an object")
    _check_names(found, "verification")
    level = found.get("level")
    if not isinstance(level, str) or level not in LEVELS:
        raise Malformed(f"level: must be one of {', '.join(LEVELS)}, not {_quote(level)}")
    override = found.get("override") or {}
    if not isinstance(override, dict):
        raise Malformed("override: must be an object")
    if override and level == "skip":
        raise Malformed("override: level skip has nothing to override")
    actions = dict(LEVELS[level])
    for check, action in override.items():
        actions[check] = _override(check, action)
    moment = found.get("verifyTimestamp") or "always"
    if moment not in ("always", "afterCertExpiry"):
        raise Malformed(f"verifyTimestamp: must be always or afterCertExpiry, not {_quote(moment)}")
    return level, actions, moment == "always"  # type: ignore[return-value]


def _override(check: str, action: Any) -> Action:
    if check not in LEVELS["strict"]:
        raise Malformed(f"override: {_quote(check)} is not one of {', '.join(LEVELS['strict'])}")
    if action not in get_args(Action) or (action == "skip" and check != "revocation"):
        allowed = "enforce, log or skip" if check == "revocation" else "enforce or log"
        raise Malformed(f"override: {check} must be {allowed}, not {_quote(action)}")
    return action  # type: ignore[no-any-return]


def _store(text: str) -> StoreName:
    kind, colon, name = text.partition(":")
    if not colon or kind not in get_args(StoreKind):
        raise Malformed(f"trustStores: {_quote(text)} is not ca:, signingAuthority: or tsa:NAME")
    # "." and ".." are made of allowed characters and are other directories.
    if not STORE_NAME_RE.fullmatch(name) or name in (".", ".."):
        raise Malformed(f"trustStores: {_quote(text)}: the name may have a-z, A-Z, 0-9, _.-")
    return StoreName(kind, name)  # type: ignore[arg-type]


def _identities(texts: list[str]) -> tuple[Identity, ...] | None:
    if EVERY in texts:
        if len(texts) > 1:
            raise Malformed('trustedIdentities: "*" must stand alone')
        return None
    found: list[Identity] = []
    for text in texts:
        kind, colon, value = text.partition(":")
        if not colon:
            raise Malformed(f"trustedIdentities: {_quote(text)} is not of the form {SUBJECT}: …")
        if kind != SUBJECT:
            continue  # legal, and meant for somebody else: it matches nothing
        try:
            found.append(parse_identity(value))
        except Malformed as exc:
            raise Malformed(f"trustedIdentities: {_quote(text)}: {exc.message}") from exc
    for at, identity in enumerate(found):
        for other in found[:at]:
            if identity.covers(other) or other.covers(identity):
                raise Malformed(
                    f"trustedIdentities: {_quote(other.text)} and {_quote(identity.text)}"
                    " mean the same certificates"
                )
    return tuple(found)


def _texts(found: dict[str, Any], name: str) -> list[str]:
    """Return a member that is a list of words; null and nothing are an empty one, as in Go."""
    texts = found.get(name) or []
    if (
        not isinstance(texts, list)
        or len(texts) > ITEMS_LIMIT
        or not all(isinstance(text, str) for text in texts)
    ):
        raise Malformed(f"{name}: must be a list of at most {ITEMS_LIMIT} words")
    return texts


def _check_names(found: dict[str, Any], what: str) -> None:
    """Refuse a name that differs by case alone from one that means something.

    Unknown names are ignored, as the specification of versions demands; but notation reads
    ``Override`` like ``override``, and what it would follow must not be overlooked here.
    """
    folded = {name.lower(): name for name in NAMES[what]}
    for name in found:
        meant = folded.get(name.lower(), name)
        if meant != name:
            raise Malformed(f"the name {_quote(name)} must be written {_quote(meant)}")


def _twice(words: Iterable[str]) -> str | None:
    seen = set()
    for word in words:
        if word in seen:
            return word
        seen.add(word)
    return None


def _quote(value: Any) -> str:
    if isinstance(value, str):
        return f'"{printable(value, SHOWN)}"'
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
