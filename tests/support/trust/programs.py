"""notation, cosign and skopeo, for tests: as ``tools/setup.sh --interop`` gets them."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.trust.pki import Issued, issue

INTEROP = Path(__file__).resolve().parents[3] / ".interop"
NOTATION = INTEROP / "go/bin/notation"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
SECONDS = 60


def of_debian(folder: str, program: str) -> list[str]:
    """Return the command of a program that lies in ``.interop/FOLDER``; skip if it does not."""
    tree = INTEROP / folder
    path = tree / "usr/bin" / program
    if not path.exists() or not (tree / LOADER).exists():
        pytest.skip(f"no {path}: tools/producers.sh fetches it")
    return [str(tree / LOADER), "--library-path", f"{tree}/usr/lib/x86_64-linux-gnu", str(path)]


class Program:
    """A program with a home of its own, *folder*."""

    def __init__(self, words: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._words = words
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            **environment,
        }

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run it to its end; the exit code is the caller's to look at."""
        return subprocess.run(
            [*self._words, *map(str, words)],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def do(self, *words: object) -> str:
        """Run it, which must work; return what it said."""
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


class NotationTool(Program):
    """notation with a signing key below an authority of its own.

    *end* ends the signer's certificate.
    """

    def __init__(self, folder: Path, name: str = "publisher", **issued: Any) -> None:
        if not NOTATION.exists():
            pytest.skip(f"no {NOTATION}: tools/go_producers.sh builds it")
        variables = {"XDG_CONFIG_HOME": str(folder / "config"), "NOTATION_EXPERIMENTAL": "1"}
        super().__init__([str(NOTATION)], folder, variables)
        self.config = folder / "config/notation"
        self.config.mkdir(parents=True)
        self.root = issue(f"{name} root", authority=True)
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        self.leaf = issue(name, self.root, extensions=[(purpose, False)], **issued)
        (folder / "chain.pem").write_bytes(self.leaf.pem + self.root.pem)
        (folder / "key.pem").write_bytes(_private(self.leaf))
        (folder / "key.pem").chmod(0o600)
        key = {"name": name, "keyPath": f"{folder}/key.pem", "certPath": f"{folder}/chain.pem"}
        keys = {"default": name, "keys": [key]}
        (self.config / "signingkeys.json").write_text(json.dumps(keys))

    def trust(self, scope: str, *roots: Issued, level: str = "strict") -> Path:
        """Write the policy and the trust store, for notation and for us; return its path."""
        store = self.config / "truststore/x509/ca/main"
        store.mkdir(parents=True, exist_ok=True)
        for number, root in enumerate(roots or (self.root,)):
            (store / f"{number}.pem").write_bytes(root.pem)
        statement = {
            "name": "interop",
            "registryScopes": [scope],
            "signatureVerification": {"level": level},
            "trustStores": ["ca:main"],
            "trustedIdentities": ["x509.subject: C=DE, ST=Berlin, O=Acme"],
        }
        path = self.config / "trustpolicy.json"
        path.write_text(json.dumps({"version": "1.0", "trustPolicies": [statement]}))
        path.chmod(0o600)
        return path


def _private(issued: Issued) -> bytes:
    return issued.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class CosignTool(Program):
    """The cosign of a Debian suite, with a key pair of its own."""

    OPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
        "trixie": {"payload": ()},
        "sid": {
            "payload": ("--use-signing-config=false", "--new-bundle-format=false"),
            "bundle": ("--use-signing-config=false",),
        },
    }
    """Suite → form of the signature → options that make it so."""

    def __init__(self, folder: Path, suite: str = "trixie") -> None:
        words = of_debian(f"cosign-{suite}", "cosign")
        # No address of a log or of its keys is ever asked: the tests run without a network.
        super().__init__(words, folder, {"COSIGN_PASSWORD": "", "TUF_ROOT": str(folder / "tuf")})
        self.suite = suite
        if not (folder / "cosign.key").exists():
            self.do("generate-key-pair")
        self.key = folder / "cosign.pub"

    def sign(self, image: str, form: str, *more: str) -> None:
        """Sign *image*, which has a digest, and push the signature."""
        options = (*self.OPTIONS[self.suite][form], "--tlog-upload=false", "--yes", *more)
        self.do("sign", "--key", "cosign.key", *options, image)

    def verify(self, image: str, key: Path | None = None) -> int:
        """Return the exit code: 0 is good."""
        words = ("--key", key or self.key, "--insecure-ignore-tlog")
        return self("verify", *words, image).returncode
