"""Names in S3: addresses, codes of errors, tags of objects.

Spec: Amazon S3 API reference, "Error responses".  Services that speak like it have codes of their
own for what they do not know.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from lazyfs.errors import UsageError

Part = dict[str, Any]  # of an upload: PartNumber, ETag, checksums
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
MISSING_CODES = {"NoSuchKey", "404", "NotFound"}
REFUSED_CODES = {"PreconditionFailed", "412"}
CONFLICT_CODES = {"ConditionalRequestConflict", "OperationAborted", "409"}
UNKNOWN_CODES = {"NotImplemented", "501", "InvalidArgument", "400", "InvalidRequest"}


class BadEndpoint(UsageError):
    """Text that is no address of an S3 service."""

    code = "E_S3_ENDPOINT"


def etag_of(parts: Sequence[Part]) -> str:
    """Return the ETag of an object of *parts*: MD5 of theirs, and how many they are."""
    try:
        joined = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts)
    except ValueError:  # a service with ETags of its own
        return ""
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def code_of(error: Any) -> tuple[str, int | None]:
    """Return S3's code and HTTP's status of a ClientError."""
    response = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(response.get("Error", {}).get("Code") or status or "an error"), status


def endpoint_of_environment() -> str | None:
    """Return the address that the environment names, None for Amazon's."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)


def check_endpoint(endpoint: str | None) -> str | None:
    """Return *endpoint*, or raise BadEndpoint."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise BadEndpoint(
            "endpoint of S3: must be http(s)://host[:port], without user and password; "
            f"its scheme is {parts.scheme[:20]!r}"
        )
    return endpoint
