"""Policies, trust stores and answers on disk: no links, nothing but files, bounded."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.files import notation as notation_files
from lazyfs.trust.files import reading
from lazyfs.trust.files import revocation as revocation_files
from lazyfs.trust.files.notation import NotationFolder, read_policy
from lazyfs.trust.files.revocation import RevocationFolder
from lazyfs.trust.notation.judge import judge
from lazyfs.trust.notation.policy import StoreName
from lazyfs.trust.notation.stores import TrustStores
from lazyfs.trust.questions import Away, Question
from lazyfs.trust.verdict import Outcome
from tests.support.trust import pki
from tests.support.trust.notation import NOTATION, vectors

POLICY = vectors().policy("ca")
MAIN = StoreName("ca", "main")


def fill(folder: Path) -> NotationFolder:
    store = folder / "truststore/x509/ca/main"
    store.mkdir(parents=True)
    (folder / "trustpolicy.json").write_bytes(POLICY)
    (store / "root.pem").write_bytes(pki.root().pem)
    return NotationFolder(folder)


def test_a_folder_like_notations(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    assert folder.policy().statements[0].name == "main"
    assert folder.files(MAIN) == [("root.pem", pki.root().pem)]
    assert TrustStores(folder).certificates([MAIN], "ca") == (pki.root().certificate,)
    assert TrustStores(folder).certificates([MAIN], "tsa") == ()


def test_the_newer_name_is_looked_for_first(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (tmp_path / "trustpolicy.oci.json").write_bytes(vectors().policy("global"))
    assert folder.policy().file.endswith("trustpolicy.oci.json")
    (tmp_path / "trustpolicy.oci.json").write_bytes(b"{")
    with pytest.raises(PolicyFault, match=r"oci\.json is not valid JSON"):
        folder.policy()


def test_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyFault, match="has no trustpolicy"):
        NotationFolder(tmp_path).policy()
    with pytest.raises(PolicyFault, match="does not exist"):
        read_policy(tmp_path / "x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PolicyFault, match="cannot be read: not a directory"):
        read_policy(tmp_path / "file" / "x")


def link(path: Path) -> None:
    os.rename(path, path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def listening(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("spoil", [link, fifo, folder, listening])
def test_what_is_no_plain_file(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """A link as in notation; a pipe would keep us waiting for ever."""
    found = fill(tmp_path)
    spoil(tmp_path / "trustpolicy.json")
    with pytest.raises(PolicyFault, match=r"trustpolicy\.json"):
        found.policy()
    with pytest.raises(PolicyFault, match=r"trustpolicy\.json"):
        read_policy(tmp_path / "trustpolicy.json")
    spoil(tmp_path / "truststore/x509/ca/main/root.pem")
    with pytest.raises(PolicyFault, match="root"):
        found.files(MAIN)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    found = fill(tmp_path)
    monkeypatch.setattr(reading, "open", fail, raising=False)
    with pytest.raises(PolicyFault, match=r"trustpolicy\.json cannot be read: input/output error"):
        found.policy()


def test_the_mode_of_a_policy_is_not_looked_at(tmp_path: Path) -> None:
    found = fill(tmp_path)
    (tmp_path / "trustpolicy.json").chmod(0o644)
    found.policy()


def test_a_store_that_is_a_link_or_absent(tmp_path: Path) -> None:
    found = fill(tmp_path)
    stores = tmp_path / "truststore/x509/ca"
    (stores / "other").symlink_to(stores / "main")
    with pytest.raises(PolicyFault, match="cannot be read"):
        found.files(StoreName("ca", "other"))
    (stores / "file").write_bytes(b"")
    with pytest.raises(PolicyFault, match="cannot be read"):
        found.files(StoreName("ca", "file"))
    with pytest.raises(PolicyFault, match="ca:gone does not exist"):
        found.files(StoreName("ca", "gone"))


def test_stores_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fill(tmp_path)
    store = tmp_path / "truststore/x509/ca/main"
    with (store / "large.pem").open("wb") as stream:
        stream.truncate(notation_files.FILE_LIMIT + 1)
    with pytest.raises(PolicyFault, match="longer than"):
        found.files(MAIN)
    (store / "large.pem").write_bytes(pki.root().pem)
    monkeypatch.setattr(notation_files, "STORE_LIMIT", 1000)
    with pytest.raises(PolicyFault, match="larger than"):
        found.files(MAIN)
    monkeypatch.setattr(notation_files, "FILES_LIMIT", 1)
    with pytest.raises(PolicyFault, match="more than 1 files"):
        found.files(MAIN)
    (tmp_path / "trustpolicy.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(PolicyFault, match="longer than"):
        found.policy()


@pytest.mark.parametrize(
    "contents",
    [b"", b"hello", pki.issue("leaf", pki.root()).pem, pki.root().pem[:-30]],
    ids=range(4),
)
def test_what_is_no_certificate_to_trust(tmp_path: Path, contents: bytes) -> None:
    found = fill(tmp_path)
    (tmp_path / "truststore/x509/ca/main/bad.pem").write_bytes(contents)
    with pytest.raises(PolicyFault, match=r"trust store ca:main: bad\.pem"):
        TrustStores(found).certificates([MAIN], "ca")


def test_an_empty_store(tmp_path: Path) -> None:
    found = fill(tmp_path)
    (tmp_path / "truststore/x509/ca/main/root.pem").unlink()
    with pytest.raises(PolicyFault, match="ca:main is empty"):
        TrustStores(found).certificates([MAIN], "ca")


def test_names_of_files_are_shown_on_one_line(tmp_path: Path) -> None:
    found = fill(tmp_path)
    (tmp_path / "truststore/x509/ca/main/a\nb\x1b[31m").write_bytes(b"x")
    with pytest.raises(PolicyFault) as caught:
        TrustStores(found).certificates([MAIN], "ca")
    assert caught.value.message.isprintable()
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "a\nb").write_bytes(b"x")
    with pytest.raises(PolicyFault) as caught:
        RevocationFolder(tmp_path / "answers").answers(ask("crl", pki.root(), 1))
    assert caught.value.message.isprintable()
    os.mkfifo(tmp_path / "truststore/x509/ca/main/A\nB")
    with pytest.raises(PolicyFault) as caught:
        found.files(MAIN)
    assert caught.value.message.isprintable()


def test_a_clocks_store_has_roots_only(tmp_path: Path) -> None:
    store = StoreName("tsa", "main")
    path = tmp_path / "truststore/x509/tsa/main"
    path.mkdir(parents=True)
    (path / "middle.pem").write_bytes(pki.middle().pem)
    with pytest.raises(PolicyFault, match="did not issue itself"):
        TrustStores(NotationFolder(tmp_path)).certificates([store], "tsa")
    (path / "middle.pem").write_bytes(pki.root().pem)
    assert TrustStores(NotationFolder(tmp_path)).certificates([store], "tsa")


# Answers about revocation


def ask(kind: str, issuer: pki.Issued, serial: int) -> Question:
    return Question(
        kind=kind,  # type: ignore[arg-type]
        url="ldap://anything",
        request=b"",
        issuer=issuer.certificate,
        serial=serial,
    )


def test_answers_are_found_whatever_their_names(tmp_path: Path) -> None:
    leaf = pki.issue("leaf", pki.root(), serial=77)
    first, second = pki.crl(pki.root()), pki.crl(pki.root(), [77])
    answer = pki.ocsp_answer(leaf, pki.root())
    (tmp_path / "one").write_bytes(first)
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    text = x509.load_der_x509_crl(second).public_bytes(Encoding.PEM)
    (tmp_path / "two.txt").write_bytes(text)
    (tmp_path / "three.der").write_bytes(answer)
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    found = RevocationFolder(tmp_path)
    assert found.answers(ask("crl", pki.root(), 77)) == [first, second]
    assert found.answers(ask("ocsp", pki.root(), 77)) == [answer]
    assert isinstance(found.answers(ask("crl", pki.middle(), 77)), Away)
    assert isinstance(found.answers(ask("ocsp", pki.root(), 78)), Away)


@pytest.mark.parametrize(
    "contents",
    [b"", b"hello", b"-----BEGIN X509 CRL-----\nAAA\n-----END X509 CRL-----\n", pki.root().der],
)
def test_a_file_that_answers_nothing(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "bad").write_bytes(contents)
    with pytest.raises(PolicyFault, match="bad is"):
        RevocationFolder(tmp_path).answers(ask("crl", pki.root(), 1))


def test_a_folder_of_answers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(pki.crl(pki.root()))
    monkeypatch.setattr(revocation_files, "TOTAL_LIMIT", 300)
    with pytest.raises(PolicyFault, match="too large"):
        RevocationFolder(tmp_path).answers(ask("crl", pki.root(), 1))
    monkeypatch.setattr(revocation_files, "FILES_LIMIT", 1)
    with pytest.raises(PolicyFault, match="more than 1"):
        RevocationFolder(tmp_path).answers(ask("crl", pki.root(), 1))
    os.mkfifo(tmp_path / "c")
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    with pytest.raises(PolicyFault, match="cannot be read"):
        RevocationFolder(tmp_path).answers(ask("crl", pki.root(), 1))
    with pytest.raises(PolicyFault, match="does not exist"):
        RevocationFolder(tmp_path / "gone").answers(ask("crl", pki.root(), 1))


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        ("rev-crlgood", Outcome.TRUSTED),
        ("rev-crlrevoked", Outcome.UNTRUSTED),
        ("rev-ocspgood", Outcome.TRUSTED),
        ("rev-ocsprevoked", Outcome.UNTRUSTED),
        ("rev-interrevoked", Outcome.UNTRUSTED),
        ("rev-ocspunknown", Outcome.UNKNOWN),
    ],
)
def test_vectors_without_a_network(tmp_path: Path, case: str, outcome: Outcome) -> None:
    for path in [*(NOTATION / "crl").iterdir(), *(NOTATION / "ocsp").iterdir()]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = vectors()
    (tmp_path.parent / "trustpolicy.json").write_bytes(found.policy(found.cases[case]["policy"]))
    verdict = judge(
        read_policy(tmp_path.parent / "trustpolicy.json"),
        NotationFolder(NOTATION),
        found.request(case),
        found.candidates(case),
        RevocationFolder(tmp_path),
    )
    assert verdict.outcome is outcome, verdict
