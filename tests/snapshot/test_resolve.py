"""``lazyfs resolve``: each reference asked for once, shown, written down."""

import json
from pathlib import Path

import pytest

from lazyfs.documents.lockfile import load_lock
from tests.cli.conftest import Run, cache_dir, run
from tests.support.formats.images import host_platform, layer_from_fixture, make_layout, tagged
from tests.support.registries.registry import FakeRegistry

__all__ = ["cache_dir", "run"]  # fixtures

OTHER_PLATFORM = "linux/s390x"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    layer = layer_from_fixture("edge-default")
    make_layout(tmp_path / "image", [layer], others={OTHER_PLATFORM: [layer]})
    make_layout(tmp_path / "image", [layer], tag="plain")
    return tmp_path / "image"


def index_of(layout: Path) -> str:
    return str(tagged(layout)["digest"])


def template_in(folder: Path, *images: str, pause: str | None = None) -> Path:
    path = folder / "counter.yaml"
    lines = [] if pause is None else [f"pauseImage: {pause}"]
    lines += ["containers:", *(f"- {{name: c{n}, image: {each}}}" for n, each in enumerate(images))]
    path.write_text("\n".join([*lines, "# the end", ""]))
    return path


def tag_requests(registry: FakeRegistry) -> int:
    return registry.count("GET", "/manifests/latest") + registry.count("HEAD", "/manifests/latest")


def test_a_reference(run: Run, layout: Path) -> None:
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app"
        found = run("resolve", ref, "--json")
        assert found.code == 0
        (image,) = found.json["images"]
        assert image["reference"] == ref
        assert image["containers"] == []
        assert image["resolved"] == f"{ref}@{image['manifestDigest']}"
        assert image["indexDigest"] == index_of(layout)
        assert image["platform"] == host_platform()
        platforms = {each["platform"]: each["manifestDigest"] for each in image["platforms"]}
        assert set(platforms) == {host_platform(), OTHER_PLATFORM}
        assert platforms[host_platform()] == image["manifestDigest"]
        assert (found.json["written"], found.json["lockfile"]) == (None, None)
        other = run("resolve", ref, "--platform", OTHER_PLATFORM).text
        assert other == f"{ref} -> {ref}@{platforms[OTHER_PLATFORM]} ({OTHER_PLATFORM})\n"
        lines = run("resolve", ref, "--all-platforms").text.splitlines()
        assert lines == [f"{ref} -> {ref}@{platforms[key]} ({key})" for key in sorted(platforms)]
        assert run("resolve", ref, "--all-platforms", "--platform", OTHER_PLATFORM).code == 2


def test_a_reference_to_one_manifest(run: Run, layout: Path) -> None:
    (image,) = run("resolve", f"oci:{layout}:plain", "--json").json["images"]
    assert image["indexDigest"] is None
    assert [each["manifestDigest"] for each in image["platforms"]] == [image["manifestDigest"]]


def test_the_same_tag_twice_is_asked_for_once(run: Run, layout: Path, tmp_path: Path) -> None:
    """Scenario 12: both mean the same."""
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app:latest"
        path = template_in(tmp_path, ref, ref, pause=ref)
        (image,) = run("resolve", path, "--json").json["images"]
        assert image["containers"] == ["pause", "c0", "c1"]
        assert tag_requests(registry) == 1


def test_an_index_by_its_digest(run: Run, layout: Path, tmp_path: Path) -> None:
    """Scenario 13: the index stays what was pinned, the child is what it resolves to."""
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app@{index_of(layout)}"
        path = template_in(tmp_path, ref)
        (image,) = run("resolve", path, "--require-pinned", "--json").json["images"]
        assert image["reference"] == ref
        assert image["indexDigest"] == index_of(layout)
        assert image["resolved"].endswith(f"/team/app@{image['manifestDigest']}")
        assert image["manifestDigest"] != index_of(layout)
        assert tag_requests(registry) == 0
    # What is known by digest needs nobody.
    assert run("resolve", path, "--offline").code == 0


def test_a_template_is_written_in_its_place(run: Run, layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app:latest"
        path = template_in(tmp_path, ref, f"{registry.host}/team/app:plain", pause=ref)
        before = path.read_text()
        done = run("resolve", path, "--write", "--json")
        plain = done.json["images"][1]["manifestDigest"]
        assert done.json["written"] == str(path)
        assert path.read_text() == before.replace(":latest", f":latest@{index_of(layout)}").replace(
            ":plain", f":plain@{plain}"
        )
        again = run("resolve", path, "--write", "--require-pinned")
        assert again.code == 0
        assert f"{path}: unchanged" in again.err
        assert 'tag "latest" is ignored because there is a digest' in again.err
        assert tag_requests(registry) == 1


def test_a_lock_file(run: Run, layout: Path, tmp_path: Path) -> None:
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app:latest"
        path, lock = template_in(tmp_path, ref), tmp_path / "images.lock"
        assert run("resolve", path, "--lockfile", lock).code == 0
        data = lock.read_bytes()
        assert run("resolve", path, "--lockfile", lock, "--json").json["lockfile"] == str(lock)
        assert lock.read_bytes() == data
        locked = load_lock(lock).images[ref]
        assert locked.index_digest == index_of(layout)
        assert set(locked.manifests) == {host_platform(), OTHER_PLATFORM}
        assert path.read_text().count("@") == 0


def test_pinned_references_only(
    run: Run, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 2: nothing is asked for then."""
    with FakeRegistry(layout) as registry:
        path = template_in(tmp_path, f"{registry.host}/team/app:latest")
        for words in (["--require-pinned"], []):
            done = run("resolve", path, "--json", *words)
            assert done.code == 2
            error = json.loads(done.err)
            assert error["code"] == "E_TEMPLATE_INVALID"
            assert "containers[0].image: " in error["message"]
            assert f"lazyfs resolve {path} --write" in error["hint"]
            monkeypatch.setenv("LAZYFS_REQUIRE_PINNED", "1")
        assert registry.count() == 0
        assert run("resolve", path, "--write").code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{ref}:none"], 3, "none"),
        (["{folder}/none.yaml"], 2, "No such file"),
        (["a@b"], 2, "image: must have a digest (sha256:…) after '@', not \"b\""),
        (["{ref}", "--write"], 2, "is a reference, not a template"),
        (["{ref}:latest", "--platform", "linux/riscv64"], 3, "no image for linux/riscv64"),
        (["{ref}:latest", "--lockfile", "{folder}/none/lock"], 2, "No such file"),
    ],
)
def test_what_cannot_be_resolved(
    run: Run, layout: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app"
        done = run("resolve", *(word.format(ref=ref, folder=tmp_path) for word in words))
        assert done.code == code
        assert message in done.err


def test_one_of_two_cannot_be_resolved(run: Run, layout: Path, tmp_path: Path) -> None:
    """Nothing is written then."""
    with FakeRegistry(layout) as registry:
        ref = f"{registry.host}/team/app"
        path = template_in(tmp_path, f"{ref}:latest", f"{ref}:none", pause=f"{ref}:plain")
        before = path.read_text()
        done = run("resolve", path, "--write", "--lockfile", tmp_path / "lock")
        assert done.code == 3
        assert path.read_text() == before
        assert not (tmp_path / "lock").exists()
