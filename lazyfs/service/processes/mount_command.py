"""Mounting for a command that runs sandboxes: several come up side by side.

By ``lazyfs serve`` where that runs; by a child that was forked in time; or else by a command of its
own, ``lazyfs mount``, since a process with threads must not fork a server.
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lazyfs.environment import of_interpreter
from lazyfs.errors import EXIT_CODES, LazyfsError, MountFailed
from lazyfs.registry.config.access import AccessOptions
from lazyfs.service.processes.failures import ServerLost
from lazyfs.service.processes.forks import Forks, Maker, forking
from lazyfs.service.processes.handover import TurnedAway
from lazyfs.service.processes.interpreter import interpreter_command

MOUNT_SECONDS = 600.0  # the tables of contents of a large image, over a slow link
FAMILIES = {code: family for family, code in EXIT_CODES}

log = logging.getLogger(__name__)


class MountCommand:
    """How to mount: *words* are options of ``lazyfs mount`` that the user gave.

    Without *maker*, always by a command.
    """

    def __init__(
        self,
        cache_dir: Path,
        access: AccessOptions,
        words: tuple[str, ...] = (),
        maker: Maker | None = None,
    ) -> None:
        self._cache_dir = cache_dir
        self._access = access
        self._words = words
        self._maker = maker
        self._forks: Forks | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Be ready to mount at once, within the block; another block within changes nothing.

        To be entered before there are threads.
        """
        maker = self._maker
        if maker is None or self._forks is not None:
            yield
            return
        with forking(maker) as self._forks:
            try:
                yield
            finally:
                self._forks = None

    def give_up(self) -> None:
        """Undo mounts that are in the making; whoever waits for them gets an error."""
        if self._forks is not None:
            self._forks.give_up()

    def __call__(
        self, image: str, directory: Path, original: str, prepared: bytes | None = None
    ) -> None:
        """Mount *image*, a digest, on *directory*; it says that *original* was asked for.

        *prepared* is what was found out of the image a moment ago.  Raises what was met.
        """
        login = self._access.login
        words = [
            *("-q", "mount", "--json", *_access_words(self._access)),
            *("--cache-dir", str(self._cache_dir), *self._words),
            *("-o", f"requested={_escaped(original)}", *_privileged_words()),
            *("--", image, str(directory)),
        ]
        said = "" if login is None else f"{login[1]}\n"
        try:
            code, errors = self._by_fork(words, said, prepared)
        except TurnedAway as reason:
            log.debug("mount %s: starting `lazyfs mount`: %s", directory, reason)
            code, errors = _by_command(words, said, directory)
        if code != 0:
            raise _error_of(code, errors)

    def _by_fork(self, words: list[str], said: str, prepared: bytes | None) -> tuple[int, str]:
        """Mount without another interpreter; return as ``_by_command``.  Raises TurnedAway."""
        if self._forks is None:
            raise TurnedAway("no process for forks was started")
        with _in_memory(said) as given, _in_memory() as errors, open(os.devnull, "wb") as nowhere:
            streams = (given.fileno(), nowhere.fileno(), errors.fileno())
            code = self._forks.run(words, self._access.environment, streams, prepared)
            errors.seek(0)
            return code, errors.read().decode(errors="replace")


def _in_memory(text: str = "") -> IO[bytes]:
    """Return a file that has a descriptor and is nowhere on the disk: passwords go through it."""
    file = os.fdopen(os.memfd_create("lazyfs"), "w+b", buffering=0)
    file.write(text.encode())
    file.seek(0)
    return file


def _by_command(words: list[str], said: str, directory: Path) -> tuple[int, str]:
    """Run ``lazyfs`` to its end; return its exit code, and what it said on standard error."""
    try:
        done = subprocess.run(
            [*interpreter_command("lazyfs"), *words],
            input=said,
            env=of_interpreter(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOUNT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ServerLost(f"mount {directory}: `lazyfs mount` failed: {exc}") from exc
    return done.returncode, done.stderr


def _access_words(access: AccessOptions) -> list[str]:
    words = []
    for word, is_given in (
        ("--plain-http", access.plain_http),
        ("--insecure-skip-verify", not access.is_verified),
        ("--anonymous", access.is_anonymous),
        ("--offline", access.is_offline),
        ("--require-newer", access.trust.is_newer_required),
    ):
        if is_given:
            words.append(word)
    for word, path in (
        ("--authfile", access.authfile),
        ("--cert-dir", access.cert_dir),
        ("--hosts-dir", access.hosts_dir),
        ("--trust-store", access.trust.trust_store),
    ):
        if path is not None:
            words += [word, str(path)]
    if access.trust.policy is not None:
        words += ["--policy", access.trust.policy]
    if access.trust.max_age is not None:
        words += ["--max-signature-age", f"{access.trust.max_age:f}s"]
    words += ["--revocation", access.trust.revocation]
    if access.login is not None:
        words += ["--creds", access.login[0]]  # the password goes in by standard input
    return words


def _privileged_words() -> Sequence[str]:
    """Root's containers may run as others, and have the files' modes mean what they say."""
    return ("-o", "allow_other,suid") if os.geteuid() == 0 else ()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _error_of(code: int, said: str) -> LazyfsError:
    """Return the error that the command told of on standard error."""
    for line in reversed(said.splitlines()):
        try:
            document: dict[str, Any] = json.loads(line)
            if document["type"] != "error":
                continue
            message, hint, name = document["message"], document["hint"], document["code"]
        except (ValueError, KeyError, TypeError):
            continue
        family = FAMILIES.get(int(document.get("exitCode", code)), MountFailed)
        error = family(str(message), hint=hint)
        error.code = str(name)
        return error
    last = said.strip().splitlines()[-3:]
    return ServerLost(f"`lazyfs mount` ended with exit code {code}: {' | '.join(last)}")
