"""An S3 service that is hostile: it sends elsewhere, never ends, lies, and defines entities."""

import itertools
import json
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.documents.errors import FileCorrupt, ManifestInvalid, SnapshotError, StoreFailed
from lazyfs.snapshot.stores import s3_answers
from lazyfs.snapshot.stores.collect import collect
from lazyfs.snapshot.stores.keys import manifest_key, pointer_key
from lazyfs.snapshot.stores.pointers import Pointer, encode_pointer
from lazyfs.snapshot.stores.s3_answers import OddAnswer, Pages, page_of, read_bounded
from lazyfs.snapshot.stores.s3_store import S3Store
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.snapshot.stores.stores import open_objects
from tests.support.sandboxes.s3 import ENVIRONMENT
from tests.support.sandboxes.snapshots import ID, draft

PIECE = 64 << 10
ENDLESS = 1 << 40  # bytes: as long as somebody reads
TIME = "2026-11-20T19:45:11.000Z"


class Answer:
    """What a service answers: *body* is bytes, or an iterator of pieces that may never end."""

    def __init__(
        self,
        body: bytes | Iterator[bytes] = b"",
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.body, self.status, self.headers = body, status, headers or {}


class Service:
    """Answers each request as ``answer`` (method, path and query) says; counts what it sent."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Answer] = lambda method, path: Answer(status=404)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                if self.headers.get("Expect"):
                    self.send_response_only(100)
                    self.end_headers()
                self.rfile.read(size)
                service.requests.append((self.command, self.path, dict(self.headers)))
                answer = service.answer(self.command, self.path)
                self.send_response(answer.status)
                headers = dict(answer.headers)
                if isinstance(answer.body, bytes):
                    headers.setdefault("Content-Length", str(len(answer.body)))
                elif "Content-Length" not in headers:
                    headers["Transfer-Encoding"] = "chunked"
                    self.close_connection = True
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                try:
                    self.send(answer, is_chunked="Transfer-Encoding" in headers)
                except OSError:
                    self.close_connection = True
                if headers.get("Connection") == "close" or not isinstance(answer.body, bytes):
                    self.close_connection = True

            def send(self, answer: Answer, *, is_chunked: bool) -> None:
                pieces = [answer.body] if isinstance(answer.body, bytes) else answer.body
                for piece in pieces:
                    framed = b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece
                    self.wfile.write(framed)
                    service.sent += len(piece)
                if is_chunked:
                    self.wfile.write(b"0\r\n\r\n")

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    pass  # they do not wait for the end

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = Service()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Service]:
    """Somebody else's service: nothing of ours may come there."""
    made = Service()
    yield made
    made.close()


@pytest.fixture
def objects(service: Service) -> Iterator[S3Store]:
    found = open_objects("s3://bucket/prefix", s3_endpoint=service.url)
    assert isinstance(found, S3Store)
    yield found
    found.close()


def pieces() -> Iterator[bytes]:
    """Return an answer that goes on for much longer than anybody should read."""
    return itertools.repeat(b"x" * PIECE, (256 << 20) // PIECE)


def listing(*contents: str, more: str = "") -> bytes:
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        f"{more}{''.join(contents)}</ListBucketResult>"
    ).encode()


def entry(key: str, size: str = "1", time: str = TIME) -> str:
    date = f"<LastModified>{time}</LastModified>"
    return f"<Contents><Key>{key}</Key><Size>{size}</Size>{date}</Contents>"


def everything(objects: S3Store, folder: Path) -> list[Callable[[], object]]:
    """Return all that can be asked of a store."""
    folder.mkdir(exist_ok=True)
    (folder / "file").write_bytes(b"x")
    snapshots = Snapshots(objects)
    return [
        lambda: objects.get("a", 100),
        lambda: objects.size("a"),
        lambda: list(objects.list("")),
        lambda: objects.put_file("a", folder / "file"),
        lambda: objects.put_if_absent("a", b"x"),
        lambda: objects.replace("a", b"x", b"y"),
        lambda: objects.delete("a"),
        lambda: objects.abort_uploads(1e12),
        lambda: snapshots.load("@latest"),
        lambda: collect(objects, now=1e12, grace=0),
    ]


# Elsewhere


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("region", ["", "evil.example/"])
# For 303 urllib3 fails over the body, and leaves the connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_goes_where_an_answer_points(
    service: Service, other: Service, objects: S3Store, tmp_path: Path, status: int, region: str
) -> None:
    """Whoever followed would send the credentials' signature, and the sandbox's memory."""
    headers = {"Location": f"{other.url}/bucket/x"}
    if region:
        headers["x-amz-bucket-region"] = region
    body = (
        f"<Error><Code>PermanentRedirect</Code><Endpoint>{other.url[7:]}</Endpoint>"
        f"<Region>{region}</Region></Error>"
    ).encode()
    service.answer = lambda method, path: Answer(body, status, headers)
    for work in everything(objects, tmp_path / "out"):
        with pytest.raises(SnapshotError):
            work()
    assert other.requests == []
    assert service.requests


# Endless


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_answer_that_never_ends_is_given_up(
    service: Service, objects: S3Store, tmp_path: Path, status: int, framing: str
) -> None:
    headers = {"Content-Length": str(ENDLESS)} if framing == "length" else {}
    service.answer = lambda method, path: Answer(pieces(), status, headers)
    tracemalloc.start()
    try:
        for work in everything(objects, tmp_path / "out"):
            before = service.sent
            try:
                found = work()
            except SnapshotError:
                found = None
            # What was asked for, what the sockets hold, and that for each try.
            assert service.sent - before < 12 * (s3_answers.LONGEST_ANSWER + (8 << 20))
            if isinstance(found, bytes):
                assert len(found) <= 101
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * s3_answers.LONGEST_ANSWER + (32 << 20)  # this service's pieces included


def test_a_listing_that_goes_on_for_ever_is_given_up(
    service: Service, objects: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_answers, "MOST_KEYS", 50)
    count = itertools.count()

    def answer(method: str, path: str) -> Answer:
        token = f"<NextContinuationToken>{next(count)}</NextContinuationToken>"
        return Answer(listing(entry(f"prefix/snapshots/{ID}/a{next(count)}"), more=token))

    service.answer = answer
    with pytest.raises(StoreFailed, match="not one of an S3 service"):
        list(objects.list(""))
    assert len(service.requests) <= 52


def test_a_listing_that_goes_in_a_circle_is_given_up(service: Service, objects: S3Store) -> None:
    for token in ("<NextContinuationToken>same</NextContinuationToken>", "<X/>"):
        service.requests.clear()
        page = listing(more=token)
        service.answer = lambda method, path, page=page: Answer(page)
        with pytest.raises(StoreFailed, match="not one of an S3 service"):
            list(objects.list(""))
        assert len(service.requests) <= 3


def test_uploads_without_end_are_given_up(service: Service, objects: S3Store) -> None:
    page = (
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>a"
        b"</NextKeyMarker><NextUploadIdMarker>b</NextUploadIdMarker></ListMultipartUploadsResult>"
    )
    service.answer = lambda method, path: Answer(page)
    with pytest.raises(StoreFailed, match="not one of an S3 service"):
        objects.abort_uploads(1e12)


# Documents

LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + b"".join(
        b'<!ENTITY %c "%s">' % (98 + number, b"&%c;" % (97 + number) * 10) for number in range(9)
    )
    + b"]>"
)


@pytest.mark.parametrize(
    "head",
    [
        LAUGHS,
        b'<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd">',
        b"<!DOCTYPE x>",
        LAUGHS.decode().encode("utf-16"),
        LAUGHS.decode().encode("utf-32"),
    ],
)
def test_a_document_type_is_in_no_answer(
    service: Service, objects: S3Store, tmp_path: Path, head: bytes
) -> None:
    for status in (200, 400, 500):
        body = head + listing(f"<Contents><Key>{'&j;' * 3}</Key></Contents>").partition(b"?>")[2]
        service.answer = lambda method, path, body=body, status=status: Answer(body, status)
        with pytest.raises(StoreFailed):
            list(objects.list(""))
    with pytest.raises(OddAnswer):
        read_bounded([head[:10], head[10:]])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"x", b"{}", b"<", b"<a>" * 100_000, b"<a/>", b"\xff\xfe\xfd", b"<a>&#0;</a>"),
        listing(entry("prefix/a", size="x")),
        listing(entry("prefix/a", size="-1")),
        listing(entry("prefix/a", size="9" * 5000)),
        listing(entry("prefix/a", time="yesterday")),
        listing(entry("prefix/a", time="9999-99-99T00:00:00Z")),
        listing("<Contents><Key>prefix/a</Key></Contents>"),
        listing("<Contents/>"),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_store(
    service: Service, objects: S3Store, body: bytes
) -> None:
    service.answer = lambda method, path: Answer(body)
    try:
        found = list(objects.list(""))
    except StoreFailed:
        return
    assert found == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "-1"},
        {"Content-Length": "x"},
        {"Content-Length": "9" * 40},
        {"Content-Length": "9" * 5000},
        {"Last-Modified": "yesterday"},
        {"ETag": "\x01"},
    ],
)
def test_odd_headers_are_an_error_of_the_store(
    service: Service, objects: S3Store, headers: dict[str, str]
) -> None:
    headers = headers | {"Connection": "close"}
    service.answer = lambda method, path: Answer(b"", headers=headers)
    for work in (lambda: objects.size("a"), lambda: objects.get("a", 10)):
        try:
            work()
        except SnapshotError:
            continue


# Keys


def test_keys_that_are_none_of_ours_are_left_out(service: Service, objects: S3Store) -> None:
    keys = [
        *("prefix/../../other/a", "other/a", "/etc/passwd", "prefix/", "prefix//a", "prefix/.x"),
        *(f"prefix/snapshots/{ID}/..", f"prefix/snapshots/{ID}/a b", "prefix/a&#10;b", "prefixa"),
        *(f"prefix/snapshots/{ID}/{'x' * 300}", "prefix/&#x9b;2J", f"snapshots/{ID}/a"),
    ]
    good = f"prefix/snapshots/{ID}/checkpoint.img"
    service.answer = lambda method, path: Answer(listing(*map(entry, [*keys, good])))
    assert [each.key for each in objects.list("")] == [f"snapshots/{ID}/checkpoint.img"]
    (state,) = Snapshots(objects).states()
    assert len(state.files) == 1


def test_what_is_collected_stays_below_the_prefix(service: Service, objects: S3Store) -> None:
    """Also where the service lists what it was not asked for, as if it were very old."""
    old = "20200101T000000Z-00000000"
    time = "2020-01-01T00:00:00.000Z"
    keys = [
        *(f"prefix/snapshots/{old}/checkpoint.img", f"other/snapshots/{old}/a"),
        *(f"prefix/snapshots/{old}/../../x", "prefix/base/README", "backups/a"),
    ]
    upload = (
        "<Upload><Key>{}</Key><UploadId>u</UploadId><Initiated>" + time + "</Initiated></Upload>"
    )
    uploads = "".join(upload.format(key) for key in [*keys, f"snapshots/{old}/a"])

    def answer(method: str, path: str) -> Answer:
        if "list-type=2" in path:
            return Answer(listing(*(entry(key, time=time) for key in keys)))
        if path.endswith("uploads") or "uploads&" in path or "?uploads" in path:
            body = f"<ListMultipartUploadsResult>{uploads}</ListMultipartUploadsResult>"
            return Answer(body.encode())
        return Answer(status=404 if method in ("GET", "HEAD") else 204)

    service.answer = answer
    collect(objects, now=1_800_000_000.0, grace=60)
    gone = {path.partition("?")[0] for method, path, _ in service.requests if method == "DELETE"}
    assert gone == {f"/bucket/prefix/snapshots/{old}/checkpoint.img"}


# Lies


def serving(made: bytes, changed: bytes | None = None) -> Callable[[str, str], Answer]:
    """Return answers of a service that has a snapshot's manifest, and says other bytes later."""
    pointer = encode_pointer(Pointer(ID, str(digest_of(made))))

    def answer(method: str, path: str) -> Answer:
        if path.startswith(f"/bucket/prefix/{pointer_key('latest')}"):
            return Answer(pointer, headers={"ETag": '"1"'})
        if path.startswith(f"/bucket/prefix/{manifest_key(ID)}"):
            return Answer(made if changed is None else changed, headers={"ETag": '"1"'})
        return Answer(pieces(), headers={"ETag": '"1"'})

    return answer


def test_a_manifest_of_another_digest_is_refused(
    service: Service, objects: S3Store, tmp_path: Path
) -> None:
    data = draft(tmp_path).data
    service.answer = serving(data, data.replace(b"counter-1", b"counter-2"))
    with pytest.raises(ManifestInvalid, match="pointer latest"):
        Snapshots(objects).load("@latest")


def test_files_without_end_end_where_the_manifest_says(
    service: Service, objects: S3Store, tmp_path: Path
) -> None:
    made = draft(tmp_path)
    service.answer = serving(made.data)
    snapshots = Snapshots(objects)
    loaded = snapshots.load("@latest")
    with pytest.raises(FileCorrupt):
        snapshots.download(loaded, tmp_path / "files")
    assert not (tmp_path / "files").exists()
    assert snapshots.verify(loaded, deep=False)
    most = sum(file.stored_size for file in loaded.manifest.files)
    assert service.sent < 20 * most + (256 << 20)


@pytest.mark.parametrize("length", ["1", "100000", "-5"])
def test_a_length_that_is_none_is_noticed(service: Service, objects: S3Store, length: str) -> None:
    service.answer = lambda method, path: Answer(
        b"0123456789", headers={"Content-Length": length, "Connection": "close"}
    )
    try:
        found = objects.get("a", 100)
    except SnapshotError:
        return
    assert b"0123456789".startswith(found)  # whoever needs more has a digest of it


# The pure parts


def test_pages_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_answers, "MOST_KEYS", 10)
    pages = Pages("Contents", {"T": "N"})
    for number in range(10):
        pages.turn({"IsTruncated": True, "N": str(number)})
    with pytest.raises(OddAnswer):
        pages.turn({"IsTruncated": True, "N": "10"})


@pytest.mark.parametrize("size", ["x", None, -1])
def test_a_page_is_read_or_refused(size: object) -> None:
    page = json.loads('{"Contents": [{"Key": "p/a"}]}')
    page["Contents"][0] |= {"Size": size, "LastModified": None}
    with pytest.raises(s3_answers.ODD):
        page_of(page, "p/", "")
    assert re.match("snapshots/", manifest_key(ID))
