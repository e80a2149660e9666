"""Restores from a hostile store with the programs that are here: gVisor's, and those of others.

Real sandboxes, real mounts, by the commands that users type.  Whatever the snapshot says, nothing
of it happens on the machine: no command runs, no file appears, no folder is mounted.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.sandbox.runtimes.programs import processes_with
from lazyfs.sandbox.runtimes.runtimes import Chooser
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    force_unmount,
    is_mounted,
    needs_fuse,
    needs_root,
    wait_until,
)
from tests.support.sandboxes.hostile import (
    PROGRAMS,
    Change,
    in_container,
    in_runtime,
    in_template,
    tamper,
)
from tests.support.sandboxes.runscs import (
    COUNTER,
    NEW,
    SUITES,
    make_busybox,
    need_runsc,
    runsc_path,
)

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]


class Saved:
    """A machine with the snapshots of a sandbox: one that asks for nothing, one for a folder."""

    def __init__(self, folder: Path, runsc: Path) -> None:
        self.folder = folder
        self.runsc = runsc
        self.lazyfs = Lazyfs(folder / "node")
        self.lazyfs.folder.mkdir()
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "file").write_text("of the machine\n")
        reference = make_busybox(folder / "layout")
        container = {"name": "counter", "image": reference, "command": ["/bin/sh", "-c", COUNTER]}
        mount = {"volumeMounts": [{"name": "data", "mountPath": "/tmp"}]}
        volumes = [{"name": "data", "hostPath": {"path": str(self.data)}}]
        self.save("plain", {"name": "counter", "containers": [container]})
        document = {"name": "counter", "containers": [container | mount], "volumes": volumes}
        self.save("asking", document)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def template(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def save(self, name: str, document: dict) -> None:
        self.template(name).write_text(json.dumps(document))
        # One gVisor's sockets are the machine's: others may test at the same time.
        sandbox_id = f"{name}-{os.getpid()}"
        self.do("run", self.template(name), "--id", sandbox_id, "--runsc", self.runsc)
        self.do("checkpoint", sandbox_id, "--to", self.store, "--name", name)

    def do(self, *words: object) -> None:
        done = self.lazyfs(*words)
        assert done.returncode == 0, done.stderr

    def restore(self, sandbox_id: str, name: str, *words: object) -> tuple[int, dict]:
        """Restore; return the exit code, and the error."""
        where = f"{self.store}@{name}"
        program = () if "--runsc" in words else ("--runsc", self.runsc)
        done = self.lazyfs("restore", where, "--id", sandbox_id, *program, *words, "--json")
        error = json.loads(done.stderr.strip().splitlines()[-1]) if done.returncode else {}
        return done.returncode, error

    def tampered(self, name: str, change: Change) -> None:
        """Have pointer *name* of a fresh copy of the store name what *change* makes."""
        shutil.rmtree(self.store)
        shutil.copytree(self.folder / "kept", self.store)
        tamper(self.store, name, change)

    def sandbox(self, sandbox_id: str) -> Path:
        return self.lazyfs.folder / "state" / "sandboxes" / sandbox_id

    def check_gone(self, sandbox_id: str) -> None:
        folder = self.sandbox(sandbox_id)
        assert not folder.exists()
        assert not list(processes_with(f"--root={folder / 'runtime'}"))
        assert not is_mounted(folder / "bundles" / "counter" / "rootfs")

    def close(self) -> None:
        folders = list(self.lazyfs.folder.glob("state/sandboxes/*"))
        if folders:
            self.lazyfs("delete", "--force", *(folder.name for folder in folders), timeout=90)
        for folder in folders:
            for rootfs in folder.glob("bundles/*/rootfs"):
                force_unmount(rootfs)


@pytest.fixture(scope="module", params=SUITES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    runsc = need_runsc(request.param)
    made = None
    try:
        made = Saved(tmp_path_factory.mktemp("saved"), runsc)
        shutil.copytree(made.store, made.folder / "kept")
        yield made
    finally:
        if made is not None:
            made.close()


ORDERS: dict[str, tuple[Callable[[Path], Change], int]] = {
    # As it was found.
    "command": (
        lambda folder: in_runtime(
            flags=["do", "--force-overlay=false", "sh", "-c", f"touch {folder}/marker"]
        ),
        11,
    ),
    "log": (lambda folder: in_runtime(flags=["--debug", f"--debug-log={folder}/marker"]), 34),
    "panic-log": (lambda folder: in_runtime(flags=[f"--panic-log={folder}/marker"]), 34),
    "root": (lambda folder: in_runtime(flags=[f"--root={folder}/marker"]), 34),
    "overlay": (lambda folder: in_runtime(overlay=f"root:dir={folder}"), 34),
    "raw-overlay": (lambda folder: in_runtime(overlay=f"root:memory --log={folder}/marker"), 11),
    "network": (lambda folder: in_runtime(network="host"), 11),
    "folder": (
        lambda folder: (
            lambda document: (
                [
                    change(document)
                    for change in (
                        in_template(volumes=[{"name": "data", "hostPath": {"path": str(folder)}}]),
                        in_container(volumeMounts=[{"name": "data", "mountPath": "/tmp"}]),
                    )
                ]
                and None
            )
        ),
        34,
    ),
    "capability": (
        lambda folder: in_container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
        34,
    ),
}


@pytest.mark.parametrize("program", ["runsc", *PROGRAMS])
@pytest.mark.parametrize("order", ORDERS)
def test_no_order_is_obeyed(saved: Saved, order: str, program: str, tmp_path: Path) -> None:
    if program != "runsc" and saved.runsc != runsc_path(NEW):
        pytest.skip("the same with either gVisor")
    path = saved.runsc if program == "runsc" else Chooser(tmp_path / "state").find(program)
    if path is None:
        pytest.skip(f"no {program}")
    victim = tmp_path / "victim"
    victim.mkdir()
    change, code = ORDERS[order]
    saved.tampered("plain", change(victim))
    got, error = saved.restore("r1", "plain", "--runsc", path)
    assert got == code, error
    assert list(victim.iterdir()) == []
    saved.check_gone("r1")


def test_a_folder_is_mounted_for_who_allows_it(saved: Saved, tmp_path: Path) -> None:
    saved.tampered("asking", lambda document: None)
    code, error = saved.restore("r2", "asking")
    assert code == 34
    (request,) = error["details"]["requests"]
    words = f"{request['kind']}={request['value']}"
    assert words == f"host-path={saved.data}:rw"
    saved.check_gone("r2")
    code, _ = saved.restore("r2", "asking", "--allow", f"host-path={saved.data}:ro")
    assert code == 34
    policy = tmp_path / "policy.yaml"
    policy.write_text(json.dumps({"version": 1, "rules": [{"store": "*", "allow": [words]}]}))
    policy.chmod(0o600)
    for number, way in enumerate(
        (
            ("--allow", words),
            ("--restore-policy", policy),
            ("--template", saved.template("asking")),
        )
    ):
        sandbox_id = f"a{number}-{os.getpid()}"
        code, error = saved.restore(sandbox_id, "asking", *way)
        assert code == 0, error
        log = saved.sandbox(sandbox_id) / "logs" / "counter.log"
        wait_until(lambda log=log: log.exists() and log.read_text().count("\n") > 2)
        saved.do("delete", "--force", sandbox_id)


def test_a_pin_is_kept_by_all_commands(saved: Saved, tmp_path: Path) -> None:
    saved.tampered("plain", lambda document: None)
    where = f"{saved.store}@plain"
    done = saved.lazyfs("snapshot", "show", where, "--json")
    digest = json.loads(done.stdout)["manifestDigest"]
    saved.tampered("plain", in_runtime(flags=["--debug"]))
    for words in (
        ("restore", where, "--id", "r3", "--runsc", saved.runsc),
        ("golden", "clone", where, "--id", "r3", "--runsc", saved.runsc),
        ("snapshot", "show", where),
        ("snapshot", "verify", where),
        ("snapshot", "copy", where, tmp_path / "other"),
    ):
        done = saved.lazyfs(*words, "--manifest-digest", digest)
        assert done.returncode == 13, (words, done.stderr)
        done = saved.lazyfs(*words, "--manifest-digest", digest[:-1])
        assert done.returncode == 2, (words, done.stderr)
    saved.check_gone("r3")
    assert not (tmp_path / "other").exists()


def test_copying_says_what_would_be_asked(saved: Saved, tmp_path: Path) -> None:
    saved.tampered("asking", in_runtime(flags=["--host-uds=open", f"--log={tmp_path}/x"]))
    where = f"{saved.store}@asking"
    done = saved.lazyfs("snapshot", "copy", where, tmp_path / "other")
    assert done.returncode == 0, done.stderr
    for words in (f"host-path={saved.data}:rw", "runtime-flag=--host-uds=open", f"{tmp_path}/x"):
        assert words in done.stderr
    shown = saved.lazyfs("snapshot", "show", where, "--json")
    found = json.loads(shown.stdout)["requests"]
    assert [each["allowable"] for each in found] == [True, True, False]
    copied = saved.lazyfs("snapshot", "copy", where, tmp_path / "other", "--json")
    assert json.loads(copied.stdout)["requests"] == found
