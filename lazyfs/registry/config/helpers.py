"""Finding credentials: reading the auth files and running the helper programs.

Everything that blocks runs off the event loop, and a helper that does not answer is ended.  Nothing
is remembered: each need for a credential searches again, so that a new login takes effect at once.
"""

import logging
import os
import stat
import subprocess
from collections.abc import MutableMapping

import trio

from lazyfs.environment import DEFAULT_PATH, harden
from lazyfs.errors import Unavailable
from lazyfs.printable import printable
from lazyfs.registry.config.access import AccessOptions
from lazyfs.registry.config.files import read_named, read_regular
from lazyfs.registry.config.keychain import (
    FILE_LIMIT,
    BadAuthFile,
    Credential,
    HelperCall,
    ReadFile,
    candidates,
    decode_helper_answer,
)

log = logging.getLogger(__name__)

HELPER_SECONDS = 30.0
ANSWER_LIMIT = 1 << 20
OTHERS = stat.S_IWGRP | stat.S_IWOTH
NOWHERE = "/nonexistent"  # an empty PATH would mean the working directory
NOBODY = b"{}"  # what /dev/null says
NOT_HERE = (b"credentials not found in native keychain", b"no credentials server URL")
"""What a helper says, with exit code 1, if it works and does not know the server."""


class HelperFailed(Unavailable):
    """A credential helper could not be run, failed, or took too long."""


async def find_credential(
    registry: str,
    repository: str,
    options: AccessOptions,
    *,
    limit_seconds: float = HELPER_SECONDS,
) -> Credential | None:
    """Return the credential for a repository; None to go on as nobody.

    Raises BadAuthFile for a file, or HelperFailed for a helper, that should have known.
    """
    search = candidates(
        registry,
        repository,
        options.environment,
        auth_file_reader(options),
        authfile=None if options.authfile is None else os.fspath(options.authfile),
        uid=os.getuid(),
    )
    while True:
        candidate = await trio.to_thread.run_sync(next, search, None)
        if isinstance(candidate, HelperCall):
            candidate = await run_helper(candidate, options, limit_seconds)
            if candidate is None:
                continue
        if candidate is not None:
            log.debug("%s/%s: credentials from %s", registry, repository, candidate.source)
        return candidate


async def run_helper(
    call: HelperCall, options: AccessOptions, limit_seconds: float
) -> Credential | None:
    """Ask a helper; None if it does not know the server."""
    program = f"docker-credential-{call.name}"
    environment = dict(options.environment)
    harden(environment)  # or a helper would be found in the working directory
    dropped = _trust_root_only(environment) if os.geteuid() == 0 else []
    try:
        with trio.fail_after(limit_seconds):
            done = await trio.run_process(
                [program, "get"],
                stdin=call.server.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is ours to handle
            )
    except trio.TooSlowError:
        raise HelperFailed(
            f"{program} did not answer within {limit_seconds:g} s",
            hint=f"this credential helper is configured in {call.source}",
        ) from None
    except OSError as error:
        hint = f"install this credential helper, or remove it from {call.source}"
        if dropped:
            hint += (
                "; as root, lazyfs does not look in directories of PATH that others own or can "
                f"write to: {printable(', '.join(dropped), 200)}"
            )
        raise HelperFailed(f"cannot run {program}: {error.strerror}", hint=hint) from error
    return _understood(done, program, call)


def _trust_root_only(environment: MutableMapping[str, str]) -> list[str]:
    """Drop the elements of PATH where somebody else could put a program; return them.

    Root would run it.
    """
    kept: list[str] = []
    dropped: list[str] = []
    for element in environment.get("PATH", DEFAULT_PATH).split(":"):
        try:
            found = os.stat(element)
        except (OSError, ValueError):
            continue  # nothing is found there
        is_roots = found.st_uid == 0 and not found.st_mode & OTHERS
        (kept if is_roots else dropped).append(element)
    environment["PATH"] = ":".join(kept) or NOWHERE
    return dropped


def _understood(
    done: "subprocess.CompletedProcess[bytes]", program: str, call: HelperCall
) -> Credential | None:
    if len(done.stdout) > ANSWER_LIMIT:
        raise HelperFailed(
            f"{program}: got {len(done.stdout)} bytes, expected at most {ANSWER_LIMIT}"
        )
    if done.returncode == 0:
        return decode_helper_answer(done.stdout, call)
    if any(text in done.stdout + done.stderr for text in NOT_HERE):
        return None
    # Helpers print their errors to stdout.  A secret goes there only with exit code 0.
    said = printable((done.stdout or done.stderr)[:500].strip(), 200)
    raise HelperFailed(
        f"{program} failed with exit code {done.returncode}: {said}",
        hint=f"this credential helper is configured in {call.source}",
    )


def auth_file_reader(options: AccessOptions) -> ReadFile:
    """Return what reads auth files: one that the user names may be a pipe, or /dev/null.

    It returns what a file holds, None if there is none, and raises BadAuthFile.
    """
    named = options.authfile or options.environment.get("REGISTRY_AUTH_FILE")

    def read_auth_file(path: str) -> bytes | None:
        read = read_named if named and path == os.fspath(named) else read_regular
        try:
            data = read(path, FILE_LIMIT + 1)
            return data if data or path != os.devnull else NOBODY
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BadAuthFile(f"auth file {path} cannot be read: {error.strerror}") from error

    return read_auth_file
