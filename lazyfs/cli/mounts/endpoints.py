"""``lazyfs inspect --endpoints``: which endpoints serve an image, in which order, and why."""

import os
from typing import TYPE_CHECKING, Any

from lazyfs.cli.quantities import size_text

if TYPE_CHECKING:
    from lazyfs.registry.config.endpoints import Endpoint
    from lazyfs.registry.source import AccessOptions

CAPABILITIES = ("resolve", "pull", "push", "referrers")


def decision(image: str, access: "AccessOptions") -> dict[str, Any]:
    """Return the decision for *image* in JSON's types.  Nothing is contacted.

    Fields: docs/reference/json.md.
    """
    from lazyfs.errors import UsageError
    from lazyfs.oci.reference import Reference, parse_reference
    from lazyfs.registry.config.configured import load_endpoints

    reference = parse_reference(image)
    if not isinstance(reference, Reference):
        raise UsageError(f"{image} is an image layout on disk, which has no endpoints")
    return {
        "reference": image,
        "repository": reference.name,
        "endpoints": [_document(each, access) for each in load_endpoints(reference, access)],
    }


def _document(endpoint: "Endpoint", access: "AccessOptions") -> dict[str, Any]:
    from lazyfs.registry.config.errors import redact_url
    from lazyfs.registry.config.hosts import origin_of, proxy_for

    proxy = proxy_for(origin_of(endpoint.url), access.environment)
    tls = {
        "verified": endpoint.tls.is_verified,
        "authorities": list(endpoint.tls.authorities),
        "clients": [certificate for certificate, _ in endpoint.tls.clients],
    }
    return {
        "url": redact_url(endpoint.url),
        "repository": endpoint.repository,
        "origin": endpoint.is_origin,
        "capabilities": [name for name in CAPABILITIES if endpoint.can(name)],
        "namespace": endpoint.namespace,
        "headers": sorted({name for name, _ in endpoint.headers}),
        "tls": tls if endpoint.is_secure else None,
        "proxy": None if proxy is None else redact_url(proxy),
        "connectSeconds": endpoint.connect_seconds or access.connect_seconds,
        "credentials": _credentials(endpoint, access),
        "source": endpoint.source,
    }


def _credentials(endpoint: "Endpoint", access: "AccessOptions") -> str | None:
    """Return where credentials would be looked for first; helpers are named and not run."""
    from lazyfs.errors import LazyfsError
    from lazyfs.registry.config.helpers import auth_file_reader
    from lazyfs.registry.config.keychain import HelperCall, candidates

    if access.is_anonymous:
        return None
    if access.login is not None and endpoint.is_origin:
        return "--creds"
    search = candidates(
        endpoint.registry,
        endpoint.repository,
        access.environment,
        auth_file_reader(access),
        authfile=None if access.authfile is None else os.fspath(access.authfile),
        uid=os.getuid(),
    )
    try:
        found = next(search, None)
    except LazyfsError as error:
        return error.message
    if isinstance(found, HelperCall):
        return f"docker-credential-{found.name}, named in {found.source}"
    return None if found is None else found.source


def lines_of(document: dict[str, Any]) -> list[str]:
    """Return what a person reads."""
    lines = [f"repository   {document['repository']}"]
    for number, endpoint in enumerate(document["endpoints"], start=1):
        lines += [
            f"{number}. {endpoint['url']}  ({'the registry' if endpoint['origin'] else 'mirror'})",
            f"   from         {endpoint['source']}",
            f"   repository   {endpoint['repository']}",
            f"   used for     {', '.join(endpoint['capabilities']) or '-'}"
            + ("" if "resolve" in endpoint["capabilities"] else "  (by digest only)"),
            f"   TLS          {_tls_text(endpoint['tls'])}",
            f"   credentials  {endpoint['credentials'] or 'none'}",
        ]
        if endpoint["namespace"]:
            lines.append(f"   ns           {endpoint['namespace']}")
        if endpoint["headers"]:
            lines.append(f"   headers      {', '.join(endpoint['headers'])}")
        if endpoint["proxy"]:
            lines.append(f"   proxy        {endpoint['proxy']}")
    return lines


def _tls_text(tls: dict[str, Any] | None) -> str:
    if tls is None:
        return "none: plain http"
    words = ["verified" if tls["verified"] else "NOT verified"]
    words += [f"CA {path}" for path in tls["authorities"]]
    words += [f"client certificate {path}" for path in tls["clients"]]
    return ", ".join(words)


def state_line(state: dict[str, Any]) -> str:
    """Return the state of an endpoint of a mount, for a person."""
    text = f"{state['url']}: {state['requests']} requests, {size_text(state['receivedSize'])}"
    if state["failures"]:
        text += f", {state['failures']} failures, the last at {state['when']}: {state['reason']}"
    return text + ("; tried last for now" if state["avoided"] else "")
