"""The gates one by one, their switches, and that what the commands print is documented."""

from pathlib import Path

import msgspec
import pytest

from lazyfs.cli.snapshots.checkpoint import document_of_made
from lazyfs.cli.snapshots.golden import _document as document_of_generation
from lazyfs.cli.snapshots.restore import _document_of_review, document_of_restored
from lazyfs.documents.errors import CpuMismatch, PlatformMismatch, RuntimeMismatch
from lazyfs.documents.manifest import Manifest
from lazyfs.oci.platforms import Platform
from lazyfs.snapshot import gates
from lazyfs.snapshot.gates import Allowed
from lazyfs.snapshot.golden import generations
from lazyfs.snapshot.review import Wanted, review
from tests.cli.test_json_reference import fields_of, section
from tests.snapshot.test_scenarios_golden import Builder
from tests.support.sandboxes.fake_runtime import ABILITIES, FakeRuntime
from tests.support.sandboxes.world import HOST, Machine, machine, neighbour


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = machine(tmp_path_factory.mktemp("gates"))
    made.run()
    made.count(times=3)
    made.checkpoint(pointer="latest")
    return made


@pytest.fixture
def manifest(here: Machine) -> Manifest:
    return here.snapshots.load("@latest").manifest


def check(manifest: Manifest, program: FakeRuntime, **allowed: bool) -> list[str]:
    return gates.check_host(manifest, program.probe(), HOST, Allowed(**allowed))


def test_the_same_machine_passes(manifest: Manifest) -> None:
    gates.check_portable(manifest, HOST)
    assert check(manifest, FakeRuntime()) == []
    more = FakeRuntime(cpu_features=("avx", "avx512f", "sse4_2"))
    assert check(manifest, more) == []


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"version": "fake-2.0"}, "version"),
        ({"digest": "sha256:" + "1" * 64}, "binary"),
        ({"platform": "ptrace"}, "platform"),
    ],
)
def test_another_runtime(manifest: Manifest, fields: dict[str, str], what: str) -> None:
    runtime = FakeRuntime(**fields)  # type: ignore[arg-type]
    with pytest.raises(RuntimeMismatch) as told:
        check(manifest, runtime)
    assert list(told.value.details) == [what]
    with pytest.raises(RuntimeMismatch):
        check(manifest, runtime, cpu=True, spec_drift=True)  # a switch opens its own gate only
    (notice,) = check(manifest, runtime, runtime=True)
    assert "--ignore-runtime" in notice


def test_a_runtime_that_lacks_the_overlay_is_never_tried(manifest: Manifest) -> None:
    runtime = FakeRuntime(abilities=ABILITIES - {"overlay2"})
    with pytest.raises(RuntimeMismatch, match="overlay2"):
        check(manifest, runtime, runtime=True)


def test_a_runtime_of_another_kind_is_never_tried(manifest: Manifest) -> None:
    with pytest.raises(RuntimeMismatch, match="crun"):
        check(manifest, FakeRuntime(name="crun"), runtime=True)


def test_a_lesser_processor(manifest: Manifest) -> None:
    runtime = FakeRuntime(cpu_features=("sse4_2",))
    with pytest.raises(CpuMismatch) as told:
        check(manifest, runtime)
    assert told.value.details == {"missing": ["avx"]}
    with pytest.raises(CpuMismatch):
        check(manifest, runtime, runtime=True)
    (notice,) = check(manifest, runtime, cpu=True)
    assert "avx" in notice


@pytest.mark.parametrize("host", [Platform("linux", "arm64"), Platform("windows", "amd64")])
def test_no_switch_opens_the_platforms_gate(manifest: Manifest, host: Platform) -> None:
    with pytest.raises(PlatformMismatch):
        gates.check_portable(manifest, host)


def test_data_asks_for_neither_runtime_nor_processor(manifest: Manifest) -> None:
    snapshot = msgspec.structs.replace(manifest.snapshot, scope="data")
    data = msgspec.structs.replace(manifest, snapshot=snapshot)
    assert check(data, FakeRuntime(version="fake-9", cpu_features=())) == []


def test_what_the_commands_print_is_documented(here: Machine, tmp_path: Path) -> None:
    there = neighbour(here)
    restored = there.restore("@latest")
    made = there.checkpoint("r1", leave_running=True)
    tools = there.restore_tools()
    found = review(Wanted("@latest"), tools.snapshots, tools.bases, tools.choose, tools.host)
    builder = Builder(machine(tmp_path))
    builder.build()
    (generation,) = generations(builder.here.snapshots)
    documents = {
        "checkpoint": document_of_made(made),
        "restore": [document_of_restored(restored), _document_of_review(found)],
        "golden status": msgspec.to_builtins(builder.status()),
        "golden list": {"generations": [document_of_generation(generation)], "store": ""},
        "golden clone": {"sandboxes": [], "failed": [{"sandbox": "", "code": "", "message": ""}]},
    }
    for command, document in documents.items():
        text = section(command)
        missing = [name for name in fields_of(document) if f"`{name}`" not in text]
        assert missing == [], command
