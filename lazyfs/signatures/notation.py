"""Notation's policy as rules, and whom it asks about revocation."""

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
from lazyfs.trust.errors import CannotTell
from lazyfs.trust.files.notation import NotationFolder
from lazyfs.trust.files.revocation import RevocationFolder
from lazyfs.trust.notation import artifact
from lazyfs.trust.notation.judge import judge
from lazyfs.trust.notation.policy import LEVELS, Statement, parse_policy
from lazyfs.trust.options import OFF, ONLINE
from lazyfs.trust.questions import Answers, Away, Question, RevocationSource
from lazyfs.trust.request import Request, Unfetched
from lazyfs.trust.verdict import Verdict


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
        who = "anybody"
        if statement.identities is not None:
            who = "; ".join(map(str, statement.identities))
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
        rules = self._rules
        source: RevocationSource | None = None
        stores = NotationFolder(self.policy.path.parent, self.policy.trust_store)
        if revocation == OFF:
            statements = (_without_revocation(each) for each in rules.statements)
            rules = replace(rules, statements=tuple(statements))
        elif revocation == ONLINE:
            source = Asking(asked)
        else:
            source = RevocationFolder(Path(revocation))
        request = Request(
            reference=reference,
            image=Descriptor(subject.media_type, subject.digest, len(subject.data)),
            now=time,
            metadata=self._metadata,
        )
        given = [_candidate(each) for each in candidates]
        return judge(rules, stores, request, given, source)


def _candidate(found: Candidate) -> artifact.Candidate | Unfetched:
    # What is kept may have been found by another version: whoever reads the manifest counts.
    envelope = next(iter(found.blobs.values()), b"")
    return artifact.Candidate(parse_digest(found.digest), found.manifest, envelope)


def _at_level(statement: Statement, level: str) -> Statement:
    if statement.level == "skip":
        return statement
    return replace(statement, level=level, actions=LEVELS[level])


def _without_revocation(statement: Statement) -> Statement:
    return replace(statement, actions={**statement.actions, "revocation": "skip"})


class Asking:
    """Answers from certificate authorities, for a thread that trio has started."""

    def __init__(self, asked: Authorities) -> None:
        self._asked = asked

    def answers(self, question: Question) -> Answers:
        """Return what answers *question*."""
        try:
            if question.kind == "crl":
                return [trio.from_thread.run(self._asked.crl, question.url, question.issuer)]
            return [trio.from_thread.run(self._asked.ocsp, question.url, question.request)]
        except CannotTell as error:
            return Away(error.message)
