"""policy.json read strictly: whatever is unknown, missing or said twice refuses the whole file.

Spec: containers-policy.json(5), "FORMAT" and "Policy Requirements".  Requirements that lazyfs
cannot check (signedBy, signedBaseLayer) are no fault of the file: they refuse only the images that
they hold for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from lazyfs.oci.reference import DOMAIN_RE, BadReference
from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.sigstore.encoding import SHOWN, from_base64, quote
from lazyfs.trust.sigstore.identity import Identity, Kind, parse_name
from lazyfs.trust.sigstore.policy import (
    AcceptAnything,
    Fulcio,
    Material,
    Pki,
    Policy,
    Reject,
    Requirement,
    SigstoreSigned,
    Unsupported,
)
from lazyfs.trust.sigstore.scopes import DOCKER, LAYOUT, fault_of, normalised
from lazyfs.trust.strict_json import parse_object

POLICY_LIMIT = 1 << 20  # bytes
SCOPES_LIMIT = 10_000  # in one transport
REQUIREMENTS_LIMIT = 100  # of one scope
KEYS_LIMIT = 100  # of one requirement
SCOPE_SHOWN = 300  # characters of a scope that a message quotes

TYPES = ("insecureAcceptAnything", "reject", "sigstoreSigned", "signedBy", "signedBaseLayer")
KEY_SOURCES = ("keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki")
REKOR_SOURCES = (
    "rekorPublicKeyPath",
    "rekorPublicKeyPaths",
    "rekorPublicKeyData",
    "rekorPublicKeyDatas",
)
PKI_MEMBERS = (
    "caRootsPath",
    "caRootsData",
    "caIntermediatesPath",
    "caIntermediatesData",
    "subjectEmail",
    "subjectHostname",
)
# Kind of signedIdentity → its members besides the type.
IDENTITY_MEMBERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(get_args(Kind), ()),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


def is_policy(document: Mapping[str, Any]) -> bool:
    """Say whether a JSON object is a policy.json, and not one of Notation's trust policies."""
    return "default" in document or "transports" in document


def parse_policy(data: bytes, file: str) -> Policy:
    """Return the policy in *data*; *file* names it in messages.  Raises PolicyFault."""
    try:
        document = parse_object(data, file, POLICY_LIMIT)
    except Malformed as exc:
        raise PolicyFault(exc.message) from None
    return _Reading(file).policy(document)


class _Reading:
    def __init__(self, file: str) -> None:
        self.file = file
        self.warnings: list[str] = []

    def policy(self, document: dict[str, Any]) -> Policy:
        self.check_members(document, "", ("default",), ("transports",))
        default = self.requirements(document["default"], "default")
        transports = {}
        listed = self.object(document.get("transports", {}), "transports")
        for transport, scopes in listed.items():
            transports[transport] = self.scopes(scopes, transport)
        return Policy(self.file, default, transports, tuple(self.warnings))

    def scopes(self, value: Any, transport: str) -> dict[str, tuple[Requirement, ...]]:
        above = f"transports.{_step(transport)}"
        listed = self.object(value, above)
        if len(listed) > SCOPES_LIMIT:
            raise self.fault(above, f"has {len(listed)} scopes, may have {SCOPES_LIMIT}")
        found: dict[str, tuple[Requirement, ...]] = {}
        for scope, requirements in listed.items():
            place = f"{above}[{_quoted(scope)}]"
            key = self.scope(scope, transport, place)
            if key in found:
                raise self.fault(place, "is listed twice, in another case")
            found[key] = self.requirements(requirements, place)
        return found

    def scope(self, scope: str, transport: str, place: str) -> str:
        """Return a scope as it is looked up."""
        if not scope:
            return scope
        if transport == LAYOUT:
            if not scope.startswith("/") or scope == "/" or scope.endswith("/"):
                raise self.fault(place, "must be an absolute directory, or empty for all")
            return scope
        if transport != DOCKER:
            return scope
        if fault := fault_of(scope):
            self.warnings.append(f"{self.file}: {place} matches no image: {fault}")
        return normalised(scope)

    def requirements(self, value: Any, place: str) -> tuple[Requirement, ...]:
        if not isinstance(value, list):
            raise self.fault(place, f"must be a list of requirements, not {_shown(value)}")
        if not 1 <= len(value) <= REQUIREMENTS_LIMIT:
            raise self.fault(
                place, f"has {len(value)} requirements, must have 1 to {REQUIREMENTS_LIMIT}"
            )
        return tuple(self.requirement(each, f"{place}[{at}]") for at, each in enumerate(value))

    def requirement(self, value: Any, place: str) -> Requirement:
        found = self.object(value, place)
        match self.choice(found, "type", place, TYPES):
            case "insecureAcceptAnything":
                self.check_members(found, place, ("type",))
                return AcceptAnything()
            case "reject":
                self.check_members(found, place, ("type",))
                return Reject()
            case "sigstoreSigned":
                return self.sigstore_signed(found, place)
            case "signedBy":
                return self.signed_by(found, place)
            case _:
                return Unsupported(place, "signedBaseLayer")

    def signed_by(self, found: dict[str, Any], place: str) -> Requirement:
        sources = ("keyPath", "keyPaths", "keyData")
        self.check_members(found, place, ("type", "keyType"), (*sources, "signedIdentity"))
        self.one_of(found, place, sources)
        self.identity(found, place)
        return Unsupported(place, "signedBy (a GPG signature)")

    def sigstore_signed(self, found: dict[str, Any], place: str) -> Requirement:
        self.check_members(
            found, place, ("type",), (*KEY_SOURCES, *REKOR_SOURCES, "signedIdentity")
        )
        source = self.one_of(found, place, KEY_SOURCES)
        identity = self.identity(found, place)
        rekor = [name for name in REKOR_SOURCES if name in found]
        if len(rekor) > 1:
            raise self.fault(place, f"has {' and '.join(rekor)}, may have one of them")
        if rekor and source == "pki":
            raise self.fault(place, f"{rekor[0]} may not stand beside pki")
        if not rekor and source == "fulcio":
            raise self.fault(place, f"fulcio needs one of {', '.join(REKOR_SOURCES)}")
        logs = self.materials(found, place, rekor[0]) if rekor else ()
        if source == "pki":
            return SigstoreSigned(place, identity, pki=self.pki(found["pki"], f"{place}.pki"))
        if source == "fulcio":
            fulcio = self.fulcio(found["fulcio"], f"{place}.fulcio")
            return SigstoreSigned(place, identity, fulcio=fulcio, logs=logs)
        return SigstoreSigned(place, identity, self.materials(found, place, source), logs=logs)

    def materials(self, found: dict[str, Any], place: str, source: str) -> tuple[Material, ...]:
        """Return the keys that a member states whose name ends in Path, Paths, Data or Datas."""
        make: Callable[[Any, str], Material] = (
            self.file_material if "Path" in source else self.data_material
        )
        below = f"{place}.{source}"
        if not source.endswith("s"):
            return (make(found[source], below),)
        listed = found[source]
        if not isinstance(listed, list) or not 1 <= len(listed) <= KEYS_LIMIT:
            raise self.fault(below, f"must be a list of 1 to {KEYS_LIMIT} keys")
        return tuple(make(each, f"{below}[{at}]") for at, each in enumerate(listed))

    def file_material(self, value: Any, place: str) -> Material:
        path = self.text(value, place)
        if not path.startswith("/") or "\0" in path:
            raise self.fault(place, f"must be the absolute path of a file, not {_shown(value)}")
        return Material(place, path=path)

    def data_material(self, value: Any, place: str) -> Material:
        try:
            return Material(place, data=from_base64(value, "the value"))
        except Malformed:
            raise self.fault(place, "must be base64") from None

    def pki(self, value: Any, place: str) -> Pki:
        found = self.object(value, place)
        self.check_members(found, place, (), PKI_MEMBERS)
        self.one_of(found, place, ("caRootsPath", "caRootsData"))
        both = ("caIntermediatesPath", "caIntermediatesData")
        if all(name in found for name in both):
            raise self.fault(place, f"has {' and '.join(both)}, may have one of them")
        email, hostname = (
            self.text(found[name], f"{place}.{name}") if name in found else None
            for name in ("subjectEmail", "subjectHostname")
        )
        if not email and not hostname:
            raise self.fault(place, "needs subjectEmail or subjectHostname, or both")
        roots = self.certificates(found, place, "caRoots")
        helpers = None
        if any(name in found for name in both):
            helpers = self.certificates(found, place, "caIntermediates")
        return Pki(roots, helpers, email, hostname)

    def fulcio(self, value: Any, place: str) -> Fulcio:
        found = self.object(value, place)
        sources = ("caPath", "caData")
        self.check_members(found, place, ("oidcIssuer", "subjectEmail"), sources)
        self.one_of(found, place, sources)
        issuer, email = (
            self.text(found[name], f"{place}.{name}") for name in ("oidcIssuer", "subjectEmail")
        )
        return Fulcio(self.certificates(found, place, "ca"), issuer, email)

    def certificates(self, found: dict[str, Any], place: str, name: str) -> Material:
        """Return what NAMEPath or NAMEData states, of which one is there."""
        if f"{name}Path" in found:
            return self.file_material(found[f"{name}Path"], f"{place}.{name}Path")
        return self.data_material(found[f"{name}Data"], f"{place}.{name}Data")

    def identity(self, requirement: dict[str, Any], above: str) -> Identity:
        if "signedIdentity" not in requirement:
            return Identity()
        place = f"{above}.signedIdentity"
        found = self.object(requirement["signedIdentity"], place)
        kind: Any = self.choice(found, "type", place, tuple(IDENTITY_MEMBERS))
        names = IDENTITY_MEMBERS[kind]
        self.check_members(found, place, ("type", *names))
        texts = [self.text(found[name], f"{place}.{name}") for name in names]
        if kind == "remapIdentity":
            for name, prefix in zip(names, texts, strict=True):
                if not _is_prefix(prefix):
                    raise self.fault(
                        f"{place}.{name}",
                        f"must be HOST, or HOST/PATH without tag and digest, not {_shown(prefix)}",
                    )
            return Identity(kind, prefix=texts[0], signed_prefix=texts[1])
        if not names:
            return Identity(kind)
        try:
            stated = parse_name(texts[0])
        except BadReference as exc:
            raise self.fault(f"{place}.{names[0]}", str(exc)) from None
        if kind == "exactReference" and stated.is_bare:
            raise self.fault(f"{place}.{names[0]}", "must have a tag or a digest")
        return Identity(kind, texts[0])

    # What any member may be.

    def object(self, value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fault(place, f"must be an object, not {_shown(value)}")
        return value

    def text(self, value: Any, place: str) -> str:
        if not isinstance(value, str) or not value:
            raise self.fault(place, f"must be text that is not empty, not {_shown(value)}")
        return value

    def choice(self, found: dict[str, Any], name: str, place: str, allowed: Sequence[str]) -> str:
        if name not in found:
            raise self.fault(place, f"has no {name}; allowed are {', '.join(allowed)}")
        value = found[name]
        if not isinstance(value, str) or value not in allowed:
            raise self.fault(
                f"{place}.{name}", f"must be one of {', '.join(allowed)}, not {_shown(value)}"
            )
        return value

    def one_of(self, found: dict[str, Any], place: str, names: Sequence[str]) -> str:
        given = [name for name in names if name in found]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise self.fault(place, f"must have exactly one of {', '.join(names)}, not {got}")
        return given[0]

    def check_members(
        self,
        found: dict[str, Any],
        place: str,
        required: Sequence[str],
        optional: Sequence[str] = (),
    ) -> None:
        allowed = (*required, *optional)
        for name in found:
            if name not in allowed:
                raise self.fault(
                    place, f"has an unknown member {quote(name)}; allowed are {', '.join(allowed)}"
                )
        for name in required:
            if name not in found:
                raise self.fault(place, f"has no {name}")

    def fault(self, place: str, text: str) -> PolicyFault:
        return PolicyFault(f"{self.file}: {place or 'the policy'} {text}")


def _step(name: str) -> str:
    is_plain = name.replace("-", "").isalnum() and name.isascii() and len(name) < SHOWN
    return name if is_plain else _quoted(name)


def _quoted(name: str) -> str:
    return json.dumps(name if len(name) <= SCOPE_SHOWN else name[:SCOPE_SHOWN] + "…")


def _is_prefix(text: str) -> bool:
    """Say whether *text* is a host, or a host and the beginning of a repository."""
    host, slash, path = text.partition("/")
    if not DOMAIN_RE.fullmatch(host):
        return False
    if not slash:
        return True
    try:
        return parse_name(text).repository == text and bool(path)
    except BadReference:
        return False


def _shown(value: Any) -> str:
    return quote(value) if isinstance(value, str | int | float | None) else _kind(value)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "an object"
