"""`stream`, and `submit - --stream`: what a person sees and what a pipe gets."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest

from jobs.client import Client
from jobs.settings import Settings
from tests.cli.conftest import COLOUR, Run
from tests.house import House

_SUBMIT = ("submit", "-", "--stream", "-d", "--model", "tiny-arithmetic", "-G", "2", "--seed", "1", "--shard-size", "2")


@pytest.fixture
def house(client: Client) -> House:
    return House(client.settings, client.store)


def test_stream_prints_lines_and_goes_on_behind_a_cursor(seqproc: Run, house: House) -> None:
    job = house.finish(house.submit(prompts=["é", "b", "bad"]).job)
    result = seqproc("stream", job.id)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["prompt_index"], row["sample_index"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert result.stdout.isascii() and "Infinity" not in result.stdout
    assert "4 sequences printed; 1 prompt could not be done" in result.stderr
    rest = seqproc("stream", job.id, "--after", rows[1]["cursor"], "-q")
    assert rest.stdout.splitlines() == result.stdout.splitlines()[2:]
    assert rest.stderr == ""


def test_stream_of_a_failed_job_gives_what_there_is_and_fails(seqproc: Run, house: House) -> None:
    job = house.submit(prompts=["a", "b", "c"]).job
    claim = house.claim()
    assert claim is not None
    house.store.fail(claim, "boom", limit=1)
    house.finish(job)
    result = seqproc("stream", job.id)
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 2)
    assert f"job {job.id} failed (shard 0: boom): 1 shard of 2 will not come, prompts 0–1" in result.stderr


def test_a_cursor_that_is_none(seqproc: Run, submitted: str) -> None:
    result = seqproc("stream", submitted, "--after", "nonsense")
    assert result.exit_code == 2
    assert "the cursor is none of ours" in result.stderr


def test_submit_from_a_pipe(seqproc: Run, house: House) -> None:
    result = seqproc(*_SUBMIT, input='{"prompt": "a"}\nnonsense\n{"prompt": "b"}\n')
    job = house.store.job(result.stdout.strip())
    assert (result.exit_code, job.num_prompts, job.sealed, job.truncated) == (0, 3, True, None)
    assert "Submitted: 3 prompts" in result.stderr
    as_json = json.loads(seqproc(*_SUBMIT, "--json", input='{"prompt": "a"}\n').stdout)
    assert (as_json["num_prompts"], as_json["sealed"]) == (1, True)


def test_an_empty_pipe(seqproc: Run, house: House) -> None:
    result = seqproc(*_SUBMIT, input="")
    assert result.exit_code == 2
    job = result.stdout.strip()
    assert result.stderr.endswith(f"Error: no prompt came, so that there is nothing to do; job {job} was cancelled\n")
    assert house.store.job(job).state == "cancelled"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("prompts.jsonl", "--stream"), "--stream takes prompts as they come, from standard input"),
        (("-", "--stream", "--dry-run"), "--stream takes prompts as they come, from standard input"),
        (("-", "--stream", "--idempotency-key", "k"), "idempotency-key: stands for a whole set of prompts"),
        (("-", "--stream", "--detach", "--local"), "give one of them"),
    ],
)
def test_what_does_not_go_together(seqproc: Run, client: Client, words: tuple[str, ...], says: str) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n')
    result = seqproc("submit", "--model", "tiny-arithmetic", *words, input="")
    assert result.exit_code == 2
    assert says in result.stderr
    assert client.jobs() == []


def test_a_job_that_is_fed_says_so_far(seqproc: Run, client: Client) -> None:
    with client.feed(model="tiny-arithmetic", G=2) as feed:
        assert "0/0 so far" in seqproc("list").stdout
        assert "so far, more may come" in seqproc("status", feed.job.id).stdout
        feed.break_off("the pipe broke")
    shown = seqproc("status", feed.job.id).stdout
    assert "so far" not in shown
    assert "truncated:   its prompts broke off after 0 prompts: the pipe broke" in shown


def test_stream_says_that_prompts_are_missing(seqproc: Run, client: Client, house: House) -> None:
    with client.feed(model="tiny-arithmetic", G=2) as feed:
        feed.add("a")
        feed.break_off("the pipe broke")
    house.finish(feed.job.record)
    result = seqproc("stream", feed.job.id)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert "2 sequences printed; its prompts broke off after 1 prompt: the pipe broke" in result.stderr


@pytest.mark.parametrize("environment", [{}, COLOUR])
def test_watching_a_job_that_is_fed(
    seqproc: Run, client: Client, house: House, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain lines, or a bar: how much of all is told once that is known."""
    monkeypatch.setattr("jobs.cli.follow._LINE_EVERY", 0.0)
    feed = client.feed(model="tiny-arithmetic", G=2, seed=1, shard_size=2)

    def work() -> None:
        for prompts in ("ab", "cd", "ef"):
            for prompt in prompts:
                feed.add(prompt)
            while not house.store.job(feed.job.id).pending_shards:
                time.sleep(0.02)
            house.run_one()
            time.sleep(1)
        feed.end()

    thread = threading.Thread(target=work)
    thread.start()
    result = seqproc("watch", feed.job.id, env=environment)
    thread.join()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stderr)
    assert result.exit_code == 0
    before_the_end = shown.rpartition(" so far")[0]
    assert "4/4 sequences so far" in shown
    assert "ETA" not in before_the_end and "%" not in before_the_end
    assert "succeeded: 12 of 12 sequences" in shown


def test_settings_of_the_lease(client: Client) -> None:
    assert Settings().lease_seconds == 30, "ten of them are the five minutes that the README tells of"
