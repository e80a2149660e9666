"""OCI runtime configs: what a container is started with, and the digest of what must stay the same.

Spec: OCI runtime-spec, config.md; image-spec, conversion.md.  Containers are started alike for all
runtimes but where rights end: without root there is no cgroup, and ids are those that were lent.
"""

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents.documents import Difference, canonical_digest, differences, quote
from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.template import Container, SecretKey, Template
from lazyfs.sandbox.specs.confinement import (
    ALL_IDS,
    confinement_of,
    device_mounts,
    device_rules,
    has_own_kernel,
    wants_user_namespace,
)
from lazyfs.sandbox.specs.environment import environment_of
from lazyfs.sandbox.specs.spec_parts import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    default_mounts,
)
from lazyfs.sandbox.specs.users import Lookup, User, find_user

OCI_VERSION = "1.0.2"
CRI = "io.kubernetes.cri."
GVISOR = "dev.gvisor."
# What a container writes to: a checkpoint has that in it, so that a restore needs the same.
OUTPUT = "lazyfs.output"
PIPE = "pipe"
# What session keyring a program starts with, where it is not a new one; of crun, runc and bwrap.
KEYRING = "lazyfs.keyring"
HOST = "host"
# Annotations that may differ between a checkpoint and its restore.
SANDBOX_ID = f"{CRI}sandbox-id"
FREE_ENDINGS = (".source",)
FREE_PREFIXES = (f"{GVISOR}internal.", f"{GVISOR}debug.")
OPEN_FILES = (1024, 4096)  # soft and hard; no more than what any user may have


class Rootless(msgspec.Struct, frozen=True):
    """Who runs the sandbox without being root, and the ids lent to that user: (first, count)."""

    uid: int
    gid: int
    lent_uids: tuple[tuple[int, int], ...] = ()
    lent_gids: tuple[tuple[int, int], ...] = ()


def build_spec(
    container: Container,
    image_config: Mapping[str, Any],
    template: Template,
    *,
    is_root: bool,
    sandbox_id: str,
    runtime_name: str = "runsc",
    lookup: Lookup = lambda path: None,
    secrets: Mapping[SecretKey, str] | None = None,
    volumes: Mapping[str, Path] | None = None,
    rootless: Rootless | None = None,
    network: str = "none",
    resolv_conf: Path | None = None,
) -> dict[str, Any]:
    """Return the config.json of a container.

    *image_config* is the config document; *lookup* returns a file of the image; *sandbox_id*
    is the root container's id; *volumes* says where the durable ones are; *network* is "none",
    "sandbox" (a namespace of its own both) or "host".  Raises TemplateInvalid.
    """
    image = _config(container, image_config)
    user = _user(container, image, lookup)
    what = f"containers.{container.name}"
    is_confined = not has_own_kernel(runtime_name)
    opened = template.security
    is_mapped = wants_user_namespace(opened, runtime_name, is_rootless=rootless is not None)
    mounts = default_mounts(
        is_rootless=rootless is not None,
        is_host_network=network == "host",
        has_user_namespace=is_mapped,
    )
    mounts += _volume_mounts(container, template, volumes or {})
    if resolv_conf is not None and network != "none":
        mounts.append(_bind("/etc/resolv.conf", resolv_conf, is_read_only=True))
    mounts += device_mounts(opened, runtime_name, is_rootless=rootless is not None)
    if is_confined:
        _forbid_devices(mounts)
    linux: dict[str, Any] = {"namespaces": _namespaces(rootless, runtime_name, network)}
    if rootless is not None and is_confined:
        linux |= _mappings(rootless, user, what)
    elif is_mapped:
        linux["namespaces"].append({"type": "user"})
        linux |= {"uidMappings": [ALL_IDS], "gidMappings": [ALL_IDS]}
    capabilities = _capabilities(container, user, what)
    linux |= confinement_of(opened, capabilities["bounding"], runtime_name)
    if is_confined and (rules := device_rules(opened)):
        linux["resources"] = {"devices": rules}
    security = container.security_context
    variables = environment_of(
        container, _words(image, "Env"), {} if secrets is None else secrets, user.home
    )
    soft, hard = OPEN_FILES
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": _user_document(user),
            "args": command_of(container, image),
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": _directory(container, image),
            "capabilities": capabilities,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}],
            "noNewPrivileges": opened.no_new_privileges,
        },
        "root": {"path": "rootfs", "readonly": security.read_only_root_filesystem},
        "hostname": template.hostname or _hostname(sandbox_id),
        "mounts": mounts,
        "linux": linux,
    }
    if not is_confined:
        spec["annotations"] = {OUTPUT: PIPE}
    elif not opened.new_keyring:
        spec["annotations"] = {KEYRING: HOST}
    if template.pause_image is not None:
        spec["annotations"] = spec.get("annotations", {}) | {
            f"{CRI}container-type": "sandbox" if is_root else "container",
            f"{CRI}container-name": container.name,
            SANDBOX_ID: sandbox_id,
        }
    return spec


def _config(container: Container, image_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the image says of how it is run."""
    found = image_config.get("config") or {}
    if not isinstance(found, dict):
        raise TemplateInvalid(
            f"image of {container.name}: config must be an object, not {quote(found)}"
        )
    return found


def command_of(container: Container, image: Mapping[str, Any]) -> list[str]:
    """Return what to run: *command* replaces the image's entrypoint and arguments, *args* these."""
    if container.command:
        words = [*container.command, *container.args]
    else:
        words = _words(image, "Entrypoint") + list(container.args or _words(image, "Cmd"))
    if not words or not words[0]:
        raise TemplateInvalid(
            f"containers.{container.name}.command: missing, and the image has no command either"
        )
    return words


def spec_facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config.json must be the same at a restore, sorted; no values of variables.

    Facts of facts are the same facts.
    """
    if "process" not in spec:
        return dict(spec)
    process, linux = spec["process"], spec.get("linux") or {}
    capabilities = process.get("capabilities") or {}
    facts = {
        "args": list(process.get("args") or ()),
        "cwd": process.get("cwd", "/"),
        "user": process.get("user") or {},
        "capabilities": {kind: sorted(names or ()) for kind, names in capabilities.items()},
        "rlimits": sorted(process.get("rlimits") or (), key=lambda limit: str(limit["type"])),
        "readOnlyRoot": bool((spec.get("root") or {}).get("readonly")),
        "mounts": sorted(
            (
                {
                    "name": mount["destination"],
                    "type": mount.get("type", ""),
                    "options": sorted(mount.get("options") or ()),
                }
                for mount in spec.get("mounts") or ()
            ),
            key=lambda mount: str(mount["name"]),
        ),
        "devices": sorted(linux.get("devices") or (), key=lambda device: str(device["path"])),
        "namespaces": sorted(each["type"] for each in linux.get("namespaces") or ()),
        "annotations": {
            name: value
            for name, value in (spec.get("annotations") or {}).items()
            if (name.startswith((CRI, GVISOR)) or name == OUTPUT)
            and name != SANDBOX_ID
            and not name.startswith(FREE_PREFIXES)
            and not name.endswith(FREE_ENDINGS)
        },
    }
    if process.get("noNewPrivileges"):  # facts without it are of sandboxes that had it not
        facts["noNewPrivileges"] = True
    return facts


def start_as_before(spec: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Have *spec* say what was not chosen by anybody as *facts* do, those of the checkpoint.

    What was started by a release that did not close this goes on as it was: its programs run
    already, and runtimes compare.
    """
    spec["process"]["noNewPrivileges"] = bool(facts.get("noNewPrivileges"))
    if OUTPUT not in (facts.get("annotations") or {}):
        annotations = spec.pop("annotations", None) or {}
        annotations.pop(OUTPUT, None)
        if annotations:
            spec["annotations"] = annotations


def writes_pipe(spec: Mapping[str, Any]) -> bool:
    """Say whether a container of this config writes its output into a pipe."""
    annotations = spec.get("annotations")
    return isinstance(annotations, dict) and annotations.get(OUTPUT) == PIPE


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return the digest of what must be the same at a restore."""
    return canonical_digest(spec_facts(spec))


def diff_specs(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return what differs of two specs, or of the facts of them: "args[1]", "mounts[/data]"."""
    return tuple(differences(spec_facts(was), spec_facts(now)))


def _user(container: Container, image: Mapping[str, Any], lookup: Lookup) -> User:
    security = container.security_context
    text = image.get("User") or ""
    what = f"image of {container.name}: User"
    if container.user is not None:
        text, what = container.user, f"containers.{container.name}.user"
    elif security.run_as_user is not None:
        group = "" if security.run_as_group is None else f":{security.run_as_group}"
        text, what = f"{security.run_as_user}{group}", f"containers.{container.name}.runAsUser"
    if not isinstance(text, str):
        raise TemplateInvalid(f"{what}: must be text, not {text!r}")
    user = find_user(text, lookup, what)
    groups = sorted({*user.groups, *security.supplemental_groups} - {user.gid})
    return User(user.uid, user.gid, tuple(groups), user.home)


def _user_document(user: User) -> dict[str, Any]:
    document: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    return document | ({"additionalGids": list(user.groups)} if user.groups else {})


def _directory(container: Container, image: Mapping[str, Any]) -> str:
    directory = container.working_dir or image.get("WorkingDir") or "/"
    if not isinstance(directory, str) or "\0" in directory:
        raise TemplateInvalid(
            f"image of {container.name}: WorkingDir: must be a path, not {directory!r}"
        )
    return posixpath.normpath(posixpath.join("/", directory.lstrip("/")))


def _capabilities(container: Container, user: User, what: str) -> dict[str, list[str]]:
    """Return the sets; a process that is not root has what a program file gives it only."""
    changes = container.security_context.capabilities
    names = set(DEFAULT_CAPABILITIES)
    for field, words in (("drop", changes.drop), ("add", changes.add)):
        for word in words:
            name = "CAP_" + word.removeprefix("CAP_")
            if name != "CAP_ALL" and name not in ALL_CAPABILITIES:
                raise TemplateInvalid(
                    f"{what}.securityContext.capabilities.{field}: {word!r} is not a capability "
                    "of Linux"
                )
            chosen = set(ALL_CAPABILITIES) if name == "CAP_ALL" else {name}
            names = names - chosen if field == "drop" else names | chosen
    bounding = sorted(names)
    own = bounding if user.uid == 0 else []
    return {"bounding": bounding, "effective": own, "permitted": own, "inheritable": []}


def _namespaces(rootless: Rootless | None, runtime_name: str, network: str) -> list[dict[str, str]]:
    kinds = ["pid", "ipc", "uts", "mount"]
    if network != "host":
        kinds.append("network")
    if rootless is not None and runtime_name != "runsc":
        kinds.append("user")
    return [{"type": kind} for kind in kinds]


def _mappings(rootless: Rootless, user: User, what: str) -> dict[str, Any]:
    """Return the maps of ids: root is who runs it, others are those that were lent."""
    maps = {}
    needed = (("uidMappings", {user.uid}), ("gidMappings", {user.gid, *user.groups}))
    for (key, ids), own, lent in zip(
        needed,
        (rootless.uid, rootless.gid),
        (rootless.lent_uids, rootless.lent_gids),
        strict=True,
    ):
        mapped = [{"containerID": 0, "hostID": own, "size": 1}]
        following = 1
        for first, count in lent:
            mapped.append({"containerID": following, "hostID": first, "size": count})
            following += count
        if too_high := sorted(number for number in ids if number >= following):
            raise TemplateInvalid(
                f"{what}: user: id {too_high[0]} is not available without root; it must be below"
                f" {following}",
                hint="/etc/subuid and /etc/subgid give more ids to a user",
            )
        maps[key] = mapped
    return maps


def _volume_mounts(
    container: Container, template: Template, durable: Mapping[str, Path]
) -> list[dict[str, Any]]:
    mounts = []
    for mount in container.volume_mounts:
        volume = next(each for each in template.volumes if each.name == mount.name)
        if volume.host_path is not None:
            source = Path(volume.host_path.path)
        elif volume.name in durable:
            source = durable[volume.name]
        else:
            raise TemplateInvalid(
                f"volumes.{volume.name}: a durable directory is not possible here"
            )
        mounts.append(_bind(mount.mount_path, source, is_read_only=mount.read_only))
    return mounts


def _bind(destination: str, source: Path, *, is_read_only: bool) -> dict[str, Any]:
    options = ["rbind", "ro" if is_read_only else "rw"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}


def _forbid_devices(mounts: Sequence[dict[str, Any]]) -> None:
    """Have no device be opened by what is shown of this machine, but those that are lent.

    "rnodev" is for all that is mounted below, too; crun ignores "nodev" in a user namespace.
    """
    for mount in mounts:
        options = mount["options"]
        if mount["type"] == "bind" and "dev" not in options:
            options += ["nodev", "rnodev"]


def _words(image: Mapping[str, Any], key: str) -> list[str]:
    words: Sequence[Any] = image.get(key) or ()
    if not isinstance(words, list | tuple) or not all(
        isinstance(word, str) and "\0" not in word for word in words
    ):
        raise TemplateInvalid(f"image config: {key}: must be a list of text, not {words!r:.80}")
    return list(words)


def _hostname(sandbox_id: str) -> str:
    name = "".join(letter if letter.isalnum() else "-" for letter in sandbox_id)[:63].strip("-")
    return name or "sandbox"
