"""Hostile text, colours, results on the screen and in a folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.client import Client
from jobs.text import clean, clean_line, seconds, size
from tests.cli.conftest import COLOUR, Run, do_shard, row, the_json
from tests.terminal import steering

_HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\u202eevil\u2066\x9bc\r[bold red]d[/]\ud800"


@given(st.text(st.characters(codec=None)))
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    assert steering(clean(text)) == []
    line = clean_line(text)
    assert steering(line) == [] and not set("\n\t") & set(line)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Mn"])))
def test_ordinary_text_stays(text: str) -> None:
    assert clean(text) == text


def test_markup_is_text() -> None:
    assert clean_line(_HOSTILE) == "a[2J]0;ownedbevilc[bold red]d[/]?"


@pytest.fixture
def hostile(seqproc: Run, client: Client) -> str:
    """A finished job whose name, prompt, response and error all try to take the terminal over."""
    job = seqproc(
        "submit", "--model", "m", "-dq", "--prompts", "x", "--prompts", "y", "--name", _HOSTILE[:-1], "-G", "1"
    )
    job_id = job.stdout.strip()
    error = {"prompt_index": 1, "sample_index": None, "custom_id": "1", "error": _HOSTILE}
    text = _HOSTILE[:-1]
    do_shard(client, job_id, [row(0, 0, prompt=text, response=text, token_ends=[5, len(text)])], [error])
    return job_id


@pytest.mark.parametrize(
    "command", ["list", "status JOB", "show JOB", "status --json JOB", "show --json JOB", "list --json"]
)
@pytest.mark.parametrize("colour", [True, False])
def test_hostile_text_is_disarmed(seqproc: Run, hostile: str, command: str, colour: bool) -> None:
    env = COLOUR if colour else {"NO_COLOR": "1", "COLUMNS": "300"}
    result = seqproc(*command.replace("JOB", hostile).split(), env=env)
    assert result.exit_code == 0
    for sequence in ("\x1b[2J", "\x1b]0", "\x07", "\u202e", "\u2066", "\x9b", "\r"):
        assert sequence not in result.output
    assert "bold red" in result.output


def test_show_plain(seqproc: Run, finished: str) -> None:
    lines = seqproc("show", finished, "-n", "2").stdout.splitlines()
    assert lines == [
        "[0.0 0] 2 tokens, eos, log-probability -3.050 nats, mean entropy 0.500 nats",
        "ab c",
        "[0.1 0] 2 tokens, eos, log-probability -3.050 nats, mean entropy 0.500 nats",
        "ab c",
    ]


@pytest.mark.parametrize(
    ("by", "pieces"),
    [
        ("logprob", ["ab\x1b[30;48;5;205m c\x1b[0m", "−log p, nats: "]),  # 0.05 nats: no tint; 3 nats: tinted
        ("entropy", ["\x1b[30;48;5;230mab\x1b[0m\x1b[30;48;5;221m c\x1b[0m", "entropy, nats: "]),
    ],
)
def test_show_tints_each_token(seqproc: Run, finished: str, by: str, pieces: list[str]) -> None:
    out = seqproc("show", finished, "--by", by, "-n", "1", env=COLOUR).stdout
    for piece in pieces:
        assert piece in out
    assert "\x1b" not in seqproc("show", finished, "--by", by, env={**COLOUR, "NO_COLOR": "1"}).stdout


def test_show_one_prompt(seqproc: Run, finished: str) -> None:
    rows: list[dict[str, Any]] = the_json(seqproc("show", finished, "--prompt", "1", "--json"))
    assert [(r["prompt_index"], r["sample_index"]) for r in rows] == [(1, 0), (1, 1)]
    assert rows[0]["sampling_logprobs"] == [pytest.approx(-0.05), None], "−inf is null"
    none = seqproc("show", finished, "--prompt", "2")
    assert (none.exit_code, none.stdout) == (0, "")
    assert "No sequence" in none.stderr
    beyond = seqproc("show", finished, "--prompt", "3")
    assert beyond.exit_code == 2
    assert "3 prompts" in beyond.stderr


def test_show_what_was_not_measured(seqproc: Run) -> None:
    job = seqproc("submit", "--model", "m", "-dq", "--prompts", "x", "--measurements", "logprobs").stdout.strip()
    result = seqproc("show", job, "--by", "entropy")
    assert result.exit_code == 2
    assert "it has logprobs" in result.stderr


def test_show_while_nothing_is_done(seqproc: Run, submitted: str) -> None:
    result = seqproc("show", submitted)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "queued" in result.stderr


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_fetch(seqproc: Run, finished: str, form: str) -> None:
    result = seqproc("fetch", finished, "-o", "out", "--format", form)
    assert result.exit_code == 0, result.output
    names = {f"sequences.{form}", "errors.jsonl", "manifest.json", "spec.json"}
    assert {Path(line) for line in result.stdout.splitlines()} == {Path("out", name) for name in names}
    assert {path.name for path in Path("out").iterdir()} == names
    if form == "parquet":
        keys = pq.read_table("out/sequences.parquet", columns=["prompt_index", "sample_index"]).to_pylist()
    else:
        keys = [json.loads(line) for line in Path("out/sequences.jsonl").read_text().splitlines()]
    assert [(key["prompt_index"], key["sample_index"]) for key in keys] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_fetch_of_an_unfinished_job(seqproc: Run, submitted: str, client: Client) -> None:
    do_shard(client, submitted, [row(p, g) for p in (0, 1) for g in (0, 1)])
    refused = seqproc("fetch", submitted, "-o", "out")
    assert refused.exit_code == 1
    assert submitted in refused.stderr and "partial" in refused.stderr
    assert not Path("out").exists()
    assert seqproc("fetch", submitted, "-o", "out", "--partial", "--format", "jsonl").exit_code == 0
    assert len(Path("out/sequences.jsonl").read_text().splitlines()) == 4


def test_json_is_ascii(seqproc: Run, hostile: str) -> None:
    assert seqproc("status", hostile, "--json").stdout.isascii()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "?"),
        (0.04, "< 0.1 s"),
        (9.99, "10.0 s"),
        (59.4, "59 s"),
        (60, "1:00"),
        (3723, "1:02:03"),
        (90_000, "1 d 01:00"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_size() -> None:
    assert [size(n) for n in (0, 999, 1500, 2.5e12)] == ["0 bytes", "999 bytes", "1.5 kB", "2.5 TB"]


def test_a_terminal_that_cannot_show_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from jobs.cli import main

    stdout = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(
        sys, "argv", ["seqproc", "submit", "--dry-run", "--model", "m", "--prompts", "x", "--name", "é→"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert 'name: "é?"'.encode("latin-1") in stdout.buffer.getvalue()
