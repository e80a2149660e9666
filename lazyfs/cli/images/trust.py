"""``lazyfs trust``: who published an image, by which policy, and whether a policy is valid."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import json_option, platform_option
from lazyfs.cli.output import print_found, print_line
from lazyfs.cli.trust_options import judging_options, parse_trust
from lazyfs.errors import UsageError
from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.image.judged import Opinion
    from lazyfs.oci.reference import LayoutReference, Reference
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.signatures.rules import Rules
    from lazyfs.trust.options import TrustOptions
    from lazyfs.trust.verdict import Reason, SignatureReport

LEVELS = ("strict", "permissive", "audit")
EXITS = {"trusted": 0, "skipped": 0, "untrusted": 6, "unknown": 5}
POLICY_FAULT = 2
WORST = ("untrusted", "unknown", "skipped", "trusted")
"""Of several policies, all of which must be met, the first of these that one says counts; of those
that allow the image, the one that asked for something."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def trust() -> None:
    """Check who signed an image, and the policies that decide.

    mount, run, pull and other commands check by themselves where a policy is in force: --policy.
    """


@trust.command("check")
@click.argument("image")
@platform_option
@access_options
@judging_options
@click.option(
    "--as",
    "judged_as",
    metavar="REPOSITORY",
    help="Judge as if it came from this repository; for image layouts and copies.",
)
@click.option("--level", type=click.Choice(LEVELS), help="Judge at this level of Notation.")
@click.option(
    "--at",
    metavar="RFC3339",
    help="Judge as of this time, such as 2026-11-30T12:00:00Z.  [default: now]",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Public key that must have made a cosign signature, any of several; in place of a policy.",
)
@click.option(
    "-a",
    "--annotation",
    "annotations",
    multiple=True,
    metavar="NAME=VALUE",
    help="Annotation that must have been signed with the image.",
)
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    image: str,
    platform: str | None,
    access: "AccessOptions",
    policy: str | None,
    trust_store: Path | None,
    revocation: str,
    judged_as: str | None,
    level: str | None,
    at: str | None,
    keys: tuple[Path, ...],
    annotations: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say whether IMAGE is signed as the policy wants it.  Nothing is mounted.

    Exit code 0: trusted, or the policy asks for nothing (skipped).  6: untrusted.  5: it cannot be
    told, since a registry or a certificate authority did not answer.  2: the policy, or a trust
    store or key that it names, is not valid.
    """
    from msgspec.structs import replace

    from lazyfs.image.judged import judge_reference
    from lazyfs.image.prepare import wanted_platform
    from lazyfs.trust.errors import PolicyFault

    options = parse_trust(policy, trust_store, revocation, False, None)
    access = replace(access, trust=options)
    rules = _rules(options, keys, level, _pairs(annotations), access)
    time = datetime.now(UTC) if at is None else _time(at)
    name = None if judged_as is None else _repository(judged_as)
    resolved, opinions = run_trio(
        judge_reference, image, wanted_platform(platform), access, rules, time, name
    )
    verdict = min((str(each.verdict.outcome) for each in opinions), key=WORST.index)
    if verdict == "skipped" and any(each.verdict.accepted for each in opinions):
        verdict = "trusted"
    document = _document(resolved, verdict, opinions)
    print_found(document, _lines(document), as_json=as_json)
    is_fault = any(isinstance(each.verdict.error(), PolicyFault) for each in opinions)
    ctx.exit(POLICY_FAULT if verdict == "untrusted" and is_fault else EXITS[verdict])


def _rules(
    options: "TrustOptions",
    keys: tuple[Path, ...],
    level: str | None,
    annotations: dict[str, str],
    access: "AccessOptions",
) -> "list[Rules]":
    from lazyfs.signatures.policies import policies_in_force
    from lazyfs.signatures.rules import load_rules, rules_of_keys

    if keys:
        if options.policy is not None or level is not None:
            raise UsageError("--key cannot be combined with --policy or --level")
        return [rules_of_keys([path.absolute() for path in keys], annotations)]
    policies = policies_in_force(options, access.environment)
    if not policies:
        raise UsageError(
            "no policy is in force", hint="name one, --policy FILE, or a key: --key FILE"
        )
    return [load_rules(each, level=level, annotations=annotations) for each in policies]


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"option --annotation: {text[:60]!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise UsageError(
            f"option --at: {text[:60]!r} is not a time with a zone such as 2026-11-30T12:00:00Z"
        )
    return time.astimezone(UTC)


def _repository(text: str) -> "Reference | LayoutReference":
    from lazyfs.oci.reference import LayoutReference, parse_reference

    found = parse_reference(text)
    if isinstance(found, LayoutReference):
        raise UsageError(f"option --as: {text!r} is an image layout, not a repository")
    return found


def _document(resolved: str, verdict: str, opinions: "list[Opinion]") -> dict[str, Any]:
    """Return the JSON of a check.  Fields: docs/reference/json.md."""
    return {
        "image": resolved,
        "verdict": verdict,
        "reasons": [_reason(each) for found in opinions for each in found.verdict.reasons],
        "warnings": [_reason(each) for found in opinions for each in found.verdict.warnings],
        "policies": [
            {
                "file": found.path,
                "rule": found.verdict.policy or None,
                "level": found.verdict.level or None,
                "verdict": str(found.verdict.outcome),
            }
            for found in opinions
        ],
        "signatures": [
            each
            for found in opinions
            for each in [
                *(_signature(report) for report in found.verdict.signatures),
                *(_malformed(digest, why) for digest, why in found.malformed.items()),
            ]
        ],
    }


def _reason(reason: "Reason") -> dict[str, str]:
    return {"check": reason.check, "message": reason.message}


def _signature(report: "SignatureReport") -> dict[str, Any]:
    return {
        "digest": str(report.digest),
        "format": report.format,
        "signer": report.signer,
        "signedAt": None if report.signed_at is None else report.signed_at.isoformat(),
        "failed": None if report.failure is None else _reason(report.failure),
        "warnings": [_reason(each) for each in report.warnings],
    }


def _malformed(digest: str, why: str) -> dict[str, Any]:
    failed = {"check": "retrieval", "message": why}
    return {
        "digest": digest,
        "format": None,
        "signer": None,
        "signedAt": None,
        "failed": failed,
        "warnings": [],
    }


def _lines(document: dict[str, Any]) -> list[str]:
    lines = [f"{document['verdict']}  {document['image']}"]
    for policy in document["policies"]:
        rule = policy["rule"] or policy["file"]
        level = "" if policy["level"] is None else f", {policy['level']}"
        lines.append(f"  policy     {rule}{level}: {policy['verdict']}")
    lines += [f"  reason     {each['message']}" for each in document["reasons"]]
    lines += [f"  warning    {each['message']}" for each in document["warnings"]]
    for each in document["signatures"]:
        what = each["format"] or "unreadable"
        signer = "" if each["signer"] is None else f", by {each['signer']}"
        failed = "good" if each["failed"] is None else each["failed"]["message"]
        lines.append(f"  signature  {each['digest']}  ({what}{signer}): {failed}")
    return lines


@trust.command("show")
@click.argument("image")
@judging_options
@json_option
def show(
    image: str, policy: str | None, trust_store: Path | None, revocation: str, as_json: bool
) -> None:
    """Show which statement of which policy applies to IMAGE, and what it asks for.

    Nothing is asked of any registry.
    """
    import os

    from lazyfs.oci.reference import parse_reference
    from lazyfs.signatures.policies import policies_in_force
    from lazyfs.signatures.rules import load_rules

    options = parse_trust(policy, trust_store, revocation, False, None)
    reference = parse_reference(image)
    found = []
    for each in policies_in_force(options, dict(os.environ)):
        rule, wanted = load_rules(each).explain(reference)
        kind = "notation" if each.is_notation else "containers"
        found.append({"file": str(each.path), "kind": kind, "rule": rule, "requires": wanted})
    lines = [f"{reference.name}"]
    for row in found:
        lines.append(f"  policy     {row['file']} ({row['kind']})")
        lines.append(f"  rule       {row['rule'] or 'none applies: refused'}")
        lines += [f"  requires   {text}" for text in row["requires"] or ["nothing"]]
    if not found:
        lines.append("  no policy is in force: any image is accepted")
    print_found({"image": reference.name, "policies": found}, lines, as_json=as_json)


@trust.group("policy", context_settings={"help_option_names": ["-h", "--help"]})
def policies() -> None:
    """Check policies."""


@policies.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check_policy(file: Path, as_json: bool) -> None:
    """Say whether FILE is a valid policy; exit code 2 if it is not."""
    from lazyfs.signatures.policies import load_policy
    from lazyfs.signatures.rules import load_rules

    policy = load_policy(file.absolute(), None)
    rules = load_rules(policy)
    kind = "notation" if policy.is_notation else "containers"
    warnings = list(rules.warnings)
    if as_json:
        document = {"file": str(policy.path), "kind": kind, "valid": True, "warnings": warnings}
        click.echo(json.dumps(document, indent=2))
        return
    print_line(f"{policy.path} is a valid policy of {kind}")
    for text in warnings:
        print_line(f"  warning    {text}")
