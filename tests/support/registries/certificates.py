"""Certificates for 127.0.0.1, made by the openssl program when a test needs them."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """An authority's certificate (a file), and a server's context that it vouches for."""

    authority: Path
    server: ssl.SSLContext


def why_missing() -> str | None:
    """Say why none can be made here; None if they can."""
    return None if shutil.which("openssl") else "openssl is not installed"


def make_certificates(directory: Path) -> Certificates:
    """Make a certificate that signs itself, which makes it an authority too."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        timeout=30,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return Certificates(certificate, context)
