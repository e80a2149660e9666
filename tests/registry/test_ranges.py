"""Content-Range and what an answer's head promises of its body."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import LazyfsError
from lazyfs.registry.answers.ranges import (
    ContentRange,
    Extent,
    build_range,
    check_answer,
    parse_content_range,
    parse_length,
)
from lazyfs.registry.config.errors import BadAnswer, SizeMismatch


def test_the_end_is_inclusive_on_the_wire() -> None:
    assert build_range(0, 1) == "bytes=0-0"
    assert build_range(100, 4196) == "bytes=100-4195"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 10-19/100", ContentRange(10, 20, 100)),
        ("bytes  10-19/*", ContentRange(10, 20, None)),
        ("10-19/100", ContentRange(10, 20, 100)),
        (" bytes 10-19/20 ", ContentRange(10, 20, 20)),
        (f"bytes 0-{10**18 - 1}/*", ContentRange(0, 10**18, None)),
    ],
)
def test_content_range(text: str, expected: ContentRange) -> None:
    assert parse_content_range(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes */100",
        "bytes 5-4/100",
        "bytes 0-100/100",
        "bytes -5-4/100",
        "bytes +0-4/100",
        "bytes 0-4",
        "bytes 0-4/",
        "bytes 0-4/10, bytes 5-6/10",
        "items 0-4/10",
        "bytes 0x0-4/10",
        "bytes ٠-٤/١٠",
        f"bytes 0-4/{10**19}",
    ],
)
def test_content_ranges_that_are_none(text: str) -> None:
    with pytest.raises(BadAnswer, match="Content-Range"):
        parse_content_range(text)


def test_content_range_cut_at_each_place_or_with_more_behind_it() -> None:
    whole = "bytes 10-19/100"
    for end in range(len(whole) - 2):
        with pytest.raises(BadAnswer):
            parse_content_range(whole[:end])
    with pytest.raises(BadAnswer):
        parse_content_range(whole + "x")


@given(st.text(max_size=60))
def test_any_text_is_a_range_or_refused(text: str) -> None:
    try:
        found = parse_content_range(text)
    except BadAnswer:
        return
    assert found.start < found.end


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (206, {"content-range": "bytes 10-19/100", "content-length": "10"}, Extent(0, 10, True)),
        (206, {"content-range": "bytes 10-19/*"}, Extent(0, 10, True)),
        (206, {"content-range": "bytes 10-14/100"}, Extent(0, 5, True)),
        (200, {"content-length": "100"}, Extent(10, 10, False)),
        (200, {}, Extent(10, 10, False)),
        (200, {"content-encoding": "identity"}, Extent(10, 10, False)),
    ],
)
def test_answers_to_10_to_20_of_100(status: int, headers: dict[str, str], expected: Extent) -> None:
    assert check_answer(status, headers, 10, 20, 100) == expected


def test_the_whole_blob_must_end_where_a_range_to_its_end_does() -> None:
    assert check_answer(200, {}, 90, 100, 100) == Extent(90, 10, True)


@pytest.mark.parametrize(
    ("status", "headers", "error", "says"),
    [
        (206, {}, BadAnswer, "has no Content-Range"),
        (206, {"content-range": "bytes 11-19/100"}, BadAnswer, "bytes 11-19, expected 10-19"),
        (206, {"content-range": "bytes 0-19/100"}, BadAnswer, "expected 10-19"),
        (206, {"content-range": "bytes 10-20/100"}, BadAnswer, "expected 10-19"),
        (206, {"content-range": "bytes 10-19/99"}, SizeMismatch, "got 99, expected 100"),
        (
            206,
            {"content-range": "bytes 10-19/100", "content-length": "11"},
            BadAnswer,
            "got 11, expected 10",
        ),
        (
            206,
            {"content-range": "bytes 10-19/100", "content-encoding": "gzip"},
            BadAnswer,
            "'gzip' was not asked for",
        ),
        (200, {"content-length": "99"}, SizeMismatch, "got 99, expected 100"),
        (200, {"content-length": "1e2"}, BadAnswer, "Content-Length"),
        (200, {"content-encoding": "br"}, BadAnswer, "Content-Encoding"),
    ],
)
def test_answers_that_are_refused(
    status: int, headers: dict[str, str], error: type[LazyfsError], says: str
) -> None:
    with pytest.raises(error, match=says):
        check_answer(status, headers, 10, 20, 100)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"content-length": "100"}),
        (206, {"content-length": "10", "content-range": "bytes 10-19/100"}),
    ],
)
def test_a_label_where_the_sizes_agree_does_not_matter(
    status: int, headers: dict[str, str]
) -> None:
    labelled = headers | {"content-encoding": "x-gzip"}
    assert check_answer(status, labelled, 10, 20, 100).size == 10


@pytest.mark.parametrize("text", ["", "-1", "+1", "1 ", "1, 1", "٣", "9" * 19])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(BadAnswer):
        parse_length(text)


def test_no_length_is_no_error() -> None:
    assert parse_length(None) is None
