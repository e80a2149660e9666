"""Where log records go, and how they look."""

import json
import logging
import os
import re

import pytest

from lazyfs.cli.log import set_up_logging


@pytest.fixture(autouse=True)
def root_logger():
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = kept


def test_text_for_people(capsys):
    set_up_logging(0)
    logging.getLogger("lazyfs.x").warning("chunk %d is bad", 7)
    logging.getLogger("lazyfs.x").info("not shown")
    assert capsys.readouterr().err == "lazyfs: chunk 7 is bad\n"


def test_a_server_tells_more_and_says_when(capsys):
    set_up_logging(0, is_server=True, environment={})
    logging.getLogger("lazyfs.x").info("news")
    said = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO lazyfs.x: news\n", said)


def test_a_quiet_server_says_errors_only(capsys):
    set_up_logging(-1, is_server=True, environment={})
    logging.getLogger("lazyfs.x").info("ending on signal 15")
    logging.getLogger("lazyfs.x").warning("something")
    assert capsys.readouterr().err == ""
    logging.getLogger("lazyfs.x").error("trouble")
    assert "ERROR lazyfs.x: trouble" in capsys.readouterr().err


def test_json_lines(capsys):
    set_up_logging(1, as_json=True)
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("lazyfs.x").exception("outer")
    logging.getLogger("lazyfs.y").info("second")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["type"], first["level"], first["logger"]) == ("log", "error", "lazyfs.x")
    assert first["message"] == "outer"
    assert "ValueError: inner" in first["traceback"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", second["time"])


def test_the_journal_gets_priorities(capsys):
    status = os.fstat(2)
    environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    set_up_logging(0, is_server=True, environment=environment)
    logging.getLogger("lazyfs.x").warning("two\nlines")
    logging.getLogger("lazyfs.x").error("one")
    assert capsys.readouterr().err == "<4>lazyfs.x: two\\nlines\n<3>lazyfs.x: one\n"


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense", "8:"])
def test_not_the_journal(capsys, stream):
    set_up_logging(0, is_server=True, environment={"JOURNAL_STREAM": stream})
    logging.getLogger("lazyfs.x").warning("plain")
    assert not capsys.readouterr().err.startswith("<")


def test_other_libraries_are_quiet(capsys):
    set_up_logging(2)
    logging.getLogger("httpx").info("a request")
    logging.getLogger("lazyfs").debug("a detail")
    assert "a request" not in (said := capsys.readouterr().err)
    assert "a detail" in said
