"""Options that open or limit a sandbox: what becomes of them in its template."""

import pytest

from lazyfs.cli.confinement_options import NAMES, confined
from lazyfs.documents.errors import TemplateInvalid
from lazyfs.documents.security import Security, limits_of, openings, size_of
from lazyfs.documents.template import Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.errors import UsageError

PLAIN = template_of_document({"containers": [{"name": "web", "image": "busybox"}]})


def opened(template: Template = PLAIN, **words: tuple[str, ...]) -> Template:
    return confined(template, dict.fromkeys(NAMES, ()) | words)


def test_nothing_said_changes_nothing():
    assert opened() is PLAIN
    assert PLAIN.security == Security()
    assert openings(PLAIN.security) == []


def test_protections_by_name():
    words = (
        *("seccomp=unconfined", "no-new-privileges=false", "unmask=/proc/a:/proc/b"),
        *("userns=host", "keyring=host", "unmask=all"),
    )
    security = opened(security_opt=words, device=("/dev/null:/dev/x:r",)).security
    assert openings(security) == [
        "seccomp=unconfined",
        "no-new-privileges=false",
        "userns=host",
        "keyring=host",
        *("unmask=/proc/a", "unmask=/proc/b", "unmask=ALL"),
        "device=/dev/null:/dev/x:r",
    ]
    closed = ("no-new-privileges", "userns=private", "seccomp=default", "keyring=private")
    assert opened(security_opt=closed).security == Security()
    assert opened(security_opt=("no-new-privileges:true",)).security == Security()
    assert opened(security_opt=("seccomp=/etc/p.json",)).security.seccomp == "/etc/p.json"


def test_options_go_before_the_template():
    template = template_of_document(
        {
            "containers": [
                {
                    "name": "web",
                    "image": "busybox",
                    "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
                }
            ],
            "resources": {"memory": "1G", "pids": 7},
            "security": {"seccomp": "unconfined"},
        }
    )
    made = opened(
        template,
        security_opt=("seccomp=default",),
        cap_add=("sys_time",),
        cap_drop=("all",),
        memory=("64M",),
        cpus=("1.5",),
        storage_opt=("size=1G",),
        log_opt=("max-size=1M", "max-file=5"),
    )
    assert made.security == Security()
    changes = made.containers[0].security_context.capabilities
    assert (changes.add, changes.drop) == (("NET_ADMIN", "SYS_TIME"), ("ALL",))
    limits = limits_of(made.resources, made.logs)
    assert (limits.memory, limits.cpus, limits.pids) == (64 << 20, 1.5, 7)
    assert (limits.storage, limits.log_size, limits.log_files) == (1 << 30, 1 << 20, 5)


def test_sizes():
    assert [size_of(text) for text in (5, "5", "5k", "5MiB", "5MB", "1tb")] == [
        *(5, 5, 5 << 10, 5 << 20, 5_000_000, 10**12)
    ]
    assert limits_of(opened(cpus=("250m",)).resources, PLAIN.logs).cpus == 0.25


@pytest.mark.parametrize(
    "words",
    [
        {"security_opt": ("seccomp=",)},
        {"security_opt": ("apparmor=x",)},
        {"security_opt": ("no-new-privileges=perhaps",)},
        {"security_opt": ("userns=keep-id",)},
        {"storage_opt": ("1G",)},
        {"log_opt": ("driver=x",)},
        {"log_opt": ("max-file=many",)},
        {"pids_limit": ("-1",)},
    ],
)
def test_words_that_mean_nothing(words):
    with pytest.raises(UsageError, match="option --"):
        opened(**words)


@pytest.mark.parametrize(
    "words",
    [
        {"security_opt": ("seccomp=relative",)},
        {"security_opt": ("unmask=proc",)},
        {"device": ("null",)},
        {"device": ("/dev/null:rwx",)},
        {"memory": ("much",)},
        {"memory": ("0",)},
        {"cpus": ("-1",)},
        {"pids_limit": ("0",)},
        {"log_opt": ("max-file=0",)},
        {"cap_add": ("a b",)},
    ],
)
def test_values_that_cannot_be(words):
    with pytest.raises(TemplateInvalid, match="options: "):
        opened(**words)
