"""What every place that holds images must do: one suite for all of them.

A subclass provides the fixture ``place``: a function that returns the source and destination of
an empty repository; called again it opens the same one anew.
"""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import FormatError, NotFound, VerificationFailed
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.support.registries.clients import described, read_range

DATA = random.Random(2).randbytes(300_000)
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
Place = Callable[[], Any]


def manifest(*blobs: Descriptor, media_type: str = OCI_MANIFEST, note: str = "") -> bytes:
    """Return an image manifest of layers."""
    docker = media_type == DOCKER_MANIFEST
    config_type = "application/vnd.oci.image.config.v1+json"
    layer_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    if docker:
        config_type = "application/vnd.docker.container.image.v1+json"
        layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    config = described(CONFIG)
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": config_type, "digest": str(config.digest), "size": config.size},
        "layers": [
            {"mediaType": layer_type, "digest": str(blob.digest), "size": blob.size}
            for blob in blobs
        ],
    }
    if note and not docker:
        document["annotations"] = {"note": note}
    return json.dumps(document).encode()


@pytest.mark.anyio
class RepositoryContract:
    """The suite."""

    async def test_a_pushed_blob_can_be_read(self, place: Place) -> None:
        blob = described(DATA)
        there = place()
        assert not await there.has_blob(blob)
        await there.push_blob(blob, DATA)
        assert await there.has_blob(blob)
        await there.aclose()
        again = place()
        assert await again.fetch_blob(blob, limit=len(DATA)) == DATA
        await again.aclose()

    async def test_a_file_can_be_pushed(self, place: Place, tmp_path: Path) -> None:
        path = tmp_path / "content"
        path.write_bytes(DATA * 10)
        blob = described(DATA * 10)
        there = place()
        await there.push_blob(blob, path)
        assert await there.fetch_blob(blob, limit=blob.size) == DATA * 10
        await there.aclose()

    async def test_pushing_again_changes_nothing(self, place: Place) -> None:
        there = place()
        for _ in range(2):
            await there.push_blob(described(DATA), DATA)
        assert await there.fetch_blob(described(DATA), limit=len(DATA)) == DATA
        await there.aclose()

    async def test_an_empty_blob(self, place: Place) -> None:
        there = place()
        await there.push_blob(described(b""), b"")
        assert await there.fetch_blob(described(b""), limit=0) == b""
        await there.aclose()

    @pytest.mark.parametrize(
        ("start", "end"),
        [(0, 1), (0, 300_000), (299_999, 300_000), (1, 2), (5, 5), (100_000, 250_000)],
    )
    async def test_ranges(self, place: Place, start: int, end: int) -> None:
        there = place()
        await there.push_blob(described(DATA), DATA)
        assert await read_range(there, described(DATA), start, end) == DATA[start:end]
        await there.aclose()

    async def test_ranges_at_the_same_time(self, place: Place) -> None:
        there = place()
        await there.push_blob(described(DATA), DATA)
        got: dict[int, bytes] = {}

        async def read(start: int) -> None:
            got[start] = await read_range(there, described(DATA), start, start + 777)

        async with trio.open_nursery() as nursery:
            for start in range(0, 200_000, 5_000):
                nursery.start_soon(read, start)
        assert got == {start: DATA[start : start + 777] for start in range(0, 200_000, 5_000)}
        await there.aclose()

    async def test_a_range_beyond_the_blob_is_a_mistake_of_ours(self, place: Place) -> None:
        there = place()
        for start, end in ((-1, 1), (2, 1), (0, len(DATA) + 1)):
            with pytest.raises(ValueError, match="range"):
                there.open_range(described(DATA), start, end)
        await there.aclose()

    async def test_a_blob_that_is_not_there(self, place: Place) -> None:
        there = place()
        await there.push_blob(described(CONFIG), CONFIG)
        with pytest.raises(NotFound):
            await there.fetch_blob(described(DATA), limit=len(DATA))
        with pytest.raises(NotFound):
            await read_range(there, described(DATA), 0, 10)
        await there.aclose()

    async def test_a_descriptor_with_another_size(self, place: Place) -> None:
        there = place()
        await there.push_blob(described(DATA), DATA)
        longer = Descriptor("", digest_of(DATA), len(DATA) + 1)
        with pytest.raises(VerificationFailed):
            await read_range(there, longer, 0, 10)
        with pytest.raises(VerificationFailed):
            await there.fetch_blob(longer, limit=1 << 20)
        with pytest.raises(VerificationFailed):
            await there.push_blob(longer, DATA)
        await there.aclose()

    async def test_a_limit_is_kept(self, place: Place) -> None:
        there = place()
        await there.push_blob(described(DATA), DATA)
        with pytest.raises(FormatError, match="300000"):
            await there.fetch_blob(described(DATA), limit=len(DATA) - 1)
        await there.aclose()

    async def test_content_that_is_not_what_its_digest_says_is_not_pushed(
        self, place: Place
    ) -> None:
        there = place()
        wrong = Descriptor("", digest_of(CONFIG), len(DATA))
        with pytest.raises(VerificationFailed):
            await there.push_blob(wrong, DATA)
        assert not await there.has_blob(described(CONFIG))
        await there.aclose()

    async def _push_image(
        self, there: Any, tag: str | None, **options: Any
    ) -> tuple[bytes, Digest]:
        await there.push_blob(described(DATA), DATA)
        await there.push_blob(described(CONFIG), CONFIG)
        data = manifest(described(DATA), **options)
        media_type = options.get("media_type", OCI_MANIFEST)
        return data, await there.push_manifest(data, media_type, tag)

    @pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
    async def test_a_manifest_by_tag_and_by_digest(self, place: Place, media_type: str) -> None:
        there = place()
        data, digest = await self._push_image(there, "v1", media_type=media_type)
        assert str(digest) == f"sha256:{hashlib.sha256(data).hexdigest()}"
        for reference in ("v1", digest):
            document = await there.fetch_manifest(reference)
            assert (document.data, document.digest) == (data, digest)
            assert document.media_type == media_type
        await there.aclose()

    async def test_a_manifest_by_digest_only(self, place: Place) -> None:
        there = place()
        data, digest = await self._push_image(there, None)
        assert (await there.fetch_manifest(digest)).data == data
        with pytest.raises(NotFound):
            await there.fetch_manifest("v1")
        await there.aclose()

    async def test_an_index(self, place: Place) -> None:
        there = place()
        data, digest = await self._push_image(there, None)
        index = (
            f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":'
            f'"{OCI_MANIFEST}","digest":"{digest}","size":{len(data)},"platform":'
            '{"os":"linux","architecture":"amd64"}}]}'
        ).encode()
        await there.push_manifest(index, OCI_INDEX, "multi")
        document = await there.fetch_manifest("multi")
        assert (document.data, document.media_type) == (index, OCI_INDEX)
        await there.aclose()

    async def test_a_tag_moves(self, place: Place) -> None:
        there = place()
        _, first = await self._push_image(there, "v1", note="first")
        _, other = await self._push_image(there, "v2", note="other")
        _, second = await self._push_image(there, "v1", note="second")
        assert (await there.fetch_manifest("v1")).digest == second
        assert (await there.fetch_manifest("v2")).digest == other
        assert (await there.fetch_manifest(first)).digest == first
        await there.aclose()

    async def test_a_manifest_that_is_not_there(self, place: Place) -> None:
        there = place()
        await self._push_image(there, "v1")
        with pytest.raises(NotFound):
            await there.fetch_manifest("v2")
        with pytest.raises(NotFound):
            await there.fetch_manifest(digest_of(b"nothing"))
        await there.aclose()

    async def test_closing_twice_is_closing_once(self, place: Place) -> None:
        there = place()
        await there.push_blob(described(CONFIG), CONFIG)
        await there.aclose()
        await there.aclose()
