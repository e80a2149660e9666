"""OCI configs of containers: what image and template say, and what must stay the same."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.errors import TemplateInvalid, Unsupported
from lazyfs.documents.template import SecretKey, Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.sandbox.specs.environment import DEFAULT_PATH, Secrets, load_secrets
from lazyfs.sandbox.specs.spec import (
    HOST,
    KEYRING,
    OUTPUT,
    PIPE,
    Rootless,
    build_spec,
    diff_specs,
    spec_digest,
    spec_facts,
    start_as_before,
    writes_pipe,
)
from lazyfs.sandbox.specs.spec_parts import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from lazyfs.sandbox.specs.users import User, find_user

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# a comment
short:x:1
\xff\xfe:x:1:1::/:
app:x:1000:1001:App:/home/app:/bin/sh
odd:x:12x:1::/:
far:x:70000:70000::/far:
"""
GROUP = b"root:x:0:\napp:x:1001:\nwheel:x:10:app,root\nstaff:x:50:app\nbad:x:y:app\nshort\n"
FILES = {"/etc/passwd": PASSWD, "/etc/group": GROUP}
IMAGE = {
    "os": "linux",
    "config": {
        "Entrypoint": ["/entry"],
        "Cmd": ["serve"],
        "Env": ["PATH=/image/bin", "LANG=C", "NOVALUE", "=x", "A=image"],
        "WorkingDir": "/srv/app/",
        "User": "app",
        "ExposedPorts": {"80/tcp": {}},
    },
}
Change = Callable[[dict[str, Any]], object]


def template_of(**container: Any) -> Template:
    return template_of_document({"containers": [{"name": "web", "image": "busybox"} | container]})


def spec_of(
    template: Template | None = None, image: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    template = template or template_of()
    options = {"is_root": True, "sandbox_id": "box", "lookup": FILES.get} | options
    return build_spec(template.containers[0], image or IMAGE, template, **options)


def env_of(spec: dict[str, Any]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in spec["process"]["env"])


# What runs


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["/entry", "serve"]),
        ([], ["go"], ["/entry", "go"]),
        (["sh"], [], ["sh"]),
        (["sh"], ["-c", "x"], ["sh", "-c", "x"]),
    ],
)
def test_command_and_args_replace_the_images(
    command: list[str], args: list[str], expected: list[str]
) -> None:
    spec = spec_of(template_of(command=command, args=args))
    assert spec["process"]["args"] == expected


def test_an_image_without_a_command() -> None:
    assert spec_of(image={"config": {"Cmd": ["x"]}})["process"]["args"] == ["x"]
    for config in ({}, {"config": None}, {"config": {"Cmd": None}}, {"config": {"Cmd": [""]}}):
        with pytest.raises(TemplateInvalid, match=r"containers.web.command: missing"):
            spec_of(image=config or {"x": 1})


def test_the_environment_in_its_order() -> None:
    env = [{"name": "A", "value": "template"}, {"name": "B", "value": "a=b"}]
    assert env_of(spec_of(template_of(env=env))) == {
        "PATH": "/image/bin",
        "HOME": "/home/app",
        "LANG": "C",
        "A": "template",
        "B": "a=b",
    }
    bare = env_of(spec_of(image={"config": {"Cmd": ["x"]}}))
    assert bare == {"PATH": DEFAULT_PATH, "HOME": "/root"}


def test_the_working_directory() -> None:
    assert spec_of()["process"]["cwd"] == "/srv/app"
    assert spec_of(template_of(workingDir="/x"))["process"]["cwd"] == "/x"
    for given_, expected in (("", "/"), ("srv", "/srv"), ("//a/../b", "/b"), ("/../..", "/")):
        image = {"config": {"Cmd": ["x"], "WorkingDir": given_}}
        assert spec_of(image=image)["process"]["cwd"] == expected


@pytest.mark.parametrize(
    "config",
    [
        {"Cmd": "sh"},
        {"Cmd": [1]},
        {"Cmd": ["a\0b"]},
        {"Cmd": ["x"], "Env": {"A": "b"}},
        {"Cmd": ["x"], "Env": [None]},
        {"Cmd": ["x"], "WorkingDir": 3},
        {"Cmd": ["x"], "WorkingDir": "/\0"},
        {"Cmd": ["x"], "User": 1000},
        {"Cmd": ["x"], "User": "nobody-there"},
        {"Cmd": ["x"], "User": "0:nogroup-there"},
    ],
)
def test_an_image_config_that_cannot_be(config: dict[str, Any]) -> None:
    with pytest.raises(TemplateInvalid, match="image"):
        spec_of(image={"config": config})


# Who runs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (10,), "/root")),
        ("root", User(0, 0, (10,), "/root")),
        ("app", User(1000, 1001, (10, 50), "/home/app")),
        ("1000", User(1000, 1001, (10, 50), "/home/app")),
        ("app:wheel", User(1000, 10, (), "/home/app")),
        ("app:7", User(1000, 7, (), "/home/app")),
        ("4242", User(4242, 0, (), "/")),
        ("4242:staff", User(4242, 50, (), "/")),
        ("app:", User(1000, 1001, (10, 50), "/home/app")),
    ],
)
def test_users_by_name_and_number(text: str, expected: User) -> None:
    assert find_user(text, FILES.get, "user") == expected


def test_users_of_an_image_without_files() -> None:
    assert find_user("5:6", lambda path: None, "user") == User(5, 6, (), "/")
    assert find_user("", lambda path: None, "user") == User(0, 0, (), "/root")
    for text in ("app", "1:app", "-1", "4294967295", "99999999999", "٣"):
        with pytest.raises(TemplateInvalid, match=r"user: (user|group) .* is neither"):
            find_user(text, lambda path: None, "user")
    for text in ("odd", "short", "# a comment", "app:bad"):
        with pytest.raises(TemplateInvalid, match=r"user: (user|group) .* is neither"):
            find_user(text, FILES.get, "user")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(":0a\n,x-", max_size=80).map(str.encode), st.text("a0:"))
def test_any_passwd_and_group(data: bytes, text: str) -> None:
    try:
        user = find_user(text, lambda path: data, "user")
    except TemplateInvalid:
        return
    assert 0 <= user.uid < (1 << 32) - 1
    assert 0 <= user.gid < (1 << 32) - 1
    assert user.home.startswith("/")


def test_the_user_of_a_container() -> None:
    assert spec_of()["process"]["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [10, 50]}
    assert spec_of(template_of(user="root"))["process"]["user"]["uid"] == 0
    numbers = {"runAsUser": 5, "runAsGroup": 6, "supplementalGroups": [9, 6, 7]}
    user = spec_of(template_of(securityContext=numbers))["process"]["user"]
    assert user == {"uid": 5, "gid": 6, "additionalGids": [7, 9]}
    with pytest.raises(TemplateInvalid, match=r"containers.web.user: user \"nobody\""):
        spec_of(template_of(user="nobody"))


def test_capabilities() -> None:
    root = spec_of(template_of(user="root"))["process"]["capabilities"]
    assert root["bounding"] == root["effective"] == root["permitted"] == [*DEFAULT_CAPABILITIES]
    assert root["inheritable"] == []
    other = spec_of()["process"]["capabilities"]
    assert other["bounding"] == [*DEFAULT_CAPABILITIES]
    assert other["effective"] == other["permitted"] == []
    changes = {"drop": ["ALL"], "add": ["NET_ADMIN", "CAP_KILL"]}
    few = spec_of(template_of(user="root", securityContext={"capabilities": changes}))
    assert few["process"]["capabilities"]["bounding"] == ["CAP_KILL", "CAP_NET_ADMIN"]
    all_ = spec_of(template_of(securityContext={"capabilities": {"add": ["ALL"]}}))
    assert all_["process"]["capabilities"]["bounding"] == sorted(ALL_CAPABILITIES)
    assert len(set(ALL_CAPABILITIES)) == 41
    assert "CAP_MKNOD" not in DEFAULT_CAPABILITIES
    with pytest.raises(TemplateInvalid, match=r"capabilities.drop: 'FLY'"):
        spec_of(template_of(securityContext={"capabilities": {"drop": ["FLY"]}}))


# Where it runs


def test_the_rest_of_a_spec() -> None:
    spec = spec_of()
    assert spec["ociVersion"] == "1.0.2"
    assert spec["root"] == {"path": "rootfs", "readonly": False}
    assert spec["hostname"] == "box"
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]
    places = [mount["destination"] for mount in spec["mounts"]]
    assert places == ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"]
    assert spec["annotations"] == {OUTPUT: PIPE}
    assert "ExposedPorts" not in json.dumps(spec)
    kinds = [each["type"] for each in spec["linux"]["namespaces"]]
    assert kinds == ["pid", "ipc", "uts", "mount", "network"]
    assert all("path" not in each for each in spec["linux"]["namespaces"])
    read_only = template_of(securityContext={"readOnlyRootFilesystem": True})
    assert spec_of(read_only)["root"]["readonly"] is True
    assert spec["process"]["terminal"] is False
    assert spec_of(sandbox_id="Büx_1." + "a" * 80)["hostname"] == ("Büx-1-" + "a" * 80)[:63]


def test_networks(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    isolated = spec_of(network="none", resolv_conf=resolv)
    assert "/etc/resolv.conf" not in [mount["destination"] for mount in isolated["mounts"]]
    host = spec_of(network="host", resolv_conf=resolv)
    assert "network" not in [each["type"] for each in host["linux"]["namespaces"]]
    assert host["mounts"][-1] == {
        "destination": "/etc/resolv.conf",
        "type": "bind",
        "source": str(resolv),
        "options": ["rbind", "ro"],
    }


def test_containers_that_share_a_sandbox() -> None:
    template = template_of_document(
        {"pauseImage": "p", "containers": [{"name": n, "image": "x"} for n in ("a", "b")]}
    )
    found = [
        build_spec(each, IMAGE, template, is_root=not number, sandbox_id="pause", lookup=FILES.get)
        for number, each in enumerate(template.all_containers)
    ]
    cri = "io.kubernetes.cri."
    assert [spec["annotations"][f"{cri}container-type"] for spec in found] == [
        "sandbox",
        "container",
        "container",
    ]
    assert [spec["annotations"][f"{cri}container-name"] for spec in found] == ["pause", "a", "b"]
    assert {spec["annotations"][f"{cri}sandbox-id"] for spec in found} == {"pause"}
    assert {spec["hostname"] for spec in found} == {"pause"}


def test_volumes() -> None:
    template = template_of_document(
        {
            "containers": [
                {
                    "name": "web",
                    "image": "x",
                    "volumeMounts": [
                        {"name": "data", "mountPath": "/data"},
                        {"name": "host", "mountPath": "/host", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "data", "durableDir": {}},
                {"name": "host", "hostPath": {"path": "/srv"}},
            ],
        }
    )
    mounts = spec_of(template, volumes={"data": Path("/state/data")})["mounts"][-2:]
    assert mounts == [
        {
            "destination": "/data",
            "type": "bind",
            "source": "/state/data",
            "options": ["rbind", "rw"],
        },
        {"destination": "/host", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]},
    ]
    with pytest.raises(TemplateInvalid, match=r"volumes.data: a durable directory"):
        spec_of(template)


def test_the_hosts_kernel_hides_what_gvisor_does_not_have() -> None:
    assert not {"maskedPaths", "seccomp"} & spec_of()["linux"].keys()
    linux = spec_of(runtime_name="crun")["linux"]
    assert "/proc/kcore" in linux["maskedPaths"]
    assert "/proc/sys" in linux["readonlyPaths"]
    assert "keyctl" not in linux["seccomp"]["syscalls"][0]["names"]
    assert spec_of(runtime_name="crun")["process"]["noNewPrivileges"] is True


def test_root_of_a_container_is_in_a_namespace_of_its_own() -> None:
    ids = [{"containerID": 0, "hostID": 0, "size": (1 << 32) - 2}]
    for name in ("crun", "runc"):
        linux = spec_of(runtime_name=name)["linux"]
        assert {"type": "user"} in linux["namespaces"]
        assert (linux["uidMappings"], linux["gidMappings"]) == (ids, ids)
    for name in ("runsc", "bwrap"):
        assert "uidMappings" not in spec_of(runtime_name=name)["linux"]
    on_host = spec_of(runtime_name="crun", network="host")
    system = next(each for each in on_host["mounts"] if each["destination"] == "/sys")
    assert system["type"] == "bind"  # sysfs belongs to whoever owns the network


def test_what_is_opened_by_name() -> None:
    opened = {
        "seccomp": "unconfined",
        "noNewPrivileges": False,
        "userNamespace": False,
        "newKeyring": False,
        "unmask": ["/proc/kcore", "/proc/sys"],
        "devices": ["/dev/null:/dev/nothing:r"],
    }
    template = template_of_document(
        {"containers": [{"name": "web", "image": "busybox"}], "security": opened}
    )
    spec = spec_of(template, runtime_name="runc")
    linux = spec["linux"]
    assert "seccomp" not in linux
    assert "uidMappings" not in linux
    assert not {"/proc/kcore", "/proc/sys"} & {*linux["maskedPaths"], *linux["readonlyPaths"]}
    assert "/proc/keys" in linux["maskedPaths"]
    assert spec["process"]["noNewPrivileges"] is False
    assert spec["annotations"] == {KEYRING: HOST}
    (mount,) = [each for each in spec["mounts"] if each["destination"] == "/dev/nothing"]
    assert mount["source"] == "/dev/null"
    assert mount["options"] == ["bind", "dev", "nosuid", "noexec"]
    assert linux["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"},
    ]
    with pytest.raises(Unsupported, match="runsc cannot give a sandbox devices"):
        spec_of(template)
    everything = template_of_document(
        {"containers": [{"name": "a", "image": "b"}], "security": {"unmask": ["ALL"]}}
    )
    linux = spec_of(everything, runtime_name="crun")["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == ([], [])


def test_what_is_shown_of_the_machine_has_no_devices() -> None:
    document = {
        "containers": [
            {
                "name": "web",
                "image": "busybox",
                "volumeMounts": [{"name": "here", "mountPath": "/here"}],
            }
        ],
        "volumes": [{"name": "here", "hostPath": {"path": "/srv"}}],
        "security": {"devices": ["/dev/null:/here/null"]},
    }
    mounts = spec_of(template_of_document(document), runtime_name="crun")["mounts"]
    assert [each["destination"] for each in mounts][-2:] == ["/here", "/here/null"]
    options = {each["destination"]: each["options"] for each in mounts}
    assert options["/here"] == ["rbind", "rw", "nodev", "rnodev"]
    assert "nodev" not in options["/here/null"]
    del document["security"]  # a snapshot has the options of gVisor's in it
    mounts = spec_of(template_of_document(document))["mounts"]
    assert mounts[-1]["options"] == ["rbind", "rw"]


@pytest.mark.parametrize("path", ["/dev/no-such-device", "/dev/shm"])
def test_what_is_lent_is_a_device(path: str) -> None:
    template = template_of_document(
        {"containers": [{"name": "a", "image": "b"}], "security": {"devices": [path]}}
    )
    with pytest.raises(TemplateInvalid, match=f"device {path}"):
        spec_of(template, runtime_name="crun")


def test_what_was_started_by_an_earlier_release_goes_on_as_it_was() -> None:
    spec = whole_spec()
    old = copy.deepcopy(spec)
    old["process"]["noNewPrivileges"] = False
    del old["annotations"][OUTPUT]
    facts = spec_facts(old)
    assert diff_specs(facts, spec) != ()
    start_as_before(spec, facts)
    assert (diff_specs(facts, spec), writes_pipe(spec)) == ((), False)
    newer = whole_spec()
    start_as_before(newer, spec_facts(whole_spec()))
    assert (newer, writes_pipe(newer)) == (whole_spec(), True)


def test_without_root() -> None:
    lent = Rootless(1000, 100, ((100_000, 65_536),), ((200_000, 65_536),))
    template = template_of(user="app")
    spec = spec_of(template, rootless=lent, runtime_name="runc")
    assert spec["linux"]["uidMappings"] == [
        {"containerID": 0, "hostID": 1000, "size": 1},
        {"containerID": 1, "hostID": 100_000, "size": 65_536},
    ]
    assert spec["linux"]["gidMappings"][0] == {"containerID": 0, "hostID": 100, "size": 1}
    assert "user" in [each["type"] for each in spec["linux"]["namespaces"]]
    terminals = next(each for each in spec["mounts"] if each["destination"] == "/dev/pts")
    assert "gid=5" not in terminals["options"]
    assert "resources" not in spec["linux"]
    assert "cgroupsPath" not in spec["linux"]
    on_host = spec_of(template, rootless=lent, runtime_name="runc", network="host")
    system = next(each for each in on_host["mounts"] if each["destination"] == "/sys")
    assert (system["type"], system["source"]) == ("bind", "/sys")
    # gVisor makes its own namespace of users.
    assert "uidMappings" not in spec_of(template, rootless=lent)["linux"]


@pytest.mark.parametrize("user", ["app", "0:1", "65537"])
def test_ids_that_nobody_lent(user: str) -> None:
    lent = ((100_000, 65_536),) if user == "65537" else ()
    with pytest.raises(TemplateInvalid, match=r"containers.web: user: id \d+ is not available"):
        spec_of(
            template_of(user=user), rootless=Rootless(1000, 1000, lent, lent), runtime_name="crun"
        )
    alone = find_user("0:0", FILES.get, "user")
    assert alone.groups == ()
    spec_of(template_of(user="0:0"), rootless=Rootless(1000, 1000), runtime_name="crun")


# The digest


def with_secret(optional: bool = False) -> Template:
    key = {"name": "api", "key": "token", "optional": optional}
    return template_of(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": key}}])


def test_secrets_are_in_the_process_and_nowhere_else() -> None:
    """Scenario 30, its part."""
    template = with_secret()
    one = spec_of(template, secrets=load_secrets(None, {"LAZYFS_SECRET_API_TOKEN": "hush-1"}))
    two = spec_of(template, secrets={SecretKey("api", "token"): "hush-2"})
    assert env_of(one)["TOKEN"] == "hush-1"
    assert spec_digest(one) == spec_digest(two)
    assert "hush" not in json.dumps(spec_facts(one))
    assert diff_specs(one, two) == ()
    assert "hush" not in json.dumps(template.to_document())


def test_a_secret_that_nobody_has() -> None:
    with pytest.raises(TemplateInvalid, match=r"env.TOKEN: there is no secret \"api\"") as caught:
        spec_of(with_secret())
    assert caught.value.hint == "set LAZYFS_SECRET_API_TOKEN, or name a file with --secrets"
    assert "TOKEN" not in env_of(spec_of(with_secret(optional=True), secrets=Secrets()))
    with pytest.raises(TemplateInvalid, match="NUL") as caught:
        spec_of(with_secret(), secrets={SecretKey("api", "token"): "hu\0sh"})
    assert "sh" not in caught.value.message


FREE: list[Change] = [
    lambda s: s["process"]["env"].append("A=b"),
    lambda s: s.update(hostname="other"),
    lambda s: s["root"].update(path="/elsewhere"),
    lambda s: s["mounts"][0].update(source="/elsewhere"),
    lambda s: s["mounts"].reverse(),
    lambda s: s["mounts"][0]["options"].reverse(),
    lambda s: s["process"]["capabilities"]["bounding"].reverse(),
    lambda s: s["linux"]["namespaces"].reverse(),
    lambda s: s["linux"]["namespaces"][0].update(path="/proc/1/ns/pid"),
    lambda s: s["linux"].update(cgroupsPath="/x", resources={"memory": {}}),
    lambda s: s["annotations"].update({"io.kubernetes.cri.sandbox-id": "other"}),
    lambda s: s["annotations"].update({"mine": "x", "dev.gvisor.internal.x": "y"}),
    lambda s: s["annotations"].update({"dev.gvisor.debug.x": "y", "dev.gvisor.spec.a.source": "z"}),
    lambda s: s["process"].update(terminal=True),
]
HELD: list[tuple[str, Change]] = [
    ("args[1]", lambda s: s["process"]["args"].__setitem__(1, "other")),
    ("args", lambda s: s["process"]["args"].append("more")),
    ("cwd", lambda s: s["process"].update(cwd="/other")),
    ("user.uid", lambda s: s["process"]["user"].update(uid=7)),
    ("user.additionalGids", lambda s: s["process"]["user"]["additionalGids"].pop()),
    ("capabilities.bounding", lambda s: s["process"]["capabilities"]["bounding"].pop()),
    ("rlimits[0].hard", lambda s: s["process"]["rlimits"][0].update(hard=5)),
    ("readOnlyRoot", lambda s: s["root"].update(readonly=True)),
    ("mounts[/proc].type", lambda s: s["mounts"][0].update(type="tmpfs")),
    ("mounts[/proc].options", lambda s: s["mounts"][0]["options"].remove("noexec")),
    ("mounts[/proc]", lambda s: s["mounts"].pop(0)),
    ("devices[0]", lambda s: s["linux"].update(devices=[{"path": "/dev/x", "type": "c"}])),
    ("namespaces", lambda s: s["linux"]["namespaces"].pop(0)),
    (
        "annotations.io.kubernetes.cri.container-name",
        lambda s: s["annotations"].update({"io.kubernetes.cri.container-name": "x"}),
    ),
    (
        "annotations.dev.gvisor.spec.mount.a.type",
        lambda s: s["annotations"].update({"dev.gvisor.spec.mount.a.type": "tmpfs"}),
    ),
]


def whole_spec() -> dict[str, Any]:
    template = template_of_document(
        {"pauseImage": "p", "containers": [{"name": "web", "image": "busybox"}]}
    )
    return spec_of(template, is_root=False)


@pytest.mark.parametrize("change", FREE)
def test_what_may_differ_at_a_restore(change: Change) -> None:
    spec = whole_spec()
    other = copy.deepcopy(spec)
    change(other)
    assert other != spec
    assert spec_digest(other) == spec_digest(spec)
    assert diff_specs(spec, other) == ()


@pytest.mark.parametrize(("field", "change"), HELD)
def test_what_may_not(field: str, change: Change) -> None:
    """Scenario 46, its part: the field is named."""
    spec = whole_spec()
    other = copy.deepcopy(spec)
    change(other)
    assert spec_digest(other) != spec_digest(spec)
    assert field in [each.path for each in diff_specs(spec, other)]


def test_facts_can_be_kept_and_compared_later() -> None:
    spec = whole_spec()
    kept = json.loads(json.dumps(spec_facts(spec)))
    assert spec_digest(kept) == spec_digest(spec)
    assert diff_specs(kept, spec) == ()
    assert "env" not in json.dumps(kept)
    template = template_of(args=["other"])
    changed = spec_of(template)
    assert "args[1]" in [each.path for each in diff_specs(kept, changed)]
