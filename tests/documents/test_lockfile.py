"""Lock files, and references that are changed where they stand."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.lockfile import (
    BadLock,
    Lock,
    LockedImage,
    apply_lock,
    decode_lock,
    encode_lock,
    load_lock,
    lock_of,
    names_of,
    pin,
    rewrite,
    rewrite_file,
    save_lock,
)
from lazyfs.documents.template_reading import decode_template, template_of_document

INDEX = "sha256:" + "ab" * 32
AMD64 = "sha256:" + "cd" * 32
ARM64 = "sha256:" + "ef" * 32
BUSYBOX = LockedImage(
    "docker.io/library/busybox", INDEX, {"linux/arm64": ARM64, "linux/amd64": AMD64}
)
PLAIN = LockedImage("ghcr.io/acme/side", None, {"linux/amd64": AMD64})
LOCK = lock_of({"ghcr.io/acme/side:1": PLAIN, "busybox": BUSYBOX})


# The file


def test_a_lock_is_sorted_and_stable() -> None:
    data = encode_lock(LOCK)
    assert decode_lock(data) == LOCK
    turned = lock_of(dict(reversed(LOCK.images.items())))
    assert encode_lock(turned) == data
    document = json.loads(data)
    assert list(document) == ["images", "kind", "version"]
    assert list(document["images"]) == ["busybox", "ghcr.io/acme/side:1"]
    assert list(document["images"]["busybox"]["manifests"]) == ["linux/amd64", "linux/arm64"]
    assert data.endswith(b"}\n")


def test_a_lock_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "images.lock"
    save_lock(path, LOCK)
    save_lock(path, LOCK)
    assert load_lock(path) == LOCK
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(BadLock, match="No such file"):
        load_lock(tmp_path / "other")
    with pytest.raises(BadLock, match="No such file"):
        save_lock(tmp_path / "none" / "x", LOCK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: must be 1, not 2"),
        ({"kind": "x"}, 'kind: must be "image-lock", not "x"'),
        ({"more": 1}, "more: unknown field"),
        ({"images": []}, "images: must be"),
        (
            {"images": {"a": {"indx": 1}}},
            "indx: unknown field.*repository, indexDigest, man",
        ),
        ({"images": {"A b": {}}}, "images"),
        ({"images": {"a": {"repository": "x", "indexDigest": None, "manifests": {}}}}, "length"),
        (
            {"images": {"a": {"repository": "x", "indexDigest": None, "manifests": {"l": AMD64}}}},
            'repository: must be "docker.io/library/a", not "x"',
        ),
        (
            {
                "images": {
                    "busybox": {
                        "repository": BUSYBOX.repository,
                        "indexDigest": None,
                        "manifests": {"linux/amd64": AMD64, "linux/arm64": ARM64},
                    }
                }
            },
            "2 manifests without an index",
        ),
        (
            {"images": {"a": {"repository": "x", "indexDigest": "x", "manifests": {"l": AMD64}}}},
            r"images\[...\].indexDigest: must be sha256",
        ),
    ],
)
def test_a_lock_that_cannot_be(change: dict[str, object], message: str) -> None:
    document = json.loads(encode_lock(LOCK)) | change
    with pytest.raises(BadLock, match=message):
        decode_lock(json.dumps(document).encode())


def test_a_damaged_lock() -> None:
    data = encode_lock(LOCK)
    for length in range(0, len(data) - 2, 31):
        with pytest.raises(BadLock):
            decode_lock(data[:length])
    for foreign in (b"[]", b'{"version": 1, "version": 1}', b"x" * (2 << 20), b"[" * 9000):
        with pytest.raises(BadLock):
            decode_lock(foreign)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(BadLock):
        decode_lock(data)


# What it is for


def test_a_template_with_a_lock_names_digests() -> None:
    template = template_of_document(
        {
            "pauseImage": f"pause:3@{ARM64}",
            "containers": [
                {"name": "a", "image": "busybox"},
                {"name": "b", "image": "ghcr.io/acme/side:1"},
            ],
        }
    )
    locked = apply_lock(template, LOCK)
    assert locked.images == {
        "pause": f"pause:3@{ARM64}",
        "a": f"busybox@{INDEX}",
        "b": f"ghcr.io/acme/side:1@{AMD64}",
    }
    assert apply_lock(locked, LOCK) == locked


def test_a_lock_that_does_not_know_an_image() -> None:
    template = template_of_document({"containers": [{"name": "a", "image": "busybox:1"}]})
    with pytest.raises(BadLock, match=r'"busybox:1" \(container a\) is not in it') as caught:
        apply_lock(template, LOCK)
    assert caught.value.hint is not None
    with pytest.raises(BadLock, match="it has no images"):
        apply_lock(template, Lock(1, "image-lock", {}))


def test_names_of_references() -> None:
    template = template_of_document(
        {"pauseImage": "p", "containers": [{"name": n, "image": "x"} for n in "ab"]}
    )
    assert names_of(template) == {"p": ["pause"], "x": ["a", "b"]}


def test_pins() -> None:
    assert pin("busybox:latest", INDEX) == f"busybox:latest@{INDEX}"
    assert pin(f"busybox@{AMD64}", INDEX) == f"busybox@{AMD64}"
    assert pin("oci:/srv/image:v1", INDEX) == f"oci:/srv/image:v1@{INDEX}"


# Rewriting

TEXT = """\
# A counter.   Kept as it is.
apiVersion: ate.dev/v1alpha1
kind: ActorTemplate
metadata: {name: counter}   # busybox:latest is not an image here
spec:
    pauseImage:   'registry.k8s.io/pause:3.9'
    containers:
    -   name: web
        image: &img busybox:latest     # the newest

        command: ["sh", "-c", "image: busybox:latest"]
        env: [{name: image, value: busybox:latest}]
    -   {name: two, image: *img}
    -   {name: three, image: "busybox:latest", args: [ä]}
    -   name: four
        image:
            busybox:latest
    -   {name: five, image: !!str busybox:latest}
"""
PINS = {
    "busybox:latest": f"busybox:latest@{INDEX}",
    "registry.k8s.io/pause:3.9": f"registry.k8s.io/pause:3.9@{AMD64}",
}


def test_references_are_changed_and_nothing_else() -> None:
    changed = rewrite(TEXT, PINS)
    new = PINS["busybox:latest"]
    expected = (
        TEXT.replace("pause:3.9", f"pause:3.9@{AMD64}")
        .replace("&img busybox:latest", f"&img {new}")
        .replace('image: "busybox:latest"', f'image: "{new}"')
        .replace("image:\n            busybox:latest", f"image:\n            {new}")
        .replace("!!str busybox:latest", f"!!str {new}")
    )
    assert changed == expected
    assert set(decode_template(changed.encode()).images.values()) == set(PINS.values())
    assert rewrite(changed, PINS) == changed


def test_line_ends_marks_and_json_stay() -> None:
    text = "\ufeff" + TEXT.replace("\n", "\r\n")
    assert rewrite(text, PINS).replace("\r\n", "\n")[1:] == rewrite(TEXT, PINS)
    document = {"containers": [{"name": "a", "image": "busybox:latest"}]}
    for indent in (None, 2):
        text = json.dumps(document, indent=indent)
        assert rewrite(text, PINS) == text.replace("busybox:latest", PINS["busybox:latest"])


def test_merged_fields_are_changed_where_they_stand() -> None:
    text = (
        "containers:\n- &a {name: a, image: x}\n- {<<: *a, name: b}\n"
        "- {<<: *a, name: c, image: y}\npauseImage: y\n"
    )
    changed = rewrite(text, {"x": "x:1", "y": "y:2"})
    assert changed == text.replace("image: x", "image: x:1").replace("y\n", "y:2\n").replace(
        "image: y}", "image: y:2}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "containers:\n- name: a\n  image: |-\n    busybox:latest\n",
            r"containers\[0\].image: must be",
        ),
        ("containers:\n- name: a\n  image: >-\n    busybox:latest\n", "a block of text"),
        ("containers: [{name: a, image: A}]", r"containers\[0\].image"),
        ("{", "not valid YAML"),
    ],
)
def test_what_cannot_be_edited(text: str, message: str) -> None:
    with pytest.raises(TemplateInvalid, match=message):
        rewrite(text, PINS)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(TEXT)), st.text("-:{}[]&*!|>'\"#\n ab01", max_size=3))
def test_a_changed_text_is_rewritten_rightly_or_not_at_all(place: int, more: str) -> None:
    text = TEXT[:place] + more + TEXT[place:]
    try:
        template = decode_template(text.encode())
        changed = rewrite(text, PINS)
    except TemplateInvalid:
        return
    wanted = {name: PINS.get(ref, ref) for name, ref in template.images.items()}
    assert decode_template(changed.encode()).images == wanted


def test_a_file_is_replaced_with_its_mode_through_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "counter.yaml", tmp_path / "link.yaml"
    path.write_text(TEXT)
    path.chmod(0o640)
    link.symlink_to(path.name)
    assert rewrite_file(link, PINS)
    assert link.is_symlink()
    assert path.read_text() == rewrite(TEXT, PINS)
    assert path.stat().st_mode & 0o777 == 0o640
    before = path.stat().st_ino
    assert not rewrite_file(path, PINS)
    assert path.stat().st_ino == before
    assert sorted(os.listdir(tmp_path)) == ["counter.yaml", "link.yaml"]
    with pytest.raises(TemplateInvalid, match="none"):
        rewrite_file(tmp_path / "none.yaml", PINS)
