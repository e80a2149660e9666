"""Which policy is in force: the option, the environment, the machine's; what a file may be."""

import json
import os
from pathlib import Path

import pytest

from lazyfs.signatures.policies import load_policy, policies_in_force
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.options import TrustOptions

NOTATION = json.dumps({"version": "1.0", "trustPolicies": []})
CONTAINERS = json.dumps({"default": [{"type": "reject"}]})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, text in {
        "notation": NOTATION,
        "containers": CONTAINERS,
        "machine": CONTAINERS,
    }.items():
        found[name] = tmp_path / f"{name}.json"
        found[name].write_text(text)
    return found


def paths(options: TrustOptions, environment: dict[str, str], machine: Path) -> list[str]:
    return [str(each.path) for each in policies_in_force(options, environment, machine=machine)]


def test_nothing_is_in_force_by_itself(tmp_path: Path) -> None:
    assert paths(TrustOptions(), {"HOME": str(tmp_path)}, tmp_path / "none") == []


def test_the_machines_own_is(files: dict[str, Path]) -> None:
    assert paths(TrustOptions(), {}, files["machine"]) == [str(files["machine"])]


def test_an_option_comes_first(files: dict[str, Path]) -> None:
    environment = {"LAZYFS_POLICY": str(files["containers"])}
    chosen = TrustOptions(policy=str(files["notation"]))
    assert paths(chosen, environment, files["machine"]) == [str(files["notation"])]
    assert paths(TrustOptions(policy="off"), environment, files["machine"]) == []


def test_a_policy_that_is_out_of_reach_is_not_none(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to a volume that is not there yet, a loop, a directory that may not be entered."""
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "gone/policy.json")
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    for path in (link, loop):
        with pytest.raises(PolicyFault, match=path.name):
            paths(TrustOptions(), {}, path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PolicyFault, match=link.name):
        paths(TrustOptions(), {"LAZYFS_POLICY": str(files["containers"])}, link)

    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "lstat", refuse)
    with pytest.raises(PolicyFault, match="cannot be read: permission denied"):
        paths(TrustOptions(), {}, tmp_path / "none")
    with pytest.raises(PolicyFault, match="cannot be read: permission denied"):
        paths(TrustOptions(policy="default"), {"HOME": str(tmp_path)}, tmp_path / "none")


@pytest.mark.parametrize("word", ["off", "file"])
def test_the_environment_of_root_changes_no_policy_of_the_machine(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    said = {"LAZYFS_POLICY": "off" if word == "off" else str(files["containers"])}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths(TrustOptions(), said, files["machine"]) == [str(files["machine"])]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert paths(TrustOptions(), said, files["machine"]) == (
        [] if word == "off" else [str(files["containers"])]
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths(TrustOptions(), said, tmp_path / "none") == (
        [] if word == "off" else [str(files["containers"])]
    )


def test_the_tools_own_count_where_that_is_said(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    default = TrustOptions(policy="default")
    notation = tmp_path / ".config/notation"
    notation.mkdir(parents=True)
    (notation / "trustpolicy.json").write_text(NOTATION)
    containers = tmp_path / ".config/containers"
    containers.mkdir()
    (containers / "policy.json").write_text(CONTAINERS)
    found = policies_in_force(default, environment, machine=tmp_path / "none")
    assert [each.is_notation for each in found] == [True, False]
    assert found[0].trust_store == notation / "truststore"
    # The newer name of notation's comes first.
    (notation / "trustpolicy.oci.json").write_text(NOTATION)
    found = policies_in_force(default, environment, machine=tmp_path / "none")
    assert found[0].path.name == "trustpolicy.oci.json"
    assert paths(TrustOptions(), environment, tmp_path / "none") == []


def test_default_without_any_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.signatures.policies.CONTAINERS", tmp_path / "absent.json")
    with pytest.raises(PolicyFault, match="there is no"):
        paths(TrustOptions(policy="default"), {"HOME": str(tmp_path)}, tmp_path / "none")


def test_the_environment_names_no_relative_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyFault, match="neither default, off nor an absolute path"):
        paths(TrustOptions(), {"LAZYFS_POLICY": "policy.json"}, tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "neither notation's, which has trustPolicies, nor containers'"),
        ("[]", "is not a JSON object"),
        ('{"default": [], "default": []}', "occurs twice"),
        ("{", "is not valid JSON"),
        ('{"default": NaN}', "NaN is not JSON"),
    ],
)
def test_what_is_no_policy(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(PolicyFault, match=said):
        load_policy(path, None)


def test_what_is_no_file(tmp_path: Path, files: dict[str, Path]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("absent", "does not exist"), (".", "cannot be read"), ("pipe", "cannot")):
        with pytest.raises(PolicyFault, match=said):
            load_policy(tmp_path / name, None)
    for name in ("notation", "containers"):
        (tmp_path / f"{name}.link").symlink_to(files[name])
    with pytest.raises(PolicyFault, match="a symlink"):
        load_policy(tmp_path / "notation.link", None)
    assert not load_policy(tmp_path / "containers.link", None).is_notation
