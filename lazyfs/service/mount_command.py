"""Mounting by a process of its own: ``lazyfs mount``, so that several come up side by side.

A process with threads, as that which runs sandboxes, must not fork a server; and the command hands
the mount to ``lazyfs serve`` where that runs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import EXIT_CODES, LazyfsError, MountFailed
from lazyfs.registry.access import AccessOptions
from lazyfs.service.failures import ServerLost

MOUNT_SECONDS = 600.0  # the tables of contents of a large image, over a slow link
FAMILIES = {code: family for family, code in EXIT_CODES}


@dataclass(frozen=True, slots=True)
class MountCommand:
    """How to mount: *words* are options of ``lazyfs mount`` that the user gave."""

    cache_dir: Path
    access: AccessOptions
    words: tuple[str, ...] = ()

    def __call__(self, image: str, directory: Path, original: str) -> None:
        """Mount *image*, a digest, on *directory*; it says that *original* was asked for.

        Raises what the command met.
        """
        login = self.access.login
        command = [
            *(sys.executable, "-m", "lazyfs", "-q", "mount", "--json"),
            *("--cache-dir", str(self.cache_dir), *_access_words(self.access), *self.words),
            *("-o", f"requested={_escaped(original)}", *_privileged_words()),
            *("--", image, str(directory)),
        ]
        try:
            done = subprocess.run(
                command,
                input="" if login is None else f"{login[1]}\n",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=MOUNT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ServerLost(f"mount {directory}: got {exc}, expected a live mount") from exc
        if done.returncode != 0:
            raise _error_of(done.returncode, done.stderr)


def _access_words(access: AccessOptions) -> list[str]:
    words = []
    for word, is_given in (
        ("--plain-http", access.plain_http),
        ("--insecure-skip-verify", not access.is_verified),
        ("--anonymous", access.is_anonymous),
        ("--offline", access.is_offline),
    ):
        if is_given:
            words.append(word)
    for word, path in (("--authfile", access.authfile), ("--hosts-dir", access.hosts_dir)):
        if path is not None:
            words += [word, str(path)]
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
    return ServerLost(f"mount: got exit code {code}, expected 0: {' | '.join(last)}")
