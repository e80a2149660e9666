"""Where requests go: endpoints, redirects, proxies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.registry.config.endpoints import endpoint_of
from lazyfs.registry.config.errors import BadAnswer, Refused
from lazyfs.registry.config.hosts import next_url, origin_of, proxy_for


@pytest.mark.parametrize(
    ("registry", "plain_http", "url"),
    [
        ("docker.io", False, "https://registry-1.docker.io"),
        ("ghcr.io", False, "https://ghcr.io"),
        ("registry.example:5000", False, "https://registry.example:5000"),
        ("registry.example:5000", True, "http://registry.example:5000"),
        ("localhost:5000", False, "http://localhost:5000"),
        ("127.0.0.1:5000", False, "http://127.0.0.1:5000"),
        ("127.8.9.10", False, "http://127.8.9.10"),
        ("[::1]:5000", False, "http://[::1]:5000"),
        # Private networks are other machines: crane's rule to trust them is not ours.
        ("192.168.1.5:5000", False, "https://192.168.1.5:5000"),
        ("localhost.example:5000", False, "https://localhost.example:5000"),
    ],
)
def test_plain_http_is_for_loopback_only(registry: str, plain_http: bool, url: str) -> None:
    assert endpoint_of(registry, plain_http=plain_http).url == url


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a/", ("http", "a", 80)),
        ("HTTPS://A.example:443/x?y", ("https", "a.example", 443)),
        ("https://a.example", ("https", "a.example", 443)),
        ("http://[::1]:5000/v2/", ("http", "::1", 5000)),
    ],
)
def test_origins(url: str, origin: tuple[str, str, int]) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "/v2/",
        "http:///x",
        "http://a:99999/",
        "http://user:secret@a/",
        "http://good\\@evil/",
        "http://a b/",
        "http://[::1/",
        "http://a:/x:",
        "javascript:alert(1)",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        origin_of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://r/v2/x/blobs/d", "https://cdn/y?sig=1", "https://cdn/y?sig=1"),
        ("https://r/v2/x/blobs/d", "/y?a=b", "https://r/y?a=b"),
        ("https://r/v2/x/blobs/d", "y", "https://r/v2/x/blobs/y"),
        ("https://r/v2/x/blobs/d", "../uploads/1", "https://r/v2/x/uploads/1"),
        ("https://r/v2/x/blobs/d", "//cdn/y", "https://cdn/y"),
        ("https://r/v2/x/blobs/d?q=1", "?q=2", "https://r/v2/x/blobs/d?q=2"),
        ("http://r/v2/", "https://r/v2/", "https://r/v2/"),
        ("https://r/", "https://cdn/y#part", "https://cdn/y"),
        ("https://r/", "https://cdn/a%2Fb%3D?X-Sig=%2B%2f", "https://cdn/a%2Fb%3D?X-Sig=%2B%2f"),
    ],
)
def test_redirects(url: str, location: str, target: str) -> None:
    assert next_url(url, location) == target


@pytest.mark.parametrize(
    ("location", "says"),
    [
        (None, "no Location"),
        ("", "no Location"),
        ("http://r/", "from https to http"),
        ("http://r.example/", "from https to http"),
        ("file:///etc/passwd", "not an http or https URL"),
        ("https://user:secret@cdn/", "more than a host and a port"),
        ("https://cdn/ x", "not a valid URL"),
        ("https://cdn/\x0d\x0aX-Evil: 1", "not a valid URL"),
        ("https://cdn/é", "not a valid URL"),
        ("https://cdn\\@evil/", "not an http or https URL with a host"),
        ("https://[::1", "not a valid URL"),
        ("/" + "x" * 20_000, "at most"),
    ],
)
def test_redirects_that_are_refused(location: str | None, says: str) -> None:
    with pytest.raises((BadAnswer, Refused), match=says) as caught:
        next_url("https://r/v2/?token=secret", location)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_location_gives_an_http_url_or_is_refused(location: str) -> None:
    try:
        target = next_url("https://r/v2/x", location)
    except (BadAnswer, Refused):
        return
    assert origin_of(target)[0] == "https"


PROXIED = {
    "https_proxy": "http://p:3128",
    "no_proxy": "intern, .example.org,*.wild,10.0.0.0/8,h:99",
}


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://r", {}, None),
        ("https://r", {"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        ("https://r", {"ALL_PROXY": "http://p"}, "http://p"),
        ("http://r", {"https_proxy": "http://p"}, None),
        ("http://r", {"HTTP_PROXY": "http://p"}, "http://p"),
        ("https://r", {"https_proxy": "http://a", "HTTPS_PROXY": "http://b"}, "http://a"),
        ("https://r", PROXIED, "http://p:3128"),
        ("https://intern", PROXIED, None),
        ("https://a.intern", PROXIED, None),
        ("https://notintern", PROXIED, "http://p:3128"),
        ("https://example.org", PROXIED, None),
        ("https://a.example.org", PROXIED, None),
        ("https://a.wild", PROXIED, None),
        ("https://10.2.3.4", PROXIED, None),
        ("https://11.2.3.4", PROXIED, "http://p:3128"),
        ("https://h:99", PROXIED, None),
        ("https://h:98", PROXIED, "http://p:3128"),
        ("https://r", {"https_proxy": "http://p", "NO_PROXY": "*"}, None),
        ("http://localhost:5000", {"http_proxy": "http://p"}, None),
        ("http://127.0.0.1:5000", {"http_proxy": "http://p"}, None),
        ("http://[::1]:5000", {"http_proxy": "http://p"}, None),
    ],
)
def test_proxies(url: str, environment: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(origin_of(url), environment) == proxy
