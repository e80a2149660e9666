"""nginx in front of docker-registry: TLS, redirects to signed URLs, a rate limit, no ranges."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.registries.token_service import SECRET

SEARCHED = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
START_SECONDS = 20.0
PORTS_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")

# Four servers on ports of their own: blobs behind signed URLs; the store that these lead to, which
# wants no other authorization; a few requests a second; whole blobs whatever range is asked for.
CONFIG = """\
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    limit_req_zone $server_port zone=few:1m rate=10r/s;
    limit_req_status 429;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Proto https;
    server {{
        listen 127.0.0.1:{signing} ssl;
        location / {{ proxy_pass http://{registry}; }}
        location = /token {{ proxy_pass {signer}; }}
        location ~ ^/v2/.+/blobs/sha256: {{
            error_page 418 = @signer;
            if ($request_method = GET) {{ return 418; }}
            proxy_pass http://{registry};
        }}
        location @signer {{ proxy_pass {signer}; }}
    }}
    server {{
        listen 127.0.0.1:{store} ssl;
        location ~ ^/signed/sha256:(([0-9a-f][0-9a-f])[0-9a-f]+)$ {{
            secure_link $arg_md5,$arg_expires;
            secure_link_md5 "$secure_link_expires$uri {secret}";
            if ($secure_link = "") {{ return 403; }}
            if ($secure_link = "0") {{ return 410; }}
            if ($http_authorization) {{ return 400; }}
            alias {data}/docker/registry/v2/blobs/sha256/$2/$1/data;
        }}
    }}
    server {{
        listen 127.0.0.1:{limited} ssl;
        location / {{ limit_req zone=few; proxy_pass http://{registry}; }}
    }}
    server {{
        listen 127.0.0.1:{unranged} ssl;
        location / {{ proxy_pass http://{registry}; }}
        location ~ ^/v2/.+/blobs/sha256:(([0-9a-f][0-9a-f])[0-9a-f]+)$ {{
            max_ranges 0;
            if ($request_method != GET) {{ proxy_pass http://{registry}; }}
            alias {data}/docker/registry/v2/blobs/sha256/$2/$1/data;
        }}
    }}
}}
"""


def why_missing() -> str | None:
    """Say why nginx cannot be run here; None if it can."""
    if shutil.which("nginx", path=SEARCHED) is None:
        return "nginx is not installed (apt install nginx)"
    return None


class Nginx:
    """A process that lives as long as the ``with`` block; ports say which server is which."""

    def __init__(
        self,
        folder: Path,
        ports: list[int],
        *,
        registry: str,
        data: Path,
        signer: str,
        certificate: Path,
        key: Path,
    ) -> None:
        self._folder = folder
        self.signing, self.limited, self.unranged, self.store = ports
        self._config = CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",
            folder=folder,
            certificate=certificate,
            key=key,
            registry=registry,
            signer=signer,
            secret=SECRET,
            data=data,
            signing=self.signing,
            limited=self.limited,
            unranged=self.unranged,
            store=self.store,
        )

    def __enter__(self) -> "Nginx":
        config = self._folder / "nginx.conf"
        config.write_text(self._config)
        program = shutil.which("nginx", path=SEARCHED)
        assert program is not None
        self._process = subprocess.Popen(
            [
                program,
                "-p",
                str(self._folder),
                "-c",
                str(config),
                "-e",
                str(self._folder / "log"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not all(map(answers, (self.signing, self.limited, self.unranged))):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                _, said = self._process.communicate(timeout=10)
                raise RuntimeError(f"nginx did not start: {said}")
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate(timeout=10)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on, nor is given by asking for any port."""
    first_given = int(PORTS_GIVEN.read_text().split()[0])
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(range(10_000, first_given), 100):
            taken = stack.enter_context(socket.socket())
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:  # somebody's
                continue
            found.append(port)
            if len(found) == count:
                break
        return found


def answers(port: int) -> bool:
    """Say whether somebody listens on a port."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
