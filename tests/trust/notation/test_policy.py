"""Trust policies and identities: what they mean, and what is refused."""

import copy
import json
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.names import escape
from lazyfs.trust.notation.identities import identity_of, parse_identity
from lazyfs.trust.notation.policy import StoreName, fold_scope, parse_policy
from tests.support.trust import pki

GOOD: dict[str, Any] = {
    "version": "1.0",
    "trustPolicies": [
        {
            "name": "main",
            "registryScopes": ["registry.test/app", "[::1]:5000/a/b"],
            "signatureVerification": {"level": "strict"},
            "trustStores": ["ca:main", "tsa:clock"],
            "trustedIdentities": ["x509.subject: C=DE, ST=Berlin, O=Acme"],
        },
        {
            "name": "rest",
            "registryScopes": ["*"],
            "signatureVerification": {
                "level": "audit",
                "override": {"revocation": "skip", "expiry": "enforce"},
                "verifyTimestamp": "afterCertExpiry",
            },
            "trustStores": ["signingAuthority:a.b_c-d"],
            "trustedIdentities": ["*"],
        },
    ],
}


def parsed(document: Any) -> Any:
    return parse_policy(json.dumps(document).encode(), "FILE")


def test_what_a_policy_says() -> None:
    policy = parsed(GOOD)
    main = policy.statement_for("registry.test/app")
    rest = policy.statement_for("registry.test/other")
    assert main.name == "main"
    assert main.actions["revocation"] == "enforce"
    assert main.always_timestamp
    assert main.stores == (StoreName("ca", "main"), StoreName("tsa", "clock"))
    assert rest.name == "rest"
    assert rest.identities is None
    assert rest.actions == {
        "authenticity": "log",
        "authenticTimestamp": "log",
        "expiry": "enforce",
        "revocation": "skip",
    }
    assert not rest.always_timestamp


def test_scopes_are_whole_names() -> None:
    del GOOD_ONE["trustPolicies"][1]
    policy = parsed(GOOD_ONE)
    for name in ("registry.test/app2", "registry.test/app/x", "registry.test", "test/app", "*"):
        assert policy.statement_for(name) is None


GOOD_ONE = copy.deepcopy(GOOD)


def test_a_host_has_no_case_and_a_repository_has() -> None:
    """Otherwise a name in capitals would get round the statement that is meant for it."""
    document = copy.deepcopy(GOOD)
    document["trustPolicies"][0]["registryScopes"] = ["Registry.TEST/app"]
    policy = parsed(document)
    assert policy.statement_for(fold_scope("REGISTRY.test/app")).name == "main"
    assert policy.statement_for(fold_scope("registry.test/APP")).name == "rest"
    document["trustPolicies"][0]["registryScopes"] = ["Registry.TEST/app", "registry.test/app"]
    with pytest.raises(PolicyFault, match="two places"):
        parsed(document)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ([], "Version"),
        ([], "trustpolicies"),
        (["trustPolicies", 0], "RegistryScopes"),
        (["trustPolicies", 0], "TRUSTSTORES"),
        (["trustPolicies", 0, "signatureVerification"], "Override"),
        (["trustPolicies", 0, "signatureVerification"], "verifytimestamp"),
    ],
)
def test_a_known_name_in_other_case(place: list[Any], name: str) -> None:
    """Go follows it; who overlooked it would judge by another policy than notation does."""
    document = copy.deepcopy(GOOD)
    inner: Any = document
    for step in place:
        inner = inner[step]
    inner[name] = {}
    with pytest.raises(PolicyFault, match="must be written"):
        parsed(document)


WRONG: list[tuple[list[Any], Any]] = [
    (["version"], 1.0),
    (["version"], None),
    (["trustPolicies"], {}),
    (["trustPolicies"], None),
    (["trustPolicies"], [[]]),
    (["trustPolicies"], ["x"]),
    (["trustPolicies", 0, "name"], 5),
    (["trustPolicies", 0, "registryScopes"], "registry.test/app"),
    (["trustPolicies", 0, "registryScopes"], [5]),
    (["trustPolicies", 0, "registryScopes"], []),
    (["trustPolicies", 0, "registryScopes"], ["registry.test/app@sha256:00"]),
    (["trustPolicies", 0, "registryScopes"], ["registry.test/app/"]),
    (["trustPolicies", 0, "registryScopes"], ["registry.test//app"]),
    (["trustPolicies", 0, "registryScopes"], ["registry.test/app\n"]),
    (["trustPolicies", 0, "signatureVerification"], "strict"),
    (["trustPolicies", 0, "signatureVerification"], None),
    (["trustPolicies", 0, "signatureVerification", "level"], ["strict"]),
    (["trustPolicies", 0, "signatureVerification", "override"], ["expiry"]),
    (["trustPolicies", 0, "signatureVerification", "override"], {"expiry": ["log"]}),
    (["trustPolicies", 0, "signatureVerification", "verifyTimestamp"], 5),
    (["trustPolicies", 0, "trustStores"], {"ca": "main"}),
    (["trustPolicies", 0, "trustStores"], ["ca:.."]),
    (["trustPolicies", 0, "trustStores"], ["ca:."]),
    (["trustPolicies", 0, "trustStores"], ["ca:a/b"]),
    (["trustPolicies", 0, "trustStores"], ["ca:"]),
    (["trustPolicies", 0, "trustStores"], ["CA:main"]),
    (["trustPolicies", 0, "trustStores"], ["ca:main\n"]),
    (["trustPolicies", 0, "trustedIdentities"], [None]),
    (["trustPolicies", 0, "trustedIdentities"], ["x509.subject: C=DE, ST=Berlin, O=" + "x" * 3000]),
    (["trustPolicies", 0, "trustedIdentities"], [f"x:{at}" for at in range(1001)]),
]


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_values_of_a_wrong_kind(place: list[Any], value: Any) -> None:
    document = copy.deepcopy(GOOD)
    inner: Any = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(PolicyFault) as caught:
        parsed(document)
    assert caught.value.message.startswith("FILE: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("C=DE, ST=Berlin, O=Acme", {"C": "DE", "ST": "Berlin", "O": "Acme"}),
        ("C=DE,S=Berlin,O=Acme", {"C": "DE", "ST": "Berlin", "O": "Acme"}),
        (" O = Acme , ST=x,C=DE ", {"C": "DE", "ST": "x", "O": "Acme"}),
        (r"C=DE,ST=x,O=Acme\, Inc.", {"C": "DE", "ST": "x", "O": "Acme, Inc."}),
        (r"C=DE,ST=x,O=a\;b\\c\+d", {"C": "DE", "ST": "x", "O": r"a;b\c+d"}),
        (r"C=DE,ST=x,O=\C3\BC\20", {"C": "DE", "ST": "x", "O": "\u00fc "}),
        (r"C=DE,ST=x,O=\ a\ ", {"C": "DE", "ST": "x", "O": " a "}),
        ("C=DE,ST=x,O=a=b#c", {"C": "DE", "ST": "x", "O": "a=b#c"}),
        ("C=DE,ST=x,O=\u00fc", {"C": "DE", "ST": "x", "O": "\u00fc"}),
        ("C=DE,ST=x,O=a,1.2.3=b", {"C": "DE", "ST": "x", "O": "a", "1.2.3": "b"}),
    ],
)
def test_identities(text: str, attributes: dict[str, str]) -> None:
    assert dict(parse_identity(text).attributes) == attributes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "C=DE,ST=x",
        "c=DE,ST=x,O=a",
        "C=DE,ST=x,O=",
        "C=DE,ST=x,O=a,",
        "C=DE,,ST=x,O=a",
        "C=DE;ST=x;O=a",
        'C=DE,ST=x,O="a"',
        "C=DE,ST=x,O=a<b",
        "C=DE,ST=x,O=a,S=y",
        "C=DE,ST=x,O=a+OU=b",
        "C=DE,ST=x,O=#0403",
        "C=DE,ST=x,O= #0403",
        "C=DE,ST=x,O=a\\",
        "C=DE,ST=x,O=a\\x",
        "C=DE,ST=x,O=\\ff",
        "C=DE,ST=x,O=a\0",
        "C DE,ST=x,O=a",
        "=DE,ST=x,O=a",
        "CN",
    ],
)
def test_identities_that_are_none(text: str) -> None:
    with pytest.raises(Malformed):
        parse_identity(text)


def test_a_value_that_is_not_text() -> None:
    with pytest.raises(Malformed, match="UTF-8"):
        parse_identity("C=DE,ST=x,O=\\ff")


# Blanks at the ends need no escape inside, and no attribute is empty or has a NUL.
VALUE = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
)


@given(VALUE, VALUE, VALUE)
def test_a_subject_as_it_is_written_is_itself(country: str, state: str, organization: str) -> None:
    text = f"O={escape(organization)},ST={escape(state)},C={escape(country)}"
    expected = {"C": country, "ST": state, "O": organization}
    assert dict(parse_identity(text).attributes) == expected


def subject(*pairs: tuple[x509.ObjectIdentifier, str]) -> Any:
    found = x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])
    return pki.issue("x", subject=found).certificate.subject


OID = x509.NameOID
USUAL = (
    (OID.COUNTRY_NAME, "DE"),
    (OID.STATE_OR_PROVINCE_NAME, "Berlin"),
    (OID.ORGANIZATION_NAME, "Acme"),
)


def test_whom_an_identity_means() -> None:
    found = identity_of(subject(*USUAL, (OID.COMMON_NAME, "x")))
    for text in ("C=DE,ST=Berlin,O=Acme", "CN=x,O=Acme,S=Berlin,C=DE"):
        assert parse_identity(text).covers(found)
    for text in (
        "C=DE,ST=Berlin,O=ACME",
        "C=DE,ST=Berlin,O=Acme,CN=y",
        "C=DE,ST=Berlin,O=Acme,OU=x",
    ):
        assert not parse_identity(text).covers(found)


def test_subjects_that_no_identity_means() -> None:
    for pairs in (
        USUAL[:2],
        (*USUAL, (OID.ORGANIZATION_NAME, "Other")),
        (*USUAL, (OID.EMAIL_ADDRESS, "a@b")),
    ):
        with pytest.raises(Malformed):
            identity_of(subject(*pairs))
