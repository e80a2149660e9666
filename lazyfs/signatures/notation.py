"""Notation's policy as rules, its trust stores on disk, and whom it asks about revocation.

Spec: Notary Project, trust-store-trust-policy.md, "Trust Store"; the directory is called as the
tool calls it: ``truststore/x509/KIND/NAME``.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import trio
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.registry.source import Document
from lazyfs.signatures.policies import PolicyFile
from lazyfs.signatures.revocation import Authorities
from lazyfs.trust.candidate import Candidate
from lazyfs.trust.errors import CannotTell, PolicyFault
from lazyfs.trust.notation import artifact
from lazyfs.trust.notation.judge import Request, Unfetched, judge
from lazyfs.trust.notation.policy import LEVELS, Policy, Statement, StoreName, parse_policy
from lazyfs.trust.options import OFF, ONLINE
from lazyfs.trust.questions import LIMITS, Answers, Away, Question, RevocationSource, refused_url
from lazyfs.trust.verdict import Verdict

FILES_LIMIT = 100  # of one store
FILE_LIMIT = 1 << 20  # bytes


class NotationRules:
    """Notation's ``trustpolicy.json``, with the certificates that it names."""

    has_tags = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        policy: PolicyFile,
        level: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """*level* takes the place of what the policy states; *metadata* must have been signed."""
        self.policy = policy
        self._rules = parse_policy(policy.data, str(policy.path))
        if level is not None:
            changed = (_at_level(each, level) for each in self._rules.statements)
            self._rules = replace(self._rules, statements=tuple(changed))
        self._metadata = metadata or {}

    def explain(self, reference: Reference | LayoutReference) -> tuple[str | None, list[str]]:
        """Return which statement applies to *reference*, None without one, and what it asks for."""
        statement = self._rules.statement_for(reference.name)
        if statement is None:
            return None, []
        if statement.level == "skip":
            return statement.name, []
        stores = ", ".join(str(each) for each in statement.stores)
        who = "anybody" if statement.identities is None else "; ".join(map(str, statement.identities))
        actions = ", ".join(f"{check} {action}" for check, action in statement.actions.items())
        return statement.name, [
            f"a signature by {who or 'nobody'}, with a certificate that leads to {stores}",
            f"level {statement.level}: {actions}",
        ]

    def judge(
        self,
        reference: Reference | LayoutReference,
        subject: Document,
        candidates: Sequence[Candidate],
        revocation: str,
        asked: Authorities,
        time: datetime,
    ) -> Verdict:
        """Return what the policy says of *subject*, asked for as *reference*."""
        rules, source = self._rules, None
        if revocation == OFF:
            statements = (_without_revocation(each) for each in rules.statements)
            rules = replace(rules, statements=tuple(statements))
        elif revocation == ONLINE:
            source = Asking(asked)
        else:
            source = stored_answers(Path(revocation))
        request = Request(
            reference=reference,
            image=Descriptor(subject.media_type, subject.digest, len(subject.data)),
            now=time,
            metadata=self._metadata,
        )
        given = [_candidate(each) for each in candidates]
        return judge(rules, StoreDirectory(self.policy.trust_store), request, given, source)


def _candidate(found: Candidate) -> artifact.Candidate | Unfetched:
    # One with more blobs than one is malformed, and is said to be by whoever reads its manifest.
    envelope = next(iter(found.blobs.values()), b"")
    return artifact.Candidate(parse_digest(found.digest), found.manifest, envelope)


def _at_level(statement: Statement, level: str) -> Statement:
    if statement.level == "skip":
        return statement
    return replace(statement, level=level, actions=LEVELS[level])


def _without_revocation(statement: Statement) -> Statement:
    return replace(statement, actions={**statement.actions, "revocation": "skip"})


class StoreDirectory:
    """Trust stores below a directory; read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def files(self, store: StoreName) -> Sequence[tuple[str, bytes]]:
        """Return the files of *store*, names and contents; raises PolicyFault.

        Neither links nor directories may be among them, nor more than FILES_LIMIT.
        """
        folder = self._path / "x509" / store.kind / store.name
        try:
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise PolicyFault(f"trust store {folder} is not a directory")
            names = sorted(os.listdir(folder))
            if len(names) > FILES_LIMIT:
                raise PolicyFault(f"trust store {folder} has more than {FILES_LIMIT} files")
            return [(name, _certificates(folder / name)) for name in names]
        except FileNotFoundError as error:
            raise PolicyFault(
                f"trust store {folder} does not exist",
                hint="the policy names it; --trust-store says where trust stores are",
            ) from error
        except OSError as error:
            raise PolicyFault(f"trust store {folder}: {error.strerror}") from error


def _certificates(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise PolicyFault(f"trust store: {path} is not a file")
        data = stream.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise PolicyFault(f"trust store: {path} is larger than {FILE_LIMIT} bytes")
    return data


class Asking:
    """Answers from certificate authorities, for a thread that trio has started."""

    def __init__(self, asked: Authorities) -> None:
        self._asked = asked

    def answers(self, question: Question) -> Answers:
        """Return what answers *question*."""
        refused = refused_url(question.url)
        if refused is not None:
            return Away(refused)
        try:
            if question.kind == "crl":
                return [trio.from_thread.run(self._asked.crl, question.url)]
            return [trio.from_thread.run(self._asked.ocsp, question.url, question.request)]
        except CannotTell as error:
            return Away(error.message)
