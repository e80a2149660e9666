"""What a trust policy costs a mount: ready with one beside ready without, cold and again.

Through ``lazyfs serve``, which has what judges imported.  The image is signed as notation does (a
JWS envelope, a chain of two, found by the referrers API) and as cosign does (under its tag); each
side has a server, a cache and a name in the registry of its own.  Sides take turns.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import trio

from lazyfs.fetch.origins.origin import Origin
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference
from lazyfs.registry.source import AccessOptions, Document
from lazyfs.signatures.find import find_signatures
from lazyfs.signatures.judge import now
from lazyfs.signatures.policies import PolicyFile, policies_in_force
from lazyfs.signatures.revocation import Authorities
from lazyfs.signatures.rules import load_rules
from lazyfs.trust.candidate import Candidate
from lazyfs.trust.options import TrustOptions
from tests.support.formats.images import tagged
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.signing import Cosigner, Notary
from tools.bench.samples import Samples
from tools.bench.sides import serving
from tools.mounted import Mounted, Workspace, detach

PLAIN, NOTATION, COSIGN = "no policy", "notation", "cosign"
SIDES = (PLAIN, NOTATION, COSIGN)
RATIO_BAR = 1.15
BAR_LINK = "20ms/100mbit"
CPU_BAR = 0.010  # seconds
JUDGED_TIMES = 51


@dataclass
class Side:
    """One kind of mount: its workspace, what it mounts, and the policy in force."""

    name: str
    workspace: Workspace
    reference: str
    policy: Path | None


def compare(
    layout: Path,
    address_of: Callable[[str, str], AbstractContextManager[str]],
    link: str,
    tag: str,
    runs: int,
    folder: Path,
) -> tuple[str, Samples]:
    """Measure *runs* of each side over *link*; return the table and the samples.

    ``address_of(address, link)`` is a context manager that yields where the registry at *address*
    is reached over a link.
    """
    samples = Samples()
    with FakeRegistry(layout) as registry, address_of(registry.host, link) as address:
        registry.list_referrers()
        sides = [_side(name, registry, layout, address, tag, folder) for name in SIDES]
        with contextlib.ExitStack() as servers:
            for side in sides:
                servers.enter_context(serving(side.workspace))
                # Whoever ends the bench may do so while a mount is being made.
                servers.callback(detach, side.workspace.mountpoint)
            for number in range(runs + 1):
                first = number % len(sides)
                for side in sides[first:] + sides[:first]:
                    # The first round finds files and connections that nobody has used before.
                    _measure(side, samples if number else Samples())
        for side in sides:
            if side.policy is not None:
                seconds = trio.run(_judging_seconds, side.policy, side.reference, registry.host)
                samples.add(f"{side.name}: verification", seconds)
    return format_table(samples, link, runs), samples


def _side(
    name: str, registry: FakeRegistry, layout: Path, address: str, tag: str, folder: Path
) -> Side:
    workspace = Workspace(folder / name.replace(" ", "-"))
    repository = f"bench/{name.replace(' ', '-')}"
    scope, subject = f"{address}/{repository}", tagged(layout, tag)
    policy: Path | None = None
    if name == NOTATION:
        notary = Notary()
        policy = notary.policy(workspace.folder, scope)
        notary.sign(registry, repository, subject)
    elif name == COSIGN:
        signer = Cosigner()
        identity = {"type": "matchRepository"}
        policy = signer.policy(workspace.folder, scope, signedIdentity=identity)
        signer.sign(registry, repository, subject["digest"], identity=scope)
    workspace.environment["LAZYFS_POLICY"] = "off" if policy is None else str(policy)
    return Side(name, workspace, f"{scope}:{tag}", policy)


def _measure(side: Side, samples: Samples) -> None:
    side.workspace.forget()
    os.sync()
    for kind in ("cold", "again"):
        with Mounted(side.workspace, side.reference) as mounted:
            verdict = (mounted.status().get("trust") or {}).get("verdict")
            assert verdict == ("trusted" if side.policy else None), verdict
            samples.add(f"{side.name}: {kind}", mounted.ready_seconds)


async def _judging_seconds(policy: Path, reference: str, host: str) -> float:
    """Return the processor time of one verification; all bytes are here, all is imported."""
    named = parse_reference(reference)
    access = AccessOptions(trust=TrustOptions(policy=str(policy)))
    (found,) = policies_in_force(access.trust, access.environment)
    origin = Origin(parse_reference(f"{host}/{reference.partition('/')[2]}"), access)
    try:
        document = await origin.source.fetch_manifest(named.identifier)
        signatures = await find_signatures(origin.source, document.digest, has_tags=True)
    finally:
        await origin.aclose()
    return statistics.median(
        [
            _judge_once(found, named, document, signatures.candidates, access)
            for _ in range(JUDGED_TIMES)
        ]
    )


def _judge_once(
    policy: PolicyFile,
    reference: Reference | LayoutReference,
    document: Document,
    candidates: Sequence[Candidate],
    access: AccessOptions,
) -> float:
    started = time.thread_time()
    rules = load_rules(policy)
    asked = Authorities(None, access.environment, now(), is_offline=True)
    verdict = rules.judge(reference, document, candidates, "off", asked, now())
    seconds = time.thread_time() - started
    assert verdict.is_allowed, verdict
    return seconds


def format_table(samples: Samples, link: str, runs: int) -> str:
    """Return the medians, the ratios to no policy, and what a verification takes."""
    lines = [f"\ntrust: mount ready through serve, {link}, {runs} runs"]
    for kind in ("cold", "again"):
        base = samples.median(f"{PLAIN}: {kind}")
        for name in SIDES:
            values = samples.values[f"{name}: {kind}"]
            ratio = statistics.median(values) / base
            verdict = ""
            if name != PLAIN and link == BAR_LINK and kind == "cold":
                verdict = f", bar {RATIO_BAR}: {'ok' if ratio <= RATIO_BAR else 'OVER'}"
            seconds = " ".join(f"{1e3 * value:.0f}" for value in sorted(values))
            median = 1e3 * statistics.median(values)
            lines.append(f"  {kind:6}{name:10}{median:6.1f} ms  x{ratio:.2f}{verdict}  ({seconds})")
    for name in SIDES[1:]:
        spent = samples.median(f"{name}: verification")
        verdict = "ok" if spent <= CPU_BAR else "OVER"
        lines.append(
            f"  {name}: {1e3 * spent:.1f} ms of processor time for a verification, "
            f"bar {1e3 * CPU_BAR:.0f}: {verdict}"
        )
    lines.append(f"  load: {os.getloadavg()[0]:.1f}")
    return "\n".join(lines)
