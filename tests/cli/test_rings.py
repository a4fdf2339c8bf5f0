"""Submitting and retrying where Redis is named: a hint if it is away, a sentence if what it needs is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.client import Client
from jobs.processes import this_process
from tests.cli.conftest import Run

SUBMIT = ("submit", "--model", "tiny-arithmetic", "--prompts", "1+2=", "-G", "1")
GONE = "redis://:s3cret@127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def redis_is_away(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQPROC_REDIS_URL", GONE)
    client.store.register_worker("idle", this_process(), queues=["default"])


def test_a_job_is_submitted_and_retried_all_the_same(seqproc: Run, client: Client) -> None:
    done = seqproc(*SUBMIT, "-d")
    assert done.exit_code == 0
    assert done.stderr.count("they find the job at their next look") == 1
    assert "s3cret" not in done.output
    job = done.stdout.strip()
    assert client.store.job(job).state == "queued"
    seqproc("cancel", job)
    again = seqproc("retry", job)
    assert again.exit_code == 0
    assert again.stderr.count("they find the job at their next look") == 1


def test_no_hint_for_scripts(seqproc: Run) -> None:
    done = seqproc(*SUBMIT, "-dq")
    assert (done.exit_code, done.stderr) == (0, "")


def test_a_worker_without_celery_says_what_to_install() -> None:
    without = "import sys; sys.modules['celery'] = None; from jobs.cli import main; main()"
    command = [sys.executable, "-P", "-c", without, "worker", "--idle-exit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Error: SEQPROC_REDIS_URL is set, and that needs the package celery; install sequence-processor[redis]"
    ]
