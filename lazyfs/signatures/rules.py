"""A policy and the one way in which an image is judged by it, whoever's policy it is.

Importing this module imports what judging needs, cryptography among it: do so once a policy is in
force.  What is judged here is bytes that are here; only revocation is asked about, by way of
``Authorities``, from the thread in which this runs.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from lazyfs.errors import FormatError, UsageError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, decode_manifest
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.registry.source import Document
from lazyfs.signatures.notation import NotationRules
from lazyfs.signatures.policies import PolicyFile
from lazyfs.signatures.revocation import Authorities
from lazyfs.trust.candidate import Candidate
from lazyfs.trust.errors import Malformed
from lazyfs.trust.files.containers import LocalFiles
from lazyfs.trust.request import Request
from lazyfs.trust.sigstore.candidates import Attachment, Bundled, bundle_layer, payload_layers
from lazyfs.trust.sigstore.judge import judge
from lazyfs.trust.sigstore.policy import (
    AcceptAnything,
    Reject,
    Requirement,
    Unsupported,
    requirements_for,
)
from lazyfs.trust.sigstore.policy_reading import parse_policy
from lazyfs.trust.verdict import Verdict


class Rules(Protocol):
    """A policy.  ``has_tags``: signatures under cosign's tags count."""

    policy: PolicyFile
    has_tags: bool
    warnings: tuple[str, ...]

    def explain(self, reference: Reference | LayoutReference) -> tuple[str | None, list[str]]:
        """Return which rule applies to *reference*, None without one, and what it asks for."""
        ...

    def judge(
        self,
        reference: Reference | LayoutReference,
        subject: Document,
        candidates: Sequence[Candidate],
        revocation: str,
        asked: Authorities,
        time: datetime,
    ) -> Verdict:
        """Return what the policy says of *subject*, asked for as *reference*.

        *revocation* is as in ``TrustOptions``.  Raises PolicyFault.
        """
        ...


def load_rules(
    policy: PolicyFile, *, level: str | None = None, annotations: Mapping[str, str] | None = None
) -> Rules:
    """Return the rules of a policy; raises PolicyFault.

    *level* takes the place of those that notation's policy states; *annotations* must have been
    signed with the image.
    """
    if policy.is_notation:
        return NotationRules(policy, level, annotations)
    if level is not None:
        raise UsageError(f"option --level: {policy.path} is not notation's policy")
    return ContainersRules(policy, annotations)


def rules_of_keys(paths: Sequence[Path], annotations: Mapping[str, str] | None = None) -> Rules:
    """Return the rules that want a signature of cosign by one of the keys in the files *paths*.

    Whatever the signature names: a key is more than a name.
    """
    requirement = {
        "type": "sigstoreSigned",
        "keyPaths": [str(path) for path in paths],
        "signedIdentity": {"type": "matchDigestOnly"},
    }
    data = json.dumps({"default": [requirement]}).encode()
    return ContainersRules(PolicyFile(Path("--key"), data, False, Path("/")), annotations)


class ContainersRules:
    """containers' ``policy.json``, for cosign's signatures in both forms."""

    has_tags = True

    def __init__(self, policy: PolicyFile, annotations: Mapping[str, str] | None = None) -> None:
        self.policy = policy
        self._annotations = annotations
        self._rules = parse_policy(policy.data, str(policy.path))
        self.warnings = self._rules.warnings

    def explain(self, reference: Reference | LayoutReference) -> tuple[str | None, list[str]]:
        """Return which scope applies to *reference*, and its requirements."""
        chosen = requirements_for(self._rules, absolute(reference))
        return chosen.scope, [described(each) for each in chosen.requirements]

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
        request = Request(
            reference=absolute(reference),
            image=Descriptor(subject.media_type, subject.digest, len(subject.data)),
            now=time,
            metadata=self._annotations or {},
        )
        given = [each for found in candidates for each in attachments(found, subject)]
        return judge(self._rules, LocalFiles(), request, given)


def absolute(reference: Reference | LayoutReference) -> Reference | LayoutReference:
    """Return a layout's reference with its real path, by which policies name it."""
    if isinstance(reference, LayoutReference):
        return replace(reference, path=os.path.realpath(reference.path))
    return reference


def described(requirement: Requirement) -> str:
    """Return a requirement in words."""
    if isinstance(requirement, AcceptAnything):
        return "nothing (insecureAcceptAnything)"
    if isinstance(requirement, Reject):
        return "what no image has (reject)"
    if isinstance(requirement, Unsupported):
        return f"{requirement.what}, which lazyfs cannot check"
    who = (
        f"the authority {requirement.pki.roots.path or 'in the policy'}"
        if requirement.pki
        else (", ".join(each.path or f"the key at {each.place}" for each in requirement.keys))
    )
    return f"a signature by {who}, for {requirement.identity}"


def attachments(found: Candidate, subject: Document) -> Iterator[Attachment | Bundled]:
    """Yield the signatures of cosign in a manifest; one that is malformed is passed over."""
    try:
        manifest = decode_manifest(found.manifest, None)
        if not isinstance(manifest, Manifest):
            return
        if not found.is_tagged:
            layer = bundle_layer(manifest, subject.digest)
            if layer is not None and str(layer.digest) in found.blobs:
                yield Bundled(layer.digest, found.blobs[str(layer.digest)])
            return
        for layer in payload_layers(manifest):
            if str(layer.digest) in found.blobs:
                yield Attachment(layer.digest, found.blobs[str(layer.digest)], layer.annotations)
    except (FormatError, Malformed):
        return
