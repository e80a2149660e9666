"""Manifests, indexes and configs: accepted, and refused with a reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import digest_of
from lazyfs.oci.config import BadConfig, decode_config
from lazyfs.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    DOCUMENT_LIMIT,
    LAYER_LIMIT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    BadManifest,
    Index,
    Manifest,
    decode_manifest,
    is_layer_gzip,
    is_layer_tar,
    is_layer_zstd,
)
from lazyfs.oci.platforms import Platform
from tests.support.formats.readers import check_document, check_flips

DIGEST = digest_of(b"x")
CONFIG = {"mediaType": OCI_CONFIG, "digest": str(DIGEST), "size": 2}
LAYER = {
    "mediaType": OCI_LAYER_GZIP,
    "digest": str(DIGEST),
    "size": 3,
    "annotations": {"a": "b"},
}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
ENTRY = {
    "mediaType": OCI_MANIFEST,
    "digest": str(DIGEST),
    "size": 4,
    "platform": {"os": "linux", "architecture": "aarch64", "variant": "v8", "os.version": "1"},
}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY]}
CONFIG_DOCUMENT = {
    "architecture": "arm",
    "os": "linux",
    "variant": "v6",
    "config": {"Env": ["A=b"]},
    "rootfs": {"type": "layers", "diff_ids": [str(DIGEST)]},
}


def decode(document, media_type=None):
    return decode_manifest(json.dumps(document).encode(), media_type)


def without(document, key):
    return {name: value for name, value in document.items() if name != key}


class TestManifest:
    def test_oci(self):
        manifest = decode({**MANIFEST, "annotations": {"k": "v"}, "artifactType": "t"})
        assert isinstance(manifest, Manifest)
        assert manifest.media_type == OCI_MANIFEST
        assert (manifest.config.digest, manifest.config.size) == (DIGEST, 2)
        (layer,) = manifest.layers
        assert (layer.media_type, layer.size, layer.annotations) == (OCI_LAYER_GZIP, 3, {"a": "b"})
        assert manifest.annotations == {"k": "v"}
        assert manifest.artifact_type == "t"
        assert manifest.subject is None

    def test_subject(self):
        manifest = decode({**MANIFEST, "subject": ENTRY})
        assert manifest.subject.digest == DIGEST

    def test_docker(self):
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": CONFIG,
            "layers": [{**LAYER, "mediaType": DOCKER_LAYER_GZIP}],
        }
        assert decode(document, DOCKER_MANIFEST).media_type == DOCKER_MANIFEST

    def test_no_layers(self):
        assert decode({**MANIFEST, "layers": []}).layers == ()
        assert decode({**MANIFEST, "layers": None}).layers == ()

    @pytest.mark.parametrize(
        "changes",
        [
            {"schemaVersion": 3},
            {"schemaVersion": "2"},
            {"mediaType": "application/json"},
            {"mediaType": OCI_CONFIG},
            {"mediaType": 5},
            {"config": None},
            {"config": []},
            {"layers": {}},
            {"layers": [None]},
            {"layers": [{**LAYER, "size": -1}]},
            {"layers": [{**LAYER, "size": 2**63}]},
            {"layers": [{**LAYER, "size": "3"}]},
            {"layers": [{**LAYER, "digest": "sha256:x"}]},
            {"layers": [{**LAYER, "digest": "md5:" + "a" * 32}]},
            {"layers": [without(LAYER, "digest")]},
            {"layers": [without(LAYER, "size")]},
            {"layers": [{**LAYER, "annotations": {"a": 1}}]},
            {"layers": [LAYER] * (LAYER_LIMIT + 1)},
            {"subject": {"digest": "x", "size": 1}},
            {"manifests": []},
            {"manifests": [ENTRY]},
            {"manifests": None},
        ],
    )
    def test_refused(self, changes):
        with pytest.raises(BadManifest, match="manifest"):
            decode({**MANIFEST, **changes})

    @pytest.mark.parametrize("key", ["schemaVersion", "config"])
    def test_incomplete(self, key):
        with pytest.raises(BadManifest):
            decode(without(MANIFEST, key))

    def test_most_layers(self):
        assert len(decode({**MANIFEST, "layers": [LAYER] * LAYER_LIMIT}).layers) == LAYER_LIMIT


class TestIndex:
    def test_oci(self):
        index = decode(INDEX)
        assert isinstance(index, Index)
        assert index.media_type == OCI_INDEX
        (entry,) = index.manifests
        assert entry.platform == Platform("linux", "arm64")

    def test_docker(self):
        assert decode({**INDEX, "mediaType": DOCKER_INDEX}).media_type == DOCKER_INDEX

    def test_entries_without_a_platform(self):
        index = decode({**INDEX, "manifests": [without(ENTRY, "platform"), ENTRY]})
        assert index.manifests[0].platform is None

    def test_empty(self):
        assert decode({**INDEX, "manifests": []}).manifests == ()
        assert decode({**INDEX, "manifests": None}).manifests == ()

    @pytest.mark.parametrize(
        "changes",
        [
            {"layers": []},
            {"layers": None},
            {"config": CONFIG},
            {"manifests": [{**ENTRY, "digest": ""}]},
            {"manifests": [ENTRY] * 1025},
        ],
    )
    def test_refused(self, changes):
        with pytest.raises(BadManifest):
            decode({**INDEX, **changes})


class TestMediaType:
    """The document's word wins; the transport's must not contradict it."""

    def test_agreement(self):
        assert decode(MANIFEST, OCI_MANIFEST).media_type == OCI_MANIFEST
        assert decode(MANIFEST, OCI_MANIFEST + "; charset=utf-8").media_type == OCI_MANIFEST
        assert decode(MANIFEST, OCI_MANIFEST.upper()).media_type == OCI_MANIFEST

    @pytest.mark.parametrize("called", [DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX])
    def test_contradiction(self, called):
        with pytest.raises(BadManifest, match="as served"):
            decode(MANIFEST, called)

    @pytest.mark.parametrize("called", [None, "", "application/json", "text/plain"])
    def test_nothing_said(self, called):
        assert decode(without(MANIFEST, "mediaType"), called).media_type == OCI_MANIFEST
        assert decode(without(INDEX, "mediaType"), called).media_type == OCI_INDEX
        assert decode(MANIFEST, called).media_type == OCI_MANIFEST

    def test_only_the_transport_says_it(self):
        assert decode(without(MANIFEST, "mediaType"), DOCKER_MANIFEST).media_type == DOCKER_MANIFEST
        with pytest.raises(BadManifest, match="without manifests"):
            decode(without(MANIFEST, "mediaType"), OCI_INDEX)
        with pytest.raises(BadManifest, match="without config"):
            decode(without(INDEX, "mediaType"), DOCKER_MANIFEST)

    @pytest.mark.parametrize(
        ("document", "called"),
        [
            ({"schemaVersion": 1, "fsLayers": [], "signatures": []}, None),
            ({"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
            ({"x": 1}, "application/vnd.docker.distribution.manifest.v1+json"),
            ({"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}, None),
        ],
    )
    def test_schema_1(self, document, called):
        with pytest.raises(BadManifest, match="schema 1"):
            decode(document, called)

    def test_layers(self):
        assert is_layer_gzip(OCI_LAYER_GZIP)
        assert is_layer_gzip(DOCKER_LAYER_GZIP)
        assert is_layer_zstd(OCI_LAYER_ZSTD)
        assert is_layer_tar(OCI_LAYER)
        assert not is_layer_gzip(OCI_LAYER_ZSTD)
        assert is_layer_tar(OCI_LAYER_GZIP)


class TestBytes:
    DATA = json.dumps(MANIFEST).encode()

    def test_cut_anywhere(self):
        check_document(lambda cut: decode_manifest(cut, None), self.DATA, BadManifest)

    def test_bent(self):
        check_flips(lambda bent: decode_manifest(bent, OCI_MANIFEST), self.DATA, BadManifest)

    @pytest.mark.parametrize("junk", [b"x", b"{}", b"\0"])
    def test_trailing(self, junk):
        with pytest.raises(BadManifest):
            decode_manifest(self.DATA + junk, None)

    def test_size(self):
        with pytest.raises(BadManifest, match=f"at most {DOCUMENT_LIMIT}"):
            decode_manifest(self.DATA + b" " * DOCUMENT_LIMIT, None)
        assert decode_manifest(self.DATA.ljust(DOCUMENT_LIMIT), None)

    @pytest.mark.parametrize("data", [b'{"schemaVersion":' + b"[" * 10**5, b'{"a":' * 10**5])
    def test_deep(self, data):
        with pytest.raises(BadManifest):
            decode_manifest(data, None)

    @given(st.binary(max_size=100))
    def test_any(self, data):
        with pytest.raises(BadManifest):
            decode_manifest(data, None)

    @given(
        st.dictionaries(
            st.sampled_from([*MANIFEST, "manifests", "subject", "annotations"]),
            st.one_of(
                st.none(), st.integers(), st.text(), st.just([LAYER]), st.just(CONFIG), st.just([])
            ),
        ),
        st.sampled_from([None, OCI_MANIFEST, OCI_INDEX, "x"]),
    )
    def test_any_document(self, changes, called):
        try:
            found = decode({**MANIFEST, **changes}, called)
        except BadManifest:
            return
        assert isinstance(found, Manifest | Index)


class TestConfig:
    def test_plain(self):
        config = decode_config(json.dumps(CONFIG_DOCUMENT).encode())
        assert config.platform == Platform("linux", "arm", "v6")
        assert config.diff_ids == (DIGEST,)
        assert config.raw == CONFIG_DOCUMENT

    def test_no_layers(self):
        for rootfs in ({"type": "layers"}, {"type": "layers", "diff_ids": None}):
            document = {**CONFIG_DOCUMENT, "rootfs": rootfs}
            assert decode_config(json.dumps(document).encode()).diff_ids == ()

    @pytest.mark.parametrize("missing", ["os", "architecture"])
    def test_an_image_need_not_say_what_it_is_for(self, missing):
        document = {key: value for key, value in CONFIG_DOCUMENT.items() if key != missing}
        assert "unknown" in str(decode_config(json.dumps(document).encode()).platform)

    @pytest.mark.parametrize(
        "changes",
        [
            {"os": 5},
            {"architecture": 64},
            {"rootfs": None},
            {"rootfs": {"type": "x", "diff_ids": []}},
            {"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}},
            {"rootfs": {"type": "layers", "diff_ids": [5]}},
        ],
    )
    def test_refused(self, changes):
        with pytest.raises(BadConfig, match="config"):
            decode_config(json.dumps({**CONFIG_DOCUMENT, **changes}).encode())

    @pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"os":' + b"[" * 10**5])
    def test_other_bytes(self, data):
        with pytest.raises(BadConfig):
            decode_config(data)

    def test_cut_and_bent(self):
        data = json.dumps(CONFIG_DOCUMENT).encode()
        check_document(decode_config, data, BadConfig)
        check_flips(decode_config, data, BadConfig)
        with pytest.raises(BadConfig):
            decode_config(data + b"x")
