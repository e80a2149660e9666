"""What lies where a file should be: FIFOs, sockets, devices, directories, links to elsewhere."""

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from lazyfs.errors import LazyfsError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.config.configured import load_endpoints
from lazyfs.registry.config.endpoints import Tls
from lazyfs.registry.config.files import NotRegular, check_inside, read_regular
from lazyfs.registry.config.helpers import find_credential
from lazyfs.registry.layout import ImageLayout, LayoutUnreadable
from lazyfs.registry.layout_files import LayoutUnwritable
from lazyfs.registry.source import AccessOptions, SourceStatistics
from lazyfs.registry.transport import BadCertificate, Transport
from tests.support.formats import images
from tests.support.formats.images import estargz_layer, file, make_layout, tar_bytes
from tests.support.registries.clients import described

pytestmark = pytest.mark.anyio

LAYER = estargz_layer(tar_bytes([file("a", b"x" * 1000)]))
SECONDS = 10  # a FIFO would keep us for ever


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zeros without an end
    except OSError as error:
        pytest.skip(f"no device nodes here: {error.strerror}")


def make_folder(path: Path) -> None:
    path.mkdir()


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD = [make_fifo, make_socket, make_device, make_folder, link_to_device]
Make = Callable[[Path], None]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    make_layout(tmp_path / "layout", [LAYER])
    return tmp_path / "layout"


async def read_all(layout: Path) -> None:
    """Read each kind of file that a layout has."""
    opened = ImageLayout(str(layout))
    document = await opened.fetch_manifest("latest")
    manifest = json.loads(document.data)
    for each in (manifest["config"], *manifest["layers"]):
        blob = Descriptor("", images.Digest(*each["digest"].split(":")), each["size"])
        await opened.fetch_blob(blob, limit=1 << 20)
        async with opened.open_range(blob, 0, 10) as body:
            assert b"".join([data async for data in body])


def files_of(layout: Path) -> dict[str, Path]:
    blobs = sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    return {
        "version": layout / "oci-layout",
        "index": layout / "index.json",
        "smallest blob": blobs[0],
        "another blob": blobs[1],
        "largest blob": blobs[-1],
    }


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("which", ["version", "index", "smallest blob", "largest blob"])
async def test_a_layout(layout: Path, make: Make, which: str) -> None:
    await read_all(layout)
    path = files_of(layout)[which]
    path.unlink()
    make(path)
    with trio.fail_after(SECONDS), pytest.raises(LayoutUnreadable):
        await read_all(layout)


@pytest.mark.parametrize("which", ["version", "index", "smallest blob", "largest blob"])
async def test_links_out_of_a_layout(layout: Path, tmp_path: Path, which: str) -> None:
    path = files_of(layout)[which]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LayoutUnreadable, match="outside"):
        await read_all(layout)
    path.unlink()
    (tmp_path / "elsewhere").rename(layout / "within")
    path.symlink_to(layout / "within")
    await read_all(layout)


async def test_a_folder_that_leads_out_of_a_layout(layout: Path, tmp_path: Path) -> None:
    """Nothing is read there, and nothing written."""
    target = tmp_path / "layout-of-somebody"  # whose name begins like the layout's
    shutil.copytree(layout / "blobs" / "sha256", target)
    shutil.rmtree(layout / "blobs" / "sha256")
    (layout / "blobs" / "sha256").symlink_to(target)
    with pytest.raises(LayoutUnreadable, match="outside"):
        await read_all(layout)
    before = sorted(target.iterdir())
    opened = ImageLayout(str(layout))
    with pytest.raises(LayoutUnwritable, match="outside"):
        await opened.push_blob(described(b"new"), b"new")
    with pytest.raises(LayoutUnwritable, match="outside"):
        await opened.push_manifest(b"{}", "application/x", "v1")
    assert sorted(target.iterdir()) == before


def test_ranges_of_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").mkdir()
    check_inside(tmp_path / "a", tmp_path / "a")
    check_inside(tmp_path / "a" / "not" / "there", tmp_path / "a")
    for elsewhere in (tmp_path / "ab", tmp_path, tmp_path / "a" / ".." / "ab"):
        with pytest.raises(NotRegular):
            check_inside(elsewhere, tmp_path / "a")


# Configuration and credentials.  Links are followed there: /etc is full of them.


def options_of(home: Path, **more: object) -> AccessOptions:
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    return AccessOptions(environment=environment, **more)  # type: ignore[arg-type]


def endpoints(home: Path) -> object:
    reference = parse_reference("r.example/a")
    assert isinstance(reference, Reference)
    return load_endpoints(reference, options_of(home), system=home / "etc")


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize(
    "name",
    [
        "etc/containerd/certs.d/r.example/hosts.toml",
        ".config/containerd/certs.d/_default/hosts.toml",
        "etc/containers/registries.conf.d/50-x.conf",
    ],
)
def test_configuration(tmp_path: Path, make: Make, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    make(tmp_path / name)
    with pytest.raises(LazyfsError, match="not a regular file"):
        endpoints(tmp_path)


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", [".docker/config.json", "run/containers/auth.json", ".dockercfg"])
async def test_credentials(tmp_path: Path, make: Make, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / name)
    with trio.fail_after(SECONDS), pytest.raises(LazyfsError, match="not a regular file"):
        await find_credential("r.example", "a", options_of(tmp_path))


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("is_authority", [False, True])
async def test_certificates(tmp_path: Path, make: Make, is_authority: bool) -> None:
    """OpenSSL opens them by name, and would wait."""
    make(tmp_path / "odd")
    odd = str(tmp_path / "odd")
    tls = Tls(authorities=(odd,)) if is_authority else Tls(clients=((odd, None),))
    origin = ("https", "127.0.0.1", 9)
    transport = Transport(options_of(tmp_path), SourceStatistics(), tls=tls, origin=origin)
    try:
        with trio.fail_after(SECONDS), pytest.raises(BadCertificate, match="not a regular file"):
            await transport.send("GET", "https://127.0.0.1:9/", {})
    finally:
        await transport.aclose()


def test_configuration_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x" * 10)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_regular(tmp_path / "link", 4) == b"xxxx"
