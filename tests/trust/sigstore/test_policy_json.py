"""policy.json: what is accepted, what each fault is called, and which requirements hold."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.sigstore.identity import Identity, Kind
from lazyfs.trust.sigstore.policy import (
    AcceptAnything,
    Material,
    Policy,
    Reject,
    SigstoreSigned,
    Unsupported,
    refuse_unsupported,
    requirements_for,
)
from lazyfs.trust.sigstore.policy_reading import (
    KEY_SOURCES,
    PKI_MEMBERS,
    POLICY_LIMIT,
    REKOR_SOURCES,
    is_policy,
    parse_policy,
)

ACCEPT, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}
SIGNED = {"type": "sigstoreSigned", "keyPath": "/etc/pki/cosign.pub"}
PKI = {"caRootsPath": "/etc/pki/ca.pem", "subjectEmail": "a@b.example"}
FULCIO = {
    "caPath": "/ca.pem",
    "oidcIssuer": "https://issuer.example",
    "subjectEmail": "a@b.example",
}
GPG = {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/etc/pki/rpm-gpg/KEY"]}


def parsed(document: Any) -> Policy:
    return parse_policy(json.dumps(document).encode(), "policy.json")


def required(requirement: Any) -> Any:
    """Return what one requirement is read as."""
    return parsed({"default": [requirement]}).default[0]


def identity(document: dict[str, Any]) -> Identity:
    found = required({**SIGNED, "signedIdentity": document})
    assert isinstance(found, SigstoreSigned)
    return found.identity


# A policy as a cautious administrator writes it; the fuzzing below starts from it.
WHOLE = {
    "default": [REJECT],
    "transports": {
        "docker": {
            "": [REJECT],
            "docker.io/library/busybox": [ACCEPT],
            "docker.io": [{**SIGNED, "signedIdentity": {"type": "matchRepository"}}],
            "*.company.example": [
                {
                    "type": "sigstoreSigned",
                    "keyDatas": ["AAAA", "BBBB"],
                    "signedIdentity": {
                        "type": "remapIdentity",
                        "prefix": "mirror.company.example/hub",
                        "signedPrefix": "docker.io",
                    },
                }
            ],
            "company.example/pki": [{"type": "sigstoreSigned", "pki": PKI}],
            "redhat.example": [GPG],
        },
        "oci": {"/var/images": [ACCEPT]},
        "docker-daemon": {"": [ACCEPT]},
    },
}


def test_a_whole_policy() -> None:
    policy = parsed(WHOLE)
    assert policy.default == (Reject(),)
    assert policy.warnings == ()
    docker = policy.transports["docker"]
    place = 'transports.docker["docker.io"][0]'
    assert docker["docker.io"] == (
        SigstoreSigned(
            place,
            Identity("matchRepository"),
            (Material(f"{place}.keyPath", path="/etc/pki/cosign.pub"),),
        ),
    )
    (company,) = docker["*.company.example"]
    assert isinstance(company, SigstoreSigned)
    assert [each.data for each in company.keys] == [b"\0\0\0", b"\4\x10\x41"]
    (pki,) = docker["company.example/pki"]
    assert isinstance(pki, SigstoreSigned)
    assert pki.pki is not None
    assert pki.pki.roots.path == "/etc/pki/ca.pem"
    assert isinstance(docker["redhat.example"][0], Unsupported)


def test_keys_of_logs() -> None:
    found = required({**SIGNED, "rekorPublicKeyDatas": ["AAAA", "BBBB"]})
    assert isinstance(found, SigstoreSigned)
    assert [each.data for each in found.logs] == [b"\0\0\0", b"\4\x10\x41"]
    found = required({"type": "sigstoreSigned", "fulcio": FULCIO, "rekorPublicKeyPath": "/r"})
    assert isinstance(found, SigstoreSigned)
    assert found.fulcio is not None
    assert (found.fulcio.authority.path, found.fulcio.issuer, found.fulcio.email) == tuple(
        FULCIO.values()
    )
    assert (found.keys, [each.path for each in found.logs]) == ((), ["/r"])


def test_which_dialect_a_policy_is_in() -> None:
    assert is_policy(WHOLE)
    assert is_policy({"default": []})
    assert not is_policy({"version": "1.0", "trustPolicies": []})


@pytest.mark.parametrize(
    ("asked", "scope"),
    [
        ("busybox", 'transports.docker["docker.io/library/busybox"]'),
        ("busybox:1", 'transports.docker["docker.io/library/busybox"]'),
        ("docker.io/library/busybox@sha256:" + "0" * 64, None),
        ("index.docker.io/library/busybox", 'transports.docker["docker.io/library/busybox"]'),
        ("busybox-extra", 'transports.docker["docker.io"]'),
        ("someone/busybox", 'transports.docker["docker.io"]'),
        ("a.company.example/x", 'transports.docker["*.company.example"]'),
        ("A.COMPANY.example/x", 'transports.docker["*.company.example"]'),
        ("a.b.company.example:5000/x/y", 'transports.docker["*.company.example"]'),
        ("company.example/x", 'transports.docker[""]'),
        ("company.example/pki", 'transports.docker["company.example/pki"]'),
        ("company.example/pki/below", 'transports.docker["company.example/pki"]'),
        ("company.example:5000/pki", 'transports.docker[""]'),
        ("docker.io.evil.example/library/busybox", 'transports.docker[""]'),
        ("[::1]:5000/x", 'transports.docker[""]'),
        ("oci:/var/images", 'transports.oci["/var/images"]'),
        ("oci:/var/images/one:tag", 'transports.oci["/var/images"]'),
        ("oci:/var/images2", "default"),
        ("oci:/", "default"),
    ],
)
def test_the_most_specific_scope_wins(asked: str, scope: str | None) -> None:
    chosen = requirements_for(parsed(WHOLE), parse_reference(asked))
    assert chosen.scope == (scope or 'transports.docker["docker.io/library/busybox"]')


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("host.example/ns/app:1", "tag"),
        ("host.example/ns/app", "repository"),  # which means :latest
        ("host.example/ns/app:1@sha256:" + "1" * 64, "digest"),
        ("host.example/ns/app@sha256:" + "1" * 64, "digest"),
        ("host.example/ns/app@sha256:" + "2" * 64, "repository"),
        ("host.example/ns/other:1", "namespace"),
        ("host.example/ns:1", "namespace"),
        ("host.example/nsx/app", "host"),
        ("sub.host.example/ns/app", "wildcard"),
    ],
)
def test_each_step_of_a_scope(asked: str, expected: str) -> None:
    keys = {
        "tag": "host.example/ns/app:1",
        "digest": "host.example/ns/app@sha256:" + "1" * 64,
        "repository": "host.example/ns/app",
        "namespace": "host.example/ns",
        "host": "host.example",
        "wildcard": "*.host.example",
    }
    policy = parsed(
        {"default": [REJECT], "transports": {"docker": {key: [ACCEPT] for key in keys.values()}}}
    )
    chosen = requirements_for(policy, parse_reference(asked))
    assert chosen.scope == f'transports.docker["{keys[expected]}"]'
    assert policy.warnings == ()


def test_hosts_are_compared_without_case() -> None:
    """Else the spelling in a reference would choose the policy: the default, perhaps."""
    policy = parsed({"default": [ACCEPT], "transports": {"docker": {"Host.Example/x": [REJECT]}}})
    for asked in ("host.example/x", "HOST.EXAMPLE/x", "Host.Example/x:2"):
        assert requirements_for(policy, parse_reference(asked)).requirements == (Reject(),)


def test_the_directory_of_a_layout_must_be_absolute() -> None:
    with pytest.raises(ValueError, match="must be absolute"):
        requirements_for(parsed(WHOLE), parse_reference("oci:var/images"))


@pytest.mark.parametrize(
    "scope",
    ["busybox", "library/busybox", "busybox:latest", "https://a.example", "a.example/",
     "a.example/X", "*.a.example:5000", "*.a.example/x", "a*.example", "a.example/x:!",
     "a.example@sha256:1", "a.example/x@"],
)  # fmt: skip
def test_scopes_that_match_nothing_are_warned_of(scope: str) -> None:
    policy = parsed({"default": [REJECT], "transports": {"docker": {scope: [ACCEPT]}}})
    (warning,) = policy.warnings
    assert warning.startswith(f'policy.json: transports.docker["{scope}"] matches no image: ')


@pytest.mark.parametrize(
    ("requirement", "what"),
    [
        (GPG, "signedBy (a GPG signature)"),
        ({"type": "signedBaseLayer", "baseLayerIdentity": {}}, "signedBaseLayer"),
    ],
)
def test_what_lazyfs_cannot_check_refuses_its_images_only(
    requirement: dict[str, Any], what: str
) -> None:
    policy = parsed(
        {
            "default": [ACCEPT],
            "transports": {"docker": {"a.example": [ACCEPT, requirement]}},
        }
    )
    refuse_unsupported(policy, requirements_for(policy, parse_reference("b.example/x")))
    chosen = requirements_for(policy, parse_reference("a.example/x"))
    with pytest.raises(PolicyFault) as caught:
        refuse_unsupported(policy, chosen)
    assert caught.value.message.startswith(
        f'policy.json: transports.docker["a.example"][1]: {what}'
    )
    assert caught.value.message.endswith("is not supported")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "policy.json is not a JSON object"),
        ({}, "policy.json: the policy has no default"),
        ({"default": [ACCEPT], "Default": 1}, "the policy has an unknown member 'Default'"),
        ({"default": {}}, "default must be a list of requirements, not an object"),
        ({"default": []}, "default has 0 requirements, must have 1 to 100"),
        ({"default": [ACCEPT] * 101}, "default has 101 requirements"),
        ({"default": ["reject"]}, "default[0] must be an object, not 'reject'"),
        ({"default": [{}]}, "default[0] has no type; allowed are insecureAcceptAnything, reject"),
        ({"default": [{"type": "Reject"}]}, "default[0].type must be one of insecureAcceptAny"),
        ({"default": [{"type": 1}]}, "default[0].type must be one of"),
        ({"default": [{**REJECT, "x": 1}]}, "default[0] has an unknown member 'x'; allowed are"),
        ({"default": [{**ACCEPT, "x": 1}]}, "default[0] has an unknown member 'x'; allowed are"),
        ({"default": [ACCEPT], "transports": []}, "transports must be an object, not a list"),
        ({"default": [ACCEPT], "transports": {"docker": []}}, "transports.docker must be an obj"),
        (
            {"default": [ACCEPT], "transports": {"docker": {"a.example": []}}},
            'transports.docker["a.example"] has 0 requirements',
        ),
        (
            {"default": [ACCEPT], "transports": {"dir": {"/x": [{"type": "no"}]}}},
            'transports.dir["/x"][0].type must be one of',
        ),
        (
            {"default": [ACCEPT], "transports": {"oci": {"relative": [ACCEPT]}}},
            'transports.oci["relative"] must be an absolute directory',
        ),
        ({"default": [ACCEPT], "transports": {"oci": {"/": [ACCEPT]}}}, "absolute directory"),
        (
            {
                "default": [ACCEPT],
                "transports": {"docker": {"A.example": [ACCEPT], "a.example": [REJECT]}},
            },
            'transports.docker["a.example"] is listed twice, in another case',
        ),
        (
            {
                "default": [ACCEPT],
                "transports": {"docker": {f"h{n}.io": [] for n in range(10_001)}},
            },
            "transports.docker has 10001 scopes, may have 10000",
        ),
    ],
)
def test_faults_are_told(document: Any, message: str) -> None:
    with pytest.raises(PolicyFault) as caught:
        parsed(document)
    assert message in caught.value.message
    assert caught.value.message.startswith("policy.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keyData": "AAAA"}, " must have exactly one of keyPath, keyPaths, keyData, keyDatas, f"),
        ({"keyPath": None, "keyPaths": []}, ".keyPaths must be a list of 1 to 100 keys"),
        ({"keyPath": None, "keyPaths": "/x"}, ".keyPaths must be a list of 1 to 100 keys"),
        ({"keyPath": None, "keyPaths": ["/x"] * 101}, ".keyPaths must be a list of 1 to 100"),
        ({"keyPath": None, "keyPaths": ["/x", "y"]}, ".keyPaths[1] must be the absolute path"),
        ({"keyPath": "relative.pub"}, ".keyPath must be the absolute path of a file, not 'relat"),
        ({"keyPath": "/x\0"}, ".keyPath must be the absolute path of a file"),
        ({"keyPath": ""}, ".keyPath must be text that is not empty, not ''"),
        ({"keyPath": 3}, ".keyPath must be text that is not empty, not 3"),
        ({"keyPath": None, "keyData": "A"}, ".keyData must be base64"),
        ({"keyPath": None, "keyData": "AAAA "}, ".keyData must be base64"),
        ({"keyPath": None, "keyData": 3}, ".keyData must be base64"),
        ({"keyPath": None, "keyDatas": ["A"]}, ".keyDatas[0] must be base64"),
        ({"keyPath": None}, " must have exactly one of keyPath, "),
        ({"keypath": "/x"}, " has an unknown member 'keypath'; allowed are type, keyPath"),
        ({"keyPath": None, "fulcio": FULCIO}, " fulcio needs one of rekorPublicKeyPath"),
        (
            {"keyPath": None, "pki": PKI, "rekorPublicKeyPath": "/x"},
            " rekorPublicKeyPath may not stand beside pki",
        ),
        (
            {"rekorPublicKeyPath": "/x", "rekorPublicKeyData": "AAAA"},
            " has rekorPublicKeyPath and rekorPublicKeyData, may have one of them",
        ),
        ({"rekorPublicKeyPaths": []}, ".rekorPublicKeyPaths must be a list of 1 to 100 keys"),
        ({"rekorPublicKeyPaths": ["x"]}, ".rekorPublicKeyPaths[0] must be the absolute path"),
        ({"rekorPublicKeyData": "?"}, ".rekorPublicKeyData must be base64"),
        (
            {"keyPath": None, "rekorPublicKeyPath": "/r", "fulcio": []},
            ".fulcio must be an object, not a list",
        ),
        (
            {"keyPath": None, "rekorPublicKeyPath": "/r", "fulcio": {**FULCIO, "x": 1}},
            ".fulcio has an unknown member 'x'; allowed are oidcIssuer, subjectEmail, caPath",
        ),
        (
            {"keyPath": None, "rekorPublicKeyPath": "/r", "fulcio": {**FULCIO, "caData": "AAAA"}},
            ".fulcio must have exactly one of caPath, caData, not caPath and caData",
        ),
        (
            {"keyPath": None, "rekorPublicKeyPath": "/r", "fulcio": {**FULCIO, "oidcIssuer": ""}},
            ".fulcio.oidcIssuer must be text that is not empty",
        ),
        (
            {
                "keyPath": None,
                "rekorPublicKeyPath": "/r",
                "fulcio": {"caPath": "/x", "oidcIssuer": "y"},
            },
            ".fulcio has no subjectEmail",
        ),
        ({"keyPath": None, "pki": []}, ".pki must be an object, not a list"),
        ({"keyPath": None, "pki": {}}, ".pki must have exactly one of caRootsPath, caRootsData"),
        (
            {"keyPath": None, "pki": {**PKI, "caRootsData": "AAAA"}},
            ".pki must have exactly one of caRootsPath, caRootsData, not caRootsPath and",
        ),
        ({"keyPath": None, "pki": {**PKI, "caRootsPath": "x"}}, ".pki.caRootsPath must be the abs"),
        ({"keyPath": None, "pki": {**PKI, "x": 1}}, ".pki has an unknown member 'x'; allowed are"),
        ({"keyPath": None, "pki": {"caRootsPath": "/x"}}, ".pki needs subjectEmail or subjectHost"),
        (
            {"keyPath": None, "pki": {"caRootsPath": "/x", "subjectEmail": ""}},
            ".pki.subjectEmail must be text that is not empty",
        ),
        (
            {
                "keyPath": None,
                "pki": {**PKI, "caIntermediatesPath": "/x", "caIntermediatesData": "AAAA"},
            },
            ".pki has caIntermediatesPath and caIntermediatesData, may have one of them",
        ),
        (
            {"keyPath": None, "pki": {**PKI, "caIntermediatesData": "?"}},
            ".pki.caIntermediatesData must be base64",
        ),
    ],
)
def test_faults_in_sigstore_signed_are_told(change: dict[str, Any], message: str) -> None:
    requirement = {name: value for name, value in {**SIGNED, **change}.items() if value is not None}
    with pytest.raises(PolicyFault) as caught:
        required(requirement)
    assert f"policy.json: default[0]{message}" in caught.value.message


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ({"type": "signedBy", "keyPath": "/x"}, "has no keyType"),
        ({**GPG, "keyPath": "/x"}, "must have exactly one of keyPath, keyPaths, keyData"),
        ({**GPG, "signedIdentity": {"type": "x"}}, ".signedIdentity.type must be one of"),
        ({**GPG, "x": 1}, "has an unknown member 'x'"),
    ],
)
def test_what_is_not_supported_is_still_read(requirement: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyFault) as caught:
        required(requirement)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "matchAll"}, ".type must be one of matchExact, matchRepoDigestOrExact, match"),
        (
            {"type": "matchExact", "prefix": "x"},
            " has an unknown member 'prefix'; allowed are type",
        ),
        ({"type": "exactReference"}, " has no dockerReference"),
        (
            {"type": "exactReference", "dockerReference": "a.io/b"},
            ".dockerReference must have a tag or a digest",
        ),
        ({"type": "exactReference", "dockerReference": "a.io/B:1"}, ".dockerReference"),
        ({"type": "exactReference", "dockerReference": 3}, ".dockerReference must be text"),
        ({"type": "exactRepository", "dockerRepository": "a.io/B"}, ".dockerRepository"),
        ({"type": "remapIdentity", "prefix": "a.io"}, " has no signedPrefix"),
        (
            {"type": "remapIdentity", "prefix": "a.io/x:1", "signedPrefix": "b.io"},
            ".prefix must be HOST, or HOST/PATH without tag and digest, not 'a.io/x:1'",
        ),
        (
            {"type": "remapIdentity", "prefix": "a.io", "signedPrefix": "library/x"},
            ".signedPrefix must be HOST, or HOST/PATH",
        ),
        ({"type": "remapIdentity", "prefix": "a.io/", "signedPrefix": "b.io"}, ".prefix must be"),
    ],
)
def test_faults_in_signed_identity_are_told(document: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyFault) as caught:
        identity(document)
    assert f"default[0].signedIdentity{message}" in caught.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "policy.json is not valid JSON: line 1, column 1"),
        (b'{"default": [{"type": "reject"}],}', "policy.json is not valid JSON: line 1"),
        (b'{"default": [{"type": "reject"}]} x', "policy.json is not valid JSON: line 1"),
        (b'{"default": [{"type": "reject"}], "default": []}', "occurs twice"),
        (b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}', "occurs twice"),
        (b'\xef\xbb\xbf{"default": [{"type": "reject"}]}', "policy.json is not valid JSON"),
        (b'{"default": [{"type": "reject"}] /* all */}', "policy.json is not valid JSON"),
        (b"[" * 100_000, "levels deep"),
        (b'{"default": ' + b"[" * 100 + b"]" * 100 + b"}", "levels deep"),
        (b" " * (POLICY_LIMIT + 1), "is longer than"),
        (b'{"default": "\xff"}', "is not UTF-8"),
    ],
)
def test_what_is_not_one_document_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PolicyFault, match=message):
        parse_policy(data, "policy.json")


def test_the_whole_policy_cut_anywhere_is_refused() -> None:
    data = json.dumps(WHOLE).encode()
    for end in range(len(data)):
        with pytest.raises(PolicyFault):
            parse_policy(data[:end], "policy.json")


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_policies_are_refused_or_read(data: st.DataObject) -> None:
    whole = json.dumps(WHOLE).encode()
    at = data.draw(st.integers(0, len(whole)))
    put = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"{", b"[]", b'"x":1,'])))
    with contextlib.suppress(PolicyFault):
        parse_policy(whole[:at] + put + whole[at + data.draw(st.integers(0, 6)) :], "policy.json")


def test_faults_in_long_scopes_are_short() -> None:
    long = "a.example/" + "x/" * 100_000
    for transports in ({"docker": {long: []}}, {long: {"x": []}}, {"docker": {"": [{long: 1}]}}):
        with pytest.raises(PolicyFault) as caught:
            parsed({"default": [ACCEPT], "transports": transports})
        assert len(caught.value.message) < 1000
    policy = parsed({"default": [ACCEPT], "transports": {"docker": {long + "/": [REJECT]}}})
    assert len(policy.warnings[0]) < 1000


def test_the_example_in_the_documents() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "policy-json.md"
    text = page.read_text()
    (example,) = re.findall(r"(?s)```json\n(.*?)```", text)
    policy = parse_policy(example.encode(), "policy.json")
    assert policy.warnings == ()
    for asked, kind in [
        ("registry.example/team/app", SigstoreSigned),
        ("busybox", AcceptAnything),
        ("quay.io/other", Reject),
    ]:
        (requirement,) = requirements_for(policy, parse_reference(asked)).requirements
        assert isinstance(requirement, kind)
    for name in (*get_args(Kind), *KEY_SOURCES, *REKOR_SOURCES, *PKI_MEMBERS):
        assert name in text or name.endswith("Data"), name


def test_scopes_are_shown_on_one_line() -> None:
    policy = parsed({"default": [ACCEPT], "transports": {"oci": {"/a\nb": [REJECT]}}})
    chosen = requirements_for(policy, parse_reference("oci:/a\nb/c"))
    assert chosen.scope == r'transports.oci["/a\nb"]'


def test_an_accepting_default_is_read_as_such() -> None:
    assert parsed({"default": [ACCEPT]}) == Policy("policy.json", (AcceptAnything(),))
