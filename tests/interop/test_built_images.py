"""Images that are built by buildah, crane, umoci and BuildKit mount as umoci unpacks them."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.formats.images import make_layout, plain_layer, source_tar
from tests.support.formats.tree import Found, tree_of
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root, wait_until
from tests.support.registries.docker_registry import DockerRegistry, why_missing

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

BUILT = Path(__file__).parent.parent.parent / ".interop" / "go" / "bin"
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
DOCKERFILE = """\
FROM scratch
COPY --chown=1000:1000 context /
COPY --chmod=755 context/file /opt/
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "{script}"]
"""
SCRIPT = (
    "busybox rm -r /gone /replaced; busybox mkdir /replaced; busybox ln /file /hard; "
    "busybox ln -s ../file /opt/link; busybox chmod 4711 /opt/file; busybox mkfifo /opt/fifo"
).replace("busybox", "/bin/busybox")


def program(name: str) -> str:
    """Return the path of a program that tools/go_producers.sh builds, or Debian has."""
    found = shutil.which(name, path=f"{BUILT}:{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"no {name}: `make setup-interop` gets it")
    return found


def run(*words: str | Path, **options: object) -> str:
    defaults = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run([str(word) for word in words], **(defaults | options))
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A folder with a few files, and busybox beside it."""
    folder = tmp_path / "build"
    for name in ("context/dir/deep", "context/gone/inside", "context/replaced/inside"):
        (folder / name).mkdir(parents=True)
        (folder / name / "text").write_text(name)
    (folder / "context" / "file").write_bytes(os.urandom(200_000))
    (folder / "context" / "link").symlink_to("dir/deep")
    os.setxattr(folder / "context" / "file", "user.note", b"kept or not")
    shutil.copy(program("busybox"), folder / "busybox")
    (folder / "Dockerfile").write_text(DOCKERFILE.format(script=SCRIPT))
    return folder


MINIMAL_ACL_SIZE = 4 + 3 * 8
"""A version, and an entry each for the owner, the group and the others: the mode says the same."""


def counted(tree: dict[bytes, Found]) -> dict[bytes, tuple[object, ...]]:
    """Return what is compared of each name.

    umoci leaves out what has an empty value, and the kernel an ACL that says what the mode does.
    """
    return {
        path: (
            *(each.kind, each.mode, each.uid, each.gid, each.size, each.rdev),
            *(each.link, each.digest),
            {name: value for name, value in each.xattrs.items() if _is_kept(name, value)},
        )
        for path, each in tree.items()
    }


def _is_kept(name: str, value: bytes) -> bool:
    if name == "system.posix_acl_access":
        return len(value) > MINIMAL_ACL_SIZE
    return bool(value) and not name.startswith("user.lazyfs.")


def check(
    tmp_path: Path, layout: Path, tag: str, image: str | None = None, *, unpacked: str = ""
) -> None:
    """Mount *image*, or the layout's; compare with what umoci unpacks; verify and convert.

    *unpacked* is what umoci gets where it cannot read the image.
    """
    umoci, lazyfs, point = program("umoci"), Lazyfs(tmp_path), tmp_path / "mnt"
    image = image or f"oci:{layout}:{tag}"
    run(umoci, "unpack", "--image", unpacked or f"{layout}:{tag}", tmp_path / "bundle")
    expected = counted(tree_of(tmp_path / "bundle" / "rootfs"))
    converted = f"oci:{tmp_path}/converted:lazy"
    done = lazyfs("convert", image, converted)
    assert done.returncode == 0, done.stderr
    for each in (image, converted):
        point.mkdir(exist_ok=True)
        try:
            lazyfs.mount(each, point)
            assert counted(tree_of(point)) == expected
        finally:
            lazyfs("umount", point)
            force_unmount(point)
        done = lazyfs("verify", each)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [(), ("--format", "docker")])
def test_by_buildah(tmp_path: Path, context: Path, options: tuple[str, ...]) -> None:
    buildah = program("buildah")
    program("runc")
    (tmp_path / "policy.json").write_text(POLICY)
    storage = ("--root", tmp_path / "storage", "--runroot", tmp_path / "run-storage")
    common = (*storage, "--storage-driver", "vfs")
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    run(buildah, *common, "bud", "--layers", *options, "-t", "made", context, env=environment)
    layout = tmp_path / "layout"
    signed = ("--signature-policy", tmp_path / "policy.json")
    run(buildah, *common, "push", *signed, "made", f"oci:{layout}:made")
    check(tmp_path, layout, "made")


def test_by_crane(tmp_path: Path) -> None:
    """Appended to an image in a registry, flattened, and mutated."""
    crane, skopeo = program("crane"), program("skopeo")
    if why_missing():
        pytest.skip(why_missing() or "")
    make_layout(tmp_path / "base", [plain_layer(source_tar("edge"))])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "added").write_text("by crane")
    run("tar", "-C", tmp_path / "more", "-cf", tmp_path / "more.tar", ".")
    (tmp_path / "policy.json").write_text(POLICY)
    with DockerRegistry(tmp_path / "registry") as registry:
        base, made = f"{registry.host}/team/base:1", f"{registry.host}/team/made"
        run(crane, "push", tmp_path / "base", base)
        run(crane, "append", "-b", base, "-f", tmp_path / "more.tar", "-t", f"{made}:appended")
        run(crane, "mutate", f"{made}:appended", "--env", "A=B", "-t", f"{made}:mutated")
        run(crane, "flatten", f"{made}:mutated", "-t", f"{made}:flat")
        for tag in ("appended", "mutated", "flat"):
            folder = tmp_path / tag
            folder.mkdir()
            pulled = f"oci:{folder}/layout:{tag}"
            policy = ("--policy", tmp_path / "policy.json")
            insecure = "--src-tls-verify=false"
            run(skopeo, *policy, "copy", insecure, f"docker://{made}:{tag}", pulled)
            check(folder, folder / "layout", tag, f"{made}:{tag}")


def test_by_umoci(tmp_path: Path) -> None:
    umoci, layout = program("umoci"), tmp_path / "layout"
    make_layout(layout, [plain_layer(source_tar("edge"))], tag="base")
    image = f"{layout}:base"
    run(umoci, "unpack", "--image", image, tmp_path / "work")
    rootfs = tmp_path / "work" / "rootfs"
    (rootfs / "added").write_text("by umoci")
    shutil.rmtree(rootfs / "dir")
    run(umoci, "repack", "--image", f"{layout}:made", tmp_path / "work")
    check(tmp_path, layout, "made")


@pytest.fixture
def buildctl(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Build with a daemon of BuildKit's, whose only worker is the OCI one."""
    daemon, client = program("buildkitd"), program("buildctl")
    program("runc")
    folder, socket = tmp_path / "buildkit", f"unix://{tmp_path}/buildkit.sock"
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(daemon, "--addr", socket, "--root", folder / "root", "--oci-worker-net", "host"),
                *("--containerd-worker=false", "--oci-worker-snapshotter", "native"),
                *("--oci-worker-gc=false", "--config", "/dev/null", "--oci-worker=true"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(
            lambda: b"running server" in (folder / "log").read_bytes() or process.poll() is not None
        )
        if process.poll() is not None:
            pytest.skip(f"buildkitd: {(folder / 'log').read_text()[-300:]}")

        def build(context: Path, output: str) -> None:
            run(
                *(client, "--addr", socket, "build", "--frontend", "dockerfile.v0"),
                *("--local", f"context={context}", "--local", f"dockerfile={context}"),
                *("--output", output),
            )

        yield build
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    "options",
    ["compression=gzip", "compression=zstd", "compression=uncompressed", "compression=estargz"],
)
def test_by_buildkit(
    tmp_path: Path, context: Path, buildctl: Callable[..., None], options: str
) -> None:
    made = {}
    for each in (options, "compression=gzip"):  # umoci does not know zstd
        folder = tmp_path / each
        folder.mkdir(exist_ok=True)
        forced = f"{each},oci-mediatypes=true,force-compression=true"
        buildctl(context, f"type=oci,dest={folder}.tar,name=made:made,{forced}")
        run("tar", "-C", folder, "-xf", f"{folder}.tar")
        (listed,) = json.loads((folder / "index.json").read_text())["manifests"]
        made[each] = listed["annotations"]["org.opencontainers.image.ref.name"]
    unpacked = f"{tmp_path}/compression=gzip:{made['compression=gzip']}"
    check(tmp_path, tmp_path / options, made[options], unpacked=unpacked)
