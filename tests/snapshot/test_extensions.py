"""What a manifest carries beyond its fields: bounded when written, harmless when read."""

import base64
import json
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.documents.errors import ManifestInvalid
from lazyfs.documents.template_reading import template_of_document
from lazyfs.snapshot.extensions import (
    PROFILES,
    pack_profiles,
    specs_of,
    template_of,
    unpack_profiles,
    without_values,
)
from lazyfs.store.profiles import Profile, decode_profile, encode_profile

DIGEST = "sha256:" + "a" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def profile(count: int, seed: int = 1) -> Profile:
    chance = random.Random(seed)
    accesses = tuple((0, chance.randrange(1 << 20)) for _ in range(count))
    return Profile(DIGEST, 1, ("sha256:" + "1" * 64,), accesses)


def test_there_and_back() -> None:
    data = encode_profile(profile(1000))
    assert unpack_profiles({PROFILES: pack_profiles({DIGEST: data})}, [DIGEST]) == {DIGEST: data}


@pytest.mark.parametrize("limit", [200, 1000, 20_000])
def test_what_was_read_last_is_left_out_first(limit: int) -> None:
    whole = profile(20_000)
    packed = pack_profiles({DIGEST: encode_profile(whole)}, limit)
    if not packed:
        assert limit == 200  # not even one access fits
        return
    assert len(packed[DIGEST]) <= limit
    (data,) = unpack_profiles({PROFILES: packed}, list(packed)).values()
    kept = decode_profile(data).accesses
    assert 0 < len(kept) < len(whole.accesses)
    assert kept == whole.accesses[: len(kept)]


def test_all_images_have_their_share() -> None:
    digests = [f"sha256:{number:064x}" for number in range(10)]
    data = {each: encode_profile(profile(20_000, number)) for number, each in enumerate(digests)}
    packed = pack_profiles(data, 50_000)
    assert set(packed) == set(digests)
    assert sum(map(len, packed.values())) <= 50_000


def test_what_is_no_profile_is_left_out() -> None:
    assert pack_profiles({DIGEST: b"no profile"}) == {}
    assert pack_profiles({DIGEST: encode_profile(profile(0))}) == {}


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zstandard.compress(bytes(256 << 20))
    text = base64.b64encode(bomb).decode()
    assert unpack_profiles({PROFILES: {DIGEST: text}}, [DIGEST]) == {}


@given(JSON | st.dictionaries(st.text(max_size=9), st.dictionaries(st.text(max_size=9), JSON)))
def test_any_document_is_read_or_refused(document: object) -> None:
    for key in ("profiles", "template", "specs"):
        extensions = {key: document}
        assert isinstance(unpack_profiles(extensions, [DIGEST]), dict)
        assert template_of(extensions) is None or isinstance(document, dict)
        try:
            specs = specs_of(extensions)
        except ManifestInvalid:
            continue
        assert all(isinstance(facts, dict) for facts in specs.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert unpack_profiles({PROFILES: {DIGEST: text}}, [DIGEST]) == {}


def test_no_value_of_a_variable_is_kept() -> None:
    document = {
        "name": "t",
        "containers": [
            {
                "name": "a",
                "image": "busybox",
                "env": [
                    {"name": "PLAIN", "value": "hunter2"},
                    {"name": "REF", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ],
            },
            {"name": "b", "image": "busybox"},
        ],
        "pauseImage": "pause",
    }
    kept = without_values(document)
    assert "hunter2" not in json.dumps(kept)
    template = template_of_document(kept)
    assert [each.name for each in template.containers[0].env] == ["PLAIN", "REF"]
    assert template.images == template_of_document(document).images
