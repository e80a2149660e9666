"""Peculiarities of registries, each with the report that describes it, as profiles of the fake one.

    with site_of("Harbor", layouts, folder) as site: …

A report is an issue or a change of a public repository on GitHub, a file of one, or a page.
``python -m tests.support.registries.quirks`` prints the table and whether all commands pass.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.registries import quirk_rules as q
from tests.support.registries.quirk_rules import Site, misbehave
from tests.support.registries.registry import FakeRegistry


@dataclass(frozen=True)
class Quirk:
    """One peculiarity; ``apply`` gives it to a site, and the rules have its own ``what``."""

    registry: str
    what: str
    report: str
    apply: Callable[[Site, str], None]


def rule(rule: q.Rule) -> Callable[[Site, str], None]:
    """The quirk is one rule."""
    return lambda site, what: misbehave(site, what, rule)


def made(make: Callable[[Site], q.Rule]) -> Callable[[Site, str], None]:
    """The quirk is one rule, which knows the site."""
    return lambda site, what: misbehave(site, what, make(site))


def _redirects(site: Site, what: str) -> None:
    q.redirects(site)
    misbehave(site, what, q.storage_needs_none, at=site.storage)


def _expiring(site: Site, what: str) -> None:
    q.redirects(site)
    misbehave(site, what, q.expiring(site), at=site.storage)


def _basic(site: Site, what: str) -> None:
    site.registry.require_basic(q.USERS)
    site.log_in(is_private=True)
    _redirects(site, what)


def _identity_token(site: Site, what: str) -> None:
    q.tokens(site, is_public=False)
    site.log_in(token="refresh", is_private=True)
    misbehave(site, what, q.token_answer(lambda said: {"access_token": said["access_token"]}))


def _relative(site: Site, what: str) -> None:
    site.registry.list_referrers(page_size=1)
    misbehave(site, what, q.next_link(lambda said: f"<?{said.partition('?')[2]}"))


def _namespace(site: Site, what: str) -> None:
    site.use_mirror()
    misbehave(site, what, q.needs("ns", None), at=site.mirror)


def _header(site: Site, what: str) -> None:
    site.use_mirror({"X-Dragonfly-Registry": "https://registry.example"})
    rule = q.needs("X-Dragonfly-Registry", "https://registry.example")
    misbehave(site, what, rule, at=site.mirror)


def _wrong_digest(site: Site, what: str) -> None:
    site.use_mirror()
    change = q.with_fields(Docker_Content_Digest=f"sha256:{'0' * 64}")
    misbehave(site, what, q.changed({"manifests"}, change), at=site.mirror)


def _mirror_whole(site: Site, what: str) -> None:
    misbehave(site, what, q.no_ranges, at=site.mirror)


def _least_piece(site: Site, what: str) -> None:
    site.registry.uploads.least_piece = 120_000
    misbehave(site, what, lambda request, go: go(request) if request.method == "PATCH" else None)


def _no_subject(site: Site, what: str) -> None:
    site.registry.list_referrers()
    change = q.changed({"manifests"}, q.without("OCI-Subject"), status=201, method="PUT")
    misbehave(site, what, change)


def with_tokens(apply: Callable[[Site, str], None]) -> Callable[[Site, str], None]:
    """The quirk needs a token service."""

    def both(site: Site, what: str) -> None:
        q.tokens(site)
        apply(site, what)

    return both


NO_API = rule(q.changed({"referrers"}, lambda answer: answer, status=404))

QUIRKS = (
    Quirk(
        "Docker Hub",
        "429 with the moment, in Unix seconds, as Retry-After",
        "docker/hub-feedback#2459",
        made(lambda site: q.limited(site, q.epoch)),
    ),
    Quirk(
        "Docker Hub",
        "tokens without a lifetime",
        "distribution/distribution#1589",
        with_tokens(rule(q.token_answer(lambda said: {"token": said["token"]}))),
    ),
    Quirk(
        "Docker Hub",
        "a token just given is refused by a server whose clock is late",
        "docker/hub-feedback#647",
        with_tokens(made(q.too_early)),
    ),
    Quirk(
        "Docker Hub",
        "a blob is mounted only with a token for both repositories",
        "oras-project/rust-oci-client#235",
        with_tokens(made(q.mount_needs_scope)),
    ),
    Quirk(
        "ECR",
        "Basic, and redirects of blobs to S3, which refuses a second authorization",
        "open-policy-agent/opa#6580",
        _basic,
    ),
    Quirk(
        "ECR",
        "manifests without Docker-Content-Digest",
        "distribution/distribution#3792",
        rule(q.changed({"manifests"}, q.without("Docker-Content-Digest"))),
    ),
    Quirk(
        "ECR",
        "several ranges get the whole blob",
        "containerd/stargz-snapshotter#350",
        lambda site, what: misbehave(site, what, q.many_ranges(None), at=site.storage),
    ),
    Quirk(
        "ECR",
        "the Range of an upload stays at the first piece",
        "aws/containers-roadmap#2831",
        rule(q.stale_range),
    ),
    Quirk(
        "ACR",
        "tokens by POST with an identity token, named access_token only",
        "Azure/acr#32",
        _identity_token,
    ),
    Quirk(
        "ACR",
        "redirects of blobs to a storage that refuses an Authorization",
        "Azure/acr#217",
        _redirects,
    ),
    Quirk(
        "ACR",
        "relative links to the next page of referrers",
        "oras-project/artifacts-spec#93",
        _relative,
    ),
    Quirk(
        "GAR",
        "a challenge that names neither service nor scope",
        "apple/containerization#901",
        with_tokens(rule(q.challenge(r",service=.*", ""))),
    ),
    Quirk(
        "GAR",
        "no token without the scope of a repository",
        "quay/quay#1906",
        with_tokens(rule(q.no_token_without_scope)),
    ),
    Quirk("GAR", "no uploads in pieces", "kitops-ml/kitops#777", rule(q.no_pieces)),
    Quirk(
        "GAR",
        "several ranges are refused with 400",
        "containerd/stargz-snapshotter#81",
        rule(q.many_ranges(400)),
    ),
    Quirk(
        "GHCR",
        "bodies over a limit are refused with 416",
        "ocx-sh/ocx#237",
        rule(q.body_limit(60_000)),
    ),
    Quirk(
        "GHCR",
        "storage refuses HEAD, and its URLs expire",
        "containerd/stargz-snapshotter#167",
        _expiring,
    ),
    Quirk("GHCR", "no referrers API: 404", "NVIDIA/aicr#1957", NO_API),
    Quirk(
        "GHCR",
        "a blob is missing until a manifest lists it",
        "open-component-model/ocm#531",
        made(q.unlisted_is_missing),
    ),
    Quirk(
        "Quay",
        "a challenge without a scope",
        "OctopusDeploy/Issues#5076",
        with_tokens(rule(q.challenge(r',scope="[^"]*"', ""))),
    ),
    Quirk(
        "Quay",
        "no OCI-Subject for a manifest with a subject",
        "opencontainers/distribution-spec#563",
        _no_subject,
    ),
    Quirk(
        "Quay",
        "schema 1 for who does not accept OCI's types",
        "eclipse-che/che-plugin-registry#2082",
        rule(q.schema1_for_old),
    ),
    Quirk(
        "Quay",
        "manifests as text/html",
        "moby/moby#19526",
        rule(q.changed({"manifests"}, q.with_fields(Content_Type="text/html; charset=utf-8"))),
    ),
    Quirk(
        "Harbor",
        "only Basic is offered to who brings a token that has ended",
        "goharbor/harbor#18856",
        with_tokens(made(q.basic_instead)),
    ),
    Quirk("Harbor", "a proxy cache ignores ranges", "goharbor/harbor#23875", rule(q.no_ranges)),
    Quirk(
        "Harbor", "HEAD of a blob that is there: 404", "goharbor/harbor#22609", rule(q.head_lies)
    ),
    Quirk(
        "Harbor",
        "401 for a blob that is missing",
        "goharbor/harbor#22363",
        rule(q.missing_is(401, {"blobs"})),
    ),
    Quirk(
        "Harbor",
        "manifests without a Content-Type",
        "goharbor/harbor#13740",
        rule(q.changed({"manifests"}, q.without("Content-Type"))),
    ),
    Quirk(
        "Harbor",
        "a line of Accept is not split at commas",
        "containerd/containerd#5632",
        rule(q.accepting(q.lines)),
    ),
    Quirk(
        "Artifactory",
        "403 for a tag that is missing",
        "sigstore/cosign#2973",
        rule(q.missing_is(403, {"manifests"})),
    ),
    Quirk(
        "Artifactory",
        "manifests as application/octet-stream, without their digest",
        "deitch/docker_registry2#83",
        rule(
            q.changed(
                {"manifests"},
                lambda answer: q.with_fields(Content_Type="application/octet-stream")(
                    q.without("Docker-Content-Digest")(answer) or answer
                ),
            )
        ),
    ),
    Quirk(
        "Artifactory", "uploads in pieces only", "containerd/containerd#3533", rule(q.only_pieces)
    ),
    Quirk(
        "Artifactory",
        "manifests without a Content-Length",
        "containerd/containerd#3110",
        rule(q.changed({"manifests"}, q.no_length, method="GET")),
    ),
    Quirk(
        "Nexus",
        "q in Accept is not understood",
        "aixigo/PREvant#44",
        rule(q.accepting(q.plain_types)),
    ),
    Quirk(
        "Nexus",
        "a Content-Range without its unit",
        "sonatype-nexus-community/nexus-repository-apt#47",
        rule(q.unit_lost),
    ),
    Quirk(
        "GitLab",
        "the tag of the referrers is taken for the subject's digest",
        "oras-project/oras-go#1396",
        made(q.subject_for_tag),
    ),
    Quirk(
        "GitLab",
        "tokens have the last of several scopes",
        "estesp/manifest-tool#53",
        with_tokens(rule(q.only_last_scope)),
    ),
    Quirk(
        "GitLab",
        "several ranges are refused with 400",
        "giuseppe/crfs-plugin#1",
        rule(q.many_ranges(400)),
    ),
    Quirk(
        "zot",
        "blobs without a Content-Type",
        "project-zot/zot#3879",
        rule(q.changed({"blobs"}, q.without("Content-Type"), status=None)),
    ),
    Quirk(
        "zot",
        "several ranges are refused with 416",
        "project-zot/zot#3623",
        rule(q.many_ranges(416)),
    ),
    Quirk(
        "zot",
        "a relative realm",
        "project-zot/zot#4033",
        with_tokens(rule(q.challenge(r'realm="http://[^/]*', 'realm="'))),
    ),
    Quirk(
        "distribution 2",
        "HEAD of a manifest: 405",
        "distribution/distribution#1485",
        rule(q.no_head),
    ),
    Quirk(
        "distribution 2",
        "upload locations with a query",
        "distribution/distribution#1723",
        rule(q.location(lambda said: f"{said}&_state=a%3D%3D")),
    ),
    Quirk(
        "distribution 2",
        "404 for who accepts */* only",
        "NVIDIA/enroot#273",
        rule(q.accepting(q.plain_types)),
    ),
    Quirk("distribution 3", "no referrers API: 404", "oras-project/rust-oci-client#259", NO_API),
    Quirk(
        "olareg",
        "429 without a body",
        "olareg/olareg: olareg.go",
        made(lambda site: q.limited(site, lambda: "0")),
    ),
    Quirk(
        "Kraken",
        "a Docker-Content-Digest of other bytes",
        "uber/kraken#34",
        _wrong_digest,
    ),
    Quirk(
        "Dragonfly",
        "a mirror that wants a header of its own",
        "dragonflyoss/client#1791",
        _header,
    ),
    Quirk("Spegel", "a mirror that wants ?ns=", "spegel-org/spegel#1387", _namespace),
    Quirk("Spegel", "ranges get the whole blob", "spegel-org/spegel#548", _mirror_whole),
    Quirk(
        "others",
        "only the first line of Accept is read",
        "mulgadc/spinifex#399",
        rule(q.accepting(q.first_line, 406)),
    ),
    Quirk(
        "others", "200 with a page for referrers", "sigstore/sigstore-js#1187", rule(q.empty_page)
    ),
    Quirk(
        "others",
        "relative upload locations",
        "bazelbuild/rules_docker#267",
        rule(q.location(lambda said: said.rpartition("/")[2])),
    ),
    Quirk(
        "others",
        "pieces of a least size",
        "opencontainers/distribution-spec#391",
        _least_piece,
    ),
)


def registries() -> list[str]:
    """Return the names of the registries, in the table's order."""
    return list(dict.fromkeys(quirk.registry for quirk in QUIRKS))


def quirks_of(registry: str) -> list[Quirk]:
    return [quirk for quirk in QUIRKS if quirk.registry == registry]


@contextmanager
def site_of(registry: str, layouts: Path, folder: Path) -> Iterator[Site]:
    """A site with all quirks of *registry*, which serves the images of *layouts*."""
    with (
        FakeRegistry(layouts) as origin,
        FakeRegistry() as storage,
        FakeRegistry(layouts) as mirror,
    ):
        site = Site(origin, storage, mirror, folder)
        for quirk in quirks_of(registry):
            quirk.apply(site, quirk.what)
        yield site


def main() -> None:
    """Print the table; exit 1 if something does not pass."""
    from tests.support.registries.quirk_commands import COMMANDS, make_images, run_command

    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        for registry in registries():
            errors = []
            own = folder / registry.replace(" ", "-")
            own.mkdir()
            with site_of(registry, folder / "images", own) as site:
                for command in COMMANDS:
                    try:
                        run_command(command, site)
                    except Exception as exc:
                        errors.append(f"{command}: {exc}".splitlines()[0])
            for quirk in quirks_of(registry):
                result = "passes" if not errors else "FAILS"
                if quirk.what not in site.met:
                    result = "NOT MET"
                print(f"{quirk.registry:<15} {quirk.what:<74} {quirk.report:<50} {result}")
                failed += result != "passes"
            for error in errors:
                print(f"    {error}")
    count = len(registries())
    print(f"{count} profiles, {len(QUIRKS)} quirks, {len(COMMANDS)} commands each; {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
