"""Where control groups of lazyfs' own are made, on machines of both versions and of a mix."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import Limits, SandboxPlan
from lazyfs.sandbox.specs import cgroups as module
from lazyfs.sandbox.specs.cgroups import (
    entering,
    find_parents,
    make_groups,
    parse_mounts,
    parse_own,
    remove_groups,
    settings,
)

ALL = Limits(memory=1 << 20, cpus=1.5, pids=10)


class Machine:
    """A tree that looks like /sys/fs/cgroup, and what /proc says of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.proc.mkdir()
        self._mounts: list[str] = []
        self._own: list[str] = []

    def unified(self, own: str, *, root: str = "/", controllers: str = "cpu memory pids") -> Path:
        point = self.folder / "unified"
        self._add(point, root, "cgroup2", "rw", f"0::{own}")
        self.group(point, controllers, "")
        return point

    def legacy(self, name: str, own: str, *, root: str = "/") -> Path:
        point = self.folder / name.replace(",", "-")
        self._add(point, root, "cgroup", f"rw,{name}", f"3:{name}:{own}")
        return point

    def _add(self, point: Path, root: str, kind: str, options: str, own: str) -> None:
        point.mkdir()
        self._mounts.append(f"30 20 0:1 {root} {point} rw - {kind} {kind} {options}")
        self._own.append(own)
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        (self.proc / "cgroup").write_text("\n".join(self._own) + "\n")

    @staticmethod
    def group(folder: Path, controllers: str, enabled: str) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text(enabled)
        (folder / "cgroup.procs").write_text("")
        return folder

    def parents(self, limits: Limits = ALL, *, is_root: bool = True) -> dict[str, Path]:
        return find_parents(limits, proc=self.proc, is_root=is_root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_asked_for_where_nothing_is_limited(tmp_path: Path) -> None:
    assert find_parents(Limits(), proc=tmp_path / "no-such") == {}


def test_version_1_makes_them_below_our_own(machine: Machine) -> None:
    for name in ("memory", "cpu,cpuacct", "pids", "devices"):
        (machine.legacy(name, "/mine") / "mine").mkdir()
    folder = machine.folder
    assert machine.parents() == {
        "memory": folder / "memory/mine",
        "cpu": folder / "cpu-cpuacct/mine",
        "pids": folder / "pids/mine",
    }


def test_of_a_hierarchy_a_part_is_mounted(machine: Machine) -> None:
    for name in ("memory", "cpu", "pids"):
        machine.legacy(name, "/docker/abc", root="/docker/abc")
    assert machine.parents()["memory"] == machine.folder / "memory"


def test_version_2_makes_them_beside_our_own(machine: Machine) -> None:
    point = machine.unified("/user.slice/session-1.scope")
    machine.group(point / "user.slice", "cpu memory pids", "cpu memory pids")
    machine.group(point / "user.slice/session-1.scope", "cpu memory pids", "")
    assert set(machine.parents(is_root=False).values()) == {point / "user.slice"}


def test_version_2_goes_up_to_whoever_can_give_all(machine: Machine) -> None:
    point = machine.unified("/a/b/c")
    (point / "cgroup.subtree_control").write_text("cpu memory pids")
    machine.group(point / "a", "cpu memory pids", "cpu memory pids")
    machine.group(point / "a/b", "memory pids", "memory pids")
    machine.group(point / "a/b/c", "memory pids", "")
    assert set(machine.parents().values()) == {point / "a"}
    assert set(machine.parents(Limits(pids=1)).values()) == {point / "a/b"}


def test_root_has_controllers_given_at_the_top(machine: Machine) -> None:
    point = machine.unified("/")
    assert set(machine.parents().values()) == {point}
    assert (point / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_a_mixed_machine(machine: Machine) -> None:
    machine.unified("/", controllers="")
    for name in ("memory", "cpu", "pids"):
        machine.legacy(name, "/")
    assert machine.parents()["pids"] == machine.folder / "pids"


def test_what_cannot_be_limited_is_named(machine: Machine) -> None:
    machine.unified("/", controllers="cpu")
    machine.legacy("memory", "/")
    with pytest.raises(Unsupported, match="limits: cpu and pids cannot be limited") as error:
        machine.parents(is_root=False)
    assert "delegated" in (error.value.hint or "")
    (machine.proc / "cgroup").unlink()
    with pytest.raises(Unsupported, match="cannot find out the cgroups"):
        machine.parents()


def plan_in(folder: Path, limits: Limits) -> SandboxPlan:
    (folder / "state").mkdir()
    return SandboxPlan("box", folder / "state", folder / "logs", (), limits=limits)


def test_groups_come_and_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = {name: machine.folder / name for name in ("memory", "cpu", "pids")}
    for parent in parents.values():
        parent.mkdir()
    monkeypatch.setattr(module, "find_parents", lambda limits: parents)
    plan = plan_in(machine.folder, ALL)
    folders = make_groups(plan)
    written = {path.name: path.read_text() for each in folders for path in each.iterdir()}
    assert written == {
        "memory.limit_in_bytes": "1048576",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
        "pids.max": "10",
    }
    assert all(each.name.startswith("lazyfs-box-") for each in folders)
    assert entering(folders)[3:] == ["lazyfs-cgroup", "3", *folders]
    assert entering([]) == []
    for each in folders:  # the kernel's own files go with their group
        for path in each.iterdir():
            path.unlink()
    remove_groups(plan)
    assert not any(each.exists() for each in folders)
    remove_groups(plan)


def test_a_limit_that_is_not_taken_leaves_no_group(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = machine.folder / "memory"
    parent.mkdir()
    monkeypatch.setattr(module, "find_parents", lambda limits: {"memory": parent})
    monkeypatch.setattr(module, "settings", lambda *_, **__: [("no/such", "1", True)])
    with pytest.raises(RuntimeFailed, match="limits: "):
        make_groups(plan_in(machine.folder, Limits(memory=1)))
    assert list(parent.iterdir()) == []


def test_only_what_we_made_is_removed(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, Limits())
    other = tmp_path / "somebody-elses"
    other.mkdir()
    (plan.state_dir / module.KEPT_NAME).write_text(f'["{other}"]')
    remove_groups(plan)
    assert other.exists()


def test_what_is_written_in_version_2() -> None:
    assert settings("memory", 5, is_unified=True) == [
        ("memory.max", "5", True),
        ("memory.swap.max", "0", False),
    ]
    assert settings("cpu", 0.001, is_unified=True) == [("cpu.max", "1000 100000", True)]
    assert settings("pids", 7.0, is_unified=True) == [("pids.max", "7", True)]


@given(st.text() | st.lists(st.text(": -/,x0", max_size=30)).map("\n".join))
def test_any_text_of_the_kernel(text: str) -> None:
    for parse in (lambda text: list(parse_mounts(text)), parse_own):
        try:
            parse(text)
        except (ValueError, IndexError):
            pass
