"""A bucket of S3, or of a compatible service, as a store of snapshots.

boto3's only home; it is imported when a store is first used.  Credentials come from where boto3
finds them: the environment, AWS' files, the machine's role.  "If absent" and compare-and-swap are
conditional puts (``If-None-Match: *``, ``If-Match``); whether the server heeds these is tried out
once, since one that does not ignores them silently.
"""

import logging
import math
import os
import random
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from lazyfs.documents.errors import SnapshotError, StoreFailed
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.threads import Threads
from lazyfs.snapshot.stores.keys import check_key, is_of_blob, is_of_snapshot
from lazyfs.snapshot.stores.objects import ObjectMissing, Stored, stopping
from lazyfs.snapshot.stores.s3_answers import ODD, OddAnswer, Pages, bound_answers, page_of
from lazyfs.snapshot.stores.s3_names import (
    CONFLICT_CODES,
    MISSING_CODES,
    REFUSED_CODES,
    UNKNOWN_CODES,
    Part,
    check_endpoint,
    code_of,
    endpoint_of_environment,
    etag_of,
)

log = logging.getLogger(__name__)

PART_SIZE = 16 << 20  # up to this, a file is one request
MOST_PARTS = 9000  # S3 takes 10,000
PARTS_AT_ONCE = 4
TRIES = 3  # of one request
CONNECT_SECONDS = 10
READ_SECONDS = 60
CONFLICT_TRIES = 6
PROBE = "probe-"


class _Refused(Exception):
    """The condition of a put did not hold."""


class S3Store:
    """The objects of *bucket* whose keys begin with *prefix* and a slash.

    *endpoint*: where the service is; by default what AWS_ENDPOINT_URL says, or Amazon.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None = None) -> None:
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = check_endpoint(endpoint or endpoint_of_environment())
        self._lock = threading.Lock()
        self._made: Any = None
        self._is_conditional: bool | None = None

    def put_file(self, key: str, path: Path) -> None:
        """Store a file; readers see all of it or nothing.  Unfinished uploads are aborted."""
        with local_errors(path, "read"), open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= PART_SIZE:
                self._put(key, stream.read())
            else:
                self._upload(key, stream.fileno(), size)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store *data* unless there is something; say whether it was stored."""
        if not self.is_conditional():
            if self.size(key) is not None:
                return False
            self._put(key, data)
            return True
        try:
            self._put(key, data, IfNoneMatch="*")
        except _Refused:
            return False
        return True

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Store *data* if what is there is *expected* (None: nothing); say whether it was."""
        if expected is None:
            return self.put_if_absent(key, data)
        try:
            with self._call(key, "read") as client:
                answer = client.get_object(**self._name(key))
                found = answer["Body"].read(len(expected) + 1)
                answer["Body"].close()
        except ObjectMissing:
            return False
        if found != expected:
            return False
        try:
            self._put(key, data, **({"IfMatch": answer["ETag"]} if self.is_conditional() else {}))
        except _Refused:
            return False
        return True

    def get(self, key: str, limit: int) -> bytes:
        """Return an object; one that is longer than *limit* bytes is cut after ``limit + 1``."""
        with self.open(key) as stream:
            pieces, left = [], limit + 1
            while left and (data := stream.read(left)):
                pieces.append(data)
                left -= len(data)
        return b"".join(pieces)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """Open an object for one reading from its start to its end."""
        body = _Body(self, key)
        try:
            yield cast(BinaryIO, body)
        finally:
            body.close()

    def size(self, key: str) -> int | None:
        """Return an object's size, None if there is none."""
        try:
            with self._call(key, "inspect") as client:
                return int(client.head_object(**self._name(key))["ContentLength"])
        except ObjectMissing:
            return None

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects whose keys begin with *prefix*, in the order of keys."""
        pages = Pages("Contents", {"ContinuationToken": "NextContinuationToken"})
        while not pages.is_last:
            with self._call(prefix or ".", "list") as client:
                answer = client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, **pages.more
                )
                pages.turn(answer)
                page = page_of(answer, self._prefix, prefix)
            yield from page

    def delete(self, key: str) -> None:
        """Remove an object; nothing to do where there is none."""
        try:
            with self._call(key, "remove") as client:
                client.delete_object(**self._name(key))
        except ObjectMissing:
            return

    def abort_uploads(self, older_than: float) -> int:
        """Give up unfinished uploads that began before then (Unix seconds); return how many."""
        aborted = 0
        tokens = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = Pages("Uploads", tokens)
        while not pages.is_last:
            with self._call("unfinished uploads", "list") as client:
                answer = client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=self._prefix, **pages.more
                )
                pages.turn(answer)
                old = [
                    (each["Key"], each["UploadId"])
                    for each in answer.get("Uploads", ())
                    if self._is_ours(each["Key"]) and each["Initiated"].timestamp() < older_than
                ]
            aborted += sum(self._abort(key, upload_id) for key, upload_id in old)
        return aborted

    def is_conditional(self) -> bool:
        """Say whether the store itself keeps "if absent"; probed once, the probe removed."""
        with self._lock:
            known = self._is_conditional
        if known is None:
            known = self._probe()
            if not known:
                log.warning(
                    "store %s does not support conditional puts: if two machines move a pointer "
                    "at the "
                    "same moment, neither is told",
                    self.url,
                )
            with self._lock:
                self._is_conditional = known
        return known

    def close(self) -> None:
        """Let go of the connections; the next call makes new ones."""
        with self._lock:
            if self._made is not None:
                self._made.close()
                self._made = None

    # Requests

    def _is_ours(self, full_key: str) -> bool:
        """Say whether an upload can be one of ours: others may share the bucket."""
        key = full_key.removeprefix(self._prefix)
        return full_key.startswith(self._prefix) and (is_of_snapshot(key) or is_of_blob(key))

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        """Put an object in one request; _Refused where *condition* does not hold."""
        for tries in range(CONFLICT_TRIES):
            with self._call(key, "write") as client:
                try:
                    client.put_object(**self._name(key), Body=data, **condition)
                    return
                except client.exceptions.ClientError as error:
                    code, _ = code_of(error)
                    if condition and code in REFUSED_CODES | MISSING_CODES:
                        raise _Refused from error
                    if code not in CONFLICT_CODES or tries == CONFLICT_TRIES - 1:
                        raise
            # Somebody else's put of the same key is under way: it decides.
            time.sleep(random.uniform(0, 0.1 * 2**tries))

    def _upload(self, key: str, file: int, size: int) -> None:
        """Put a file in parts; whatever happens, the parts do not stay without the whole."""
        part_size = max(PART_SIZE, math.ceil(size / MOST_PARTS))
        starts = range(0, size, part_size)
        name = self._name(key)
        stop = stopping.get() or threading.Event()
        with self._call(key, "write") as client:
            upload_id = client.create_multipart_upload(**name)["UploadId"]
        is_done = False
        pool = Threads(PARTS_AT_ONCE)
        try:

            def send(number: int, start: int) -> Part:
                if stop.is_set():
                    raise StoreFailed(f"upload of {key} to store {self.url} was stopped")
                data = _read_part(file, start, min(part_size, size - start))
                with self._call(key, "write") as client:
                    answer = client.upload_part(
                        **name, UploadId=upload_id, PartNumber=number, Body=data
                    )
                return {"PartNumber": number, "ETag": answer["ETag"]} | {
                    field: answer[field] for field in answer if field.startswith("Checksum")
                }

            sent = [pool.submit(send, number, start) for number, start in enumerate(starts, 1)]
            ended = wait(sent, return_when=FIRST_EXCEPTION).done
            for each in ended:
                each.result()  # raises what failed
            parts = [each.result() for each in sent]
            self._complete(key, upload_id, parts)
            is_done = True
        finally:
            if not is_done:
                pool.shutdown(cancel_futures=True)  # a part that came later would stay
                self._abort(name["Key"], upload_id)
            pool.shutdown()

    def _complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        """Make one object of the parts."""
        name = self._name(key)
        try:
            with self._call(key, "write") as client:
                client.complete_multipart_upload(
                    **name, UploadId=upload_id, MultipartUpload={"Parts": [*parts]}
                )
        except ObjectMissing as error:
            # There is no such upload any more: perhaps it was completed, and the answer was lost.
            with self._call(key, "inspect") as client:
                found = client.head_object(**name)["ETag"]
            if found.strip('"') != etag_of(parts):
                raise StoreFailed(error.message, details=error.details) from error

    def _abort(self, full_key: str, upload_id: str) -> bool:
        try:
            with self._call(full_key, "abort the upload of") as client:
                client.abort_multipart_upload(Bucket=self._bucket, Key=full_key, UploadId=upload_id)
            return True
        except ObjectMissing:
            return False  # somebody was faster
        except StoreFailed as error:
            log.warning("%s; `lazyfs gc` removes its parts", error.message)
            return False

    def _probe(self) -> bool:
        """Say whether conditions of puts are heeded: both, and refused as they should be."""
        key = f"{PROBE}{secrets.token_hex(8)}"
        try:
            self._put(key, b"1")
            for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123456789abcdef"'}):
                try:
                    self._put(key, b"2", **condition)
                    return False
                except _Refused:
                    continue
                except StoreFailed as error:
                    if error.details.get("code") in UNKNOWN_CODES:
                        return False
                    raise
            return True
        finally:
            try:
                self.delete(key)
            except StoreFailed as error:
                log.warning("%s", error.message)

    @contextmanager
    def _call(self, key: str, action: str) -> Iterator[Any]:
        """Yield the client; turn what it raises into our errors."""
        client = self._client()
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            yield client
        except ClientError as error:
            raise self._failed(key, action, error) from error
        except (OddAnswer, *ODD) as error:
            raise StoreFailed(
                f"cannot {action} {key} in store {self.url}: the answer is not one of an S3 "
                "service",
                hint=f"{type(error).__name__}: {str(error)[:300]}",
            ) from error
        except BotoCoreError as error:
            raise StoreFailed(
                f"cannot {action} {key} in store {self.url}: {type(error).__name__}",
                hint=str(error)[:300].splitlines()[0],
            ) from error

    def _failed(self, key: str, action: str, error: Any) -> SnapshotError:
        code, status = code_of(error)
        message = error.response.get("Error", {}).get("Message") or ""
        text = f"cannot {action} {key} in store {self.url}: {code}"
        text += f" ({status})" if status else ""
        details = {"code": code, "status": status, "key": key}
        if code in MISSING_CODES or code == "NoSuchUpload":
            return ObjectMissing(text, details=details)
        hint = message[:300] or None
        if status == 403:
            hint = (
                "the credentials do not allow this; or, if they do not allow s3:ListBucket, "
                "the key may not exist: S3 answers both with 403"
            )
        return StoreFailed(text, hint=hint, details=details)

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    def _make_client(self) -> Any:
        try:
            import boto3  # noqa: PLC0415
            import botocore.exceptions  # noqa: PLC0415
            from botocore.config import Config  # noqa: PLC0415
        except ImportError as error:
            raise StoreFailed(
                f"store {self.url}: boto3 is not installed",
                hint="pip install 'lazyfs[s3]'",
            ) from error
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            max_pool_connections=4 * PARTS_AT_ONCE,
            # Who has a service of his own seldom has a name in DNS for each bucket.
            s3={"addressing_style": "path" if self._endpoint else "auto"},
        )
        try:
            made = boto3.session.Session().client("s3", endpoint_url=self._endpoint, config=config)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise StoreFailed(
                f"store {self.url}: cannot set up S3: {type(error).__name__}",
                hint=str(error)[:300].splitlines()[0],
            ) from error
        bound_answers(made, lambda error: botocore.exceptions.HTTPClientError(error=error))
        return made


class _Body:
    """An object that is read; a connection that breaks is made anew, where it broke."""

    def __init__(self, store: S3Store, key: str) -> None:
        self._store = store
        self._key = key
        self._position = 0
        self._etag: str | None = None
        self._failures = 0
        self._body = self._request()

    def read(self, size: int = -1) -> bytes:
        """Return up to *size* bytes, all that is left for -1; none at the end."""
        while True:
            try:
                with self._store._call(self._key, "read"):
                    data: bytes = self._body.read(None if size < 0 else size)
            except StoreFailed as error:
                self._failures += 1
                if self._failures >= TRIES:
                    raise
                log.info("%s; resuming at byte %d", error.message, self._position)
                self.close()
                self._body = self._request()
                continue
            self._position += len(data)
            return data

    def close(self) -> None:
        """Let go of the connection."""
        self._body.close()

    def _request(self) -> Any:
        more = {}
        if self._etag is not None:
            more = {"Range": f"bytes={self._position}-", "IfMatch": self._etag}
        with self._store._call(self._key, "read") as client:
            answer = client.get_object(**self._store._name(self._key), **more)
        self._etag = answer.get("ETag")
        return answer["Body"]


def _read_part(file: int, start: int, size: int) -> bytes:
    data = os.pread(file, size, start)
    while len(data) < size:
        more = os.pread(file, size - len(data), start + len(data))
        if not more:
            raise StoreFailed(f"upload: the file shrank to {start + len(data)} bytes")
        data += more
    return data
