"""Clients of the fake registry, as impatient as tests need them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from lazyfs.digest import digest_of
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.retry import RetryPolicy
from lazyfs.registry.source import AccessOptions
from tests.support.registries.registry import FakeRegistry

NAME = "team/app"
MEDIA_TYPE = "application/octet-stream"

FAST = RetryPolicy(tries=4, first_seconds=0.001, longest_seconds=0.002, obeyed_seconds=0.01)
ONCE = RetryPolicy(tries=1)


def described(data: bytes) -> Descriptor:
    """Return the descriptor of *data* as a blob."""
    return Descriptor(MEDIA_TYPE, digest_of(data), len(data))


def stored(registry: FakeRegistry, data: bytes, name: str = NAME) -> Descriptor:
    """Put a blob into the fake registry, and return its descriptor."""
    registry.put_blob(name, data)
    return described(data)


@asynccontextmanager
async def connected(
    registry: FakeRegistry | str,
    name: str = NAME,
    *,
    policy: RetryPolicy = FAST,
    environment: Mapping[str, str] | None = None,
    authfile: Path | None = None,
    idle_seconds: float = 10.0,
    connect_seconds: float = 10.0,
    plain_http: bool = False,
    is_verified: bool = True,
    cert_dir: Path | None = None,
) -> AsyncIterator[RegistryClient]:
    """A client of one repository; nothing of this process's environment reaches it."""
    host = registry if isinstance(registry, str) else registry.host
    reference = parse_reference(f"{host}/{name}")
    assert isinstance(reference, Reference)
    options = AccessOptions(
        environment=environment or {},
        authfile=authfile,
        idle_seconds=idle_seconds,
        connect_seconds=connect_seconds,
        plain_http=plain_http,
        is_verified=is_verified,
        cert_dir=cert_dir,
    )
    client = RegistryClient(reference, options, policy=policy)
    try:
        yield client
    finally:
        await client.aclose()


async def read_range(
    client: RegistryClient, descriptor: Descriptor, start: int, end: int | None = None
) -> bytes:
    """Return a range of a blob, in one piece."""
    end = descriptor.size if end is None else end
    async with client.open_range(descriptor, start, end) as body:
        return b"".join([data async for data in body])
