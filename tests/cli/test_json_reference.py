"""What ``--json`` prints is documented, field by field."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_profile import put_profile
from tests.support.formats.images import layer_from_fixture, make_layout, plain_layer, source_tar

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"


def section(command: str) -> str:
    """Return the part of the document about *command*, and what it refers to."""
    parts = re.split(r"^## ", REFERENCE.read_text(), flags=re.MULTILINE)
    (found,) = [part for part in parts if re.match(rf"`lazyfs {command}(?! --)", part)]
    return found + "".join(map(section, re.findall(r"as for `(cache \w+)`", found)))


def fields_of(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from fields_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields_of(inner)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("inspect", ["{bad}"]),
        ("inspect", ["{bad}", "--content"]),
        ("inspect", ["{image}", "--content=hash"]),
        ("inspect --endpoints", ["127.0.0.1:1/image"]),
        ("resolve", ["{image}"]),
        ("ls", ["{image}", "devs"]),
        ("ls", ["{image}", "sl"]),
        ("verify", ["{image}"]),
        ("cache ls", []),
        ("cache du", []),
        ("cache rm", ["--all"]),
        ("cache prune", []),
        ("cache prune", ["--unused"]),
        ("cache verify", []),
        ("profile show", ["{image}"]),
    ],
)
def test_every_field_is_documented(run, tmp_path, command, words):
    lazy = layer_from_fixture("edge-default")
    make_layout(tmp_path / "image", [lazy])
    make_layout(tmp_path / "bad", [lazy, plain_layer(source_tar("edge"))])
    places = {"image": f"oci:{tmp_path}/image", "bad": f"oci:{tmp_path}/bad"}
    assert run("verify", places["image"]).code == 0
    if command == "profile show":
        put_profile(tmp_path / "cache", [(0, 0), (0, 2), (0, 1)])
    if command == "cache verify":
        for content in tmp_path.glob("cache/layers/*/content"):
            content.write_bytes(b"rotten")
        (tmp_path / "cache/layers/stray").mkdir()
    done = run(*command.split(), *(word.format(**places) for word in words), "--json")
    codes = {("cache verify",): 6, ("inspect", "{bad}", "--content"): 3}
    assert done.code == codes.get((command, *words), 0)
    documented = section(command)
    found = set(fields_of(done.json))
    assert found
    assert {field for field in found if f"`{field}`" not in documented} == set()
