"""What a program tries when ``lazyfs optimize`` runs it: the protections are those of ``run``."""

import os
import shutil

import pytest

from lazyfs.documents.errors import Unsupported
from lazyfs.service import workload
from tests.attacks.conftest import SECONDS, WHO, Hostile
from tests.attacks.sandboxes.test_sandbox_confinement import ATTACKS, DEFAULT_MASK
from tests.mounts.test_rootless import PYTHON
from tests.support.mounts.mounting import needs_fuse, needs_root, run

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]


@pytest.fixture(scope="module", params=WHO)
def attacked(hostile: Hostile, request: pytest.FixtureRequest) -> dict[str, str]:
    if shutil.which("bwrap") is None:
        pytest.skip("no bwrap")
    lazyfs = hostile.commands[request.param]
    made = lazyfs.folder / f"made-{request.param}"
    attack = ("/bin/probe", "all", *hostile.number, "KEY", os.getpid())
    words = lazyfs.command("optimize", hostile.image, f"oci:{made}", "--", *attack)
    done = run(
        PYTHON,
        hostile.folder / "with_key.py",
        *words,
        env=lazyfs.variables,
        cwd=lazyfs.folder,
        timeout=SECONDS,
        **lazyfs.options,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    for line in done.stderr.splitlines():
        name, _, result = line.partition(" ")
        found.setdefault(name, result)
    assert found.get("end") == "reached", done.stderr
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails(attacked: dict[str, str], attack: str) -> None:
    result = attacked.get(attack, "never tried")
    assert result != "ok"
    assert (result == "never tried") == (attack == "unshare-mount")


def test_privileges(attacked: dict[str, str]) -> None:
    assert (attacked["NoNewPrivs"], attacked["Seccomp"]) == ("1", "2")
    for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(attacked[name], 16) & ~DEFAULT_MASK == 0, name


def test_without_bwrap_nothing_is_run(tmp_path) -> None:
    with pytest.raises(workload.NoWayIn, match="is not installed"):
        workload.build_command(tmp_path, {}, ["/bin/true"], bwrap=None)


def test_without_setpriv_nothing_is_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="setpriv"):
        workload.build_command(tmp_path, {}, ["/bin/true"], bwrap=tmp_path / "bwrap")
