"""Which endpoints a configuration means: containerd's and containers' files, and both together."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import UsageError
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.config.configured import ConfigurationUnreadable, load_endpoints
from lazyfs.registry.config.endpoints import ALL, BadEndpoint, Endpoint, endpoint_of, parse_base
from lazyfs.registry.config.hosts_toml import directory_names, parse_duration, parse_hosts
from lazyfs.registry.config.registries_conf import (
    Blocked,
    choose_registry,
    matching_size,
    merge_registries,
    parse_registries,
)
from lazyfs.registry.source import AccessOptions

DIGEST = "sha256:" + "a" * 64


class Machine:
    """Directories for a user's and the system's configuration."""

    def __init__(self, folder: Path) -> None:
        self.user, self.system = folder / "user", folder / "etc"
        self.user.mkdir()
        self.system.mkdir()

    def write(self, path: str, text: str) -> Path:
        target = self.user.parent / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def endpoints(self, text: str, **options) -> tuple[Endpoint, ...]:
        reference = parse_reference(text)
        assert isinstance(reference, Reference)
        environment = {"XDG_CONFIG_HOME": str(self.user), **options.pop("environment", {})}
        access = AccessOptions(environment=environment, **options)
        return load_endpoints(reference, access, system=self.system)

    def urls(self, text: str, **options) -> list[str]:
        return [each.url for each in self.endpoints(text, **options)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


HOSTS = "user/containerd/certs.d/r.example/hosts.toml"
CONF = "user/containers/registries.conf"


# Nothing, and the command line


def test_without_configuration_there_is_the_registry(machine: Machine) -> None:
    (only,) = machine.endpoints("python")
    assert (only.url, only.registry) == ("https://registry-1.docker.io", "docker.io")
    assert only.address("manifests/x") == (
        "https://registry-1.docker.io/v2/library/python/manifests/x"
    )
    assert only.capabilities == ALL
    assert only.is_origin
    assert only.tls.is_verified


def test_the_command_line_speaks_of_the_registry_only(machine: Machine) -> None:
    machine.write(HOSTS, '[host."https://mirror.example"]\n')
    mirror, origin = machine.endpoints("r.example/a", plain_http=True, is_verified=False)
    assert (mirror.url, mirror.tls.is_verified) == ("https://mirror.example", True)
    assert (origin.url, origin.tls.is_verified) == ("http://r.example", False)


def test_skipping_verification_holds_for_a_server_that_a_file_names(machine: Machine) -> None:
    machine.write(HOSTS, 'server = "https://upstream.example"\n')
    (origin,) = machine.endpoints("r.example/a", is_verified=False)
    assert not origin.tls.is_verified


# hosts.toml


def test_hosts_in_their_order_then_the_server(machine: Machine) -> None:
    machine.write(
        HOSTS,
        """
        server = "https://upstream.example"
        [host."https://z.example"]
        [host."http://a.example:5000"]
          capabilities = ["pull"]
        [host."m.example/prefix"]
          override_path = true
        """,
    )
    z, a, m, origin = machine.endpoints("r.example/team/app")
    assert [each.url for each in (z, a, m, origin)] == [
        "https://z.example",
        "http://a.example:5000",
        "https://m.example/prefix",
        "https://upstream.example",
    ]
    assert [each.is_origin for each in (z, a, m, origin)] == [False, False, False, True]
    assert z.can("resolve")
    assert not z.can("referrers"), "only what grants it is asked"
    assert a.capabilities == {"pull"}
    assert a.address("blobs/x") == "http://a.example:5000/v2/team/app/blobs/x?ns=r.example"
    assert m.address("blobs/x") == "https://m.example/prefix/team/app/blobs/x?ns=r.example"
    assert origin.registry == "upstream.example", "credentials are those of where they go"
    assert origin.namespace == "r.example"


def test_a_server_that_is_the_registry_gets_no_namespace(machine: Machine) -> None:
    machine.write(
        "user/containerd/certs.d/docker.io/hosts.toml",
        'server = "https://registry-1.docker.io"\n[host."https://m.example/v2/hub"]\n'
        '[host."https://m.example/v2"]\n',
    )
    deep, whole, origin = machine.endpoints("python")
    assert (origin.registry, origin.namespace) == ("docker.io", None)
    assert deep.api == "https://m.example/v2/hub/v2"
    assert whole.api == "https://m.example/v2"


def test_what_a_host_says_of_itself(machine: Machine) -> None:
    path = machine.write(
        HOSTS,
        """
        skip_verify = true
        [host."https://m.example"]
          ca = ["/etc/ssl/own.pem", "beside.pem"]
          client = [["c.cert", "c.key"], "both.pem"]
          dial_timeout = "1m1.5s"
          [host."https://m.example".header]
            X-Token = "secret"
            x-many = ["1", "2"]
        """,
    )
    mirror, origin = machine.endpoints("r.example/a")
    folder = path.parent
    assert mirror.tls.authorities == ("/etc/ssl/own.pem", str(folder / "beside.pem"))
    assert mirror.tls.clients == (
        (str(folder / "c.cert"), str(folder / "c.key")),
        (str(folder / "both.pem"), None),
    )
    assert mirror.connect_seconds == 61.5
    assert mirror.headers == (("x-token", "secret"), ("x-many", "1"), ("x-many", "2"))
    assert "secret" not in repr(mirror)
    assert mirror.tls.is_verified
    assert not origin.tls.is_verified
    assert origin.url == "https://r.example"


def test_directories_in_their_order(machine: Machine) -> None:
    assert directory_names("r.example:5000") == ["r.example_5000_", "r.example:5000", "_default"]
    assert directory_names("r.example") == ["r.example", "_default"]
    wanted = []
    for place in (
        "etc/containerd/certs.d/_default",
        "etc/containerd/certs.d/r.example:5000",
        "etc/containerd/certs.d/r.example_5000_",
        "user/containerd/certs.d/r.example:5000",
        "own/r.example_5000_",
    ):
        wanted.append(f"https://{len(wanted)}.example")
        machine.write(f"{place}/hosts.toml", f'[host."{wanted[-1]}"]\n')
        options = {"hosts_dir": machine.user.parent / "own"} if "own" in place else {}
        assert machine.urls("r.example:5000/a", **options)[0] == wanted[-1]
    assert machine.urls("other.example/a")[0] == wanted[0]


def test_a_named_directory_must_exist(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationUnreadable, match="not a directory"):
        machine.endpoints("r.example/a", hosts_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "not a valid configuration in TOML"),
        ("server = 5", "not a valid configuration in TOML"),
        ('server = "ftp://x"', "http"),
        ('server = "https://u:p@x"', "http"),
        ('[host."https://x/a b"]', "http"),
        ('[host."https://x:99999"]', "http"),
        ('[host."https://x"]\ndial_timeout = "soon"', "duration"),
        ('[host."https://x".header]\nRange = "bytes=0-1"', "cannot be set here"),
        ('[host."https://x".header]\n"a b" = "c"', "cannot be set here"),
        ('[host."https://x".header]\na = "b\\r\\nEvil: c"', "printable"),
        ('[host."https://x"]\nclient = [["a", "b", "c"]]', "expected 1 or 2"),
        ('[host."https://x"]\nca = [""]', "name of a file"),
        ("\n".join(f'[host."https://h{n}"]' for n in range(65)), "at most 64"),
    ],
)
def test_hosts_that_are_refused(machine: Machine, text: str, says: str) -> None:
    path = machine.write(HOSTS, text)
    with pytest.raises(BadEndpoint, match=says) as caught:
        machine.endpoints("r.example/a")
    assert str(path) in str(caught.value)
    assert "Evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3), ("1m30s", 90), ("1.5h", 5400), ("250ms", 0.25), ("0", 0), ("1us", 1e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "3", "s", "-1s", "1 s", "1s2", "9" * 60 + "s", "1d"])
def test_no_durations(text: str) -> None:
    assert parse_duration(text) is None


# registries.conf


def test_the_longest_prefix_counts(machine: Machine) -> None:
    machine.write(
        CONF,
        """
        [[registry]]
        location = "r.example"
        [[registry.mirror]]
        location = "short.example"
        [[registry]]
        prefix = "r.example/team"
        location = "other.example/their"
        [[registry.mirror]]
        location = "long.example/x"
        [[registry]]
        prefix = "*.wild.example"
        location = "cache.example/wild"
        """,
    )
    assert machine.urls("r.example/teams/app") == ["https://short.example", "https://r.example"]
    mirror, origin = machine.endpoints("r.example/team/app")
    assert (mirror.url, mirror.repository) == ("https://long.example", "x/app")
    assert (origin.url, origin.repository) == ("https://other.example", "their/app")
    assert (mirror.registry, origin.registry) == ("long.example", "other.example")
    (wild,) = machine.endpoints("a.b.wild.example:5000/team/app")
    assert (wild.url, wild.repository) == ("https://cache.example", "wild/team/app")


@pytest.mark.parametrize(
    ("prefix", "name", "size"),
    [
        ("r.example", "r.example/a", 9),
        ("r.example", "r.example.org/a", 0),
        ("r.example/a", "r.example/a", 11),
        ("r.example/a", "r.example/ab", 0),
        ("*.example", "r.example/a", 9),
        ("*.example", "r.example:5000/a", 9),
        ("*.example", "example/a", 0),
    ],
)
def test_prefixes(prefix: str, name: str, size: int) -> None:
    assert matching_size(prefix, name) == size


def test_mirrors_for_digests_and_for_tags(machine: Machine) -> None:
    machine.write(
        CONF,
        """
        [[registry]]
        location = "r.example"
        [[registry.mirror]]
        location = "digests.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.example"
        pull-from-mirror = "tag-only"
        [[registry]]
        location = "d.example"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.example"
        """,
    )
    by_tag = machine.endpoints("r.example/a:1")
    assert [each.url for each in by_tag] == [
        "https://digests.example",
        "https://tags.example",
        "https://r.example",
    ]
    assert [each.can("resolve") for each in by_tag] == [False, True, True]
    assert machine.urls(f"r.example/a@{DIGEST}") == [
        "https://digests.example",
        "https://r.example",
    ]
    mirror, _ = machine.endpoints("d.example/a")
    assert not mirror.can("resolve")


def test_an_insecure_registry_is_tried_encrypted_then_plain(machine: Machine) -> None:
    machine.write(
        CONF,
        """
        [[registry]]
        location = "r.example"
        insecure = true
        [[registry.mirror]]
        location = "localhost:5000"
        insecure = true
        """,
    )
    mirror, first, second = machine.endpoints("r.example/a")
    assert mirror.url == "http://localhost:5000"
    assert (first.url, first.tls.is_verified) == ("https://r.example", False)
    assert second.url == "http://r.example"
    assert machine.urls("r.example/a", plain_http=True)[1:] == ["http://r.example"]


def test_a_blocked_registry(machine: Machine) -> None:
    path = machine.write(CONF, '[[registry]]\nlocation = "r.example"\nblocked = true\n')
    with pytest.raises(Blocked) as caught:
        machine.endpoints("r.example/a")
    assert str(path) in str(caught.value)


def test_files_beside_the_main_one_replace_its_tables(machine: Machine) -> None:
    machine.write("etc/containers/registries.conf", '[[registry]]\nlocation = "r.example"\n')
    table = '[[registry]]\nlocation = "r.example"\n[[registry.mirror]]\nlocation = "{}"\n'
    for path, mirror in (
        ("etc/containers/registries.conf", "main.example"),
        ("etc/containers/registries.conf.d/10-a.conf", "ten.example"),
        ("etc/containers/registries.conf.d/20-b.conf", "twenty.example"),
        ("user/containers/registries.conf.d/05-c.conf", "user.example"),
    ):
        machine.write(path, table.format(mirror))
        machine.write("etc/containers/registries.conf.d/README", "no configuration")
        assert machine.urls("r.example/a")[0] == f"https://{mirror}"
    named = machine.write("named.conf", table.format("named.example"))
    for path in ("etc", "user"):
        for each in (named.parent / path / "containers" / "registries.conf.d").glob("*.conf"):
            each.unlink()
    machine.write(CONF, table.format("users-main.example"))
    assert machine.urls("r.example/a")[0] == "https://users-main.example"
    environment = {"CONTAINERS_REGISTRIES_CONF": str(named)}
    assert machine.urls("r.example/a", environment=environment)[0] == "https://named.example"
    environment = {"CONTAINERS_REGISTRIES_CONF": str(named) + "x"}
    with pytest.raises(ConfigurationUnreadable):
        machine.endpoints("r.example/a", environment=environment)


def test_the_debian_file_says_nothing_about_mirrors(machine: Machine) -> None:
    machine.write(
        "etc/containers/registries.conf",
        'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "enforcing"\n'
        '[aliases]\n"fedora" = "registry.fedoraproject.org/fedora"\n',
    )
    assert machine.urls("python") == ["https://registry-1.docker.io"]


@pytest.mark.parametrize(
    "text",
    [
        "[[registry]]\n",
        '[[registry]]\nprefix = "r.example"\nlocation = "m.example/x y"',
        '[[registry]]\nprefix = "r.example"\nlocation = "https://m.example"',
        '[[registry]]\nlocation = "r.example"\n[[registry.mirror]]\n',
        '[[registry]]\nlocation="r.example"\n[[registry.mirror]]\nlocation="m"\n'
        'pull-from-mirror="never"',
        '[[registry]]\nprefix = "r.example"\nlocation = "m.example/UPPER"',
        '[[registry]]\nprefix = "*.x"\nlocation = "*.y"',
        "registry = 5",
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "[",
    ],
)
def test_registries_that_are_refused(machine: Machine, text: str) -> None:
    machine.write(CONF, text)
    with pytest.raises(UsageError):
        machine.endpoints("r.example/a")


# Both, and certificates


def test_both_make_one_list_without_repetition(machine: Machine) -> None:
    machine.write(HOSTS, '[host."https://one.example"]\n[host."https://two.example"]\n')
    machine.write(
        CONF,
        '[[registry]]\nlocation = "r.example"\n[[registry.mirror]]\nlocation = "two.example"\n'
        '[[registry.mirror]]\nlocation = "three.example"\n[[registry.mirror]]\n'
        'location = "r.example"\n',
    )
    found = machine.endpoints("r.example/a")
    assert [each.url for each in found] == [
        "https://one.example",
        "https://two.example",
        "https://three.example",
        "https://r.example",
    ]
    assert [each.is_origin for each in found] == [False, False, False, True]


def test_certificates_of_docker_and_containers(machine: Machine) -> None:
    machine.write("etc/docker/certs.d/r.example:5000/ca.crt", "x")
    machine.write("etc/docker/certs.d/r.example:5000/readme.txt", "x")
    (only,) = machine.endpoints("r.example:5000/a")
    assert only.tls.authorities == (str(machine.system / "docker/certs.d/r.example:5000/ca.crt"),)
    own = machine.write("user/containers/certs.d/r.example:5000/own.cert", "x")
    with pytest.raises(ConfigurationUnreadable, match=r"own\.key"):
        machine.endpoints("r.example:5000/a")
    own.with_suffix(".key").write_text("x")
    (only,) = machine.endpoints("r.example:5000/a", is_verified=False)
    assert only.tls.clients == ((str(own), str(own.with_suffix(".key"))),)
    assert not only.tls.is_verified
    assert machine.endpoints("r.example/a")[0].tls.clients == ()


def test_a_directory_of_containerd_with_certificates_only(machine: Machine) -> None:
    ca = machine.write("user/containerd/certs.d/r.example/ca.crt", "x")
    (only,) = machine.endpoints("r.example/a")
    assert only.tls.authorities == (str(ca),)
    assert only.source == str(ca.parent)


def test_a_file_that_cannot_be_read(machine: Machine) -> None:
    (machine.user / "containerd/certs.d/r.example/hosts.toml").mkdir(parents=True)
    with pytest.raises(ConfigurationUnreadable):
        machine.endpoints("r.example/a")


# Whatever is written there


ORIGIN = endpoint_of("r.example", "a", plain_http=False)
URLS = st.sampled_from(["https://m", "m:5", "http://[::1]:5/x", "ftp://m", "", "m/ü", "https://"])
JUNK = st.one_of(
    st.text(max_size=30), URLS, st.booleans(), st.integers(), st.lists(st.text(max_size=8))
)
KEYS = st.sampled_from(
    ["server", "capabilities", "ca", "client", "skip_verify", "header", "override_path",
     "dial_timeout", "location", "prefix", "mirror", "insecure", "blocked", "x"]
)  # fmt: skip


def toml_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, int):
        return str(value)
    escaped = "".join(
        c if (c.isalnum() and c.isascii()) or c in ":/. []" else f"\\U{ord(c):08x}"
        for c in str(value)
        if not 0xD800 <= ord(c) < 0xE000
    )
    return f'"{escaped}"'


def table(pairs: dict[str, object]) -> str:
    return "".join(f"{key} = {toml_of(value)}\n" for key, value in pairs.items())


@given(st.dictionaries(KEYS, JUNK), st.lists(st.tuples(URLS, st.dictionaries(KEYS, JUNK))))
def test_any_hosts_toml_gives_endpoints_or_is_refused(
    top: dict[str, object], hosts: list[tuple[str, dict[str, object]]]
) -> None:
    text = table(top) + "".join(f"[host.{toml_of(url)}]\n{table(pairs)}" for url, pairs in hosts)
    try:
        found = parse_hosts(text.encode(), "/x/hosts.toml", "r.example", "a", ORIGIN)
    except UsageError:
        return
    assert found[-1].is_origin
    for each in found:
        assert parse_base(each.url, "")[0] == each.url
        assert each.capabilities <= ALL


@given(st.lists(st.dictionaries(KEYS, JUNK)))
def test_any_registries_conf_gives_tables_or_is_refused(tables: list[dict[str, object]]) -> None:
    text = "".join("[[registry]]\n" + table(pairs) for pairs in tables)
    try:
        found = merge_registries([parse_registries(text.encode(), "/x")])
    except UsageError:
        return
    chosen = choose_registry(found, "r.example/a")
    assert chosen is None or chosen.key


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_are_refused(data: bytes) -> None:
    for parse in (
        lambda: parse_hosts(data, "/x/hosts.toml", "r.example", "a", ORIGIN),
        lambda: parse_registries(data, "/x"),
    ):
        try:
            parse()
        except UsageError:
            pass
