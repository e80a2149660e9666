"""``lazyfs doctor`` says which protections hold, as found by trying."""

import json
import shutil
from pathlib import Path

import pytest

from lazyfs.sandbox.runtimes import protections
from lazyfs.sandbox.runtimes.protections import (
    CLOSED,
    OPEN,
    OWN_KERNEL,
    PROTECTIONS,
    look_at_protections,
)
from lazyfs.sandbox.runtimes.runtimes import Chooser
from lazyfs.sandbox.specs import spec
from tests.attacks.conftest import RUNTIMES, WHO, Hostile
from tests.support.mounts.mounting import needs_fuse, needs_root

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]


@pytest.mark.parametrize("who", WHO)
def test_all_protections_hold(hostile: Hostile, who: str) -> None:
    program = hostile.words_of("runsc")[1]
    done = hostile.commands[who]("doctor", "--runsc", program, "--json", timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["confinement"]["runtimes"]
    assert said
    for name, found in said.items():
        expected = OWN_KERNEL if name == "runsc" else CLOSED
        for protection in PROTECTIONS:
            if protection == "devices" and who == "user" and name != "runsc":
                continue  # a user cannot make a node to try it with
            assert (name, protection, found.get(protection)) == (name, protection, expected), found
    text = hostile.commands[who]("doctor", "--runsc", program, timeout=120).stdout
    assert "protection" in text
    assert all(name in text for name in RUNTIMES)


@pytest.mark.parametrize("name", ["crun", "runc", "bwrap"])
def test_what_does_not_hold_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if shutil.which(name, path="/usr/bin:/usr/sbin") is None:
        pytest.skip(f"no {name}")
    monkeypatch.setattr(spec, "confinement_of", lambda *_: {})
    monkeypatch.setattr(spec, "DEFAULT_CAPABILITIES", (*spec.DEFAULT_CAPABILITIES, "CAP_SYS_TIME"))
    monkeypatch.setattr(protections, "SECONDS", 60.0)
    found = look_at_protections(Chooser(tmp_path)(name), name, None)
    opened = {protection for protection, word in found.items() if word == OPEN}
    assert {"systemCalls", "keys", "capabilities", "namespaces"} <= opened
    assert found["devices"] == CLOSED
