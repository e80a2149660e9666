"""Templates: what is accepted, and errors that name the field."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.template import EnvVar, SecretKey, Template
from lazyfs.documents.template_reading import (
    TEMPLATE_LIMIT,
    decode_template,
    load_template,
    notes_of,
    require_pinned,
    template_of_document,
    template_of_image,
    with_images,
)
from lazyfs.errors import UsageError
from lazyfs.sandbox.specs.environment import load_secrets

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DIGEST = "sha256:" + "ab" * 32
WHOLE = f"""\
apiVersion: ate.dev/v1alpha1
kind: ActorTemplate
metadata:
  name: counter
  labels: {{a: b}}
spec:
  pauseImage: registry.k8s.io/pause@{DIGEST}
  containers:
  - name: web
    image: busybox:latest
    command: [sh, -c, "echo hi"]
    args: []
    env:
    - {{name: PLAIN, value: "1"}}
    - name: TOKEN
      valueFrom: {{secretKeyRef: {{name: api, key: token, optional: true}}}}
    workingDir: /srv
    securityContext:
      runAsUser: 1000
      runAsGroup: 1001
      capabilities: {{add: [NET_ADMIN], drop: [ALL]}}
    volumeMounts:
    - {{name: data, mountPath: /data}}
    - {{name: etc, mountPath: /etc/x, readOnly: true}}
    readyz: {{httpGet: {{port: 8080}}}}
  - name: side
    image: ghcr.io/acme/side:1@{DIGEST}
    user: nobody
  volumes:
  - {{name: data, durableDir: {{}}}}
  - {{name: etc, hostPath: {{path: /etc/x, type: File}}}}
  snapshotsConfig: {{location: "s3://bucket/prefix", onPause: Full, onCommit: Data}}
  hostname: counter
  workerSelector: {{matchLabels: {{pool: a}}}}
  sandboxClass: gvisor
  runtime: {{name: runsc, overlay: "root:memory", network: none, flags: [--ignore-cgroups]}}
"""
SMALL: dict[str, Any] = {"containers": [{"name": "web", "image": "busybox:latest"}]}


def small(**container: Any) -> dict[str, Any]:
    return {"containers": [SMALL["containers"][0] | container]}


def refused(document: Any, message: str) -> TemplateInvalid:
    with pytest.raises(TemplateInvalid, match=message) as caught:
        template_of_document(document)
    assert isinstance(caught.value, UsageError)
    assert (caught.value.code, caught.value.exit_code) == ("E_TEMPLATE_INVALID", 2)
    return caught.value


# What is accepted


def test_a_whole_template_in_the_shape_of_kubernetes() -> None:
    template = decode_template(WHOLE.encode())
    assert template.name == "counter"
    assert [each.name for each in template.all_containers] == ["pause", "web", "side"]
    assert template.all_containers[0].name == "pause"
    assert template.images == {
        "pause": f"registry.k8s.io/pause@{DIGEST}",
        "web": "busybox:latest",
        "side": f"ghcr.io/acme/side:1@{DIGEST}",
    }
    web = template.containers[0]
    assert web.command == ("sh", "-c", "echo hi")
    assert web.security_context.run_as_user == 1000
    assert web.readyz is not None
    assert web.readyz.http_get.path == "/readyz"
    assert template.snapshots_config.location == "s3://bucket/prefix"
    assert template.runtime.flags == ("--ignore-cgroups",)


def test_the_same_without_kubernetes_around_it() -> None:
    document = yaml.safe_load(WHOLE)
    flat = {"name": "counter", **document["spec"]}
    assert template_of_document(flat) == template_of_document(document)
    assert decode_template(json.dumps(flat).encode(), is_json=True) == template_of_document(flat)
    assert decode_template(json.dumps(flat).encode()) == template_of_document(flat)


def test_a_template_survives_its_own_document() -> None:
    template = decode_template(WHOLE.encode())
    again = template_of_document(json.loads(json.dumps(template.to_document())))
    assert again == template
    assert again.digest == template.digest


def test_the_digest_is_of_what_a_template_means() -> None:
    template = decode_template(WHOLE.encode())
    lines = WHOLE.replace("    args: []\n", "").replace("  sandboxClass: gvisor\n", "# same\n")
    assert decode_template(lines.encode()).digest == template.digest
    assert decode_template(WHOLE.replace("/data}", "/dota}").encode()).digest != template.digest
    assert template.digest.startswith("sha256:")
    plain = template_of_document(SMALL | {"name": "a"})
    assert plain.to_document() == SMALL | {"name": "a"}


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "busybox:latest",
        f"busybox@{DIGEST}",
        f"busybox:1@{DIGEST}",
        "localhost:5000/a/b:c",
        "oci:/srv/image:v1",
        "oci:/srv/mail@home/image",
    ],
)
def test_tags_and_digests_are_references(image: str) -> None:
    """Scenario 1."""
    template = template_of_document(small(image=image))
    assert template.images == {"web": image}
    assert template.all_containers[0].name == "web"


def test_one_container_needs_no_pause_image_and_several_do() -> None:
    assert template_of_document(SMALL).all_containers[0].name == "web"
    two = {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}
    refused(two, "pauseImage: missing; it is needed for 2 containers")
    assert template_of_document({**two, "pauseImage": "p"}).all_containers[0].name == "pause"


def test_null_is_not_set() -> None:
    nulls = small(command=None, env=None, readyz=None) | {"pauseImage": None, "hostname": None}
    assert template_of_document(nulls) == template_of_document(SMALL)


def test_names_of_files(tmp_path: Path) -> None:
    text = "containers: [{name: web, image: busybox}]"
    for file, name in (("Counter.yaml", "counter"), ("_.yml", "template"), ("a.b.json", "a")):
        path = tmp_path / file
        path.write_text(json.dumps(SMALL) if file.endswith("json") else text)
        assert load_template(path).name == name
    with pytest.raises(TemplateInvalid, match="No such file"):
        load_template(tmp_path / "none.yaml")


def test_a_container_of_an_image() -> None:
    template = template_of_image("docker.io/library/python:3", ["-V"], env=[EnvVar("A", "b")])
    assert template.name == "python"
    assert template.containers[0].args == ("-V",)
    assert template.containers[0].command == ()
    assert template_of_image("registry.k8s.io/pause:3").all_containers[0].name == "main"
    assert template_of_image("oci:/srv/My Image_2:x").all_containers[0].name == "my-image-2"
    assert template_of_image("a", platform="linux/arm64").platform == "linux/arm64"
    with pytest.raises(TemplateInvalid, match="must have a digest"):
        template_of_image("a@x")


def test_other_references_for_the_same_template() -> None:
    template = decode_template(WHOLE.encode())
    other = with_images(template, {"pause": "p:1", "side": "s:2"})
    assert other.images == {"pause": "p:1", "web": "busybox:latest", "side": "s:2"}
    assert with_images(other, template.images) == template


# What is not


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("busybox@latest", "after '@', not \"latest\""),
        ("busybox@sha256:12", "'sha256:12' is not a digest: it does not have 64 lower-case hex"),
        ("busybox@md5:" + "a" * 32, "must have a digest"),
        ("Busy", "write the repository in lower case"),
        ("", "'' is not valid in a repository"),
        ("a b", "'a b' is not valid in a repository"),
        ("a:", "tag '' is not valid: 1 to 128 letters"),
        ("ab" * 32, "is a digest without a name"),
        ("a" * 600, "at most 512 characters, not 600"),
        ("a/" + "b" * 300, "at most 255"),
    ],
)
def test_what_is_no_reference(image: str, message: str) -> None:
    """Scenario 3."""
    error = refused(small(image=image), message)
    assert error.message.startswith("template: containers[0].image: ")
    assert error.details == {"field": "containers[0].image"}


@pytest.mark.parametrize(
    "image", ["me:hush@host/x", "me:hush@host:5000/x:1", "https://me:hush@host/x", "me:hush@x"]
)
def test_credentials_are_refused_and_not_shown(image: str) -> None:
    assert "hush" not in str(refused(small(image=image), r"containers\[0\].image: must"))
    assert "hush" not in str(refused(SMALL | {"pauseImage": image}, "pauseImage: must"))


@pytest.mark.parametrize(
    "device", ["/dev/../etc/shadow", "/dev/a/../../etc/x", "/dev/..", "/dev/.", "/etc/x", "/dev/"]
)
def test_a_device_is_below_dev(device: str) -> None:
    refused(SMALL | {"security": {"devices": [device]}}, r"security.devices\[0\]")
    decode_template(json.dumps(SMALL | {"security": {"devices": ["/dev/a/...:/x:r"]}}).encode())


@pytest.mark.parametrize("name", ["pause", "_pause"])
def test_the_name_of_the_pause_container_is_reserved(name: str) -> None:
    """Scenario 4."""
    refused(small(name=name), r"containers\[0\].name: .*\"_?pause\"")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "template: must be an object with fields, not null"),
        ([], r"an object with fields, not \[\]"),
        ({}, "containers: missing"),
        ({"containers": []}, "containers: must be a list of length >= 1"),
        ({"containers": [{"image": "a"}]}, r"containers\[0\].name: missing"),
        ({"containers": [{"name": "a"}]}, r"containers\[0\].image: missing"),
        (small(name="A"), r'containers\[0\].name: must be 1 to 63 of a-z.*, not "A"'),
        (small(name="a" * 64), r"containers\[0\].name"),
        (small(name="a\n"), r"containers\[0\].name"),
        (small(comand=["x"]), r"\[0\].comand: unknown field; did you mean command\?"),
        (small(imagePullPolicy="Always"), "(?s)imagePullPolicy: unknown field.*--pull"),
        (small(mounts=[]), "(?s)mounts: unknown field.*volumeMounts"),
        (SMALL | {"pausImage": "x"}, "pausImage: unknown field; did you mean pauseImage"),
        (small(command="sh"), r'containers\[0\].command: must be a list.*, not "sh"'),
        (small(command=["x"] * 65), "a list of length <= 64"),
        (small(command=["a\0b"]), r"command\[0\]: must be text without NUL"),
        (small(args=[1]), r"args\[0\]: must be text, not 1"),
        (small(env=[{"name": "A"}]), r"env\[0\]: must have .*it has neither"),
        (small(env=[{"name": "A=B", "value": ""}]), r"env\[0\].name: must"),
        (small(env=[{"name": "A", "value": True}]), r"env\[0\].value: must be text.*not true"),
        (small(env=[{"name": "A", "value": "1"}] * 2), "env: the name \"A\" appears"),
        (small(env=[{"name": f"A{n}", "value": ""} for n in range(33)]), "length <= 32"),
        (
            small(env=[{"name": "A", "valueFrom": {"configMapKeyRef": {}}}]),
            r"valueFrom.configMapKeyRef: unknown field",
        ),
        (
            small(env=[{"name": "A", "value": "1", "valueFrom": {
                "secretKeyRef": {"name": "a", "key": "b"}}}]),
            r"env\[0\]: .* it has both",
        ),
        (small(workingDir="srv"), 'workingDir: must be an absolute path.*, not "srv"'),
        (small(user=""), "user: must be .*not \"\""),
        (small(user="a", securityContext={"runAsUser": 1}), "user: cannot be \"a\" when runAsUser"),
        (small(securityContext={"runAsGroup": 1}), "runAsGroup: 1 is set without runAsUser"),
        (small(securityContext={"runAsUser": -1}), "runAsUser: must be .*not -1"),
        (small(securityContext={"runAsUser": True}), "runAsUser: must be .*not true"),
        (small(securityContext={"privileged": True}), "privileged: unknown field"),
        (small(readyz={"httpGet": {"port": 0}}), r"readyz.httpGet.port: must be .*not 0"),
        (small(readyz={"httpGet": {"port": 65536}}), r"readyz.httpGet.port: must be .*not 65536"),
        (small(readyz={"exec": {}}), "readyz.exec: unknown field|readyz.httpGet"),
        (small(volumeMounts=[{"name": "v", "mountPath": "/x"}]), "there is no volume \"v\""),
        ({"containers": [{"name": f"c{n}", "image": "a"} for n in range(11)]}, "length <= 10"),
        (
            {"pauseImage": "p", "containers": [{"name": "a", "image": "x"}] * 2},
            'containers: the name "a" appears more than once',
        ),
        (SMALL | {"volumes": [{"name": "v"}]}, r"volumes\[0\]: .*it has neither"),
        (
            SMALL | {"volumes": [{"name": "v", "durableDir": {}, "hostPath": {"path": "/"}}]},
            "it has both",
        ),
        (
            SMALL | {"volumes": [{"name": n, "durableDir": {}} for n in "ab"]},
            r"volumes: 2 have durableDir \(a, b\)",
        ),
        (SMALL | {"volumes": [{"name": "v", "durableDir": {}}] * 2}, "the name \"v\" appears"),
        (SMALL | {"volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]}, 'must be "/b"'),
        (SMALL | {"snapshotsConfig": {"location": "gs://b"}}, "location: must be .*not \"gs://b\""),
        (SMALL | {"snapshotsConfig": {"location": "s3://b/p?x=y"}}, "location: must be"),
        (
            SMALL | {"snapshotsConfig": {"onPause": "Data", "onCommit": "Full"}},
            'onCommit: must be "Data"',
        ),
        (SMALL | {"snapshotsConfig": {"onPause": "full"}}, 'must be "Full" or "Data", not "full"'),
        (SMALL | {"sandboxClass": "microvm"}, 'sandboxClass: must be "gvisor", not "microvm"'),
        (SMALL | {"hostname": "a_b"}, "hostname: must be"),
        (SMALL | {"platform": "a b"}, "platform: platform 'a b' is not of the form OS/ARCH"),
        (SMALL | {"runtime": {"name": "kata"}}, "runtime.name: must be .*not \"kata\""),
        (SMALL | {"runtime": {"network": "bridge"}}, "runtime.network: must be"),
        (SMALL | {"runtime": {"flags": ["x y"]}}, r"runtime.flags\[0\]: must be"),
        ({"kind": "Pod", "metadata": {"name": "a"}, "spec": SMALL}, 'kind: must be .*not "Pod"'),
        ({"kind": "ActorTemplate", "spec": SMALL}, "metadata.name: missing"),
        (
            {"kind": "ActorTemplate", "metadata": {"name": "A"}, "spec": SMALL},
            'metadata.name: must be .*not "A"',
        ),
        ({"kind": "ActorTemplate", "metadata": {"name": "a"}}, "spec: must be .*not null"),
        (
            {"kind": "ActorTemplate", "metadata": {"name": "a"}, "spec": SMALL, "more": 1},
            "more: unknown field",
        ),
        (
            {"kind": "ActorTemplate", "metadata": {"name": "a"}, "spec": SMALL | {"name": "b"}},
            "spec.name: the name belongs",
        ),
        (
            {"kind": "ActorTemplate", "metadata": {"name": "a"}, "spec": small(image="A")},
            r"spec.containers\[0\].image: ",
        ),
    ],
)  # fmt: skip
def test_what_is_no_template(document: Any, message: str) -> None:
    refused(document, message)


def test_mounts_of_a_container() -> None:
    volumes = {
        "volumes": [{"name": "d", "durableDir": {}}, {"name": "h", "hostPath": {"path": "/"}}]
    }

    def mounted(*mounts: tuple[str, str]) -> dict[str, Any]:
        listed = [{"name": name, "mountPath": path} for name, path in mounts]
        return small(volumeMounts=listed) | volumes

    assert template_of_document(mounted(("d", "/a"), ("h", "/b"), ("h", "/c")))
    refused(mounted(("d", "/a"), ("d", "/b")), 'durable volume "d" appears more than once')
    refused(mounted(("h", "/a"), ("d", "/a")), 'mountPath "/a" appears more than once')
    for path in ("/", "/a/", "//a", "/a/../b", "/a/./b"):
        refused(mounted(("h", path)), r"volumeMounts\[0\].mountPath: must")


def test_pinned_is_a_policy() -> None:
    """Scenario 2."""
    template = decode_template(WHOLE.encode())
    with pytest.raises(TemplateInvalid, match=r"containers\[0\].image: \"busybox:") as caught:
        require_pinned(template, "c.yaml")
    assert caught.value.hint is not None
    assert "lazyfs resolve c.yaml --write" in caught.value.hint
    require_pinned(with_images(template, {"web": f"busybox@{DIGEST}"}))
    with pytest.raises(TemplateInvalid, match="pauseImage"):
        require_pinned(with_images(template, {"pause": "pause:3"}))


def test_a_tag_before_a_digest_is_said_once() -> None:
    twice = {
        "pauseImage": f"a:1@{DIGEST}",
        "containers": [{"name": n, "image": f"b:2@{DIGEST}"} for n in "xy"],
    }
    assert notes_of(template_of_document(twice)) == [
        f'a:1@{DIGEST}: tag "1" is ignored because there is a digest',
        f'b:2@{DIGEST}: tag "2" is ignored because there is a digest',
    ]
    assert notes_of(template_of_document(SMALL)) == []


# YAML as foreign text


def yaml_refused(text: str | bytes, message: str, *, is_json: bool = False) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(TemplateInvalid, match=message) as caught:
        decode_template(data, what="c.yaml", is_json=is_json)
    assert caught.value.message.startswith("c.yaml: ")
    assert len(caught.value.message) < 2000
    assert "\n" not in caught.value.message
    return caught.value.message


def test_aliases_are_values_within_bounds() -> None:
    text = "x: &i busybox:1\n".replace("x: ", "name: a\npauseImage: ")
    text += "containers: [{name: w, image: *i}, {name: v, image: *i}]"
    assert set(decode_template(text.encode()).images.values()) == {"busybox:1"}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    yaml_refused(bomb, "line 1: more than 20000 values")
    yaml_refused("a: &a [*a]", "32 levels")
    yaml_refused("&a {x: *a}", "32 levels")
    yaml_refused("a: *b", "undefined alias")
    merge = "<<: [{name: a}, {name: b, hostname: h}]\ncontainers: [{name: w, image: i}]\n"
    merged = decode_template(merge.encode())
    assert (merged.name, merged.hostname) == ("a", "h")
    yaml_refused("<<: 3", "only keys can be merged, not 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3: the key "a" appears more than once'),
        ("containers:\n- {name: a, image: b, name: c}", 'line 2: the key "name" appears more than'),
        ("1: a", "line 1: a key must be text, not 1"),
        ("[a]: b", "line 1: a key must be text, not null"),
        ("? {a: b}\n: c", "a key must be text"),
        ("a: 1.5", r"must be text.* not \"1.5\" \(float\)"),
        ("a: .nan", "float"),
        ("a: !!python/object/apply:os.system [x]", "must be text|unknown field"),
        ("a: !!binary aGk=", "binary"),
        ("a: !mine x", "must be text"),
        ("a: {", "line 1, column 5: not valid YAML"),
        ("a: b\n---\nc: d", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: " + "9" * 5000, "line 1: .* is not valid"),
        ("a: 0x" + "f" * 100, "a: an integer of 400 bits"),
        ("[" * 40 + "]" * 40, "32 levels"),
        ("[" * 5000, "not valid YAML"),
        (b"a: \xff", "not valid UTF-8 at byte 3"),
        (b" " * (TEMPLATE_LIMIT + 1), "longer than"),
        ("- a", r"an object with fields, not \[\"a\"\]"),
        ("", "an object with fields, not null"),
        ("just text", "an object with fields"),
        ("!" * 200_000, "must be text"),
        ("*" + "a" * 200_000, "undefined alias"),
        ("a" * 1000 + ": 1", "unknown field"),
        (f"containers: [{{name: w, image: {'a/' * 50_000}}}]", "not 100000"),
    ],
)
def test_yaml_that_is_refused(text: str | bytes, message: str) -> None:
    yaml_refused(text, message)


def test_json_that_is_refused() -> None:
    yaml_refused('{"a": 1, "a": 2}', 'the key "a" appears more than once', is_json=True)
    yaml_refused("a: b", "not valid JSON", is_json=True)
    yaml_refused('{"a": 1.5}', "a: must be an integer, not 1.5", is_json=True)


def test_times_and_byte_order_marks() -> None:
    text = "\ufeffcontainers: [{name: a, image: b, args: [2026-01-01, 'on', \"1\"]}]"
    assert decode_template(text.encode()).containers[0].args == ("2026-01-01", "on", "1")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120) | st.text("-:{}[]&*!|>'\"#\n ab01", max_size=60).map(str.encode))
def test_random_text(data: bytes) -> None:
    for is_json in (False, True):
        with pytest.raises(TemplateInvalid):
            decode_template(data, is_json=is_json)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(WHOLE)), st.text("-:{}[]&*!|>'\"#\n ab01", max_size=3), st.integers(0, 4))
def test_a_template_with_something_changed(place: int, text: str, length: int) -> None:
    changed = WHOLE[:place] + text + WHOLE[place + length :]
    try:
        template = decode_template(changed.encode())
    except TemplateInvalid:
        return
    assert isinstance(template, Template)
    assert template_of_document(template.to_document()) == template


# Secrets


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    token = SecretKey("my-api", "the.token")
    found = load_secrets(None, {"LAZYFS_SECRET_MY_API_THE_TOKEN": "hush", "HOME": "/"})
    assert found[token] == "hush"
    path = tmp_path / "secrets.yaml"
    path.write_text("my-api: {the.token: louder}\n")
    found = load_secrets(path, {"LAZYFS_SECRET_MY_API_THE_TOKEN": "hush"})
    assert found[token] == "louder"
    assert "louder" not in repr(found)
    with pytest.raises(KeyError):
        found[SecretKey("other", "x")]


@pytest.mark.parametrize(
    "text",
    ["hush", "a: hush", "a: {b: [hush]}", "a: {b: 'hush", "a: {b: hush, b: hush}", "hush: 1.5"],
)
def test_a_file_of_secrets_that_cannot_be_read_is_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secrets"
    path.write_text(text)
    with pytest.raises(TemplateInvalid, match="secrets ") as caught:
        load_secrets(path, {})
    assert "hush" not in str(caught.value).replace("hush: must have the form", "")


def test_a_template_keeps_where_a_secret_is_and_not_what_it_is() -> None:
    """Scenario 30, its part."""
    document = json.dumps(decode_template(WHOLE.encode()).to_document())
    assert '"secretKeyRef": {"name": "api", "key": "token", "optional": true}' in document


# The page


def fields_of(kind: type) -> set[str]:
    """Return the names of all fields of a part and of the parts below it."""
    found = set()
    waiting = [msgspec.inspect.type_info(kind)]
    while waiting:
        info: Any = waiting.pop()
        if isinstance(info, msgspec.inspect.StructType):
            found |= {field.encode_name for field in info.fields}
            waiting += [field.type for field in info.fields]
        waiting += getattr(info, "types", ())
        for inner in ("item_type", "type"):
            if isinstance(getattr(info, inner, None), msgspec.inspect.Type):
                waiting.append(getattr(info, inner))
    return found


def test_every_field_is_documented() -> None:
    page = (REFERENCE / "template.md").read_text()
    fields = fields_of(Template)
    assert {"runAsUser", "secretKeyRef", "mountPath", "onPause", "drop"} <= fields
    assert {field for field in fields if not re.search(rf"[`.]{field}[`:.]", page)} == set()


def test_the_example_of_the_page_is_a_template() -> None:
    page = (REFERENCE / "template.md").read_text()
    example = re.search(r"```yaml\n(.*?)```\n", page, re.DOTALL)
    assert example is not None
    template = decode_template(example[1].encode())
    assert template.images == {"counter": "busybox:latest"}
