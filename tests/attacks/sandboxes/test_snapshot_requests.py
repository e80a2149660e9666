"""A snapshot asks for more of the machine than images, files and memory: by every word it has.

Each class of request is refused by default, allowed by each of three ways (``--allow``, a policy, a
template of the restoring user's own), and never by the words for its neighbour.
"""

import json
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyfs.documents import template as templates
from lazyfs.documents.errors import NotAllowed
from lazyfs.documents.security import Logs, Security
from lazyfs.documents.template import SecretKey, Template
from lazyfs.documents.template_reading import template_of_document, template_of_image
from lazyfs.errors import UsageError
from lazyfs.snapshot import requests
from lazyfs.snapshot.clone import clone
from lazyfs.snapshot.grants import BadGrant, covers, parse_grant
from lazyfs.snapshot.restore import Order, Restored
from lazyfs.snapshot.restore_policy import Policy, load_policy
from lazyfs.snapshot.review import Wanted, requests_of, review
from tests.support.sandboxes.fake_runtime import FakeRuntime
from tests.support.sandboxes.hostile import Change, in_container, in_runtime, in_template, tamper
from tests.support.sandboxes.world import TAG, Machine, directory, machine, neighbour


class Case(msgspec.Struct, frozen=True):
    """A request: what the snapshot has in it, the words for it, and words for its neighbours.

    ``run`` are the fields of the template that the sandbox was run from, ``change`` what was done
    to the manifest afterwards.  ``shows`` says whether a restored sandbox has what was asked for.
    """

    words: str
    siblings: tuple[str, ...]
    container: dict[str, Any] = {}
    top: dict[str, Any] = {}
    change: Change | None = None
    own: dict[str, Any] = {}  # of the restoring user's template, where that is what it was run from
    shows: Callable[[Machine], bool] = lambda there: True


def spec(there: Machine, sandbox_id: str = "r1") -> dict[str, Any]:
    return json.loads((there.sandbox(sandbox_id).bundle("counter") / "config.json").read_bytes())


def has_mount(source: str, mode: str) -> Callable[[Machine], bool]:
    return lambda there: any(
        mount.get("source") == source and mode in mount["options"]
        for mount in spec(there)["mounts"]
    )


def volume(path: str, **mount: Any) -> dict[str, Any]:
    return {
        "container": {"volumeMounts": [{"name": "data", "mountPath": "/mnt"} | mount]},
        "top": {"volumes": [{"name": "data", "hostPath": {"path": path}}]},
    }


CASES = {
    "host-path-rw": Case(
        "host-path=/srv/data:rw",
        (
            *("host-path=/srv/data:ro", "host-path=/srv/data", "host-path=/srv:rw"),
            *("host-path=/srv/data/below:rw", "host-path=/srv/data2:rw", "host-path=/:rw"),
            "capability=ALL",
        ),
        **volume("/srv/data"),
        shows=has_mount("/srv/data", "rw"),
    ),
    "host-path-ro": Case(
        "host-path=/srv/data:ro",
        ("host-path=/srv:ro", "host-path=/srv/data2:ro", "host-path=/etc:rw"),
        **volume("/srv/data", readOnly=True),
        shows=has_mount("/srv/data", "ro"),
    ),
    "capability": Case(
        "capability=NET_ADMIN",
        ("capability=SYS_ADMIN", "capability=NET_RAW", "network=host"),
        container={"securityContext": {"capabilities": {"add": ["CAP_NET_ADMIN"]}}},
        shows=lambda there: "CAP_NET_ADMIN" in spec(there)["process"]["capabilities"]["bounding"],
    ),
    "all-capabilities": Case(
        "capability=ALL",
        ("capability=SYS_ADMIN", "capability=NET_ADMIN"),
        container={"securityContext": {"capabilities": {"add": ["ALL"]}}},
        shows=lambda there: "CAP_SYS_ADMIN" in spec(there)["process"]["capabilities"]["bounding"],
    ),
    "network": Case(
        "network=host",
        ("capability=NET_ADMIN", "port=80"),
        change=in_template(runtime={"network": "host"}),
    ),
    "overlay-of-a-folder": Case(
        "overlay=root:dir=/srv/over",
        ("overlay=root:dir=/srv", "overlay=all:dir=/srv/over", "overlay=all:self"),
        change=in_runtime(overlay="root:dir=/srv/over"),
        own={"runtime": {"overlay": "root:dir=/srv/over"}},
        shows=lambda there: there.plan("r1").overlay == "root:dir=/srv/over",
    ),
    "overlay-in-the-mounts": Case(
        "overlay=all:self",
        ("overlay=all:dir=/srv", "overlay=root:self"),
        change=in_runtime(overlay="all:self"),
        own={"runtime": {"overlay": "all:self"}},
        shows=lambda there: there.plan("r1").overlay == "all:self",
    ),
    "sockets-of-the-host": Case(
        "runtime-flag=--host-uds=open",
        ("runtime-flag=--host-uds=all", "runtime-flag=--host-fifo=open"),
        change=in_runtime(flags=["--host-uds=open"]),
        own={"runtime": {"flags": ["--host-uds=open"]}},
        shows=lambda there: there.plan("r1").flags == ("--host-uds=open",),
    ),
    "devices": Case(
        "runtime-flag=--nvproxy",
        ("runtime-flag=--tpuproxy", "runtime-flag=--nvproxy=true"),
        change=in_runtime(flags=["-nvproxy", "--debug"]),
        own={"runtime": {"flags": ["--nvproxy"]}},
        shows=lambda there: there.plan("r1").flags == ("-nvproxy", "--debug"),
    ),
    "secret": Case(
        "secret=db/password",
        ("secret=db/user", "secret=other/password"),
        change=in_container(
            env=[
                {
                    "name": "P",
                    "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}},
                }
            ]
        ),
        shows=lambda there: "P=swordfish" in spec(there)["process"]["env"],
    ),
}
SECRETS = {SecretKey("db", "password"): "swordfish", SecretKey("db", "user"): "u"}
WAYS = ("option", "policy", "template")
EACH = pytest.mark.parametrize("name", CASES)


def template(case: Case, *, is_own: bool = False) -> Template:
    """Return what a case's sandbox is run from; what somebody who wants that all writes himself."""
    container = {"name": "counter", "image": TAG, "command": ["/bin/counter"]} | case.container
    document = {"name": "counter", "containers": [container]} | case.top
    if is_own:
        document |= case.own
        if case.change is not None and not case.own:
            wanted = {"extensions": {"template": document}}
            case.change(wanted)
    return template_of_document(json.loads(json.dumps(document)))


def hostile(tmp_path: Path, case: Case) -> Machine:
    """Return a machine that reaches a store whose newest snapshot asks as *case* says."""
    here = machine(tmp_path)
    here.run(template=template(case))
    here.checkpoint(pointer="latest")
    if case.change is not None:
        tamper(directory(here), "latest", case.change)
    return neighbour(here, runtimes=(FakeRuntime(),))


def policy(tmp_path: Path, *words: str, **fields: str) -> Policy:
    path = tmp_path / "policy.yaml"
    rule = {"store": "*", "allow": list(words)} | fields
    path.write_text(json.dumps({"version": 1, "rules": [rule]}))
    path.chmod(0o600)
    return load_policy(path, {})


def refuse(there: Machine, **fields: Any) -> NotAllowed:
    """Restore, which must be refused before anything is done; return why."""
    with pytest.raises(NotAllowed) as told:
        there.restore("@latest", secrets=SECRETS, **fields)
    assert told.value.exit_code == 34
    assert "restore" not in there.runtime.names()
    assert there.bases.mounts == {}
    there.check_gone()
    return told.value


@EACH
def test_by_default_it_is_refused_with_the_words_that_would_allow_it(
    tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    error = refuse(hostile(tmp_path, case))
    assert case.words in error.message
    assert f"--allow {case.words}" in (error.hint or "")
    (request,) = error.details["requests"]
    assert f"{request['kind']}={request['value']}" == case.words
    assert request["field"] in error.message


@EACH
@pytest.mark.parametrize("way", WAYS)
def test_each_way_allows_it(tmp_path: Path, name: str, way: str) -> None:
    case = CASES[name]
    there = hostile(tmp_path, case)
    fields: dict[str, Any] = {
        "option": {"grants": (parse_grant(case.words, "--allow"),)},
        "policy": {"policy": policy(tmp_path, case.words)},
        "template": {"template": template(case, is_own=True)},
    }[way]
    restored: Restored = there.restore("@latest", secrets=SECRETS, **fields)
    assert case.shows(there)
    said = {each.by for each in restored.review.granted}
    if way != "template":
        (by,) = said
        assert by == "--allow" if way == "option" else "policy.yaml, rules[0]" in by
        assert any(case.words in notice and by in notice for notice in restored.notices)
    elif case.own:
        assert said == {"--template"}


@EACH
def test_the_words_for_its_neighbours_do_not(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    there = hostile(tmp_path, case)
    for words in case.siblings:
        refuse(there, grants=(parse_grant(words, "--allow"),))
        refuse(there, policy=policy(tmp_path, words))
    if case.own:  # a template that asks for less
        refuse(there, template=template(Case("", ())))


@EACH
def test_clones_are_decided_alike(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    there = hostile(tmp_path, case)

    def start(*grants: str) -> list[str]:
        wanted = Wanted("@latest", grants=tuple(parse_grant(each, "--allow") for each in grants))
        done: list[Restored] = []
        order = Order(wanted, "r", secrets=SECRETS)
        assert clone(order, ["r1", "r2"], there.restore_tools(), done.append) == []
        return sorted(each.sandbox.id for each in done)

    with pytest.raises(NotAllowed):
        start()
    assert "restore" not in there.runtime.names()
    assert not (there.folder / "clones").exists()
    assert start(case.words) == ["r1", "r2"]


@EACH
def test_a_dry_run_and_a_look_say_it(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    there = hostile(tmp_path, case)
    tools = there.restore_tools()
    with pytest.raises(NotAllowed):
        review(Wanted("@latest"), tools.snapshots, tools.bases, tools.choose, tools.host)
    found = requests_of(there.snapshots.load("@latest").manifest)
    assert [each.words for each in found] == [case.words]


def test_an_ordinary_snapshot_asks_for_nothing(tmp_path: Path) -> None:
    case = Case(
        "",
        (),
        container={
            "securityContext": {
                "runAsUser": 0,
                "supplementalGroups": [5],
                "capabilities": {"add": ["NET_RAW"], "drop": ["ALL"]},
            },
            "env": [{"name": "A", "value": "b"}],
            "volumeMounts": [{"name": "own", "mountPath": "/own"}],
            "readyz": {"httpGet": {"port": 80}},
        },
        top={"volumes": [{"name": "own", "durableDir": {}}], "hostname": "h"},
        change=in_runtime(overlay="all:memory", flags=["--directfs=false", "--debug"]),
    )
    there = hostile(tmp_path, case)
    assert there.restore("@latest").review.granted == ()


def test_a_readiness_request_to_the_machine_is_a_request(tmp_path: Path) -> None:
    case = Case(
        "",
        (),
        container={"readyz": {"httpGet": {"port": 8080}}},
        change=in_template(runtime={"network": "host"}),
    )
    there = hostile(tmp_path, case)
    error = refuse(there, grants=(parse_grant("network=host", "--allow"),))
    assert [each["value"] for each in error.details["requests"]] == ["8080"]
    refuse(there, grants=(parse_grant("port=8080", "--allow"),))
    both = tuple(parse_grant(each, "--allow") for each in ("port=8080", "network=host"))
    there.restore("@latest", grants=both)


def test_all_that_is_asked_for_is_listed_at_once(tmp_path: Path) -> None:
    case = Case(
        "",
        (),
        **volume("/etc"),
        change=in_runtime(overlay="all:self", flags=["--host-uds=all", "--debug-log=/root/x"]),
    )
    there = hostile(tmp_path, case)
    error = refuse(there)
    words = ("host-path=/etc:rw", "overlay=all:self", "runtime-flag=--host-uds=all")
    for each in (*words, "--debug-log=/root/x"):
        assert each in error.message
    # What no words allow is refused when all else is allowed.
    error = refuse(there, grants=tuple(parse_grant(each, "--allow") for each in words))
    assert [each["value"] for each in error.details["requests"]] == ["--debug-log=/root/x"]
    assert "--template" in (error.hint or "")
    assert "--allow" not in (error.hint or "")


# Paths


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    """What was allowed is the place, not the name that the snapshot has for it."""
    data, alias = tmp_path / "data", tmp_path / "alias"
    data.mkdir()
    alias.symlink_to("data")
    there = hostile(tmp_path, Case("", (), **volume(str(alias))))
    assert f"host-path={data}:rw" in refuse(there).message
    there.restore("@latest", grants=(parse_grant(f"host-path={data}:rw", "--allow"),))
    assert has_mount(str(data), "rw")(there)
    # Somebody turns the link round: the same words do not follow it.
    alias.unlink()
    alias.symlink_to("/etc")
    grant = (parse_grant(f"host-path={data}:rw", "--allow"),)
    with pytest.raises(NotAllowed, match="host-path=/etc:rw"):
        there.restore("@latest", "r2", grants=grant)


def test_an_allowed_path_that_is_a_link_is_its_target(tmp_path: Path) -> None:
    data, alias = tmp_path / "data", tmp_path / "alias"
    data.mkdir()
    alias.symlink_to("data")
    there = hostile(tmp_path, Case("", (), **volume(str(data))))
    there.restore("@latest", grants=(parse_grant(f"host-path={alias}:rw", "--allow"),))


@pytest.mark.parametrize("path", ["/srv/data/../../etc", "/srv/./data", "//etc", "/srv//data"])
def test_a_path_that_is_not_plain_is_no_template(tmp_path: Path, path: str) -> None:
    there = hostile(tmp_path, CASES["host-path-rw"])
    change = in_template(volumes=[{"name": "data", "hostPath": {"path": path}}])
    tamper(directory(there), "latest", change)
    with pytest.raises(UsageError, match="hostPath"):
        there.restore("@latest", grants=(parse_grant("host-path=/srv/data:rw", "--allow"),))
    assert "restore" not in there.runtime.names()


def test_dots_in_allowed_words_do_not_widen_them(tmp_path: Path) -> None:
    there = hostile(tmp_path, Case("", (), **volume("/etc")))
    refuse(there, grants=(parse_grant("host-path=/srv/data:rw", "--allow"),))
    there.restore("@latest", grants=(parse_grant("host-path=/srv/../etc:rw", "--allow"),))


def test_the_folder_of_an_overlay_is_what_its_links_lead_to(tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to("/etc")
    there = hostile(tmp_path, Case("", (), change=in_runtime(overlay=f"root:dir={alias}")))
    assert "overlay=root:dir=/etc" in refuse(there).message


@pytest.mark.parametrize("path", ["/\x1b[2Jx", "/a\nb", "/" + "x" * 2000, "/\u202etxt"])
def test_what_cannot_be_said_cannot_be_allowed(tmp_path: Path, path: str) -> None:
    there = hostile(tmp_path, Case("", (), **volume(path)))
    error = refuse(there)
    (request,) = error.details["requests"]
    assert request["allowable"] is False
    assert error.message.isprintable()


# Where snapshots go


def test_a_recorded_place_for_snapshots_is_not_taken_over(tmp_path: Path) -> None:
    """The next checkpoint would send the sandbox's memory there."""
    change = in_template(snapshotsConfig={"location": "s3://evil/bucket"})
    there = hostile(tmp_path, Case("", (), change=change))
    restored = there.restore("@latest")
    assert any("s3://evil/bucket" in notice for notice in restored.notices)
    assert b"evil" not in there.sandbox("r1").template_path.read_bytes()


def test_the_store_itself_may_stay_that_place(tmp_path: Path) -> None:
    there = hostile(tmp_path, Case("", ()))
    change = in_template(snapshotsConfig={"location": f"file://{there.store}/"})
    tamper(directory(there), "latest", change)
    there.restore("@latest")
    assert str(there.store).encode() in there.sandbox("r1").template_path.read_bytes()


# Nothing is left out


def parts(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Yield all parts that a part consists of."""
    for inner in typing.get_type_hints(kind).values():
        waiting = [inner]
        while waiting:
            found = waiting.pop()
            if isinstance(found, type) and issubclass(found, msgspec.Struct):
                yield found
                yield from parts(found)
            elif typing.get_origin(found) in (tuple, typing.Union, types.UnionType):
                waiting += typing.get_args(found)
            else:
                waiting += [typing.get_args(found)[0]] if typing.get_args(found) else []


def test_every_field_of_a_template_is_classified() -> None:
    """Who adds a field to templates says here what it asks of the machine."""
    known = {Template, *parts(Template)}
    assert known >= {templates.HostPath, templates.SecretKey, templates.RuntimeOptions}
    for part in known:
        fields = {field.name for field in msgspec.structs.fields(part)}
        assert fields <= set(requests.FIELDS[part.__name__]), part


def test_a_field_that_is_not_classified_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("", (), container={"securityContext": {"supplementalGroups": [0, 27]}})
    there = hostile(tmp_path, case)
    own = dict(requests.FIELDS["SecurityContext"])
    del own["supplemental_groups"]
    monkeypatch.setattr(requests, "FIELDS", dict(requests.FIELDS) | {"SecurityContext": own})
    place = "containers[0].securityContext.supplementalGroups"
    words = f"template-field={place}=[0, 27]"
    assert words in refuse(there).message
    refuse(there, grants=(parse_grant(f"template-field={place}=[0]", "--allow"),))
    there.restore("@latest", grants=(parse_grant(words, "--allow"),))


# Confinement


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Security(), []),
        (Security(seccomp="unconfined"), ["seccomp=unconfined"]),
        (Security(seccomp="/root/x.json"), ["seccomp=/root/x.json"]),
        (Security(no_new_privileges=False), ["no-new-privileges=false"]),
        (Security(user_namespace=False), ["userns=host"]),
        (Security(new_keyring=False), ["keyring=host"]),
        (Security(unmask=("ALL", "/proc/kcore")), ["unmask=/proc/kcore", "unmask=ALL"]),
        (Security(devices=("/dev/sda:/dev/x:rwm",)), ["device=/dev/sda:/dev/x:rwm"]),
        (Logs(), []),
        (Logs(max_size="1T", max_files=99), ['logs.maxSize="1T"', "logs.maxFiles=99"]),
    ],
)
def test_less_confinement_is_a_request(part: Security | Logs, words: list[str]) -> None:
    field = type(part).__name__.lower()
    template = msgspec.structs.replace(template_of_image("busybox"), **{field: part})
    found = requests.requests_of_template(template, "none")
    assert {each.words.removeprefix("template-field=") for each in found} == set(words)
    for each in found:
        grant = parse_grant(each.words, "--allow")
        assert covers(grant, each, str)
        for other in found:
            assert other is each or not covers(grant, other, str)
        assert not covers(parse_grant("host-path=/dev/sda:rw", "--allow"), each, str)


# Words that allow nothing


@pytest.mark.parametrize(
    "words",
    [
        *("", "host-path", "host-path=", "host-path=srv", "host-path=../etc", "privileged=true"),
        *("capability=", "capability=net admin", "network=none", "overlay=/x", "port=http"),
        *("secret=name", "runtime-flag=do", "runtime-flag=host-uds", "*", "all=all"),
        "host-path=/a\x1b[2J",
    ],
)
def test_words_that_allow_nothing(words: str) -> None:
    with pytest.raises(BadGrant):
        parse_grant(words, "--allow")
