"""What a tag meant the last time, for when its registry cannot be asked."""

import logging

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, Unavailable
from lazyfs.fetch.origins.origin import Offline
from lazyfs.image.known import spell
from lazyfs.oci.platforms import Platform
from lazyfs.oci.reference import LayoutReference, Reference
from lazyfs.store.names import load_names
from lazyfs.store.paths import Store

log = logging.getLogger(__name__)


def last_known(
    store: Store, reference: Reference | LayoutReference, platform: Platform
) -> Digest | None:
    """Return the digest that a tag was last resolved to: of the index, if it was one."""
    name = spell(reference)
    records = [record for record in load_names(store) if record.name == name]
    exact = [record for record in records if record.platform == str(platform)]
    # An image of one platform is served to others too; which of several it was is not known.
    digests = {record.index_digest or record.manifest_digest for record in exact or records}
    if len(digests) != 1:
        return None
    try:
        return parse_digest(digests.pop())
    except FormatError:
        return None


def resolve_offline(store: Store, reference: Reference, platform: Platform) -> Digest:
    """Return what a tag meant the last time, and say so; raise Offline if that is not known."""
    digest = last_known(store, reference, platform)
    if digest is None:
        raise Offline(
            f"{reference.name}:{reference.tag} was not resolved here before for {platform}, and "
            "--offline asks no registry",
            hint="an image in the cache can also be named by its digest",
        )
    log.warning("offline: %s:%s is %s, the digest last seen", reference.name, reference.tag, digest)
    return digest


def with_hint(error: Unavailable, known: Digest | None) -> Unavailable:
    """Return *error*, which met a tag, with the way on if there is one."""
    if known is None:
        return error
    hint = f"--offline uses the digest last seen: {known}"
    return type(error)(error.message, hint=f"{error.hint}; {hint}" if error.hint else hint)
