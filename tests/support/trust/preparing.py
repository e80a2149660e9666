"""Images prepared under a policy, from a registry on loopback."""

from pathlib import Path

from msgspec.structs import replace

from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.registry.source import AccessOptions
from lazyfs.trust.options import TrustOptions
from tests.support.registries.registry import FakeRegistry

NAME = "team/app"
ACCESS = AccessOptions(connect_seconds=5, idle_seconds=5)


def options(policy: Path, **more: object) -> AccessOptions:
    return replace(ACCESS, trust=TrustOptions(policy=str(policy), **more))


async def mounted(
    registry: FakeRegistry, folder: Path, access: AccessOptions, name: str = "single"
) -> Prepared:
    reference = f"{registry.host}/{NAME}{name if name.startswith('@') else f':{name}'}"
    return await prepare(Request(reference, None, folder / "cache", access))


def scope(registry: FakeRegistry) -> str:
    return f"{registry.host}/{NAME}"
