"""Our merge of the reference layers against what other programs made of the same layers.

Every difference is spelled out with its reason: where a listing shows what its maker gets wrong or
adds, our value is the one that the layer's tar says.
"""

import base64
import json
from pathlib import Path

import pytest

from lazyfs.formats.tocs.toc import Kind, Toc
from lazyfs.rootfs.provenance import Provenance
from tests.support.formats.rootfs import Facts, facts_of, fixture_layer, index_of, paths_of

FIELDS = ("mode", "uid", "gid", "nlink", "size", "mtime", "rdev", "link", "xattrs")

# Directories of edge.tar that have no entry: a rootfs index says 0755 0:0 and the epoch.
IMPLICIT = {b"", b"noparent", b"noparent/deep", b"noparent/deep/er"}
ACL = base64.b64decode("AgAAAAEABgD/////BAAEAP////8gAAQA/////w==")


def edge(fixtures: Path) -> Toc:
    return fixture_layer(fixtures, "edge-default", "edge")[0]


def real(fixtures: Path) -> Toc:
    return fixture_layer(fixtures, "real-from-targz", "real-gnu")[0]


def golden(fixtures: Path, name: str) -> dict[bytes, dict]:
    """Return a listing with our keys; sizes of directories are left out."""
    listing = {}
    for path, said in json.loads((fixtures / "golden" / f"{name}.json").read_text()).items():
        mode = int(said["mode"], 8)
        listing[b"" if path == "." else path.encode()] = {
            "mode": mode,
            "uid": said["uid"],
            "gid": said["gid"],
            "nlink": said["nlink"],
            "size": 0 if mode & 0o170000 == 0o40000 else said["size"],
            "mtime": divmod(said["mtime_ns"], 10**9),
            "rdev": tuple(said["rdev"]),
            "link": said.get("link", "").encode(),
            "xattrs": {
                key.encode(): base64.b64decode(value)
                for key, value in said.get("xattrs", {}).items()
            },
            "sha256": said.get("sha256"),
        }
    return listing


def differences(
    ours: dict[bytes, Facts], theirs: dict[bytes, dict]
) -> dict[tuple[bytes, str], tuple[object, object]]:
    """Return (path, field) → (our value, their value) wherever they differ."""
    assert sorted(ours) == sorted(theirs)
    return {
        (path, field): (getattr(facts, field), theirs[path][field])
        for path, facts in ours.items()
        for field in FIELDS
        if getattr(facts, field) != theirs[path][field]
    }


def check_digests(tocs: list[Toc], theirs: dict[bytes, dict]) -> None:
    """The provenance table knows the sha256 that the other program found in each file."""
    index, built = index_of(*tocs)
    provenance = Provenance(built.provenance)
    compared = 0
    for path, nid in paths_of(index):
        if index.inode(nid).kind == Kind.REGULAR:
            origin = provenance.of(nid)
            assert origin is not None
            assert origin.digest is not None
            assert origin.digest.hex() == theirs[path]["sha256"]
            compared += 1
    assert compared > 30


def test_one_layer_as_the_reference_mounts_it(fixtures: Path) -> None:
    theirs = golden(fixtures, "edge.stargz-snapshotter-0.12-mount")
    ours = facts_of(index_of(edge(fixtures))[0])
    # Whiteouts are devices 0:0 there, for an overlay to act on.  In a merged rootfs they have
    # acted: no name is left.
    for path in (b"wh/removed", b"wh/removed dir"):
        assert (theirs[path]["mode"], theirs[path]["rdev"]) == (0o20000, (0, 0))
        del theirs[path]
    expected = {}
    # Opaque directories carry an overlay's xattr there, for the same reason.
    for path in (b"opq", b"opq-late"):
        expected[path, "xattrs"] = ({}, {b"trusted.overlay.opaque": b"y"})
    # A time that the TOC does not give is shown as that of Go's zero time, the year 1.  The TOC
    # leaves out the epoch too, so a file of 1970-01-01 is shown wrong, not only implicit parents.
    for path in (*IMPLICIT, b"time/epoch"):
        expected[path, "mtime"] = ((0, 0), (-62135596800, 0))
    assert differences(ours, theirs) == expected
    check_digests([edge(fixtures)], theirs)


@pytest.mark.parametrize("name", ["edge.umoci-unpack", "multi.umoci-unpack"])
def test_layers_as_umoci_unpacks_them(fixtures: Path, name: str) -> None:
    theirs = golden(fixtures, name)
    tocs = [edge(fixtures)]
    implicit = set(IMPLICIT)
    if name.startswith("multi"):
        tocs.insert(0, real(fixtures))
        implicit |= {b"etc", b"usr", b"usr/bin", b"usr/lib", b"usr/lib/python3.11"}
    # A name that is not UTF-8: the producer's TOC has lost its bytes (U+FFFD), the tar has them.
    theirs["names/latin1-\ufffd\ufffd\ufffd".encode()] = theirs.pop(rb"names/latin1-\xe9\xff\xfe")
    found = differences(facts_of(index_of(*tocs)[0]), theirs)
    for path in implicit:
        # umoci leaves the moment of unpacking on directories that have no entry.
        ours, unpacked = found.pop((path, "mtime"))
        assert ours == (0, 0)
        assert unpacked[0] > 1_790_000_000
    # The PAX record says ".123456789"; TOCs by that producer have whole seconds.
    for path, field in list(found):
        if field == "mtime":
            ours, unpacked = found.pop((path, field))
            assert ours == (unpacked[0], 0)
            assert path == b"time/subsec" or path.startswith(b"usr/lib/python3.11/json")
    # umoci drops ACLs and empty values; the tar has them, and so do we.
    assert found == {
        (b"xattr/acl", "xattrs"): ({b"system.posix_acl_access": ACL}, {}),
        (b"xattr/user", "xattrs"): (
            {b"user.a": b"value-a", b"user.empty": b"", b"user.utf8": "värde".encode()},
            {b"user.a": b"value-a", b"user.utf8": "värde".encode()},
        ),
    }
    check_digests(tocs, theirs)
