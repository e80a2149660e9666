"""From a publisher's signature to a restore that refuses a revoked one: the whole chain."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.test_sandboxes import World, make_world
from tests.support.formats.images import tagged
from tests.support.mounts.mounting import folder_for_all, force_unmount, needs_fuse, needs_root
from tests.support.sandboxes.runscs import NEW, make_busybox
from tests.support.trust.authorities import Authority
from tests.support.trust.signing import Notary

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

NAME = "busybox"


@pytest.fixture
def authority() -> Iterator[Authority]:
    with Authority() as found:
        yield found


@pytest.fixture
def world() -> Iterator[World]:
    with folder_for_all() as folder:
        yield from make_world(folder, NEW)


def test_the_whole_chain(world: World, authority: Authority, tmp_path: Path) -> None:
    notary = Notary(crl=authority.url)
    authority.body = notary.revocations(is_revoked=False)
    world.registry.list_referrers()
    layout = world.folder / "layout"
    subject = tagged(layout)
    scope = f"{world.registry.host}/{NAME}"
    policy = notary.policy(tmp_path, scope)
    notary.sign(world.registry, NAME, subject)
    trusting = {"environment": {"LAZYFS_POLICY": str(policy)}}

    # Given a signed image, a node with nothing but the trust store mounts it,
    here = world.node(**trusting)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    try:
        here.do("mount", world.tag, mountpoint)
        (mount,) = here.status()
        assert mount["trust"]["verdict"] == "trusted"
        assert os.getxattr(mountpoint, "user.lazyfs.trust") == b"trusted"
        signer = os.getxattr(mountpoint, "user.lazyfs.trust.signer").decode()
        assert signer == "CN=Publisher,O=Example,ST=Berlin,C=DE"
        here.do("umount", mountpoint)
    finally:
        force_unmount(mountpoint)
    # and a snapshot of a sandbox on it carries the verdict.
    lines = world.saved(here)
    shown = json.loads(here.do("snapshot", "show", f"{world.store}@latest", "--json"))
    (kept,) = shown["manifest"]["extensions"]["trust"].values()
    assert kept["verdict"] == "trusted"
    assert kept["signer"] == signer
    assert kept["policy"] == f"{policy}: publisher"

    # When the tag moves to a build that nobody has signed, it is refused, whoever asks;
    make_busybox(layout, base="base new")
    fresh = world.node(**trusting)
    for words in (("ls", world.tag), ("pull", world.tag), ("mount", world.tag, mountpoint)):
        done = fresh(*words)
        assert done.returncode == 6, (words, done.stderr)
        assert "no signature found" in done.stderr
    refused = fresh.refuse(6, "run", world.template, "--runsc", fresh.runsc)
    assert refused["code"] == "E_UNTRUSTED"
    # the snapshot goes on all the same: it names what was signed.
    world.restore(fresh, "r1")
    assert fresh.wait_line("r1")[0].endswith("base old")
    assert len(lines) > 0

    check_revoked(world, notary, authority, tmp_path, trusting)


def check_revoked(
    world: World, notary: Notary, authority: Authority, folder: Path, trusting: dict
) -> None:
    # When the certificate is revoked, a restore is refused, where the policy is strict;
    authority.body = notary.revocations(is_revoked=True)
    late = world.node(**trusting)
    where = f"{world.store}@latest"
    refused = late.refuse(6, "restore", where, "--id", "r2", "--runsc", late.runsc)
    assert refused["code"] == "E_UNTRUSTED"
    assert "revoked since" in refused["message"]
    late.check_gone("r2")
    # where it is permissive, that is a warning.
    lenient = folder / "lenient"
    lenient.mkdir()
    relaxed = notary.policy(lenient, f"{world.registry.host}/{NAME}", level="permissive")
    done = late("restore", where, "--id", "r3", "--runsc", late.runsc, "--policy", relaxed)
    assert done.returncode == 0, done.stderr
    assert "revoked since" in done.stderr
    late.wait_line("r3")
