"""``lazyfs status``: mounts and sandboxes, and the state of each."""

import json
import os
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.mounts.endpoints import state_line
from lazyfs.cli.mounts.measures import detail_lines, seconds_text, summary_lines
from lazyfs.cli.mounts.sandboxes import collect_sandboxes, describe_sandbox, is_sandbox
from lazyfs.cli.options import default_runtime_dir, json_option
from lazyfs.cli.output import print_line
from lazyfs.cli.quantities import size_text
from lazyfs.errors import NotFound
from lazyfs.mount.point import load_mountinfo
from lazyfs.service.processes.control import ServerSilent, ask
from lazyfs.service.record import (
    MountRecord,
    is_alive,
    is_stuck,
    load_records,
    remove_record,
    socket_path,
)


@click.command()
@click.argument("what", metavar="[DIRECTORY|ID]", required=False)
@click.option("--stats", "is_detailed", is_flag=True, help="Show all counters of the server.")
@json_option
def status(what: str | None, is_detailed: bool, as_json: bool) -> None:
    """Show this user's mounts and sandboxes, or only the mount on DIRECTORY or the sandbox ID.

    If a name is both the id of a sandbox and a directory, the sandbox is shown; write ./NAME for
    the directory.  If it is neither, the exit code is 3.
    """
    is_one = what is not None and is_sandbox(what)
    sandboxes = collect_sandboxes(what if is_one else None) if what is None or is_one else []
    found = [] if is_one else collect(default_runtime_dir(), what)
    if what is not None and not is_one and not found and not os.path.lexists(what):
        raise NotFound(
            f"{what} is neither a sandbox nor a directory",
            hint="`lazyfs status` lists all sandboxes and mounts",
        )
    if as_json:
        document = {"type": "mounts", "mounts": found, "sandboxes": sandboxes}
        click.echo(json.dumps(document, indent=2))
        return
    for sandbox in sandboxes:
        print_line(describe_sandbox(sandbox))
    for entry in found:
        for line in describe(entry, is_detailed=is_detailed):
            print_line(line)
    if not found and not sandboxes:
        where = "" if what is None else f" on {what}"
        print_line(f"lazyfs: nothing is mounted{where}", err=True)


def collect(runtime_dir: Path, directory: str | None = None) -> list[dict[str, Any]]:
    """Return the status of each mount; forget those whose server and mount are both gone."""
    from lazyfs.mount.point import real_path

    wanted = None if directory is None else real_path(directory)
    mounted = {entry.mountpoint for entry in load_mountinfo()}
    found = []
    for record in load_records(runtime_dir):
        if wanted is not None and record.mountpoint != wanted:
            continue
        is_mounted = record.mountpoint.encode("utf-8", "surrogateescape") in mounted
        if is_alive(record):
            found.append(_of_living(runtime_dir, record, is_mounted))
        elif is_mounted or is_stuck(record):
            found.append(_facts(record) | {"state": "dead", "mounted": is_mounted})
        else:
            remove_record(runtime_dir, record.mount_id)
    return found


def _facts(record: MountRecord) -> dict[str, Any]:
    return {
        "mountpoint": record.mountpoint,
        "mountId": record.mount_id,
        "pid": record.pid,
        "driver": record.driver,
        "started": record.started,
        "requested": record.requested,
        "resolved": record.resolved,
        "manifestDigest": record.manifest_digest,
        "platform": record.platform,
        "cacheDir": record.cache_dir,
        "log": record.log_path,
    }


def _of_living(runtime_dir: Path, record: MountRecord, is_mounted: bool) -> dict[str, Any]:
    facts = _facts(record) | {"state": "serving", "mounted": is_mounted}
    try:
        answer = ask(socket_path(runtime_dir, record.mount_id), {"type": "status"})
    except ServerSilent as error:
        return facts | {"state": "silent", "message": error.message}
    if answer.pop("type") != "status":
        return facts | {"state": "silent", "message": str(answer.get("message"))}
    if answer.get("trust"):
        answer["trust"]["policyChanged"] = has_changed(answer["trust"]["policyFiles"])
    return facts | answer


def trust_lines(trust: dict[str, Any] | None) -> list[str]:
    """Return the lines about who signed an image; none where no policy was in force."""
    if trust is None:
        return []
    signer = f", signed by {trust['signer']}" if trust.get("signer") else ""
    lines = [f"  trust      {trust['verdict']}{signer}", f"  policy     {trust['policy']}"]
    lines += [f"  warning    {text}" for text in trust.get("warnings", ())]
    if trust["policyChanged"]:
        lines.append("  policy     it has changed since: the mount stays as it was judged")
    return lines


def has_changed(files: dict[str, str]) -> bool:
    """Say whether any of these policies (path → digest) is another one by now, or gone."""
    from lazyfs.digest import digest_of
    from lazyfs.registry.config.files import read_regular
    from lazyfs.signatures.policies import POLICY_LIMIT

    for path, digest in files.items():
        try:
            if str(digest_of(read_regular(Path(path), POLICY_LIMIT))) != digest:
                return True
        except OSError:
            return True
    return False


def describe(entry: dict[str, Any], *, is_detailed: bool = False) -> list[str]:
    """Return the lines that show one mount to a person."""
    lines = [
        entry["mountpoint"],
        f"  image      {entry['requested']}",
        f"  resolved   {entry['resolved']}  ({entry['platform']})",
        f"  server     {entry['state']}, pid {entry['pid']}, since {entry['started']}",
    ]
    if "layers" in entry:
        resident = sum(layer["residentSize"] for layer in entry["layers"])
        content = sum(layer["contentSize"] for layer in entry["layers"])
        source = entry["source"]
        lines += [
            f"  layers     {len(entry['layers'])}; {size_text(resident)} of {size_text(content)} "
            "resident",
            f"  requests   {source['requests']}, {size_text(source['receivedSize'])} received, "
            f"{source['retries']} repeated, {source['errors']} failed",
            f"  health     {entry['health']}",
            *trust_lines(entry.get("trust")),
        ]
        away = entry.get("unavailable")
        if away is not None:
            patience = seconds_text(entry["patienceSeconds"])
            lines.append(f"  away       {away['reason']}; readers wait up to {patience}")
        prepared = entry.get("prepared")  # not said by a server of before an upgrade
        if prepared is not None and prepared["requests"]:
            size = size_text(prepared["receivedSize"])
            lines.append(f"  prepared   {prepared['requests']} requests, {size} received")
        lines += [f"  {line}" for line in summary_lines(entry)]
        lines += [f"  {line}" for line in detail_lines(entry) if is_detailed]
        lines += [f"  endpoint   {state_line(each)}" for each in entry["endpoints"]]
    if "keeperNote" in entry:
        keeper = entry["keeperPid"]
        found = f"pid {keeper}" if keeper else f"none: {entry['keeperNote'] or 'not started yet'}"
        count = entry["successions"]
        lines.append(f"  keeper     {found}" + (f"; server number {count + 1}" if count else ""))
    if entry["state"] == "dead":
        lines.append(f"  hint       the server has died; run lazyfs umount {entry['mountpoint']}")
    if "message" in entry:
        lines.append(f"  message    {entry['message']}")
    return lines
