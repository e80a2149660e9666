"""What the restoring user allows a snapshot: ``--allow KIND=VALUE``, a policy's rules, a template.

A grant covers exactly the path, capability or word that it names, and no other; of
host paths "rw" covers "ro".  Paths are compared as they are found on this machine, symbolic links
resolved (*resolve*), and the resolved path is what is mounted then.  Pure but for *resolve*.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from shlex import quote as shell_quote

import msgspec

from lazyfs.documents.documents import quote
from lazyfs.documents.errors import NotAllowed
from lazyfs.documents.template import Template
from lazyfs.errors import UsageError
from lazyfs.printable import printable
from lazyfs.snapshot.requests import (
    CAPABILITY,
    DEVICE,
    DIR,
    FIELD,
    FLAG,
    HOST_PATH,
    KEYRING,
    KINDS,
    NETWORK,
    OVERLAY,
    PORT,
    PRIVILEGES,
    SECCOMP,
    SECRET,
    UNMASK,
    USERNS,
    Request,
)

Resolve = Callable[[str], str]
LONG = 200  # characters of what cannot be allowed
SHOWN = 100  # requests in a message; all of them are in its details
MODE_RE = re.compile(r"(/.*):(ro|rw)", re.DOTALL)
OVERLAY_RE = re.compile(r"(root|all):(memory|self|dir=/[^,:]*)")
# Kind → what its value must look like, and that in words.
VALUES = {
    HOST_PATH: (r"/.*", "PATH, PATH:ro or PATH:rw, with an absolute PATH"),
    CAPABILITY: (r"(CAP_)?[A-Z_]+", "a capability like NET_ADMIN"),
    NETWORK: (r"host", "host"),
    OVERLAY: (OVERLAY_RE.pattern, "an overlay like root:dir=/PATH or all:self"),
    FLAG: (r"--[A-Za-z].*", "an option like --host-uds=open"),
    SECRET: (r".+/.+", "NAME/KEY"),
    PORT: (r"[0-9]{1,5}", "a number"),
    DEVICE: (r"/dev/.+", "/dev/NAME, with what follows it in the refusal"),
    SECCOMP: (r"unconfined|/.+", "unconfined, or the path of a profile"),
    PRIVILEGES: (r"false", "false"),
    USERNS: (r"host", "host"),
    KEYRING: (r"host", "host"),
    UNMASK: (r"ALL|/.+", "ALL or a path"),
    FIELD: (r"[^=]+=.*", "PLACE=VALUE, as written in the refusal"),
}


class BadGrant(UsageError):
    """Words that allow nothing, because nobody can tell what they mean."""

    code = "E_ALLOW"


class Grant(msgspec.Struct, frozen=True):
    """Something that is allowed, ``by`` whose word: --allow, a policy's rule, --template."""

    kind: str
    value: str
    by: str


class Granted(msgspec.Struct, frozen=True):
    """A request that somebody allows."""

    request: Request
    by: str

    def __str__(self) -> str:
        return f"{self.request.words} ({self.request.place}): allowed by {self.by}"


def parse_grant(text: str, by: str) -> Grant:
    """Return what ``KIND=VALUE`` allows.  Raises BadGrant."""
    kind, equals, value = text.partition("=")
    if kind not in KINDS or not equals:
        raise BadGrant(
            f"{by}: must be KIND=VALUE, not {quote(text)}; the kinds are {', '.join(KINDS)}",
            hint="for example --allow host-path=/srv/data:ro or --allow capability=NET_ADMIN",
        )
    pattern, meaning = VALUES[kind]
    if re.fullmatch(pattern, value, re.DOTALL) is None or not value.isprintable():
        raise BadGrant(f"{by}: {kind}: must be {meaning}, not {quote(value)}")
    if kind == CAPABILITY:
        value = value.removeprefix("CAP_")
    elif kind == HOST_PATH:
        match = MODE_RE.fullmatch(value)
        path, mode = (value, "ro") if match is None else (match[1], match[2])
        value = f"{posixpath.normpath(path)}:{mode}"
    return Grant(kind, value, by)


def grants_of(requests: Iterable[Request], by: str) -> tuple[Grant, ...]:
    """Return what somebody allows who asks for the same himself."""
    return tuple(Grant(each.kind, each.value, by) for each in requests)


def covers(grant: Grant, request: Request, resolve: Resolve) -> bool:
    """Say whether *grant* allows *request*, whose paths are resolved by now."""
    if grant.kind != request.kind:
        return False
    if grant.kind == HOST_PATH:
        path, _, mode = grant.value.rpartition(":")
        wanted, _, wanted_mode = request.value.rpartition(":")
        return resolve(path) == wanted and (mode == wanted_mode or mode == "rw")
    if grant.kind == CAPABILITY:
        return grant.value in (request.value, "ALL")
    if grant.kind == OVERLAY:
        return resolved_overlay(grant.value, resolve) == request.value
    return grant.value == request.value


def decide(
    what: str,
    requests: Sequence[Request],
    own: Sequence[Grant],
    others: Callable[[], Sequence[Grant]],
    resolve: Resolve,
) -> tuple[Granted, ...]:
    """Return who allows each of *requests*; raise NotAllowed where nobody does.

    *own* are the grants of the command line, *others* finds those of policies: it is asked only
    where *own* do not suffice.  What is in no list of ours only the restoring user's own template
    can say (``by`` is "--template" then).
    """
    granted, missing = [], []
    more: Sequence[Grant] | None = None
    for request in requests:
        found = _who(own, request, resolve)
        if found is None and request.is_allowable:
            more = others() if more is None else more
            found = _who(more, request, resolve)
        if found is None:
            missing.append(request)
        else:
            granted.append(Granted(request, found.by))
    if missing:
        raise refusal(what, missing)
    return tuple(granted)


OWN_TEMPLATE = "--template"


def _who(grants: Sequence[Grant], request: Request, resolve: Resolve) -> Grant | None:
    return next(
        (
            each
            for each in grants
            if covers(each, request, resolve) and (request.is_allowable or each.by == OWN_TEMPLATE)
        ),
        None,
    )


def refusal(what: str, requests: Sequence[Request]) -> NotAllowed:
    """Return the error that lists all that was asked for, and the words that would allow it."""
    said = [_told(each) for each in requests if each.is_allowable]
    never = [_told(each) for each in requests if not each.is_allowable]
    parts = [_listed(said)] if said else []
    if never:
        parts.append(f"and what no option can allow: {_listed(never)}" if said else _listed(never))
    hint = "only a template of your own can ask for that: --template FILE"
    if said:
        words = [f"--allow {shell_quote(each.words)}" for each in requests if each.is_allowable]
        hint = (
            f"allow it with {' '.join(words[:SHOWN])}, with a rule in a restore policy, or with a "
            "template of your own (--template FILE)"
        )
        if never:
            hint += "; what no option can allow needs such a template"
    return NotAllowed(
        f"{what} asks for more of this machine than images, files and memory: {', '.join(parts)}",
        hint=hint,
        details={"requests": [document_of_request(each) for each in requests]},
    )


def _told(request: Request) -> str:
    words = request.words if request.is_allowable else printable(request.words, LONG)
    return f"{words} ({request.place})"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def document_of_request(request: Request) -> dict[str, str | bool]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "kind": request.kind,
        "value": request.value,
        "field": request.place,
        "allowable": request.is_allowable,
    }


def resolved_template(template: Template, resolve: Resolve) -> Template:
    """Return *template* with its host paths as they are on this machine."""
    volumes = tuple(
        volume
        if volume.host_path is None
        else msgspec.structs.replace(
            volume,
            host_path=msgspec.structs.replace(
                volume.host_path, path=resolve(volume.host_path.path)
            ),
        )
        for volume in template.volumes
    )
    return msgspec.structs.replace(template, volumes=volumes)


def resolved_overlay(overlay: str, resolve: Resolve) -> str:
    """Return *overlay* with its folder, if it names one, as that is on this machine."""
    kind, found, path = overlay.partition(DIR)
    return f"{kind}{DIR}{resolve(path)}" if found else overlay
