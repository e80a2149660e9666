"""What podman and skopeo have in ``/etc/containers``: policy.json, its keys, and registries.d.

Links are followed, as those programs do: packages put keys behind them.
"""

from pathlib import Path

from lazyfs.registry.config.files import read_regular
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.files.reading import list_folder
from lazyfs.trust.sigstore.policy import Policy
from lazyfs.trust.sigstore.policy_reading import POLICY_LIMIT, parse_policy
from lazyfs.trust.sigstore.registries_d import (
    FILE_LIMIT,
    FILES_LIMIT,
    SUFFIX,
    Registries,
    parse_registries,
)

KEY_LIMIT = 1 << 20  # bytes of a file with keys or certificates


class LocalFiles:
    """The files that a policy names, on this machine."""

    def read(self, path: str) -> bytes:
        """Return the contents of the regular file at *path*.  Raises PolicyFault."""
        return _read(Path(path), KEY_LIMIT)


def read_policy_json(path: Path) -> Policy:
    """Return the policy in a file.  Raises PolicyFault."""
    return parse_policy(_read(path, POLICY_LIMIT), str(path))


def read_registries_d(path: Path) -> Registries:
    """Return what the files in a directory say; nothing if it is not there.

    Raises PolicyFault.
    """
    names = list_folder(path, FILES_LIMIT, follow=True)
    return parse_registries(
        (str(path / name), _read(path / name, FILE_LIMIT))
        for name in names or ()
        if name.endswith(SUFFIX)
    )


def _read(path: Path, limit: int) -> bytes:
    try:
        data = read_regular(path, limit + 1)
    except FileNotFoundError:
        raise PolicyFault(f"{path} does not exist") from None
    except OSError as exc:
        raise PolicyFault(f"{path} cannot be read: {(exc.strerror or str(exc)).lower()}") from exc
    if len(data) > limit:
        raise PolicyFault(f"{path} is longer than {limit} bytes")
    return data
