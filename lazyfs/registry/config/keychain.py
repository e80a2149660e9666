"""Which credentials belong to a repository, by the auth files of docker and podman.

Spec: containers-auth.json(5), docker's config.json, docker-credential-helpers' protocol.  No I/O
here: files come through a function, and helper programs are only named (``helpers.py`` runs them).

Order of files: the one that is named, alone; else containers' auth.json of the session, of the
user, docker's config.json, the old .dockercfg.  Order in a file: the helper of that registry, the
helper of all registries, the entries from the longest prefix of the repository to its registry.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath

import msgspec

from lazyfs.errors import UsageError
from lazyfs.oci.reference import auth_key
from lazyfs.printable import printable

FILE_LIMIT = 4 << 20
HELPER_RE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DOCKER_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
TOKEN_USER = "<token>"
"""The user name with which docker's helpers mark an identity token."""

ReadFile = Callable[[str], bytes | None]


class BadAuthFile(UsageError):
    """A file with credentials that cannot be understood, or was named and is not there."""


class Kind(Enum):
    """What a secret is: of a user, for a token service, or a token by itself."""

    PASSWORD = "password"
    IDENTITY_TOKEN = "identity token"
    REGISTRY_TOKEN = "registry token"


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret, and what it is; ``source`` says where it was found."""

    username: str
    secret: str = field(repr=False)
    kind: Kind = Kind.PASSWORD
    source: str = field(default="", compare=False)


class HelperCall(msgspec.Struct, frozen=True):
    """``docker-credential-NAME get`` with ``server`` on its input may know."""

    name: str
    server: str
    source: str = ""


class _Entry(msgspec.Struct, rename="lower"):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _File(msgspec.Struct):
    auths: dict[str, _Entry | None] | None = None
    creds_store: str | None = msgspec.field(default=None, name="credsStore")
    cred_helpers: dict[str, str] | None = msgspec.field(default=None, name="credHelpers")


def candidates(
    registry: str,
    repository: str,
    environment: Mapping[str, str],
    read_file: ReadFile,
    *,
    authfile: str | None = None,
    uid: int = 0,
) -> Iterator[Credential | HelperCall]:
    """Yield what may open *registry*/*repository*, best first; helpers may turn out not to know.

    *read_file* returns a file's bytes, or None if there is no such file.  Files are read only when
    the search gets to them.
    """
    named = authfile or environment.get("REGISTRY_AUTH_FILE")
    for path in [named] if named else auth_paths(environment, uid):
        data = read_file(path)
        if data is not None:
            yield from in_file(data, path, registry, repository)
        elif named:
            raise BadAuthFile(f"auth file {path} does not exist")


def auth_paths(environment: Mapping[str, str], uid: int) -> list[str]:
    """Return the files that are searched when none is named."""
    home = environment.get("HOME")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{uid}"
    paths = [PurePath(runtime, "auth.json")]
    if environment.get("XDG_RUNTIME_DIR"):
        paths = [PurePath(runtime, "containers", "auth.json")]
    config = environment.get("XDG_CONFIG_HOME") or (home and f"{home}/.config")
    if config:
        paths.append(PurePath(config, "containers", "auth.json"))
    docker = environment.get("DOCKER_CONFIG") or (home and f"{home}/.docker")
    if docker:
        paths.append(PurePath(docker, "config.json"))
    if home:
        paths.append(PurePath(home, ".dockercfg"))
    return list(map(str, paths))


def in_file(
    data: bytes, path: str, registry: str, repository: str
) -> Iterator[Credential | HelperCall]:
    """Yield what one file has for *registry*/*repository*."""
    file = _decode(data, path)
    server = auth_key(registry)
    names = _names(registry, repository)
    for key, helper in (file.cred_helpers or {}).items():
        if helper and normal_key(key) in names:
            yield HelperCall(_checked_helper(helper, path), server, path)
    if file.creds_store:
        yield HelperCall(_checked_helper(file.creds_store, path), server, path)
    entries: dict[str, _Entry] = {}
    for key, entry in (file.auths or {}).items():
        # The plain spelling of a key wins over the old one that is a URL.
        if entry is not None and ("://" not in key or normal_key(key) not in entries):
            entries[normal_key(key)] = entry
    for name in names:
        credential = _credential(entries[name], path, name) if name in entries else None
        if credential is not None:
            yield credential


def normal_key(key: str) -> str:
    """Return ``host[:port][/path]`` for a key of an auth file; of a URL only the host counts."""
    scheme, found, rest = key.partition("://")
    name = rest.partition("/")[0] if found else scheme.rstrip("/")
    host, slash, path = name.partition("/")
    host = host.lower()
    if host in DOCKER_NAMES:
        host = "docker.io"
        if path in ("v1", "v2"):
            slash = path = ""
    return host + slash + path


def _names(registry: str, repository: str) -> list[str]:
    """Return the repository's name and its prefixes, longest first, down to the registry."""
    host = normal_key(registry)
    parts = repository.split("/")
    return ["/".join((host, *parts[:count])) for count in range(len(parts), 0, -1)] + [host]


def _decode(data: bytes, path: str) -> _File:
    if len(data) > FILE_LIMIT:
        raise BadAuthFile(f"auth file {path}: got {len(data)} bytes, expected at most {FILE_LIMIT}")
    try:
        if PurePath(path).name == ".dockercfg":
            return _File(auths=msgspec.json.decode(data, type=dict[str, _Entry | None]))
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The message names types and paths in the document, never its values.
        reason = printable(str(error), 150)
        raise BadAuthFile(f"auth file {path} is not valid: {reason}") from None


def _credential(entry: _Entry, path: str, key: str) -> Credential | None:
    """Return what an entry says; docker leaves empty ones, which are as good as none."""
    source = f"{path} ({key})"
    username, password = entry.username or "", entry.password or ""
    if entry.auth:
        username, password = _decode_auth(entry.auth, source)
    if entry.registrytoken:
        return Credential(username, entry.registrytoken, Kind.REGISTRY_TOKEN, source)
    if entry.identitytoken:
        return Credential(username, entry.identitytoken, Kind.IDENTITY_TOKEN, source)
    if username == TOKEN_USER and password:
        return Credential("", password, Kind.IDENTITY_TOKEN, source)
    return Credential(username, password, Kind.PASSWORD, source) if username else None


def _decode_auth(text: str, source: str) -> tuple[str, str]:
    try:
        decoded = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise BadAuthFile(f"{source}: auth is not valid base64 of UTF-8 text") from None
    username, colon, password = decoded.rstrip("\0").partition(":")
    if not colon:
        raise BadAuthFile(f"{source}: auth is not of the form USER:PASSWORD")
    return username, password


def _checked_helper(name: str, path: str) -> str:
    if HELPER_RE.fullmatch(name) is None:
        raise BadAuthFile(
            f"auth file {path}: {printable(name, 60)!r} is not the name of a credential helper"
        )
    return name


class _Answer(msgspec.Struct):
    username: str = msgspec.field(default="", name="Username")
    secret: str = msgspec.field(default="", name="Secret")


def decode_helper_answer(data: bytes, call: HelperCall) -> Credential | None:
    """Return the credential that a helper printed; None if it printed an empty one."""
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadAuthFile(
            f"docker-credential-{call.name}: the answer is not a JSON object with ServerURL, "
            "Username and Secret"
        ) from None
    source = f"docker-credential-{call.name}"
    if not answer.secret:
        return None
    if answer.username == TOKEN_USER:
        return Credential("", answer.secret, Kind.IDENTITY_TOKEN, source)
    return Credential(answer.username, answer.secret, Kind.PASSWORD, source)
