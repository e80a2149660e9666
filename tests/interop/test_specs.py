"""Specs of containers, as real runtimes take them: user, groups, environment, volumes, rights."""

import shutil
from pathlib import Path

import pytest

from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.documents.template import Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.sandbox.runtimes.runtimes import Chooser
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.spec import build_spec
from tests.support.mounts.mounting import needs_root
from tests.support.sandboxes.runscs import (
    BUSYBOX,
    COMMANDS,
    NEW,
    lines_of,
    need_runsc,
    why_no_busybox,
)

pytestmark = [pytest.mark.interop, *needs_root]

SCRIPT = """\
id -u; id -g; id -G; pwd; hostname
echo "$HOME $WORD $TOKEN"
cat /data/word
if touch /data/new; then echo written; else echo refused; fi
if touch /host/new 2>/dev/null; then echo written; else echo refused; fi
while read -r line; do case $line in CapBnd*|CapEff*) echo "$line";; esac; done </proc/self/status
"""
NET_BIND_AND_KILL = (1 << 10) | (1 << 5)


def make_rootfs(rootfs: Path) -> None:
    for name in ("bin", "data", "dev", "etc", "host", "proc", "srv", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, rootfs / "bin" / "busybox")
    for name in COMMANDS:
        (rootfs / "bin" / name).symlink_to("busybox")
    (rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n")
    (rootfs / "etc/group").write_text("root:x:0:\nstaff:x:50:app\n")


def template_with(host: Path) -> Template:
    """Return a template that says a little of everything; *host* is lent to be read."""
    return template_of_document(
        {
            "hostname": "the-host",
            "containers": [
                {
                    "name": "web",
                    "image": "busybox",
                    "command": ["/bin/sh", "-c", SCRIPT],
                    "user": "app",
                    "env": [
                        {"name": "WORD", "value": "a  b=c"},
                        {
                            "name": "TOKEN",
                            "valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}},
                        },
                    ],
                    "securityContext": {
                        "supplementalGroups": [70],
                        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "KILL"]},
                    },
                    "volumeMounts": [
                        {"name": "data", "mountPath": "/data"},
                        {"name": "host", "mountPath": "/host", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "data", "durableDir": {}},
                {"name": "host", "hostPath": {"path": str(host)}},
            ],
        }
    )


@pytest.mark.parametrize("name", ["runsc", "crun", "runc"])
def test_a_container_gets_what_its_template_says(name: str, tmp_path: Path) -> None:
    if why_no_busybox() is not None:
        pytest.skip(str(why_no_busybox()))
    path = need_runsc(NEW) if name == "runsc" else None
    if path is None and shutil.which(name, path="/usr/bin:/usr/sbin") is None:
        pytest.skip(f"no {name}: make setup-interop installs it")
    data, host = tmp_path / "data", tmp_path / "host"
    for folder in (data, host):
        folder.mkdir()
        folder.chmod(0o777)
    (data / "word").write_text("durable\n")
    template = template_with(host)
    (container,) = template.containers
    secret = container.env[1].value_from
    assert secret is not None
    folder = tmp_path / f"spec-{name}"
    plan = SandboxPlan(
        sandbox_id=folder.name,
        state_dir=folder / "runtime",
        log_dir=folder / "logs",
        containers=(ContainerPlan("web", f"{folder.name}.web", folder / "bundle", True),),
    )
    rootfs = folder / "bundle" / "rootfs"
    make_rootfs(rootfs)
    spec = build_spec(
        container,
        {"config": {"Env": ["PATH=/bin"], "WorkingDir": "/srv"}},
        template,
        is_root=True,
        sandbox_id=plan.root.container_id,
        runtime_name=name,
        lookup=lambda path: (rootfs / path[1:]).read_bytes(),
        secrets={secret.secret_key_ref: "hush"},
        volumes={"data": data},
    )
    write_bundle(plan.root.bundle, spec)
    runtime = Chooser(tmp_path / "state")(name, path=path)
    try:
        runtime.start(plan)
        assert runtime.wait(plan, 30) == 0, lines_of(plan, "web")
        said = lines_of(plan, "web")
    finally:
        runtime.delete(plan)
    assert said[:5] == ["1000", "1001", "1001 50 70", "/srv", "the-host"]
    assert said[5:9] == ["/srv a  b=c hush", "durable", "written", "refused"]
    rights = {line.split(":")[0]: int(line.split(":")[1], 16) for line in said[9:]}
    assert rights == {"CapBnd": NET_BIND_AND_KILL, "CapEff": 0}
    assert (data / "new").stat().st_uid == 1000
    assert list(host.iterdir()) == []
