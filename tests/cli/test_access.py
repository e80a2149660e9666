"""The options for reaching registries, and what is shown of the decision."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lazyfs.cli.access import hide_argument
from lazyfs.cli.main import cli
from tests.support.formats.images import layer_from_fixture, make_layout
from tests.support.mounts.command import Lazyfs
from tests.support.registries import certificates
from tests.support.registries.registry import FakeRegistry

SECRET = "geheim"


@pytest.fixture
def registry(tmp_path):
    make_layout(tmp_path / "layout", [layer_from_fixture("edge-default")])
    with FakeRegistry(tmp_path / "layout") as serving:
        yield serving


@pytest.fixture(autouse=True)
def no_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


def test_credentials_on_the_command_line(run, registry):
    registry.require_basic({"u": SECRET})
    image = f"{registry.host}/image"
    assert run("inspect", image).code == 4
    assert run("inspect", image, "--creds", "u:wrong").code == 4
    done = run("inspect", image, "--creds", f"u:{SECRET}")
    assert done.code == 0
    assert SECRET not in done.err
    assert run("inspect", image, "--anonymous").code == 4
    assert run("inspect", image, "--no-creds").code == 4
    assert run("inspect", image, "--no-creds", "--creds", f"u:{SECRET}").code == 2
    assert run("inspect", image, "--anonymous", "--creds", "u:x").code == 2
    assert run("inspect", image, "--creds", ":x").code == 2


def test_a_password_from_standard_input(registry, tmp_path):
    registry.require_basic({"u": SECRET})
    lazyfs = Lazyfs(tmp_path)
    words = ("inspect", f"{registry.host}/image", "--creds", "u")
    done = lazyfs(*words, input=f"{SECRET}\n")
    assert done.returncode == 0, done.stderr
    done = lazyfs(*words, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "pipe the password in" in done.stderr


def test_a_password_that_is_typed(registry, tmp_path):
    """On a terminal it is asked for, and not shown."""
    registry.require_basic({"u": SECRET})
    lazyfs = Lazyfs(tmp_path)
    master, slave = pty.openpty()
    try:
        process = lazyfs.start(
            *("inspect", f"{registry.host}/image", "--creds", "u"),
            stdin=slave,
            start_new_session=True,
        )
        asked = process.stderr.read(len("Password for u:"))  # earlier input is thrown away
        os.write(master, f"{SECRET}\n".encode())
        _, said = process.communicate(timeout=30)
    finally:
        os.close(master)
        os.close(slave)
    assert asked == "Password for u:"
    assert process.returncode == 0, said
    assert SECRET not in said


def test_no_process_shows_the_password():
    """What ``ps`` reads is overwritten, wherever it stands in the arguments."""
    code = (
        "import sys; from lazyfs.cli.access import hide_argument;"
        "hide_argument(sys.argv[2], keep=5);"
        "print(open('/proc/self/cmdline').read().split('\\0')[3:-1] + sys.argv[2:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--creds", "user:geheim", "--creds=user:geheim"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    hidden = ["--creds", "user:xxxxxx", "--creds=user:xxxxxx"]
    assert done.stdout.strip() == repr([*hidden, "user:geheim", "--creds=user:geheim"])


def test_hiding_what_is_not_there_does_nothing():
    before = Path("/proc/self/cmdline").read_bytes()
    hide_argument("nobody:nothing at all", keep=3)
    assert Path("/proc/self/cmdline").read_bytes() == before


def test_a_directory_of_hosts(run, registry, tmp_path):
    folder = tmp_path / "hosts" / "r.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'[host."{registry.url}"]\n')
    done = run("inspect", "r.example/image", "--hosts-dir", tmp_path / "hosts")
    assert done.code == 0, done.err
    assert registry.requests[0].target.endswith("?ns=r.example")


@pytest.mark.skipif(certificates.why_missing() is not None, reason=certificates.why_missing() or "")
def test_a_certificate_that_is_not_checked(run, tmp_path):
    made = certificates.make_certificates(tmp_path)
    make_layout(tmp_path / "layout", [layer_from_fixture("edge-default")])
    with FakeRegistry(tmp_path / "layout", tls=made.server) as registry:
        folder = tmp_path / "hosts" / registry.host
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n')
        words = ("inspect", f"{registry.host}/image", "--hosts-dir", tmp_path / "hosts")
        assert run(*words).code == 5
        assert run(*words, "--insecure-skip-verify").code == 0
        assert run(*words, "--tls-verify").code == 5
        assert run(*words, "--tls-verify=true").code == 5
        assert run(*words, "--tls-verify=").code == 2
        assert run(*words, "--tls-verify=false").code == 0
        assert run(*words, "--tls-verify=true", "--insecure-skip-verify").code == 0
        own = tmp_path / "own"
        own.mkdir()
        assert run(*words, "--cert-dir", own).code == 2  # there is nothing in it
        (own / "ca.crt").write_bytes(made.authority.read_bytes())
        assert run(*words, f"--cert-dir={own}").code == 0
        authorities = tmp_path / "config/containers/certs.d" / registry.host
        authorities.mkdir(parents=True)
        (authorities / "ca.crt").write_bytes(made.authority.read_bytes())
        assert run(*words).code == 0


def commands_that_reach_registries(group=cli, names=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_that_reach_registries(command, (*names, name))
        elif any(option.name == "tls_verify" for option in command.params):
            yield (*names, name), command


REACHING = dict(commands_that_reach_registries())


def test_the_commands_that_reach_registries():
    """All of them, so that none can lose the options unseen."""
    images = {"mount", "inspect", "resolve", "ls", "cat", "pull", "verify", "convert", "optimize"}
    images.add("trust check")
    indexes = {"index build", "index push", "index show"}
    profiles = {"profile export", "profile import", "profile rm", "profile show"}
    sandboxes = {"run", "checkpoint", "restore", "golden build", "golden clone", "snapshot verify"}
    found = {" ".join(names) for names in REACHING}
    assert found == images | indexes | profiles | sandboxes


@pytest.mark.parametrize("names", REACHING, ids=" ".join)
def test_options_as_podman_and_skopeo_spell_them(names, tmp_path, monkeypatch):
    """For every command: what it would be told of the registry."""
    command = REACHING[names]
    arguments = ["x"] * sum(
        isinstance(each, click.Argument) and each.required for each in command.params
    )

    def told(*options):
        context = command.make_context(names[-1], [*options, *arguments])
        for argument in (each for each in command.params if isinstance(each, click.Argument)):
            value = context.params[argument.name]
            assert str(value).count("x") or not argument.required
        return context.params

    assert told()["tls_verify"] is True
    for word, meant in (
        ("--tls-verify", True),
        *((f"--tls-verify={value}", True) for value in ("true", "True", "TRUE", "1", "t")),
        *((f"--tls-verify={value}", False) for value in ("false", "False", "FALSE", "0", "f")),
    ):
        assert told(word)["tls_verify"] is meant, word
    assert told("--tls-verify=true", "--tls-verify=false")["tls_verify"] is False  # the last counts
    for value in ("", "maybe"):
        with pytest.raises(click.UsageError, match=r"boolean|no value"):
            told(f"--tls-verify={value}")
    for words in (("--cert-dir", str(tmp_path)), (f"--cert-dir={tmp_path}",)):
        assert told(*words)["cert_dir"] == tmp_path
    monkeypatch.chdir(tmp_path)
    assert told("--cert-dir=here")["cert_dir"] == tmp_path / "here"
    for word in ("--no-creds", "--anonymous"):
        assert told(word)["anonymous"] is True


def test_a_value_of_tls_verify_is_joined_to_it(run, registry):
    """The next word is another argument, as in podman."""
    image = f"{registry.host}/image"
    assert run("inspect", "--tls-verify", image).code == 0
    assert run("inspect", "--tls-verify", "false", image).code == 2


def test_a_program_keeps_its_own_tls_verify():
    context = REACHING[("run",)].make_context("run", ["x", "--", "skopeo", "--tls-verify", "x"])
    assert context.params["words"] == ("skopeo", "--tls-verify", "x")


def test_offline(run, registry):
    image = f"{registry.host}/image"
    assert run("ls", image, "--offline").code == 5
    assert run("ls", image).code == 0
    registry.close()
    assert run("ls", image).code == 5
    done = run("ls", image, "--offline")
    assert done.code == 0
    assert "the digest last seen" in done.err


def test_warnings_are_said_once(run, registry):
    registry.warn("closing in May")
    done = run("cat", f"{registry.host}/image", "dir/text64k.txt")
    assert len(registry.requests) > 3
    assert done.err.count("closing in May") == 1


FIELDS = {
    *("url", "repository", "origin", "capabilities", "namespace", "headers", "tls", "proxy"),
    *("connectSeconds", "credentials", "source"),
}


def test_the_decision_is_shown(run, registry, tmp_path):
    folder = tmp_path / "hosts" / registry.host
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        '[host."https://m.example"]\ncapabilities = ["pull"]\nskip_verify = true\n'
        '[host."https://m.example".header]\nx-token = "geheim"\n'
    )
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(
        json.dumps({"auths": {"m.example": {"auth": "dTpnZWhlaW0="}}})
    )
    words = ("inspect", f"{registry.host}/image", "--endpoints", "--hosts-dir", tmp_path / "hosts")
    done = run(*words, "--json")
    assert done.code == 0, done.err
    mirror, origin = done.json["endpoints"]
    assert set(mirror) == set(origin) == FIELDS
    assert mirror["url"] == "https://m.example"
    assert mirror["capabilities"] == ["pull"]
    assert mirror["tls"] == {"verified": False, "authorities": [], "clients": []}
    assert mirror["namespace"] == registry.host
    assert mirror["headers"] == ["x-token"]
    assert mirror["credentials"] == f"{tmp_path}/docker/config.json (m.example)"
    assert mirror["source"] == str(folder / "hosts.toml")
    assert (origin["origin"], origin["tls"]) == (True, None)
    assert registry.requests == [], "nothing is asked"
    text = run(*words).text
    assert re.search(r"1\. https://m\.example +\(mirror\)", text)
    assert "by digest only" in text
    assert "NOT verified" in text
    for output in (text, done.text):
        assert SECRET not in output
        assert "dTpnZWhlaW0=" not in output
    assert run("inspect", "oci:/x", "--endpoints").code == 2
