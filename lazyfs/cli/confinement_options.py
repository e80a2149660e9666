"""Options that loosen a sandbox's protections or limit it, spelled as in podman and docker.

They change the template that a sandbox is started with, so that its snapshots say so too.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.documents.template import Template

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Words = dict[str, tuple[str, ...]]

OPTIONS = (
    click.option(
        "--security-opt",
        multiple=True,
        metavar="WORD",
        help="Turn a protection off: seccomp=unconfined or seccomp=FILE, "
        "no-new-privileges=false, unmask=ALL or unmask=PATH:PATH, userns=host, keyring=host.",
    ),
    click.option(
        "--cap-add",
        multiple=True,
        metavar="NAME",
        help="Give programs a capability; ALL for all of them.",
    ),
    click.option(
        "--cap-drop",
        multiple=True,
        metavar="NAME",
        help="Take a capability away; ALL for all of them.",
    ),
    click.option(
        "--device",
        multiple=True,
        metavar="/dev/NAME[:/PATH][:rwm]",
        help="Give the sandbox a device of this machine.",
    ),
    click.option("--memory", multiple=True, metavar="SIZE", help="Memory limit of the sandbox."),
    click.option("--cpus", multiple=True, metavar="NUMBER", help="Processor limit, such as 1.5."),
    click.option(
        "--pids-limit", multiple=True, metavar="N", help="Limit of processes and threads."
    ),
    click.option(
        "--storage-opt",
        multiple=True,
        metavar="size=SIZE",
        help="Limit of writes to a root in memory; not for runsc.  [default: 25% of memory]",
    ),
    click.option(
        "--log-opt",
        multiple=True,
        metavar="WORD",
        help="How much output is kept: max-size=SIZE per file, max-file=N files.  "
        "[default: max-size=10M, max-file=3]",
    ),
)
NAMES = (
    "security_opt",
    "cap_add",
    "cap_drop",
    "device",
    "memory",
    "cpus",
    "pids_limit",
    "storage_opt",
    "log_opt",
)


def confinement_options(function: Decorated) -> Decorated:
    """Add the options; the function gets what they say as *confinement*, for ``confined``."""

    @functools.wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        confinement = {name: given.pop(name) for name in NAMES}
        return function(*args, confinement=confinement, **given)

    decorated: Any = command
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def confined(template: "Template", words: Words) -> "Template":
    """Return *template* with what the options say, which goes before what it says itself.

    Raises UsageError, TemplateInvalid.
    """
    if not any(words.values()):
        return template
    from lazyfs.documents.template_reading import template_of_document

    document = template.to_document()
    security = document.setdefault("security", {})
    for name, value in _security(words["security_opt"]):
        if name == "unmask":
            security["unmask"] = [*security.get("unmask", ()), *value]
        else:
            security[name] = value
    if words["device"]:
        security["devices"] = [*security.get("devices", ()), *words["device"]]
    for container in document["containers"]:
        changes = container.setdefault("securityContext", {}).setdefault("capabilities", {})
        for key, option in (("add", "cap_add"), ("drop", "cap_drop")):
            if words[option]:
                changes[key] = [*changes.get(key, ()), *(word.upper() for word in words[option])]
    resources = document.setdefault("resources", {})
    if words["memory"]:
        resources["memory"] = words["memory"][-1]
    if words["cpus"]:
        resources["cpus"] = words["cpus"][-1]
    if words["pids_limit"]:
        resources["pids"] = _number("--pids-limit", words["pids_limit"][-1])
    for text in words["storage_opt"]:
        resources["storage"] = _value("--storage-opt", text, ("size",))[1]
    logs = document.setdefault("logs", {})
    for text in words["log_opt"]:
        name, value = _value("--log-opt", text, ("max-size", "max-file"))
        if name == "max-size":
            logs["maxSize"] = value
        else:
            logs["maxFiles"] = _number("--log-opt max-file", value)
    return template_of_document(document, what="options")


def _security(words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of ``security`` and their values."""
    for text in words:
        # docker has "no-new-privileges" alone, and a colon once.
        name, _, value = (
            text.replace(":", "=", 1).partition("=") if "=" not in text else (text.partition("="))
        )
        if name == "seccomp" and value:
            yield "seccomp", value
        elif name == "no-new-privileges" and value in ("", "true", "false"):
            yield "noNewPrivileges", value != "false"
        elif name == "unmask" and value:
            yield "unmask", ["ALL"] if value.upper() == "ALL" else value.split(":")
        elif name == "userns" and value in ("host", "private"):
            yield "userNamespace", value == "private"
        elif name == "keyring" and value in ("host", "private"):
            yield "newKeyring", value == "private"
        else:
            raise UsageError(
                f"option --security-opt: {text[:80]!r} is not known",
                hint="known are seccomp=unconfined, seccomp=FILE, no-new-privileges=false, "
                "unmask=ALL, unmask=PATH, userns=host and keyring=host",
            )


def _value(option: str, text: str, names: tuple[str, ...]) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if name not in names or not value:
        expected = " or ".join(f"{each}=…" for each in names)
        raise UsageError(f"option {option}: {text[:80]!r} is not {expected}")
    return name, value


def _number(option: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise UsageError(f"option {option}: {text[:80]!r} is not a number")
    return int(text)
