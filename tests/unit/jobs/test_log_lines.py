"""Lines that a machine reads, lines that a person reads, and what may stand in neither."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.log_lines import JsonLines, PlainLines, on_stderr
from jobs.redact import without_credentials
from jobs.settings import Settings


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("jobs.x", logging.WARNING, __file__, 1, "%s", (message,), info)


def raised(message: str) -> ValueError:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_one_json_object_a_line() -> None:
    line = JsonLines(lambda: {"worker": "w1"}).format(record("a\nb\u202ec\x1b[2J", raised("boom")))
    assert line.isascii()
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["worker"], found["message"]) == ("warning", "w1", "a\nb\u202ec\x1b[2J")
    assert found["traceback"].endswith("ValueError: boom\n")


def test_a_line_for_a_person_steers_no_terminal() -> None:
    shown = PlainLines().format(record("a\nb\u202ec\x1b[2J", raised("boom\x07")))
    first, *rest = shown.splitlines()
    assert first.endswith("WARNING a bc[2J")
    assert rest[-1] == "ValueError: boom"


@pytest.mark.parametrize(("terminal", "form"), [(True, PlainLines), (False, JsonLines)])
def test_what_stderr_gets(monkeypatch: pytest.MonkeyPatch, terminal: bool, form: type[Any]) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert isinstance(on_stderr(JsonLines(dict)).formatter, form)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("postgresql+psycopg://u:p/w@x@h/db", "postgresql+psycopg://u:***@h/db"),
        ("at http://h/?token=abc&n=1, and", "at http://h/?token=***&n=1, and"),
        ("postgresql://h/db?sslpassword=abc", "postgresql://h/db?sslpassword=***"),
        ("Authorization: Bearer abc.def-g", "Authorization: Bearer ***"),
        ("http://h:80/a and at 12:30 a@b", "http://h:80/a and at 12:30 a@b"),
        ("key=3, model org/name", "key=3, model org/name"),
    ],
)
def test_credentials_are_taken_out(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    found = json.loads(JsonLines(dict).format(record(text, raised(text))))
    assert found["message"] == shown
    assert shown in found["traceback"]
    assert PlainLines().format(record(text)).endswith(shown)


@given(st.text(st.characters(blacklist_characters="@'\"", blacklist_categories=("Z", "C")), min_size=8))
def test_whatever_the_password_is(password: str) -> None:
    assert password not in without_credentials(f"cannot reach redis://user:{password}@host:6379/0: refused")


@pytest.mark.parametrize("password", ["s3cret", "s3%40cret"])
def test_the_password_of_a_known_url_is_taken_out_wherever_it_stands(password: str) -> None:
    said = f"at redis://:{password}@h: NOAUTH for '{password}', that is s3@cret or s3cret"
    shown = without_credentials(said, f"redis://:{password}@h")
    assert shown.startswith("at redis://:***@h: NOAUTH for '***', that is ")
    assert unquote(password) not in shown and password not in shown


def test_settings_show_no_secret() -> None:
    given_ = {"database_url": "postgresql://u:s3cret@h/d", "redis_url": "redis://:s3cret@h", "token": "s3cret"}
    settings = Settings(**given_, webhook_secret="s3cret")  # type: ignore[arg-type]
    assert "s3cret" not in repr(settings) + str(settings)
