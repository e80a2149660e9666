"""``restore-policy.yaml``: what snapshots may ask for, by store and by id of the restored sandbox.

    version: 1
    rules:
    - store: s3://bucket/golden       # as lazyfs prints it; "*" for all
      sandbox: worker-*               # the new sandbox's id; default: all
      allow: [host-path=/srv/data:ro, capability=NET_ADMIN]

Contract: docs/reference/restore-policy.md.  Read only when a snapshot asks for something that the
command line does not allow, or when the file is named there.
"""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from lazyfs.documents.documents import make
from lazyfs.documents.journal import SandboxBroken
from lazyfs.documents.own import read_own
from lazyfs.errors import UsageError
from lazyfs.snapshot.grants import BadGrant, Grant, parse_grant

NAME = "restore-policy.yaml"
SYSTEM_FILE = Path("/etc/lazyfs") / NAME
LIMIT = 256 << 10  # bytes
VERSION = 1
ALL = "*"


class BadPolicy(UsageError):
    """A restore policy cannot be read, or is not its reader's own."""

    code = "E_RESTORE_POLICY"


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    store: str
    allow: Annotated[tuple[str, ...], Meta(min_length=1)]
    sandbox: str = ALL


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    rules: tuple[_Rule, ...] = ()


class Rule(msgspec.Struct, frozen=True):
    """What is allowed to snapshots of ``store`` that go on as ``sandbox``, a pattern."""

    store: str
    sandbox: str
    grants: tuple[Grant, ...]

    def is_for(self, store: str, sandbox_id: str) -> bool:
        """Say whether it speaks of a store and a sandbox; without an id only one for all does."""
        return self.store in (ALL, store) and (
            self.sandbox == ALL or (bool(sandbox_id) and fnmatchcase(sandbox_id, self.sandbox))
        )


class Policy:
    """The rules that count on this machine: those of *path*, or of the default places."""

    def __init__(self, paths: Sequence[Path], *, is_named: bool) -> None:
        self._paths = paths
        self._rules = self._load(must_exist=True) if is_named else None

    def grants(self, store: str, sandbox_id: str) -> list[Grant]:
        """Return what is allowed to a snapshot of *store* that goes on as *sandbox_id*.

        Raises BadPolicy.
        """
        if self._rules is None:
            self._rules = self._load(must_exist=False)
        return [
            grant for rule in self._rules if rule.is_for(store, sandbox_id) for grant in rule.grants
        ]

    def _load(self, *, must_exist: bool) -> list[Rule]:
        rules: list[Rule] = []
        for path in self._paths:
            try:
                data = read_own(path, LIMIT + 1, follows=True)
            except (FileNotFoundError, NotADirectoryError) as error:
                if must_exist:
                    raise BadPolicy(f"restore policy {path}: {error.strerror}") from error
                continue
            except OSError as error:
                raise BadPolicy(f"restore policy {path}: {error.strerror}") from error
            except SandboxBroken as error:
                raise BadPolicy(f"restore policy {error.message}", hint=error.hint) from error
            rules += decode_policy(data, str(path))
        return rules


def load_policy(path: Path | None, environment: Mapping[str, str]) -> Policy:
    """Return the policy of *path*; of the default places, read when needed, where that is None."""
    if path is not None:
        return Policy([path], is_named=True)
    home = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Policy([SYSTEM_FILE, Path(home) / "lazyfs" / NAME], is_named=False)


def decode_policy(data: bytes, what: str) -> list[Rule]:
    """Return the rules in *data*.  Raises BadPolicy."""

    def complain(text: str) -> BadPolicy:
        return BadPolicy(f"restore policy {what}: {text}")

    if len(data) > LIMIT:
        raise complain(f"longer than {LIMIT} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise complain(f"not valid UTF-8 at byte {error.start}") from error
    # A restore seldom reads one.
    from lazyfs.documents.yaml_documents import parse_yaml  # noqa: PLC0415

    document = make(_Document, parse_yaml(text, complain), complain, {})
    rules = []
    for number, rule in enumerate(document.rules):
        by = f"{what}, rules[{number}]"
        try:
            grants = tuple(parse_grant(each, by) for each in rule.allow)
        except BadGrant as error:
            raise BadPolicy(f"restore policy {error.message}", hint=error.hint) from error
        rules.append(Rule(spelled_store(rule.store), rule.sandbox, grants))
    return rules


def spelled_store(text: str) -> str:
    """Return a store as ``ObjectStore.url`` spells it; what names none stays and matches none."""
    if text == ALL:
        return text
    parts = urlsplit(text)
    if parts.scheme == "s3":
        return f"s3://{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    path = unquote(parts.path) if parts.scheme == "file" else text
    return os.path.normpath(path) if path.startswith("/") else text
