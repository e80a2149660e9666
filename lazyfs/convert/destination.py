"""Where an image, or something beside one, is pushed to."""

from lazyfs.fetch.origins.origin import Offline
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.registry.source import AccessOptions, Destination


def open_destination(
    target: Reference | LayoutReference, access: AccessOptions, *, create: bool
) -> Destination:
    """Open what *target* names; *create*: a layout that is not there is made.

    Raises Offline where no registry may be asked.
    """
    if isinstance(target, LayoutReference):
        from lazyfs.registry.layout import ImageLayout  # noqa: PLC0415

        return ImageLayout(target.path, create=create)
    if access.is_offline:
        raise Offline(f"cannot push to {target.name} with --offline")
    from lazyfs.registry.client import RegistryClient  # noqa: PLC0415

    return RegistryClient(target, access)
