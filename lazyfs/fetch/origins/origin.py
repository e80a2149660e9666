"""Where an image comes from, connected to on first use."""

from collections.abc import Mapping

import trio
from msgspec.structs import replace

from lazyfs.errors import Unavailable
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.registry.source import AccessOptions, EndpointState, Source, SourceStatistics

REFETCHES = 8
"""So many endpoints are asked for bytes that were wrong, at most."""


PROBE_SECONDS = 5.0
"""How long a probe waits for a connection, and then for an answer."""


class Offline(Unavailable):
    """A registry would have to be asked, and nothing may be asked of any."""

    code = "E_OFFLINE"


class Origin:
    """The source that a reference names; it is opened when the first byte is asked for.

    A mount of a digest that is known, and whose content is resident, never opens it.
    *is_watched*: somebody waits for a registry that is away (outage.py), and is told soon.
    """

    def __init__(
        self,
        reference: Reference | LayoutReference,
        access: AccessOptions,
        *,
        is_watched: bool = False,
    ) -> None:
        self.reference = reference
        self._access = access
        self._is_watched = is_watched
        self._source: Source | None = None

    @property
    def is_open(self) -> bool:
        """Whether anything has been asked of the source."""
        return self._source is not None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of whoever asks."""
        return self._access.environment

    @property
    def is_offline(self) -> bool:
        """Whether no registry may be asked."""
        return self._access.is_offline

    @property
    def source(self) -> Source:
        """The source, opened now if it was not; raises Offline if nothing may be asked."""
        if self._source is None:
            self._source = self._open()
        return self._source

    @property
    def kind(self) -> str:
        """``layout`` or ``registry``."""
        return "layout" if isinstance(self.reference, LayoutReference) else "registry"

    @property
    def repository(self) -> str:
        """What a resolved reference starts with: ``docker.io/library/python``, ``oci:DIR``."""
        if isinstance(self.reference, LayoutReference):
            return f"oci:{self.reference.path}"
        return self.reference.name

    @property
    def statistics(self) -> SourceStatistics:
        """The source's counts; zeros while it is not open."""
        return SourceStatistics() if self._source is None else self._source.statistics

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return how the source's endpoints fare; nothing while it is not open."""
        return () if self._source is None else self._source.endpoints()

    def _open(self) -> Source:
        if self._access.is_offline and isinstance(self.reference, Reference):
            raise Offline(
                f"{self.reference.name}: not in the cache, and --offline asks no registry",
                hint="leave out --offline to fetch it",
            )
        # Imported here: httpx costs 0.1 s, which a mount that needs no request does not pay.
        if isinstance(self.reference, LayoutReference):
            from lazyfs.registry.layout import ImageLayout  # noqa: PLC0415

            return ImageLayout(self.reference.path)
        from lazyfs.registry.client import RegistryClient  # noqa: PLC0415
        from lazyfs.registry.retry import WATCHED, RetryPolicy  # noqa: PLC0415

        policy = WATCHED if self._is_watched else RetryPolicy()
        return RegistryClient(self.reference, self._access, policy=policy)

    async def probe(self, blob: Descriptor, start: int, *, is_fresh: bool) -> None:
        """Ask once for the byte *start* of a blob; raises what kept it from coming.

        *is_fresh*: by connections of its own, since those there are may be dead.
        """
        source, fresh = self.source.once(), None
        if is_fresh and isinstance(self.reference, Reference):
            from lazyfs.registry.client import RegistryClient  # noqa: PLC0415
            from lazyfs.registry.retry import ONCE  # noqa: PLC0415

            access = replace(
                self._access,
                connect_seconds=min(self._access.connect_seconds, PROBE_SECONDS),
                idle_seconds=min(self._access.idle_seconds, PROBE_SECONDS),
            )
            source = fresh = RegistryClient(self.reference, access, policy=ONCE)
        try:
            async with source.open_range(blob, start, start + 1) as body:
                async for _ in body:
                    pass
        finally:
            if fresh is not None:
                with trio.CancelScope(shield=True):
                    await fresh.aclose()

    async def aclose(self) -> None:
        """Close the source if it was opened."""
        if self._source is not None:
            await self._source.aclose()
