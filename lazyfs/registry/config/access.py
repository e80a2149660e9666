"""What a user may say about reaching registries; by itself, for commands that only pass it on."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lazyfs.trust.options import TrustOptions


class AccessOptions(msgspec.Struct, frozen=True):
    """How to reach a registry.

    ``environment`` is what credential and proxy variables are read from (the command line passes
    the process's own, tests a dictionary).  Times are in seconds: ``connect_seconds`` for a
    connection, ``idle_seconds`` between two pieces of a body; there is no limit on the whole.

    Of the registry itself, not of its mirrors: ``plain_http``, ``is_verified`` (its certificate
    is checked), and ``login``, a user and a password that count instead of any file's.
    ``cert_dir`` holds certificates for it, instead of the directories that are searched.
    ``hosts_dir`` is searched before the other directories with a ``hosts.toml``.  With
    ``is_offline`` no registry is asked anything.  ``trust`` says by which policy what comes from
    there is judged.
    """

    authfile: Path | None = None
    plain_http: bool = False
    is_verified: bool = True
    cert_dir: Path | None = None
    hosts_dir: Path | None = None
    login: tuple[str, str] | None = None
    is_anonymous: bool = False
    is_offline: bool = False
    connect_seconds: float = 10.0
    idle_seconds: float = 30.0
    environment: Mapping[str, str] = msgspec.field(default_factory=dict)
    trust: TrustOptions = TrustOptions()

    def __repr__(self) -> str:
        """Show neither the password nor those that the environment may hold."""
        shown = (name for name in self.__struct_fields__ if name not in ("login", "environment"))
        return f"AccessOptions({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"
