"""``snapshot-manifest.json``: one form, one verdict, and nothing believed that cannot be."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.documents import make
from lazyfs.documents.errors import ManifestInvalid, VersionUnsupported
from lazyfs.documents.manifest import MANIFEST_LIMIT, MEANINGS, Manifest, Platform
from lazyfs.documents.manifest_json import (
    check_unfinished,
    decode_manifest,
    diff_manifests,
    encode_manifest,
)
from lazyfs.documents.manifest_rules import SCHEMA_RULES

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
EXAMPLE: dict[str, Any] = json.loads((REFERENCE / "snapshot-manifest.example.json").read_text())
SCHEMA = json.loads((REFERENCE / "snapshot-manifest.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# One of each: all images, files and containers have the same shape.
SMALL = EXAMPLE | {
    "images": EXAMPLE["images"][:1],
    "files": EXAMPLE["files"][:1],
    "runtime": EXAMPLE["runtime"]
    | {"containers": [EXAMPLE["runtime"]["containers"][0] | {"root": True}]},
}
OTHER = "sha256:" + "ab" * 32
Change = Callable[[dict[str, Any]], None]
Path_ = tuple[str | int, ...]


def changed(change: Change) -> dict[str, Any]:
    document = copy.deepcopy(EXAMPLE)
    change(document)
    return document


def data_of(document: object) -> bytes:
    return json.dumps(document).encode()


def decoded(change: Change) -> Manifest:
    return decode_manifest(data_of(changed(change)))


def has_shape(document: object) -> bool:
    """Say what our code says of what the schema speaks of."""
    try:
        manifest = make(Manifest, document, ManifestInvalid, MEANINGS)
    except ManifestInvalid:
        return False
    return not [fault for rule in SCHEMA_RULES for fault in rule(manifest)]


def is_accepted(document: object) -> bool:
    try:
        decode_manifest(data_of(document))
    except (ManifestInvalid, VersionUnsupported):
        return False
    return True


def check_verdicts(document: object) -> None:
    """The schema and our code agree; our rules beyond it may refuse more, and never less."""
    by_schema = VALIDATOR.is_valid(document)
    assert has_shape(document) == by_schema
    assert by_schema or not is_accepted(document)


# One form


def test_the_example_is_read_and_written_again_as_it_was() -> None:
    manifest = decode_manifest(data_of(EXAMPLE))
    data = encode_manifest(manifest)
    assert json.loads(data) == EXAMPLE
    assert decode_manifest(data) == manifest
    assert manifest.images[0].original_ref == "busybox:latest"
    assert manifest.runtime.class_ == "gvisor"


def test_the_smaller_example_is_one_too() -> None:
    assert is_accepted(SMALL)


def test_the_canonical_form() -> None:
    text = encode_manifest(decoded(lambda d: d["host"].update({"ü": "é", "A": 1}))).decode()
    assert text == json.dumps(
        json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert '"A":1' in text
    assert '"ü":"é"' in text


def test_images_and_files_are_sorted_by_name() -> None:
    def turn(document: dict[str, Any]) -> None:
        document["images"].reverse()
        document["files"].reverse()

    assert encode_manifest(decoded(turn)) == encode_manifest(decoded(lambda d: None))


def test_white_space_and_order_do_not_matter_to_readers() -> None:
    spread = json.dumps(EXAMPLE, indent=4).encode()
    assert decode_manifest(spread) == decode_manifest(data_of(EXAMPLE))


def test_what_breaks_a_rule_is_not_written() -> None:
    manifest = decode_manifest(data_of(EXAMPLE))
    with pytest.raises(ManifestInvalid, match=r"files: checkpoint.img is missing"):
        encode_manifest(msgspec.structs.replace(manifest, files=manifest.files[1:]))
    with pytest.raises(ManifestInvalid, match=r"snapshot.sandboxId: must"):
        encode_manifest(
            msgspec.structs.replace(
                manifest, snapshot=msgspec.structs.replace(manifest.snapshot, sandbox_id="")
            )
        )
    with pytest.raises(ManifestInvalid, match="longer than"):
        encode_manifest(msgspec.structs.replace(manifest, extensions={"x": "y" * MANIFEST_LIMIT}))
    with pytest.raises(ManifestInvalid, match="cannot be written as JSON"):
        encode_manifest(msgspec.structs.replace(manifest, extensions={"x": float("nan")}))


def test_what_can_be_told_before_there_are_files() -> None:
    manifest = msgspec.structs.replace(decode_manifest(data_of(EXAMPLE)), files=())
    check_unfinished(manifest)
    on_host = msgspec.structs.replace(manifest.runtime, network="host")
    with pytest.raises(ManifestInvalid, match=r'runtime.network: must be "none".*, not "host"'):
        check_unfinished(msgspec.structs.replace(manifest, runtime=on_host))
    with pytest.raises(ManifestInvalid, match="longer than"):
        check_unfinished(msgspec.structs.replace(manifest, host={"x": "y" * MANIFEST_LIMIT}))


# Versions and extensions


@pytest.mark.parametrize(
    "document",
    [
        {"version": 2},
        {"version": 2, "kind": "a song", "files": 3, "critical": "x"},
        {"version": 0},
        {"version": -1, "images": [None]},
    ],
)
def test_another_version_is_found_before_anything_else(document: dict[str, Any]) -> None:
    """Scenario 36, its part."""
    with pytest.raises(VersionUnsupported, match=r"version: got -?\d, expected 1") as caught:
        decode_manifest(data_of(document))
    assert caught.value.exit_code == 12
    assert caught.value.details == {"found": document["version"], "supported": [1]}


@pytest.mark.parametrize("version", [None, "1", True, [1], {}])
def test_a_version_is_a_number(version: object) -> None:
    with pytest.raises(ManifestInvalid, match=r"version: must be an integer, not"):
        decode_manifest(data_of(EXAMPLE | {"version": version}))


def test_an_unknown_extension_is_kept_and_ignored() -> None:
    """Scenario 37, with the next one."""
    manifest = decoded(lambda d: d["extensions"].update(new={"deep": [1, {"a": None}]}))
    assert json.loads(encode_manifest(manifest))["extensions"] == {
        "new": {"deep": [1, {"a": None}]}
    }


def test_an_unknown_critical_extension_is_refused_before_the_rest_is_judged() -> None:
    document = {"version": 1, "critical": ["known", "other"], "images": "?"}
    with pytest.raises(
        VersionUnsupported, match=r'critical: unknown extensions "other".*knows known'
    ) as caught:
        decode_manifest(data_of(document), known=frozenset({"known"}))
    assert caught.value.exit_code == 12
    with pytest.raises(VersionUnsupported):
        decode_manifest(data_of(EXAMPLE | {"critical": ["x"], "extensions": {"x": {}}}))
    known = decode_manifest(data_of(EXAMPLE | {"critical": ["x"]}), known=frozenset("x"))
    assert json.loads(encode_manifest(known))["critical"] == ["x"]


# The schema and our code


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def holder(document: Any, path: Path_) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


WRONG: list[Any] = [
    None, True, 0, 1, -1, (1 << 53) - 1, "", "x", "x" * 600, "data", "none", ["a"], ["a", "a"],
    {}, {"x": 1}, OTHER, OTHER.upper(), "sha512:" + "ab" * 64, "2026-11-20T19:45:11.123456789Z",
    "2026-11-20T19:45:11+00:00", "a@" + OTHER, "a-", ".a", "20261120T194511Z-5B1C09EF",
]  # fmt: skip


def test_each_value_missing_or_replaced_gets_the_same_verdict() -> None:
    count = 0
    for path in places(SMALL):
        document = copy.deepcopy(SMALL)
        del holder(document, path)[path[-1]]
        check_verdicts(document)
        for wrong in WRONG:
            document = copy.deepcopy(SMALL)
            holder(document, path)[path[-1]] = wrong
            check_verdicts(document)
            count += 1
    assert count > 1000


def test_each_object_with_something_more_gets_the_same_verdict() -> None:
    more = ["x", "name", "embedded", "hints", "variant", "location", "rebasedFrom", "critical"]
    for path in [(), *places(SMALL)]:
        for name in more:
            for value in (True, "a", ["a"], ["a", "a"], OTHER):
                document = copy.deepcopy(SMALL)
                target = holder(document, (*path, ""))
                if isinstance(target, dict):
                    target[name] = value
                else:
                    continue
                check_verdicts(document)


@pytest.mark.parametrize("count", [0, 1, 16, 17])
def test_so_many_hints_are_asked_at_most(count: int) -> None:
    hints = [f"registry.example/mirror-{number}" for number in range(count)]
    document = changed(lambda d: d["images"][0].update(hints=hints))
    check_verdicts(document)
    assert is_accepted(document) == (count <= 16)


@pytest.mark.parametrize(
    "hint",
    [
        *(
            "",
            "oci:/etc",
            "oci:layout:tag",
            "../x",
            "a.example/UPPER",
            "user:hush@registry.example/x",
        ),
        *("registry.example/\x1b[31m", "https://registry.example/x"),
    ],
)
def test_hints_are_repositories_over_there(hint: str) -> None:
    document = changed(lambda d: d["images"][0].update(hints=["registry.example/x", hint]))
    with pytest.raises(ManifestInvalid, match=r"images\[0\]\.hints\[1\]: must be ") as told:
        decode_manifest(data_of(document))
    assert not hint or hint not in told.value.message


@pytest.mark.parametrize("scope", ["full", "data"])
@pytest.mark.parametrize("missing", ["version", "platform", "overlay", "containers", "arch"])
def test_what_a_full_snapshot_must_say_of_its_runtime(scope: str, missing: str) -> None:
    document = changed(lambda d: d["snapshot"].update(scope=scope))
    del document["runtime"][missing]
    check_verdicts(document)
    assert is_accepted(document) == (scope == "data" and missing != "arch")


scalars = st.none() | st.booleans() | st.integers(-(1 << 53) + 1, (1 << 53) - 1) | st.text("ab:0-")
values = st.recursive(
    scalars | st.sampled_from(WRONG),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(values, min_size=1, max_size=3))
def test_random_changes_get_the_same_verdict(seed: int, wrong: list[Any]) -> None:
    chosen = random.Random(seed)
    document = copy.deepcopy(EXAMPLE)
    for value in wrong:
        path = chosen.choice(list(places(document)))
        target = holder(document, path)
        if chosen.random() < 0.3:
            del target[path[-1]]
        elif isinstance(target, list) and chosen.random() < 0.5:
            target.append(copy.deepcopy(target[0]))
        else:
            target[path[-1]] = value
        if not document:
            break
    check_verdicts(document)


# The rules beyond the schema


def put(*path: str | int, to: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        holder(document, path)[path[-1]] = to

    return change


def twice(field: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        holder(document, (field, ""))[:0] = [copy.deepcopy(document[field][0])]

    return change


INDEX = EXAMPLE["images"][0]["indexDigest"]
MANIFEST = EXAMPLE["images"][0]["manifestDigest"]
RULES: list[tuple[str, Change, str]] = [
    ("1", twice("images"), 'images: the name "counter" appears more than once'),
    ("1", twice("files"), 'files: the name "checkpoint.img" appears more than once'),
    ("1", put("runtime", "containers", 0, "name", to="pause"), "runtime.containers: the name"),
    (
        "1",
        put("runtime", "containers", 0, "name", to="web"),
        "must be those of images .*not pause, web",
    ),
    ("1", put("images", 0, "name", to="web"), "those of images .*pause, web"),
    ("2", put("images", 0, "manifestDigest", to=OTHER), r"images\[0\].resolvedRef: got digest"),
    ("2", put("images", 0, "resolvedRef", to="a@" + OTHER), r"expected images\[0\].manifestDigest"),
    (
        "2",
        put("images", 0, "resolvedRef", to="x/Y@" + MANIFEST),
        "'Y' is not valid in a repository",
    ),
    ("3", put("images", 0, "pinned", to=True), r"images\[0\].pinned: got true, expected false"),
    ("3", put("images", 1, "pinned", to=False), r"images\[1\].pinned: got false, expected true"),
    ("3", put("images", 1, "originalRef", to="p@" + OTHER), r"\[1\].originalRef: got digest"),
    ("3", put("images", 1, "indexDigest", to=None), r"expected indexDigest or manifestDigest: -"),
    ("3", put("images", 0, "originalRef", to="Bad Name"), r"images\[0\].originalRef: reference"),
    ("4", put("images", 0, "platform", "architecture", to="arm64"), 'architecture: "arm64"'),
    ("4", put("images", 1, "platform", "os", to="plan9"), r"images\[1\].platform: got plan9/amd64"),
    ("4", put("runtime", "arch", to="s390x"), 'runtime.arch "s390x"'),
    ("5", put("snapshot", "parent", to=None), "must be a snapshot for generation 2, not null"),
    ("5", put("snapshot", "generation", to=1), "must be null for generation 1"),
    ("5", put("runtime", "containers", 0, "root", to=True), "2 have root: true"),
    ("5", put("runtime", "containers", 1, "root", to=False), "0 have root: true"),
    ("6", put("files", 0, "compression", to="none"), r"files\[0\].storedSize: got 402111"),
    ("7", put("files", 0, "object", to="pages.img.zstd"), "files: the object"),
    (
        "7",
        put("files", 0, "object", to="snapshot-manifest.json"),
        r"files\[0\].object: .* is reserved",
    ),
    ("8", put("files", 0, "name", to="other.img"), "checkpoint.img is missing"),
    ("time", put("snapshot", "createdAt", to="2026-13-01T00:00:00Z"), "a time that exists"),
    ("time", put("images", 0, "resolvedAt", to="2026-02-30T00:00:00Z"), r"images\[0\].resolvedAt"),
]


@pytest.mark.parametrize(("rule", "change", "message"), RULES)
def test_a_broken_rule_is_refused_with_its_place(rule: str, change: Change, message: str) -> None:
    assert VALIDATOR.is_valid(changed(change))
    with pytest.raises(ManifestInvalid, match=message) as caught:
        decoded(change)
    assert caught.value.message.startswith("snapshot-manifest.json: ")
    assert caught.value.exit_code == 11


@pytest.mark.parametrize(
    "change",
    [
        put("images", 0, "originalRef", to=f"busybox:latest@{INDEX}"),
        put("images", 0, "originalRef", to=f"busybox@{EXAMPLE['images'][0]['manifestDigest']}"),
    ],
)
def test_a_pin_is_to_the_index_or_to_the_manifest(change: Change) -> None:
    def pinned(document: dict[str, Any]) -> None:
        change(document)
        document["images"][0]["pinned"] = True

    assert decoded(pinned).images[0].pinned


def test_equal_digests_and_sizes_where_nothing_is_compressed() -> None:
    def plain(document: dict[str, Any]) -> None:
        file = document["files"][0]
        file.update(compression="none", storedSize=file["rawSize"], storedDigest=file["rawDigest"])

    assert decoded(plain).files[0].compression == "none"

    def other(document: dict[str, Any]) -> None:
        plain(document)
        document["files"][0]["storedDigest"] = OTHER

    with pytest.raises(ManifestInvalid, match=r"files\[0\].storedDigest: got .*expected rawDigest"):
        decoded(other)


def test_a_32_bit_image_on_its_64_bit_machine() -> None:
    def smaller(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["platform"]["architecture"] = "386"

    assert decoded(smaller).images[0].platform.architecture == "386"


def test_a_data_snapshot_needs_no_checkpoint_and_no_containers() -> None:
    def data(document: dict[str, Any]) -> None:
        document["snapshot"]["scope"] = "data"
        document["runtime"] = {"class": "gvisor", "arch": "amd64"}
        document["files"] = document["files"][1:]

    assert decoded(data).snapshot.scope == "data"


# Hostile input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b'{"version": 1} x', "not valid JSON"),
        (b'{"version": 1, "version": 1}', 'document: the key "version" appears more than once'),
        (b'{"version": 1, "host": {"a": [{"b": 1, "b": 1}]}}', r"host.a\[0\]: the key \"b\""),
        (b'{"version": NaN}', "version: must be an integer, not NaN"),
        (b'{"host": {"x": -Infinity}}', "host.x: must be an integer, not -Infinity"),
        (b'{"host": {"x": 1e400}}', "host.x: must be an integer, not 1e400"),
        (b'{"host": {"x": 1.5}}', "host.x: must be an integer, not 1.5"),
        (b'{"host": {"x": 9007199254740992}}', "host.x: an integer of 54 bits"),
        (b'{"host": {"x": -9007199254740992}}', "host.x: an integer of 54 bits"),
        (b'{"host": {"x": ' + b"9" * 100_000 + b"}}", "host.x: an integer of 100000 digits"),
        (b'{"version": ' + b"9" * 5000 + b"}", "version: an integer of 5000 digits"),
        (rb'{"host": {"x": "\ud800"}}', "host.x: text is not valid Unicode"),
        (rb'{"host": {"\udfff": 1}}', "host: text is not valid Unicode"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 50_000, "not valid JSON"),
        (b'{"host":' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 levels"),
        (b'{"host":"' + b"x" * MANIFEST_LIMIT + b'"}', "longer than"),
    ],
)  # fmt: skip
def test_hostile_documents(data: bytes, message: str) -> None:
    with pytest.raises(ManifestInvalid, match=message) as caught:
        decode_manifest(data)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update({"x" * 500_000: 1}),
        lambda d: d["images"][0].update({"a\nb" * 100_000: 1}),
        lambda d: d["images"][0].update(resolvedRef="A" * 500_000 + "@" + MANIFEST),
        lambda d: d["runtime"]["containers"].extend(
            {"name": f"c{number}", "specDigest": OTHER} for number in range(5000)
        ),
        lambda d: d.update(critical=["x" * 500_000]),
        lambda d: d.update(kind="x" * 500_000),
    ],
)
def test_messages_are_short_whatever_is_in_the_document(change: Change) -> None:
    with pytest.raises((ManifestInvalid, VersionUnsupported)) as caught:
        decoded(change)
    assert len(str(caught.value)) < 2000


def test_a_long_name_above_many_values_is_no_work() -> None:
    name = "k" * 500_000
    with pytest.raises(ManifestInvalid, match="version"):
        decode_manifest(data_of({name: [0] * 100_000}))


def test_many_names_one_of_them_twice() -> None:
    names = ",".join(f'"{number}":0' for number in range(80_000))
    with pytest.raises(ManifestInvalid, match='"79999" appears more than once'):
        decode_manifest(f'{{{names},"79999":0}}'.encode())


def test_truncated_anywhere() -> None:
    data = encode_manifest(decode_manifest(data_of(EXAMPLE)))
    for length in range(0, len(data), 37):
        with pytest.raises(ManifestInvalid):
            decode_manifest(data[:length])
    with pytest.raises(ManifestInvalid):
        decode_manifest(data[:-1])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises((ManifestInvalid, VersionUnsupported)):
        decode_manifest(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 255), st.integers(0, 1))
def test_a_changed_byte_is_refused_or_means_another_manifest(
    place: int, value: int, extra: int
) -> None:
    original = encode_manifest(decode_manifest(data_of(EXAMPLE)))
    data = bytearray(original)
    place %= len(data)
    data[place : place + extra] = [value]
    try:
        manifest = decode_manifest(bytes(data))
    except (ManifestInvalid, VersionUnsupported):
        return
    assert manifest == decode_manifest(encode_manifest(manifest))


# Differences


def test_a_diff_names_what_differs() -> None:
    was = decode_manifest(data_of(EXAMPLE))
    assert diff_manifests(was, was) == ()

    def change(document: dict[str, Any]) -> None:
        document["images"][1]["layers"][0]["size"] = 5
        document["runtime"]["cpuFeatures"] = ["avx", "avx2"]
        document["files"] = document["files"][:2]
        document["snapshot"]["rebasedFrom"] = "x"

    found = [str(each) for each in diff_manifests(was, decoded(change))]
    assert found[0].startswith('files[pages_meta.img]: {"compression": "zstd"')
    assert found[0].endswith("-> null")
    assert found[1:] == [
        "images[pause].layers[0].size: 318102 -> 5",
        'runtime.cpuFeatures: ["avx", "avx2", "sse4_2"] -> ["avx", "avx2"]',
        'snapshot.rebasedFrom: null -> "x"',
    ]


def test_a_diff_tells_true_from_one_and_order_from_content() -> None:
    was = decode_manifest(data_of(EXAMPLE | {"host": {"a": 1}}))
    now = decode_manifest(data_of(EXAMPLE | {"host": {"a": True}}))
    (only,) = diff_manifests(was, now)
    assert (only.path, only.was, only.now) == ("host.a", 1, True)
    turned = decoded(lambda d: d["images"].reverse())
    assert diff_manifests(decode_manifest(data_of(EXAMPLE)), turned) == ()


# The page


def names_in(schema: Any) -> Iterator[str]:
    """Yield the names of all properties that a schema knows."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
    for inner in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(inner, dict | list):
            yield from names_in(inner)


def test_every_field_is_documented() -> None:
    page = (REFERENCE / "snapshot-manifest.md").read_text()
    assert {name for name in names_in(SCHEMA) if f"`{name}`" not in page} == set()


def test_platforms_as_text() -> None:
    assert str(Platform("linux", "amd64")) == "linux/amd64"
    assert str(Platform("linux", "arm", "v7")) == "linux/arm/v7"
