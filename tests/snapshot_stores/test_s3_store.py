"""A bucket as a store: conditions, parts, refusals, and answers that never came."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lazyfs.documents.errors import ManifestMissing, StoreConflict, StoreFailed
from lazyfs.snapshot.publish import check_writable
from lazyfs.snapshot.stores import s3_store
from lazyfs.snapshot.stores.keys import BadKey, manifest_key
from lazyfs.snapshot.stores.objects import ObjectMissing, stopping
from lazyfs.snapshot.stores.pointers import Pointer
from lazyfs.snapshot.stores.s3_names import BadEndpoint
from lazyfs.snapshot.stores.s3_store import S3Store
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.snapshot.stores.stores import open_objects
from lazyfs.snapshot.stores.transfer import copy_snapshot
from tests.support.mounts.mounting import ROOT
from tests.support.sandboxes.s3 import ENVIRONMENT, Fault, S3Server
from tests.support.sandboxes.snapshots import CONTENTS, ID, LATER_ID, FaultyStore, draft, store

SECONDS = 60
PART = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def service() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = S3Server()
        yield server
        server.close()


@pytest.fixture
def client(service: S3Server, request: pytest.FixtureRequest) -> Any:
    service.reset()
    request.node.bucket = f"bucket-{abs(hash(request.node.nodeid)) % 10**12}"
    return service.bucket(request.node.bucket)


@pytest.fixture
def objects(service: S3Server, client: Any, request: pytest.FixtureRequest) -> Iterator[S3Store]:
    url = f"s3://{request.node.bucket}/some/prefix"
    found = open_objects(url, s3_endpoint=service.url)
    assert isinstance(found, S3Store)
    yield found
    found.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "PART_SIZE", PART)


def bucket_of(objects: S3Store) -> str:
    return objects.url.split("/")[2]


def uploads(client: Any, objects: S3Store) -> list[Any]:
    return client.list_multipart_uploads(Bucket=bucket_of(objects)).get("Uploads", [])


def meant(method: str, word: str) -> Any:
    return lambda *request: request[0] == method and word in f"{request[1]}?{request[2]}"


def test_what_is_put_is_got(objects, client, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"some bytes")
    objects.put_file("snapshots/a/file", source)
    assert objects.size("snapshots/a/file") == 10
    assert objects.get("snapshots/a/file", 100) == b"some bytes"
    assert objects.get("snapshots/a/file", 3) == b"some"
    with objects.open("snapshots/a/file") as stream:
        assert stream.read(4) + stream.read() == b"some bytes"
    listed = client.list_objects_v2(Bucket=bucket_of(objects))["Contents"]
    assert [each["Key"] for each in listed] == ["some/prefix/snapshots/a/file"]
    objects.delete("snapshots/a/file")
    objects.delete("snapshots/a/file")
    assert objects.size("snapshots/a/file") is None


def test_what_is_not_there(objects):
    assert objects.size("a/b") is None
    assert list(objects.list("")) == []
    with pytest.raises(ObjectMissing):
        objects.get("a/b", 1)
    assert objects.abort_uploads(1e12) == 0
    with pytest.raises(BadKey):
        objects.get("../a", 1)


def test_a_bucket_that_is_not_there(service, client):
    objects = S3Store("no-such-bucket", "", endpoint=service.url)
    for deed in (lambda: objects.get("a", 1), lambda: list(objects.list(""))):
        with pytest.raises(StoreFailed, match="NoSuchBucket") as caught:
            deed()
        assert not isinstance(caught.value, ObjectMissing)
    objects.close()


def test_conditions(objects, client):
    assert objects.is_conditional()
    assert objects.put_if_absent("a", b"first")
    assert not objects.put_if_absent("a", b"second")
    assert not objects.replace("a", b"new", None)
    assert not objects.replace("a", b"new", b"second")
    assert not objects.replace("b", b"new", b"")
    assert objects.replace("a", b"new", b"first")
    assert objects.get("a", 9) == b"new"
    assert [stored.key for stored in objects.list("")] == ["a"]  # the probe is gone


def test_of_many_writers_one_wins(objects):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: objects.put_if_absent("a", b"%d" % n), range(16)))
    assert sum(won) == 1
    assert objects.get("a", 9) == b"%d" % won.index(True)
    moved = []
    with ThreadPoolExecutor(8) as pool:
        before = objects.get("a", 9)
        moved = list(pool.map(lambda n: objects.replace("a", b"to %d" % n, before), range(16)))
    assert sum(moved) == 1
    assert objects.get("a", 9) == b"to %d" % moved.index(True)


def test_a_service_that_ignores_conditions(service, objects, caplog):
    """F41: it looks first, then; and says so."""
    service.is_conditional = False
    assert not objects.is_conditional()
    assert "does not support conditional puts" in caplog.text
    assert objects.put_if_absent("a", b"first")
    assert not objects.put_if_absent("a", b"second")
    assert objects.replace("a", b"new", b"first")
    assert not objects.replace("a", b"x", b"first")
    assert objects.get("a", 9) == b"new"
    assert [stored.key for stored in objects.list("")] == ["a"]


def test_a_service_that_knows_no_conditions(service, objects):
    probes = itertools.count()

    def is_meant(method: str, path: str, query: str) -> bool:
        return method == "PUT" and "probe-" in path and next(probes) >= 1

    service.faults.append(Fault(is_meant, "NotImplemented", times=99))
    assert not objects.is_conditional()
    assert list(objects.list("")) == []


def test_a_conflict_of_puts_is_tried_again(service, objects):
    assert objects.is_conditional()
    service.faults.append(Fault(meant("PUT", "/a"), "ConditionalRequestConflict", times=2))
    assert objects.put_if_absent("a", b"x")


@pytest.mark.parametrize("is_broken_off", [False, True])
def test_a_lost_answer(service, objects, tmp_path, is_broken_off):
    """Scenario 28: the put was done, the answer was not heard."""
    made = draft(tmp_path)
    snapshots = Snapshots(objects)
    snapshots.upload(ID, made.files)
    assert objects.is_conditional()
    code = None if is_broken_off else "InternalError"
    service.faults.append(Fault(meant("PUT", "snapshot-manifest.json"), code, is_done=True))
    assert snapshots.commit(made.manifest) == made.digest
    assert service.count("PUT", "snapshot-manifest.json") == 2
    service.faults.append(Fault(meant("PUT", "pointers/"), code, is_done=True))
    snapshots.move_pointer("latest", Pointer(ID, made.digest), None)
    assert snapshots.load("@latest").data == made.data


def test_refused_is_not_missing(service, objects, tmp_path):
    """Scenario 55, F3."""
    service.faults.append(Fault(lambda *request: True, "AccessDenied", times=99))
    for deed in (
        lambda: objects.get(manifest_key(ID), 9),
        lambda: objects.size("a"),
        lambda: Snapshots(objects).load(ID),
        lambda: list(objects.list("")),
        lambda: objects.put_if_absent("a", b""),
    ):
        with pytest.raises(StoreFailed) as caught:
            deed()
        assert not isinstance(caught.value, (ObjectMissing, ManifestMissing))
        assert caught.value.exit_code == 42
        assert "403" in caught.value.message
        assert "s3:ListBucket" in caught.value.hint


def test_a_bucket_that_may_be_read_only_is_found_before_the_sandbox_ends(
    service, objects, tmp_path
):
    service.faults.append(Fault(lambda method, *_: method == "PUT", "AccessDenied", times=99))
    with pytest.raises(StoreFailed, match="403"):
        check_writable(objects, ID)
    service.faults.clear()
    check_writable(objects, ID)
    assert list(objects.list("")) == []


def test_passing_trouble_is_tried_again(service, objects):
    objects.put_if_absent("a", b"data")
    for code in ("InternalError", "SlowDown", None):
        service.faults.append(Fault(meant("GET", "/a"), code))
        assert objects.get("a", 9) == b"data"


def test_lasting_trouble_is_not_tried_for_ever(service, objects):
    service.faults.append(Fault(meant("GET", "/a"), "InternalError", times=999))
    with pytest.raises(StoreFailed, match="InternalError"):
        objects.get("a", 9)
    assert service.count("GET", "/a") == s3_store.TRIES


def test_an_answer_that_breaks_off_goes_on_where_it_broke(service, objects, tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(data)
    objects.put_file("a", tmp_path / "source")
    service.faults.append(Fault(meant("GET", "/a"), cut=1 << 20))
    with objects.open("a") as stream:
        pieces = iter(lambda: stream.read(100_000), b"")
        assert b"".join(pieces) == data
    assert service.count("GET", "/a") == 2


def test_pages_of_a_listing(service, objects):
    for number in range(7):
        objects.put_if_absent(f"a/{number}", b"x" * number)
    service.page_size = 2
    assert [(each.key, each.size) for each in objects.list("a/")] == [
        (f"a/{number}", number) for number in range(7)
    ]
    assert service.count("GET", "list-type=2") == 4


# Uploads in parts


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(3 * PART + 12345))
    return path


def test_parts(service, objects, client, small_parts, large):
    objects.put_file("a", large)
    assert service.count("PUT", "partNumber=") == 4
    assert objects.size("a") == large.stat().st_size
    with objects.open("a") as stream:
        assert stream.read() == large.read_bytes()
    assert uploads(client, objects) == []


@pytest.mark.parametrize("step", ["partNumber=3", "complete"])
def test_an_upload_that_fails_is_aborted(service, objects, client, small_parts, large, step):
    """F25: nothing stays, not even its parts."""
    method = "PUT" if "part" in step else "POST"
    word = step if "part" in step else "uploadId="
    service.faults.append(Fault(meant(method, word), "InternalError", times=99))
    with pytest.raises(StoreFailed):
        objects.put_file("a", large)
    assert service.count(method, word) == s3_store.TRIES
    assert objects.size("a") is None
    assert uploads(client, objects) == []


@pytest.mark.parametrize("code", [None, "InternalError", "NoSuchUpload"])
def test_a_lost_answer_to_the_last_step(service, objects, client, small_parts, large, code):
    """The parts were joined, and nobody said so."""
    meant_complete = meant("POST", "uploadId=")
    service.faults.append(Fault(meant_complete, code, is_done=True))
    objects.put_file("a", large)
    with objects.open("a") as stream:
        assert stream.read() == large.read_bytes()
    assert uploads(client, objects) == []


def test_an_upload_that_somebody_aborted(service, objects, client, small_parts, large):
    """It is not taken for done because another object of that size is there."""
    objects.put_file("a", large)
    large.write_bytes(bytes(large.stat().st_size))
    service.faults.append(Fault(meant("POST", "uploadId="), "NoSuchUpload"))
    with pytest.raises(StoreFailed, match="NoSuchUpload"):
        objects.put_file("a", large)


def test_a_part_that_fails_once(service, objects, small_parts, large):
    service.faults.append(Fault(meant("PUT", "partNumber=2")))
    objects.put_file("a", large)
    assert objects.size("a") == large.stat().st_size


def test_an_upload_that_is_interrupted_is_aborted(service, objects, client, small_parts, large):
    stop = threading.Event()
    service.faults.append(Fault(lambda *request: stop.set() or False, times=99))
    token = stopping.set(stop)
    try:
        with pytest.raises(StoreFailed, match="was stopped"):
            objects.put_file("a", large)
    finally:
        stopping.reset(token)
    assert uploads(client, objects) == []
    assert objects.size("a") is None


def test_old_uploads_are_aborted(objects, client, small_parts):
    names = {"Bucket": bucket_of(objects)}
    client.create_multipart_upload(**names, Key=f"some/prefix/{manifest_key(ID)}")
    client.create_multipart_upload(**names, Key="some/prefix/of-somebody")
    client.create_multipart_upload(**names, Key=f"other/{manifest_key(ID)}")
    (upload, *_) = uploads(client, objects)
    began = upload["Initiated"].timestamp()
    assert objects.abort_uploads(began - 3600) == 0
    assert objects.abort_uploads(began + 3600) == 1
    left = {each["Key"] for each in uploads(client, objects)}
    assert left == {"some/prefix/of-somebody", f"other/{manifest_key(ID)}"}


# Snapshots


def test_snapshots(objects, tmp_path):
    made = store(objects, draft(tmp_path))
    snapshots = Snapshots(objects)
    loaded = snapshots.load(ID)
    assert loaded.data == made.data
    snapshots.download(loaded, tmp_path / "back")
    found = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert found == CONTENTS
    assert snapshots.remove(ID)
    assert snapshots.states() == []


def test_a_store_that_fails_at_the_second_file(service, objects, client, small_parts, tmp_path):
    """Scenario 23."""
    made = draft(tmp_path, contents={"checkpoint.img": b"a", "pages.img": os.urandom(2 * PART)})
    snapshots = Snapshots(objects)
    service.faults.append(Fault(meant("PUT", "partNumber=2"), "InternalError", times=99))
    with pytest.raises(StoreFailed):
        snapshots.upload(ID, made.files)
    assert snapshots.ids() == []
    assert uploads(client, objects) == []
    service.faults.clear()
    snapshots.upload(ID, made.files)
    assert snapshots.commit(made.manifest) == made.digest
    assert snapshots.verify(snapshots.load(ID), deep=True) == []


def test_two_hosts_with_one_pointer(service, objects, client, tmp_path):
    """Scenario 27: two snapshots, one pointer, the loser is told."""
    other = S3Store(bucket_of(objects), "some/prefix", endpoint=service.url)
    first = store(objects, draft(tmp_path, ID))
    second = store(other, draft(tmp_path, LATER_ID))
    outcomes = []

    def move(place: S3Store, to: Pointer) -> None:
        try:
            Snapshots(place).move_pointer("latest", to, None)
            outcomes.append(0)
        except StoreConflict as error:
            outcomes.append(error.exit_code)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(move, objects, Pointer(ID, first.digest))
        pool.submit(move, other, Pointer(LATER_ID, second.digest))
    assert sorted(outcomes) == [0, 43]
    assert Snapshots(objects).ids() == [ID, LATER_ID]
    assert len(Snapshots(objects).pointers()) == 1
    other.close()


def test_copies_between_kinds_of_stores(service, objects, tmp_path):
    """Scenario 57."""
    here = FaultyStore(tmp_path / "store")
    made = store(here, draft(tmp_path))
    copy_snapshot(Snapshots(here).load(ID), Snapshots(here), Snapshots(objects))
    puts = [
        path for method, path, _ in service.requests if method == "PUT" and "probe-" not in path
    ]
    assert puts[-1].endswith("snapshot-manifest.json")
    assert len(puts) == 1 + 1 + len(CONTENTS)  # the bucket, the manifest, the files
    assert Snapshots(objects).load(ID).data == made.data
    back = FaultyStore(tmp_path / "back")
    copy_snapshot(Snapshots(objects).load(ID), Snapshots(objects), Snapshots(back))
    assert Snapshots(back).load(ID).data == made.data
    assert Snapshots(back).verify(Snapshots(back).load(ID), deep=True) == []


# Around it


def test_no_secret_in_messages(service, objects, caplog):
    caplog.set_level("DEBUG", logger="lazyfs")
    service.faults.append(Fault(lambda *request: True, "AccessDenied", times=99))
    with pytest.raises(StoreFailed) as caught:
        objects.get("a", 1)
    for text in (str(caught.value), caplog.text, repr(caught.value.details)):
        assert "very-secret" not in text
        assert "AKIDEXAMPLE" not in text


def test_no_credentials(service, client, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    objects = S3Store("bucket", "", endpoint=service.url)
    with pytest.raises(StoreFailed, match="NoCredentialsError"):
        objects.get("a", 1)
    objects.close()


def test_nobody_there():
    objects = S3Store("bucket", "", endpoint="http://127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with pytest.raises(StoreFailed, match="EndpointConnectionError"):
            objects.get("a", 1)
    objects.close()


@pytest.mark.parametrize("endpoint", ["http://u:secret@host", "host:9000", "ftp://host", "http://"])
def test_endpoints_that_are_none(endpoint):
    with pytest.raises(BadEndpoint) as caught:
        open_objects("s3://bucket", s3_endpoint=endpoint)
    assert "secret" not in str(caught.value)


def test_the_endpoint_of_the_environment(service, client, monkeypatch, request):
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    objects = open_objects(f"s3://{request.node.bucket}")
    assert objects.put_if_absent("a", b"")
    objects.close()


def test_boto3_is_not_imported_before_it_is_needed():
    code = (
        "import sys\n"
        "from lazyfs.snapshot.stores.stores import open_objects\n"
        "objects = open_objects('s3://bucket/prefix')\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
        "sys.modules['boto3'] = None\n"
        "from lazyfs.documents.errors import StoreFailed\n"
        "try: objects.get('a', 1)\n"
        "except StoreFailed as error: print(error)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=True, cwd=ROOT
    )
    assert "pip install 'lazyfs[s3]'" in done.stdout
