"""Deleting a job on purpose, and by its ttl."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pexpect
from sqlalchemy import update

from jobs.client import Client
from jobs.paths import JobPaths
from jobs.store.schema import jobs
from tests.cli.conftest import Run, the_json


def folder(client: Client, job: str) -> Path:
    return JobPaths(client.settings.results, job).folder


def end_long_ago(client: Client, job: str, days: float) -> None:
    with client.store.db.transaction() as connection:
        older = {"ended_at": jobs.c.ended_at - days * 86_400}
        connection.execute(update(jobs).where(jobs.c.id == job).values(older))


def with_ttl(seqproc: Run, client: Client, ttl: str) -> str:
    """The id of a cancelled job with this ttl."""
    result = seqproc("submit", "--model", "tiny-arithmetic", "--prompts", "1+2=", "--ttl", ttl, "-dq")
    job = result.stdout.strip()
    client.get(job).cancel()
    return job


def test_delete_with_yes(seqproc: Run, client: Client, finished: str) -> None:
    result = seqproc("delete", finished[:6], "--yes")
    assert (result.exit_code, result.stdout) == (0, f"{finished} deleted\n")
    assert not folder(client, finished).exists()
    assert client.store.job_ids() == set()
    again = seqproc("delete", finished, "--yes")
    assert again.exit_code == 2
    assert f"no job {finished}" in again.stderr


def test_delete_for_scripts(seqproc: Run, client: Client, finished: str, submitted: str) -> None:
    unasked = seqproc("delete", finished)
    assert unasked.exit_code == 2
    assert f"whether job {finished} may go: give --yes" in unasked.stderr
    assert folder(client, finished).exists()
    assert the_json(seqproc("delete", finished, "--yes", "--json")) == {"id": finished, "deleted": True}


def test_a_job_that_has_not_ended_is_not_deleted(seqproc: Run, client: Client, submitted: str) -> None:
    result = seqproc("delete", submitted, "--yes")
    assert result.exit_code == 1
    assert f"job {submitted} is queued; cancel it before deleting it" in result.stderr
    assert folder(client, submitted).exists()


def test_on_a_terminal_it_asks(client: Client, finished: str) -> None:
    environment: dict[str, str] = {**os.environ, "TERM": "xterm"}
    command = ["-P", "-m", "jobs", "delete", finished]
    for answer, stays in (("n", True), ("y", False)):
        terminal = pexpect.spawn(sys.executable, command, env=environment, encoding="utf-8", timeout=60)
        terminal.expect_exact(f"Delete job {finished}, succeeded, with 4 sequences? [y/N]")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == (1 if stays else 0)
        assert folder(client, finished).exists() is stays


def test_delete_from_python(client: Client, finished: str) -> None:
    client.get(finished).delete()
    assert client.jobs() == []
    assert not folder(client, finished).exists()


def test_gc_takes_what_is_past_its_ttl(seqproc: Run, client: Client, finished: str) -> None:
    past, young = with_ttl(seqproc, client, "7"), with_ttl(seqproc, client, "7")
    end_long_ago(client, past, 7.1)
    end_long_ago(client, young, 6.9)
    end_long_ago(client, finished, 10_000)  # without a ttl
    dry = seqproc("gc", "--dry-run")
    assert dry.stdout.endswith("; 1 job past the ttl\n")
    assert folder(client, past).exists()
    assert the_json(seqproc("gc", "--json"))["expired"] == 1
    assert not folder(client, past).exists()
    assert client.store.job_ids() == {young, finished}
    assert folder(client, young).exists()
    assert folder(client, finished).exists()
    assert "ttl" not in seqproc("gc").stdout


def test_status_says_when_it_will_go(seqproc: Run, client: Client, submitted: str) -> None:
    result = seqproc("submit", "--model", "tiny-arithmetic", "--prompts", "1+2=", "--ttl", "0.5", "-dq")
    job = result.stdout.strip()
    assert "kept:        for 0.5 days after its end\n" in seqproc("status", job).stdout
    client.get(job).cancel()
    assert "then gc deletes it\n" in seqproc("status", job).stdout
    assert the_json(seqproc("status", job, "--json"))["ttl"] == 43_200
    assert "kept:" not in seqproc("status", submitted).stdout
