"""What ``lazyfs status`` shows of sandboxes; no registry is contacted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfs.cli.options import default_runtime_dir, default_state_dir
from lazyfs.errors import LazyfsError

if TYPE_CHECKING:
    from lazyfs.documents.journal import Journal
    from lazyfs.documents.record import RecordedImage
    from lazyfs.sandbox.sandbox import Sandbox
    from lazyfs.service.witness import MountWitness

MOUNT_ID = "user.lazyfs.mount.id"
HEALTH = "user.lazyfs.health"


def sandboxes_folder() -> Path:
    """Return where the sandboxes of this user are."""
    return default_state_dir() / "sandboxes"


def is_sandbox(name: str) -> bool:
    """Say whether *name* is the id of a sandbox of this user."""
    return "/" not in name and name not in ("", ".", "..") and (sandboxes_folder() / name).is_dir()


def collect_sandboxes(sandbox_id: str | None = None) -> list[dict[str, Any]]:
    """Return each sandbox, or that one, in JSON's types.  Fields: docs/reference/json.md."""
    if not sandboxes_folder().is_dir():
        return []  # most machines: nothing more is imported
    from lazyfs.sandbox.sandbox import Sandboxes

    sandboxes = Sandboxes(sandboxes_folder())
    wanted = sandboxes.all() if sandbox_id is None else [sandboxes.open(sandbox_id)]
    return [_sandbox(each) for each in wanted]


def _sandbox(sandbox: "Sandbox") -> dict[str, Any]:
    from lazyfs.documents.record import load_record

    document: dict[str, Any] = {"id": sandbox.id, "state": None, "message": None, "containers": []}
    try:
        journal = sandbox.journal()
        record = load_record(sandbox.record_path)
    except LazyfsError as error:
        return document | {"message": error.message}
    if journal is None:
        return document | {
            "message": "the command that was starting it was killed; `lazyfs recover` cleans up"
        }
    states, why = _states(sandbox, journal)
    images = {} if record is None else {each.image.name: each for each in record.images}
    return document | {
        "state": str(journal.state),
        "message": why,
        "created": journal.created_at,
        "updated": journal.updated_at,
        "template": {"name": journal.template_name, "digest": journal.template_digest},
        "runtime": None
        if journal.runtime is None
        else {
            "name": journal.runtime.name,
            "path": journal.runtime.path,
            "version": journal.runtime.version,
        },
        "overlay": journal.overlay,
        "network": journal.network,
        "generation": journal.generation,
        "parent": None
        if journal.parent is None
        else {"id": journal.parent.id, "manifestDigest": journal.parent.manifest_digest},
        "snapshot": journal.snapshot_id,
        "store": journal.store_url,
        "error": None
        if journal.error is None
        else {"code": journal.error.code, "message": journal.error.message},
        "logs": str(sandbox.log_dir),
        "containers": [
            _container(each.name, images.get(each.name), states.get(each.name))
            for each in journal.containers
        ],
    }


def _states(sandbox: "Sandbox", journal: "Journal") -> tuple[dict[str, str], str | None]:
    """Return what the runtime says of each container, or why it cannot be asked."""
    from lazyfs.sandbox.runtimes.runtimes import Chooser
    from lazyfs.snapshot.recover import runtime_of

    try:
        runtime = runtime_of(journal, Chooser(default_state_dir()))
        if runtime is None or not journal.containers or not sandbox.state_dir.is_dir():
            return {}, None
        return {name: str(state) for name, state in runtime.states(sandbox.plan()).items()}, None
    except LazyfsError as error:
        return {}, error.message


def _container(name: str, recorded: "RecordedImage | None", state: str | None) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "state": state}
    if recorded is None:
        unknown = ("originalRef", "resolvedRef", "resolvedAt", "source", "platform", "base")
        return document | dict.fromkeys(unknown)
    from lazyfs.service.witness import MountWitness

    image = recorded.image
    return document | {
        "originalRef": image.original_ref,
        "resolvedRef": image.resolved_ref,
        "resolvedAt": image.resolved_at,
        "source": image.source,
        "platform": str(image.platform),
        "base": _base(MountWitness(default_runtime_dir()), recorded),
    }


def _base(witness: "MountWitness", recorded: "RecordedImage") -> str:
    """Return the state of the mount: ok, corrupt, dead, replaced (by another mount), gone."""
    from lazyfs.documents.errors import BaseUnresolved, DeadMount

    try:
        attributes = witness.identity(Path(recorded.mountpoint))
    except DeadMount:
        return "dead"
    except BaseUnresolved:
        return "gone"
    if attributes.get(MOUNT_ID) != recorded.mount_id:
        return "replaced"
    health = attributes.get(HEALTH, "")
    return health if health == "ok" else health.partition(" ")[0]


def describe_sandbox(sandbox: dict[str, Any]) -> str:
    """Return the lines that show one sandbox to a person."""
    lines = [f"{sandbox['id']}  {sandbox['state'] or 'unknown'}"]
    if sandbox["message"]:
        lines.append(f"  message    {sandbox['message']}")
    if sandbox.get("error"):
        lines.append(f"  error      {sandbox['error']['code']}: {sandbox['error']['message']}")
    if sandbox.get("runtime"):
        lines.append(f"  runtime    {sandbox['runtime']['name']} {sandbox['runtime']['version']}")
    if sandbox.get("parent"):
        lines.append(f"  parent     {sandbox['parent']['id']}")
    if sandbox.get("snapshot"):
        lines.append(f"  snapshot   {sandbox['snapshot']} in {sandbox['store']}")
    for each in sandbox["containers"]:
        lines.append(f"  container  {each['name']}: {each['state'] or 'absent'}")
        if each["originalRef"] is not None:
            lines += [
                f"    image    {each['originalRef']}, resolved {each['resolvedAt']}",
                f"    locked   {each['resolvedRef']}  ({each['platform']}, {each['source']})",
                f"    base     {each['base']}",
            ]
    return "\n".join(lines)
