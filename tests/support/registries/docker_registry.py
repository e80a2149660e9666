"""The real thing: the ``docker-registry`` process of the Debian package, on loopback."""

import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType

from tests.support.registries.token_service import ISSUER, SERVICE, TokenService

CONFIG = """\
version: 0.1
log: {{level: info, formatter: text, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{root}"}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:0", secret: "of tests"}}
{auth}"""

# The user u with the password geheim; bcrypt at its lowest cost.
HTPASSWD = "u:$2y$05$abcdefghijklmnopqrstuuVWu8RjbNovPZWAMRdd7iqaaG0mI53Uu\n"
TOKEN_AUTH = (
    'auth: {{token: {{realm: "{realm}", service: "{service}", issuer: "{issuer}", '
    'rootcertbundle: "{certificate}"}}}}\n'
)
AUTH = '{{"auths": {{"{host}": {{"auth": "dTpnZWhlaW0="}}}}}}'
LISTENING_RE = re.compile(r"listening on (127\.0\.0\.1:[0-9]+)")


def why_missing() -> str | None:
    """Say why the process cannot be run here; None if it can."""
    if shutil.which("docker-registry") is None:
        return "docker-registry is not installed (apt install docker-registry)"
    return None


class DockerRegistry:
    """A registry process that lives as long as the ``with`` block."""

    def __init__(
        self, directory: Path, *, has_users: bool = False, tokens: TokenService | None = None
    ) -> None:
        self._directory = directory
        self._has_users = has_users
        self._tokens = tokens
        self.host = ""

    def __enter__(self) -> "DockerRegistry":
        self._directory.mkdir(parents=True, exist_ok=True)
        auth = ""
        if self._has_users:
            users = self._directory / "htpasswd"
            users.write_text(HTPASSWD)
            auth = f'auth: {{htpasswd: {{realm: test, path: "{users}"}}}}\n'
        if self._tokens is not None:
            auth = TOKEN_AUTH.format(
                realm=self._tokens.realm,
                service=SERVICE,
                issuer=ISSUER,
                certificate=self._tokens.certificate,
            )
        config = self._directory / "config.yml"
        config.write_text(CONFIG.format(root=self._directory / "data", auth=auth))
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        timer = threading.Timer(20, self._process.kill)
        timer.start()
        said = []
        for line in self._process.stderr:
            said.append(line)
            if match := LISTENING_RE.search(line):
                self.host = match[1]
                break
        timer.cancel()
        if not self.host:
            self.__exit__(None, None, None)
            raise RuntimeError("docker-registry did not start: " + "".join(said))
        # Its log must be read, or it stops at a full pipe.
        self._reader = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(10)
        if self.host:
            self._reader.join(10)
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def data(self) -> Path:
        """Where its storage is."""
        return self._directory / "data"

    def auth_file(self, path: Path, host: str | None = None) -> Path:
        """Write what ``docker login`` writes, and return its path."""
        path.write_text(AUTH.format(host=host or self.host))
        return path
