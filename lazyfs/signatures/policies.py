"""Which policies are in force, and the files they are read from.

A policy is notation's or containers', told apart by what is in the file.  Those of a machine's own
tools count where the user says so: a stock policy that accepts everything says nothing of anybody's
trust.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lazyfs.trust.errors import Malformed, PolicyFault
from lazyfs.trust.options import DEFAULT, OFF, TrustOptions

MACHINE = Path("/etc/lazyfs/policy.json")
VARIABLE = "LAZYFS_POLICY"
CONTAINERS = Path("/etc/containers/policy.json")
NOTATION_NAMES = ("trustpolicy.oci.json", "trustpolicy.json")
STORE_NAME = "truststore"
POLICY_LIMIT = 4 << 20


class PolicyFile(msgspec.Struct, frozen=True):
    """A policy in force: its path and bytes; whose it is; where its certificates are."""

    path: Path
    data: bytes
    is_notation: bool
    trust_store: Path


def policies_in_force(
    options: TrustOptions, environment: Mapping[str, str], *, machine: Path = MACHINE
) -> list[PolicyFile]:
    """Return the policies that an image must meet, all of them; none where nothing is judged.

    An option comes before the environment, and that before the machine's own policy.  Where the
    machine has one, root's environment does not count: it may be another user's.  Raises
    PolicyFault.
    """
    chosen = options.policy
    if chosen is None and not (os.geteuid() == 0 and _is_there(machine)):
        chosen = environment.get(VARIABLE) or None
    if chosen is None:
        chosen = str(machine) if _is_there(machine) else OFF
    if chosen == OFF:
        return []
    if chosen == DEFAULT:
        return _of_tools(options, environment)
    path = Path(chosen)
    if not path.is_absolute():
        raise PolicyFault(
            f"{VARIABLE} is {chosen[:100]!r}: neither default, off nor an absolute path"
        )
    return [load_policy(path, _trust_store(options))]


def _is_there(path: Path) -> bool:
    """Say whether somebody has put a policy at *path*, if only a link that leads nowhere now.

    Raises PolicyFault where that cannot be found out: it is not the same as there being none.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def _unreadable(path: Path, error: OSError) -> PolicyFault:
    """Return what is wrong with a policy that the system gives *error* for."""
    said = (error.strerror or str(error)).lower()
    return PolicyFault(f"policy {path} cannot be read: {said}")


def _trust_store(options: TrustOptions) -> Path | None:
    return None if options.trust_store is None else Path(options.trust_store)


def _of_tools(options: TrustOptions, environment: Mapping[str, str]) -> list[PolicyFile]:
    """Return the policies where notation and containers' tools keep them."""
    home = Path(environment.get("HOME") or "/")
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    notation = [config / "notation" / name for name in NOTATION_NAMES]
    containers = [home / ".config/containers/policy.json", CONTAINERS]
    found = []
    for paths in (notation, containers):
        for path in paths:
            if _is_there(path):
                found.append(load_policy(path, _trust_store(options)))
                break
    if not found:
        raise PolicyFault(
            f"--policy default: there is no {notation[1]}, {containers[0]} or {containers[1]}",
            hint="write one of them, or name a policy: --policy FILE",
        )
    return found


def load_policy(path: Path, trust_store: Path | None) -> PolicyFile:
    """Return the policy in the file *path*; raises PolicyFault.

    A symbolic link is followed to containers' policy, and refused for notation's, as their own
    tools do it.
    """
    # Imported here: a mount without a policy, which most are, needs none of it.
    from lazyfs.registry.config.files import read_regular  # noqa: PLC0415
    from lazyfs.trust.files.reading import read_plain  # noqa: PLC0415
    from lazyfs.trust.strict_json import parse_object  # noqa: PLC0415

    try:
        data = read_regular(path, POLICY_LIMIT + 1)
        document = parse_object(data, f"policy {path}", POLICY_LIMIT)
    except FileNotFoundError:
        raise PolicyFault(f"policy {path} does not exist") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except Malformed as error:
        raise PolicyFault(error.message) from error
    is_notation = "trustPolicies" in document
    if not is_notation and "default" not in document:
        raise PolicyFault(
            f"policy {path} is neither notation's, which has trustPolicies, nor containers', "
            "which has default"
        )
    if is_notation:
        read_plain(path, POLICY_LIMIT)
    return PolicyFile(path, data, is_notation, trust_store or path.parent / STORE_NAME)
