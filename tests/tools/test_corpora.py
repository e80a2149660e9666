"""Other projects' tars: what is fetched is limited in time and space, and what lacks is named."""

import gzip
import io
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tools.differential.corpora import DEBIAN_SOURCES, fetch_all, tars_in
from tools.differential.packages import NotToBeHad, opened, run_limited


def test_a_program_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    """A grandchild that keeps the pipes open would be waited for without end."""
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/pid; exit 0\n")
    script.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(NotToBeHad, match=r"slow took longer than 0\.5 s"):
        run_limited([script], seconds=0.5)
    assert time.monotonic() - began < 30
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    while state.exists() and ") Z " not in state.read_text():
        assert time.monotonic() - began < 30
        time.sleep(0.05)


def test_a_program_that_fails_or_is_not_here_says_so() -> None:
    assert run_limited([sys.executable, "-c", "print('yes')"]) == b"yes\n"
    with pytest.raises(NotToBeHad, match="last words"):
        run_limited([sys.executable, "-c", "import sys; sys.exit('first\\nlast words')"])
    with pytest.raises(NotToBeHad, match="no-such-program is not installed"):
        run_limited(["no-such-program"])


def test_an_archive_is_opened_inside_its_folder(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, kind in (("../../out", tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc"
            member.size = 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"abc"))
        member = tarfile.TarInfo("l/below")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x.tar.gz").write_bytes(data.getvalue())
    place = opened(folder)
    found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}
    assert found == {"x.tar.gz/out", "x.tar.gz/l/below"}
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "x.tar").write_bytes(b"no tar")
    with pytest.raises(NotToBeHad, match="nothing in it"):
        opened(folder)


def test_tars_are_found_by_what_they_are(tmp_path: Path) -> None:
    tar = bytearray(512)
    tar[257:262] = b"ustar"
    (tmp_path / "named.bin").write_bytes(tar)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(tar))
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(tar)[:12])
    (tmp_path / "v7.tar").write_bytes(bytes(512))
    (tmp_path / "text").write_bytes(b"text" * 512)
    os.symlink("named.bin", tmp_path / "link.tar")
    assert sorted(name for name, _ in tars_in(tmp_path)) == ["named.bin", "packed.gz", "v7.tar"]


def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = dict(fetch_all(tmp_path / "corpora"))
    assert all("is not installed" in str(each) for each in found.values())
    assert "Go archive/tar" in found
    assert {name for name in found if name.startswith("Debian source")} == {
        f"Debian source {name}" for name in DEBIAN_SOURCES
    }
