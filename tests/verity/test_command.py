"""``lazyfs verity``, beside veritysetup, fsverity and openssl where they are here."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lazyfs.cli.main import cli
from lazyfs.trust.certificates import parse_certificates
from lazyfs.trust.detached import sign_detached
from lazyfs.verity.pkcs7 import check_root_signature

SETUP = shutil.which("veritysetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
FSVERITY = shutil.which("fsverity")
OPENSSL = shutil.which("openssl")
SIZE = 1_000_000
UUID = "00000000-0000-4000-8000-000000000001"
SALT = "5a" * 32


def run(*words: object, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["verity", *map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout if code == 0 else done.stderr.strip().splitlines()[-1])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_formatted_and_verified(file: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    made = run("format", file, "--tree", tree)
    assert made["dataBlocks"] == 245
    assert made["padding"] == 245 * 4096 - SIZE
    assert len(bytes.fromhex(made["salt"])) == 32
    assert run("verify", file, "--tree", tree, "--root", made["root"])["salt"] == made["salt"]
    # The root alone, when nothing is written.
    same = run("format", file, "--salt", made["salt"])
    assert same["root"] == made["root"]
    assert run("verify", file, "--root", made["root"], "--salt", made["salt"])
    assert run("verify", file, "--root", "00" * 32, "--salt", made["salt"], code=6)
    data = bytearray(file.read_bytes())
    data[500_000] ^= 1
    file.write_bytes(data)
    said = run("verify", file, "--tree", tree, "--root", made["root"], code=6)
    assert said["message"] == "data block 122 does not have its digest"


def test_a_tree_behind_its_data(file: Path) -> None:
    offset = 245 * 4096
    made = run("format", file, "--hash-offset", offset, "--salt", "-", "--uuid", UUID)
    assert file.stat().st_size == offset + 4096 + made["treeSize"]
    assert run("verify", file, "--hash-offset", offset, "--root", made["root"])["dataBlocks"] == 245
    said = run("format", file, "--data-blocks", 245, "--hash-offset", offset, code=2)
    assert "nothing is overwritten" in said["message"]
    said = run("format", file, "--hash-offset", 4096, code=2)
    assert "lies within the data" in said["message"]


def test_a_superblock_does_not_say_how_much_there_is(file: Path, tmp_path: Path) -> None:
    """A tree of fewer blocks verifies with the same root: what is behind them must not pass."""
    tree = tmp_path / "tree"
    file.write_bytes(bytes(100 * 4096))
    made = run("format", file, "--tree", tree, "--salt", "-")
    data = bytearray(tree.read_bytes())
    data[72:80] = (93).to_bytes(8, "little")
    tree.write_bytes(data)
    said = run("verify", file, "--tree", tree, "--root", made["root"], code=7)
    assert "speaks of 93 blocks of data, and there are 100" in said["message"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("format", "absent"), 3),
        (("format", "/dev/null"), 2),
        (("format", "FILE", "--data-block-size", "1000"), 2),
        (("format", "FILE", "--hash", "sha1"), 2),
        (("format", "FILE", "--salt", "xyz"), 2),
        (("format", "FILE", "--uuid", "xyz"), 2),
        (("format", "FILE", "--tree", "FILE"), 2),
        (("format", "FILE", "--data-blocks", "1000"), 2),
        (("verify", "FILE", "--root", "xyz"), 2),
        (("verify", "FILE", "--root", "00"), 6),
        (("verify", "FILE", "--tree", "FILE", "--root", "00" * 32), 7),
        (("digest", "FILE", "--hash", "md5"), 2),
        (("digest", "absent"), 3),
    ],
)
def test_what_cannot_be(file: Path, words: tuple[str, ...], code: int) -> None:
    before = file.read_bytes()
    named = [str(file) if word == "FILE" else word for word in words]
    assert run(*named, code=code)["message"]
    assert file.read_bytes() == before


@pytest.mark.skipif(SETUP is None, reason="veritysetup is not here")
@pytest.mark.parametrize("has_superblock", [True, False])
@pytest.mark.parametrize(
    ("data_block", "hash_block", "algorithm", "kind"),
    [(4096, 4096, "sha256", 1), (512, 4096, "sha512", 1), (1024, 512, "sha256", 0)],
)
def test_as_veritysetup(
    tmp_path: Path,
    data_block: int,
    hash_block: int,
    algorithm: str,
    kind: int,
    has_superblock: bool,
) -> None:
    file, theirs, ours = tmp_path / "file", tmp_path / "theirs", tmp_path / "ours"
    file.write_bytes(os.urandom(300 * 4096))
    words = [
        *(f"--data-block-size={data_block}", f"--hash-block-size={hash_block}"),
        *(f"--salt={SALT}", f"--hash={algorithm}", f"--format={kind}"),
    ]
    if not has_superblock:
        words.append("--no-superblock")
    identity = [f"--uuid={UUID}"] if has_superblock else []
    theirs.touch()
    told = setup("format", *words, *identity, str(file), str(theirs))
    made = run("format", file, "--tree", ours, *words, "--uuid", UUID)
    assert f"Root hash:      \t{made['root']}" in told
    assert ours.read_bytes() == theirs.read_bytes()
    setup("verify", *words, str(file), str(ours), made["root"])
    assert run("verify", file, "--tree", theirs, "--root", made["root"], *words)


def setup(*words: str) -> str:
    assert SETUP is not None
    done = subprocess.run([SETUP, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(FSVERITY is None, reason="fsverity is not here")
@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 524_288, 524_289, 3_000_000])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_as_fsverity(tmp_path: Path, size: int, algorithm: str) -> None:
    assert FSVERITY is not None
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    words = [FSVERITY, "digest", f"--hash-alg={algorithm}", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert run("digest", path, "--hash", algorithm)["digest"] == done.stdout.split()[0]


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not here")
def test_as_openssl_signs(tmp_path: Path) -> None:
    assert OPENSSL is not None
    key, certificate, message = (tmp_path / name for name in ("key", "crt", "message"))
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=root signer",
         "-keyout", key, "-out", certificate, "-days", "30"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    message.write_bytes(b"ab" * 32)
    signed = subprocess.run(
        [OPENSSL, "smime", "-sign", "-nocerts", "-noattr", "-binary", "-outform", "der", "-md",
         "sha256", "-in", message, "-signer", certificate, "-inkey", key],
        capture_output=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    ours = sign_detached(message.read_bytes(), certificate.read_bytes(), key.read_bytes())
    assert ours == signed
    trusted = parse_certificates(certificate.read_bytes(), 1)
    assert check_root_signature(ours, message.read_bytes(), trusted) == trusted[0]
