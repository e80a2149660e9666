"""What a template must keep beyond the shapes of its fields.

Each rule yields what is wrong as "PLACE: must be …, not …" or the like.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator

from lazyfs.documents.documents import quote
from lazyfs.documents.template import PAUSE, Container, Template
from lazyfs.oci.platforms import BadPlatform, parse_platform
from lazyfs.oci.reference import BadReference, parse_reference

RESERVED = (PAUSE, "_pause")
REFERENCE_LIMIT = 512  # characters; what a manifest can keep
LOCATION_RE = re.compile(r"(s3://|file:///|/)[^\s?#]*")


def reference_fault(text: str) -> str | None:
    """Say what is wrong with a reference; credentials in it are not repeated."""
    _, at, behind = text.partition("@")
    if at and not text.startswith("oci:") and not behind.startswith(("sha256:", "sha512:")):
        if "/" in behind:
            return "must be HOST[:PORT]/NAME without credentials before '@' (not shown)"
        return f"must have a digest (sha256:…) after '@', not {quote(behind)}"
    if len(text) > REFERENCE_LIMIT:
        return f"must have at most {REFERENCE_LIMIT} characters, not {len(text)}"
    try:
        parse_reference(text)
    except BadReference as exc:
        return exc.message if exc.hint is None else f"{exc.message} ({exc.hint})"
    return None


def faults(template: Template) -> Iterator[str]:
    """Yield what breaks a rule."""
    for rule in RULES:
        yield from rule(template)


def _images(template: Template) -> Iterator[str]:
    """Images are references; several containers need somebody to stand for the sandbox."""
    if template.pause_image is not None and (fault := reference_fault(template.pause_image)):
        yield f"pauseImage: {fault}"
    for place, container in _containers(template):
        if fault := reference_fault(container.image):
            yield f"{place}.image: {fault}"
    if template.pause_image is None and len(template.containers) > 1:
        yield (f"pauseImage: missing; it is needed for {len(template.containers)} containers")


def _names(template: Template) -> Iterator[str]:
    """Names are unique, and those of the pause container are taken."""
    for place, container in _containers(template):
        if container.name in RESERVED:
            yield (f"{place}.name: {quote(container.name)} is reserved for the pause image")
    yield from _twice("containers", "name", [each.name for each in template.containers])
    yield from _twice("volumes", "name", [each.name for each in template.volumes])


def _environment(template: Template) -> Iterator[str]:
    """A variable has a value or a place where it is."""
    for place, container in _containers(template):
        for number, variable in enumerate(container.env):
            if (variable.value is None) == (variable.value_from is None):
                got = "neither" if variable.value is None else "both"
                yield f"{place}.env[{number}]: must have one of value and valueFrom; it has {got}"
        yield from _twice(f"{place}.env", "name", [each.name for each in container.env])


def _users(template: Template) -> Iterator[str]:
    """The user is given in one way."""
    for place, container in _containers(template):
        security = container.security_context
        if container.user is not None and (
            security.run_as_user is not None or security.run_as_group is not None
        ):
            yield f"{place}.user: cannot be {quote(container.user)} when runAsUser is set too"
        if container.user == "":
            yield f'{place}.user: must be a name or a number, not ""'
        if security.run_as_group is not None and security.run_as_user is None:
            yield (
                f"{place}.securityContext.runAsGroup: {security.run_as_group} is set without"
                " runAsUser"
            )


def _volumes(template: Template) -> Iterator[str]:
    """A volume is of one kind; there is at most one durable directory."""
    for place, volume in enumerate(template.volumes):
        if (volume.durable_dir is None) == (volume.host_path is None):
            got = "neither" if volume.durable_dir is None else "both"
            yield f"volumes[{place}]: must have one of durableDir and hostPath; it has {got}"
        if volume.host_path is not None and not _is_plain(volume.host_path.path):
            yield (
                f"volumes[{place}].hostPath.path: must be"
                f" {quote(posixpath.normpath(volume.host_path.path))},"
                f" not {quote(volume.host_path.path)}"
            )
    durable = [each.name for each in template.volumes if each.durable_dir is not None]
    if len(durable) > 1:
        yield f"volumes: {len(durable)} have durableDir ({', '.join(durable)}); at most one may"


def _mounts(template: Template) -> Iterator[str]:
    """What is mounted exists, on places of their own; a durable directory once a container."""
    durable = {each.name for each in template.volumes if each.durable_dir is not None}
    known = [each.name for each in template.volumes]
    for place, container in _containers(template):
        for number, mount in enumerate(container.volume_mounts):
            where = f"{place}.volumeMounts[{number}]"
            if mount.name not in known:
                yield (
                    f"{where}.name: there is no volume {quote(mount.name)};"
                    f" volumes: {', '.join(known) or 'none'}"
                )
            if mount.mount_path == "/" or not _is_plain(mount.mount_path):
                yield f"{where}.mountPath: must be a plain path, not {quote(mount.mount_path)}"
        mounts = container.volume_mounts
        yield from _twice(f"{place}.volumeMounts", "mountPath", [m.mount_path for m in mounts])
        mounted = [each.name for each in mounts if each.name in durable]
        yield from _twice(f"{place}.volumeMounts", "durable volume", mounted)


def _snapshots(template: Template) -> Iterator[str]:
    """The location is a directory or a bucket; a commit keeps no more than a pause."""
    config = template.snapshots_config
    if config.location is not None:
        if "@" in config.location.partition("://")[2].partition("/")[0]:
            yield "snapshotsConfig.location: must have no credentials (not shown)"
        elif not LOCATION_RE.fullmatch(config.location):
            yield (
                "snapshotsConfig.location: must be /PATH, file:///PATH or s3://BUCKET/PREFIX,"
                f" not {quote(config.location)}"
            )
    if config.on_pause == "Data" and config.on_commit == "Full":
        yield 'snapshotsConfig.onCommit: must be "Data" where onPause is "Data", not "Full"'


def _platform(template: Template) -> Iterator[str]:
    """The platform is one."""
    if template.platform is not None:
        try:
            parse_platform(template.platform)
        except BadPlatform as exc:
            yield f"platform: {exc.message}"


RULES = (_images, _names, _environment, _users, _volumes, _mounts, _snapshots, _platform)


def _containers(template: Template) -> Iterator[tuple[str, Container]]:
    return ((f"containers[{place}]", each) for place, each in enumerate(template.containers))


def _is_plain(path: str) -> bool:
    """Say whether a path has no "..", "." or doubled slash in it."""
    return posixpath.normpath(path) == path and not path.startswith("//")


def _twice(place: str, field: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{place}: the {field} {quote(name)} appears more than once"
