"""Images for tests: small tars, layers, and OCI image layouts on disk.

Nothing here goes through lazyfs' own readers: layouts are written with json and hashlib only, so
that a fault in the program cannot hide behind the same fault in its tests.
"""

import gzip
import hashlib
import io
import json
import lzma
import os
import platform as host
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.digest import Digest, digest_of

FIXTURES = Path(__file__).parents[2] / "fixtures"

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYERS = {
    OCI_TAR: "application/vnd.docker.image.rootfs.diff.tar",
    OCI_GZIP: "application/vnd.docker.image.rootfs.diff.tar.gzip",
}

CREATED = "2023-11-14T22:13:20Z"
MTIME = 1_700_000_000  # the same moment, as tar says it


@dataclass(frozen=True)
class Layer:
    """A layer as a registry keeps it; ``diff_id`` is of the uncompressed tar."""

    blob: bytes = field(repr=False)
    media_type: str
    annotations: Mapping[str, str]
    diff_id: Digest

    @property
    def digest(self) -> Digest:
        return digest_of(self.blob)

    @property
    def size(self) -> int:
        return len(self.blob)


# Layers


def layer_from_fixture(name: str) -> Layer:
    """Return a reference layer: ``edge-default``, or ``estargz-go-0.12/edge-default`` in full.

    Only those of eStargz have a short name.
    """
    if "/" in name:
        paths = [FIXTURES / f"{name}.json"]
    else:
        paths = sorted(FIXTURES.glob(f"estargz-*/{name}.json"))
    if len(paths) != 1:
        raise LookupError(f"fixture {name!r}: got {len(paths)} candidates, expected 1")
    described = json.loads(paths[0].read_text())
    is_zstd = paths[0].parent.name.startswith("zstd")
    blob = paths[0].with_suffix(".tar.zst" if is_zstd else ".tar.gz").read_bytes()
    if str(digest_of(blob)) != described["digest"]:
        raise ValueError(f"fixture {name}: the blob is not the one that its description names")
    media_type = described.get("mediaType", OCI_ZSTD if is_zstd else OCI_GZIP)
    return Layer(blob, media_type, described["annotations"], diff_id_of(blob, media_type))


def toc_layer_of(name: str) -> Layer:
    """Return the layer that holds the external TOC of the reference layer *name*."""
    path = FIXTURES / f"{name}.toclayer.tar.gz"
    described = json.loads((FIXTURES / f"{name}.json").read_text())
    (listed,) = described["tocImageManifest"]["layers"]
    blob = path.read_bytes()
    if str(digest_of(blob)) != listed["digest"]:
        raise ValueError(f"fixture {name}: the TOC's layer is not the one that its manifest names")
    return Layer(blob, listed["mediaType"], listed["annotations"], diff_id_of(blob))


def reference_layer_names() -> list[str]:
    """Return the names of all reference layers in full."""
    return [
        f"{path.parent.name}/{path.stem}"
        for path in sorted(FIXTURES.glob("*-*/*.json"))
        if not path.name.endswith((".toc.json", ".tar-split.json"))
    ]


def source_tar(name: str) -> bytes:
    """Return the uncompressed source tar of the reference layers: ``edge``, ``big``, …"""
    path = next(iter(sorted(FIXTURES.glob(f"src/{name}.tar.*"), reverse=True)))
    return lzma.decompress(path.read_bytes())


def plain_layer(tar: bytes, *, compression: str = "gzip") -> Layer:
    """Return an ordinary layer that is not eStargz: ``gzip``, ``none`` or ``zstd``."""
    if compression == "none":
        return Layer(tar, OCI_TAR, {}, digest_of(tar))
    if compression == "zstd":
        import zstandard

        return Layer(zstandard.compress(tar), OCI_ZSTD, {}, digest_of(tar))
    return Layer(gzip.compress(tar, mtime=0), OCI_GZIP, {}, digest_of(tar))


def estargz_layer(tar: bytes, *, prioritized: Sequence[str | bytes] = (), **options: int) -> Layer:
    """Return *tar* as an eStargz layer by our own writer.

    *prioritized* are normalised paths; *options* are those of ``WriterOptions``: ``chunk_size``,
    ``min_chunk_size``, ``level``.
    """
    from lazyfs.formats.tars.arrange import arrange
    from lazyfs.formats.tars.tar import TarScanner
    from lazyfs.formats.writer import WriterOptions, write_layer

    scanner = TarScanner()
    found = scanner.feed(tar)
    scanner.finish()
    wanted = [path if isinstance(path, bytes) else path.encode() for path in prioritized]
    blob = io.BytesIO()
    written = write_layer(
        arrange(found, wanted),
        lambda member: [tar[member.offset : member.offset + member.size]],
        blob.write,
        WriterOptions(**options),
    )
    return Layer(blob.getvalue(), OCI_GZIP, written.annotations, written.diff_id)


def diff_id_of(blob: bytes, media_type: str = OCI_GZIP) -> Digest:
    """Return the digest of the uncompressed layer, with the standard library only."""
    if media_type.endswith("zstd"):
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True) as stream:
            return digest_of(stream.read())
    return digest_of(gzip.decompress(blob) if media_type.endswith("gzip") else blob)


def uncompressed(blob: bytes) -> bytes:
    """Inflate a gzip blob of many members, as any gunzip does."""
    return gzip.decompress(blob)


def tampered(blob: bytes, offset: int, mask: int = 0x01) -> bytes:
    """Return *blob* with the bits of *mask* flipped in the byte at *offset*."""
    changed = bytearray(blob)
    changed[offset] ^= mask
    return bytes(changed)


# Layouts


def host_platform() -> str:
    """Return this machine's platform in the spelling of the OCI specs."""
    machine = host.machine()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def make_layout(
    path: str | Path,
    layers: Sequence[Layer],
    *,
    tag: str | None = "latest",
    platform: str | None = None,
    index: bool = False,
    docker: bool = False,
    others: Mapping[str, Sequence[Layer]] | None = None,
    config: Mapping[str, object] | None = None,
    cmd: Sequence[str] = ("/bin/sh",),
    env: Sequence[str] = ("PATH=/usr/bin:/bin",),
    annotations: Mapping[str, str] | None = None,
) -> Digest:
    """Write an image into the OCI layout at *path*, and return its manifest's digest.

    Called again for the same path it adds another tag.  *platform* is this machine's by default.
    With *index*, or with images for *others* (platform → layers), the tag names an index.  With
    *docker* the documents are Docker schema 2, whose layers carry no annotations.  *config*
    overrides top-level members of the image configuration.
    """
    path = Path(path)
    (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    described = []
    offers = {platform or host_platform(): layers, **(others or {})}
    for spelled, content in offers.items():
        document = _config(spelled, content, cmd=cmd, env=env)
        document.update(config or {})
        described.append(_put_image(path, content, document, spelled, docker, annotations))
    top = described[0]
    if index or others:
        media_type = DOCKER_INDEX if docker else OCI_INDEX
        data = _json({"schemaVersion": 2, "mediaType": media_type, "manifests": described})
        top = _descriptor(media_type, put_blob(path, data), len(data))
    _name(path, {k: v for k, v in top.items() if k != "platform"}, tag)
    return Digest("sha256", described[0]["digest"].removeprefix("sha256:"))


def put_blob(path: str | Path, data: bytes) -> Digest:
    """Store a blob in the layout at *path*."""
    digest = digest_of(data)
    blob_path(path, digest).write_bytes(data)
    return digest


def blob_path(path: str | Path, digest: Digest | str) -> Path:
    """Return where the layout at *path* keeps a blob."""
    algorithm, _, digits = str(digest).partition(":")
    return Path(path) / "blobs" / algorithm / digits


def read_blob(path: str | Path, digest: Digest | str) -> bytes:
    """Return a blob of the layout at *path*, checked."""
    data = blob_path(path, digest).read_bytes()
    if str(digest_of(data)) != str(digest):
        raise ValueError(f"blob {digest}: the file holds something else")
    return data


def tamper_blob(path: str | Path, digest: Digest | str, offset: int, mask: int = 0x01) -> None:
    """Flip bits of a stored blob in place: its name now lies about its content."""
    target = blob_path(path, digest)
    target.write_bytes(tampered(target.read_bytes(), offset, mask))


def tagged(path: str | Path, tag: str = "latest") -> dict:
    """Return the descriptor that *tag* names in the layout at *path*."""
    listed = json.loads((Path(path) / "index.json").read_text())["manifests"]
    key = "org.opencontainers.image.ref.name"
    return next(d for d in listed if d.get("annotations", {}).get(key) == tag)


def _put_image(
    path: Path,
    layers: Sequence[Layer],
    document: Mapping[str, object],
    platform: str,
    docker: bool,
    annotations: Mapping[str, str] | None,
) -> dict:
    config = _json(document)
    config_type = DOCKER_CONFIG if docker else OCI_CONFIG
    manifest: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": _descriptor(config_type, put_blob(path, config), len(config)),
        "layers": [],
    }
    entries = []
    for layer in layers:
        media_type = DOCKER_LAYERS[layer.media_type] if docker else layer.media_type
        entry = _descriptor(media_type, put_blob(path, layer.blob), layer.size)
        if layer.annotations and not docker:
            entry["annotations"] = dict(layer.annotations)
        entries.append(entry)
    manifest["layers"] = entries
    if annotations and not docker:
        manifest["annotations"] = dict(annotations)
    data = _json(manifest)
    described = _descriptor(str(manifest["mediaType"]), put_blob(path, data), len(data))
    described["platform"] = _platform(platform)
    return described


def _config(
    platform: str, layers: Sequence[Layer], *, cmd: Sequence[str], env: Sequence[str]
) -> dict:
    return {
        "created": CREATED,
        **_platform(platform),
        "config": {"Cmd": list(cmd), "Env": list(env), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        "history": [{"created": CREATED, "created_by": f"layer {i}"} for i, _ in enumerate(layers)],
    }


def _platform(spelled: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), spelled.split("/"), strict=False))


def _descriptor(media_type: str, digest: Digest, size: int) -> dict:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _name(path: Path, descriptor: dict, tag: str | None) -> None:
    file = path / "index.json"
    listed = json.loads(file.read_text())["manifests"] if file.exists() else []
    key = "org.opencontainers.image.ref.name"
    if tag is not None:
        listed = [d for d in listed if d.get("annotations", {}).get(key) != tag]
        descriptor = {**descriptor, "annotations": {key: tag}}
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*listed, descriptor]}
    file.write_bytes(_json(document))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# Tars


@dataclass(frozen=True)
class Item:
    """One entry of a small tar; ``kind`` is one of tarfile's type bytes."""

    name: str | bytes
    kind: bytes = tarfile.REGTYPE
    data: bytes = field(default=b"", repr=False)
    link: str | bytes = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def file(name: str | bytes, data: bytes = b"", **attributes: object) -> Item:
    return Item(name, data=data, **attributes)


def directory(name: str | bytes, mode: int = 0o755, **attributes: object) -> Item:
    return Item(name, tarfile.DIRTYPE, mode=mode, **attributes)


def symlink(name: str | bytes, target: str | bytes, **attributes: object) -> Item:
    return Item(name, tarfile.SYMTYPE, link=target, mode=0o777, **attributes)


def hardlink(name: str | bytes, target: str | bytes, **attributes: object) -> Item:
    return Item(name, tarfile.LNKTYPE, link=target, **attributes)


def fifo(name: str | bytes, **attributes: object) -> Item:
    return Item(name, tarfile.FIFOTYPE, **attributes)


def char_device(name: str | bytes, major: int, minor: int, **attributes: object) -> Item:
    return Item(name, tarfile.CHRTYPE, device=(major, minor), **attributes)


def block_device(name: str | bytes, major: int, minor: int, **attributes: object) -> Item:
    return Item(name, tarfile.BLKTYPE, device=(major, minor), **attributes)


def whiteout(name: str) -> Item:
    """Return the marker that removes *name* of lower layers."""
    parent, base = os.path.split(name)
    return Item(os.path.join(parent, f".wh.{base}"))


def opaque(name: str) -> Item:
    """Return the marker that hides what lower layers have in the directory *name*."""
    return Item(os.path.join(name, ".wh..wh..opq"))


def tar_bytes(items: Iterable[Item], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of *items*, in order, written by the standard library."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for item in items:
            member = tarfile.TarInfo(_text(item.name))
            member.type = item.kind
            member.size = len(item.data)
            member.linkname = _text(item.link)
            member.mode, member.uid, member.gid = item.mode, item.uid, item.gid
            member.mtime = item.mtime
            member.devmajor, member.devminor = item.device
            for name, value in item.xattrs.items():
                member.pax_headers[f"SCHILY.xattr.{name}"] = value.decode(
                    "utf-8", "surrogateescape"
                )
            tar.addfile(member, io.BytesIO(item.data))
    return stream.getvalue()


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def members(blob: bytes) -> list[tuple[int, bytes]]:
    """Split a gzip blob into (offset, inflated content) of its members, with stock zlib."""
    found, offset, view = [], 0, memoryview(blob)
    while offset < len(blob):
        inflater = zlib.decompressobj(31)
        data = inflater.decompress(view[offset:])
        if not inflater.eof:
            raise ValueError(f"gzip member at {offset}: cut short")
        found.append((offset, data))
        offset = len(blob) - len(inflater.unused_data)
    return found


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
