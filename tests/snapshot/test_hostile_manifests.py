"""Whoever can write a manifest decides its values: each is an error of ours, or it is harmless.

Every value of a whole manifest, extensions too, is replaced by each of what is no such value.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lazyfs.cli.snapshots.snapshot import snapshot as command
from lazyfs.digest import digest_of
from lazyfs.documents.errors import Interrupted, ManifestInvalid, TemplateInvalid
from lazyfs.documents.manifest_json import decode_manifest, diff_manifests
from lazyfs.errors import LazyfsError
from lazyfs.sandbox.containers import end
from lazyfs.sandbox.specs.spec import build_spec, spec_facts
from lazyfs.snapshot import clone as clones
from lazyfs.snapshot.clone import clone
from lazyfs.snapshot.draft import load_draft
from lazyfs.snapshot.extensions import SPECS, specs_of
from lazyfs.snapshot.gates import Allowed
from lazyfs.snapshot.golden import generations
from lazyfs.snapshot.restore import Order, Restored
from lazyfs.snapshot.review import Wanted
from lazyfs.snapshot.stores.keys import manifest_key
from lazyfs.snapshot.stores.snapshots import Loaded, Snapshots
from lazyfs.snapshot.stores.stores import open_objects
from lazyfs.snapshot.stores.transfer import copy_snapshot
from lazyfs.store.profiles import Profile, encode_profile
from tests.support.sandboxes.world import Machine, counter, directory, machine, neighbour

DEEP: Any = []
for _ in range(50):
    DEEP = [DEEP]
VALUES: dict[str, Any] = {
    "null": None,
    "zero": 0,
    "negative": -1,
    "empty": "",
    "long": "x" * 10_000,
    "list": [],
    "object": {},
    "lists": [[]],
    "other": {"a": 1},
    "true": True,
    "huge": 1e308,
    "deep": DEEP,
}
ALLOWED = Allowed(spec_drift=True, cpu=True, runtime=True)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine whose store has a snapshot with all extensions there are, and a parent."""
    made = machine(tmp_path_factory.mktemp("hostile"))
    made.runtime.one_file = True
    made.run(template=counter(env=[{"name": "A", "value": "b"}], volumeMounts=[]))
    made.count()
    manifest = made.sandbox().record_path.read_text()
    digest = json.loads(manifest)["images"][0]["image"]["manifestDigest"]
    made.bases.profiles[digest] = encode_profile(Profile(digest, 1, (digest,), ((0, 1),)))
    made.checkpoint(pointer="latest", role="golden")
    made.restore("@latest")
    golden = {"name": "counter", "number": 2, "previous": made.snapshots.ids()[0]}
    made.checkpoint("r1", pointer="latest", role="golden", extensions={"golden": golden})
    return made


def whole(here: Machine) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(here.snapshots.load("@latest").data)
    document["images"][0]["hints"] = ["registry.test/other"]
    document["critical"] = []
    assert set(document["extensions"]) == {"template", "specs", "profiles", "golden"}
    return document


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in a document."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*at, number))


def replaced(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    inner = changed
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    return changed


def harmless(work: Callable[[], object]) -> bool:
    """Do it; say whether it was done.  Anything but an error of ours is raised."""
    try:
        work()
    except Interrupted:
        raise
    except LazyfsError:
        return False
    return True


@pytest.mark.parametrize("kind", VALUES)
def test_any_value_in_any_place(here: Machine, tmp_path: Path, kind: str) -> None:
    document = whole(here)
    loaded = here.snapshots.load("@latest")
    path = directory(here) / manifest_key(loaded.id)
    other = Snapshots(open_objects(str(tmp_path / "copies")))
    there = neighbour(here)
    was, read = path.read_bytes(), 0
    try:
        for at in places(document):
            data = json.dumps(replaced(document, at, VALUES[kind])).encode()
            try:
                manifest = decode_manifest(data)
            except LazyfsError:
                continue
            read += 1
            path.write_bytes(data)
            changed = Loaded(loaded.id, manifest, str(digest_of(data)), data)
            harmless(partial(differ, loaded, changed))
            look(here, loaded.id)
            harmless(partial(generations, here.snapshots))
            go_on(there, loaded.id)
            harmless(partial(here.snapshots.verify, changed, deep=True))
            harmless(partial(copy_snapshot, changed, here.snapshots, other))
            other.remove(loaded.id)
    finally:
        path.write_bytes(was)
    assert read > 3 or kind == "huge"  # in extensions, at least; no document has fractions


def differ(was: Loaded, now: Loaded) -> list[str]:
    return [str(each) for each in diff_manifests(was.manifest, now.manifest)]


def look(here: Machine, snapshot_id: str) -> None:
    """Show the snapshot, as commands do."""
    name = f"{here.store}/{snapshot_id}"
    for words in (["show", name], ["list", here.store]):
        found = CliRunner().invoke(command, words).exception
        assert found is None or isinstance(found, LazyfsError | SystemExit), (words, found)


def go_on(there: Machine, snapshot_id: str) -> None:
    """Restore the snapshot; where it is refused, with all that can be tolerated."""
    for allowed in (Allowed(), ALLOWED):
        if harmless(partial(there.restore, snapshot_id, allowed=allowed)):
            sandbox = there.sandbox("r1")
            end(sandbox, sandbox.plan(), there.runtime, there.bases)
            sandbox.remove()
            return
        there.check_gone()


def test_what_is_no_fact_is_refused_before_anything_is_downloaded(here: Machine) -> None:
    facts = whole(here)["extensions"][SPECS]["counter"]
    assert specs_of({SPECS: {"counter": facts}}) == {"counter": facts}
    assert specs_of({SPECS: {"counter": {"fact of another release": [1]}}})
    for hostile in (
        {"process": {}},
        {"process": None, "linux": []},
        facts | {"annotations": 5},
        facts | {"annotations": {"lazyfs.output": ["pipe"]}},
        facts | {"mounts": [{"type": "bind"}]},
        facts | {"devices": [5]},
        facts | {"capabilities": {"bounding": None}},
        facts | {"noNewPrivileges": "no"},
        facts | {"args": "sh"},
        [],
        None,
    ):
        with pytest.raises(ManifestInvalid, match=r'extensions\.specs: "counter": '):
            specs_of({SPECS: {"counter": hostile}})
    with pytest.raises(ManifestInvalid, match=r"extensions\.specs: must be an object"):
        specs_of({SPECS: []})


def test_facts_of_today_have_the_shape(here: Machine) -> None:
    spec = {
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}]},
        "linux": {"devices": [{"path": "/dev/x"}], "namespaces": [{"type": "pid"}]},
        "mounts": [{"destination": "/a"}],
    }
    assert specs_of({SPECS: {"a": spec_facts(spec)}}) == {"a": spec_facts(spec)}


@pytest.mark.parametrize(
    "data",
    [b'{"sandboxId":"\xff","boot_id":"\xff","bootId":"\xff"}', b"[" * 100_000, b"\xff", b"[]"],
)
def test_no_bytes_in_the_place_of_what_is_kept_are_a_bug(here: Machine, data: bytes) -> None:
    there = neighbour(here)
    sandbox = there.run()
    template = sandbox.template_path.read_bytes()
    for path in (sandbox.template_path, sandbox.draft_path, sandbox.journal_path):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(LazyfsError):
            load_draft(sandbox) if path == sandbox.draft_path else there.checkpoint()
        path.unlink()
        sandbox.template_path.write_bytes(template)


@pytest.mark.parametrize("config", [[], "x", 5, [["Cmd"]]])
def test_an_image_whose_config_is_no_object(config: Any) -> None:
    template = counter()
    with suppress(TemplateInvalid):
        build_spec(
            template.containers[0], {"config": config}, template, is_root=True, sandbox_id="a"
        )


def test_a_fault_in_one_clone_hides_nothing_of_the_others(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = neighbour(here)
    done: list[Restored] = []
    real = clones.restore

    def restore(order: Order, tools: Any) -> Restored:
        if order.sandbox_id == "x-1":
            raise KeyError("a fault of ours")
        return real(order, tools)

    monkeypatch.setattr(clones, "restore", restore)
    order = Order(Wanted("@latest"), "x")
    failed = clone(order, ["x-1", "x-2", "x-3", "x-4"], there.restore_tools(), done.append)
    assert sorted(each.sandbox.id for each in done) == ["x-2", "x-3", "x-4"]
    ((name, error),) = failed
    assert (name, error.code) == ("x-1", "E_INTERRUPTED")
    assert "KeyError: 'a fault of ours'" in error.message
