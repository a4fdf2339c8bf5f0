"""Prompts through a real pipe while workers run: producers and workers are killed, and each row comes once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO, cast

import pytest

from jobs.child import environment
from jobs.client import JobHandle
from jobs.gc import collect
from jobs.manifest import verify
from jobs.states import JobState
from tests.faults.conftest import TWELVE, Lab, assert_complete, on_both, scripted_rows

SPEC = ["--model", "tiny-arithmetic", "-G", "2", "--seed", "1", "--shard-size", "2"]


class Pipe:
    """`submit - --stream`, and the end of the pipe into it."""

    def __init__(self, lab: Lab, *flags: str) -> None:
        command = [sys.executable, "-P", "-m", "jobs", "submit", "-", "--stream", *SPEC, *(flags or ("--detach",))]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment(lab.settings), stdin=pipe, stdout=pipe, stderr=pipe)
        self.job: JobHandle = lab.client.get(cast(IO[bytes], self.process.stdout).readline().decode().strip())

    def write(self, first: int, stop: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(b'{"prompt": "p%d"}\n' % i for i in range(first, stop)))
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        _, words = self.process.communicate(timeout=60)
        return self.process.returncode, words.decode()


@pytest.fixture
def pipe(lab: Lab) -> Iterator[Pipe]:
    pipe = Pipe(lab)
    yield pipe
    pipe.process.kill()
    pipe.process.communicate()


def until_prompts(lab: Lab, job: JobHandle, prompts: int) -> None:
    lab.until(lambda: job.refresh().num_prompts == prompts)


@on_both
def test_workers_begin_while_it_is_fed(lab: Lab, pipe: Pipe) -> None:
    worker = lab.puppet()
    pipe.write(0, 5)
    lab.until(lambda: pipe.job.refresh().done_sequences == 10)
    assert (pipe.job.record.state, pipe.job.record.sealed) == (JobState.RUNNING, False)
    time.sleep(0.5)
    assert worker.poll() is None, "more may come"
    pipe.write(5, 12)
    assert pipe.end()[0] == 0
    assert worker.wait(120) == 0
    assert pipe.job.refresh().truncated is None
    assert_complete(lab, pipe.job, TWELVE)


@on_both
def test_a_killed_producer(lab: Lab, pipe: Pipe) -> None:
    """Nobody seals the job; the worker sees it and does, and what came is done."""
    pipe.write(0, 5)
    until_prompts(lab, pipe.job, 5)
    pipe.process.kill()
    pipe.process.wait()
    assert lab.puppet().wait(120) == 0
    job = pipe.job.refresh()
    assert (job.state, job.sealed, job.num_prompts) == (JobState.SUCCEEDED, True, 5)
    assert (job.truncated or "").startswith("its prompts broke off after 5 prompts: the process that fed them (")
    assert pipe.job.manifest()["truncated"] == job.truncated
    assert_complete(lab, pipe.job, scripted_rows([f"p{i}" for i in range(5)]))


def test_a_producer_that_is_stopped_is_given_up_and_hears_of_it(lab: Lab, pipe: Pipe) -> None:
    """Its heart stands still for ten leases: sealed; when it goes on it is told, and adds nothing."""
    pipe.write(0, 4)
    until_prompts(lab, pipe.job, 4)
    pipe.process.send_signal(signal.SIGSTOP)
    assert lab.puppet(lease_seconds=0.4).wait(120) == 0
    assert "whoever fed them has not been heard of for" in (pipe.job.refresh().truncated or "")
    pipe.process.send_signal(signal.SIGCONT)
    pipe.write(4, 6)
    code, words = pipe.end()
    assert code == 1 and f"job {pipe.job.id} takes no more prompts: its prompts broke off after 4" in words
    assert_complete(lab, pipe.job, scripted_rows([f"p{i}" for i in range(4)]))


@pytest.mark.parametrize("fault", ["claimed:die:2", "written:die:2", "committed:die:2"])
def test_a_killed_worker(lab: Lab, pipe: Pipe, fault: str) -> None:
    first = lab.puppet(fault)
    pipe.write(0, 5)
    assert first.wait(120) == -signal.SIGKILL
    rows = pipe.job.stream(start_worker=False)
    read = [next(rows) for _ in range(4)]
    collect(lab.client.store, lab.settings)
    second = lab.puppet()
    pipe.write(5, 12)
    assert pipe.end()[0] == 0
    assert second.wait(120) == 0
    read += rows
    for row in read:
        del row["cursor"]
    assert sorted(read, key=lambda row: (row["prompt_index"], row["sample_index"])) == TWELVE
    assert_complete(lab, pipe.job, TWELVE)


def test_a_cancel(lab: Lab, pipe: Pipe) -> None:
    pipe.write(0, 5)
    until_prompts(lab, pipe.job, 5)
    pipe.job.cancel()
    pipe.write(5, 7)
    code, words = pipe.end()
    assert code == 1 and "takes no more prompts: its prompts broke off after 5 prompts: the job was cancelled" in words
    pipe.job.retry()
    assert lab.puppet().wait(120) == 0
    assert_complete(lab, pipe.job, scripted_rows([f"p{i}" for i in range(5)]))


@pytest.mark.parametrize("flags", [("--detach",), ("--max-new-tokens", "4")])
def test_ctrl_c_seals_what_came(lab: Lab, flags: tuple[str, ...]) -> None:
    """At once, though the pipe stays open; following or not."""
    pipe = Pipe(lab, *flags)
    pipe.write(0, 5)
    until_prompts(lab, pipe.job, 5)
    pipe.process.send_signal(signal.SIGINT)
    assert pipe.process.wait(60) == 130
    assert pipe.job.refresh().truncated == "its prompts broke off after 5 prompts: Ctrl-C"
    words = pipe.end()[1]
    assert "Sealed: its prompts broke off after 5 prompts: Ctrl-C" in words
    assert "Traceback" not in words and "Fatal" not in words
    assert lab.puppet().wait(120) == 0
    lab.until(lambda: pipe.job.refresh().state.ended)
    lab.puppet().wait(120)  # whoever comes writes what the last one may be about to
    assert verify(lab.settings.results / "jobs" / pipe.job.id) == []


def test_a_job_that_is_cancelled_while_the_pipe_is_silent(lab: Lab) -> None:
    """Who follows it leaves, though the pipe stays open and says nothing."""
    worker = lab.start_worker()
    pipe = Pipe(lab, "--max-new-tokens", "4")
    pipe.write(0, 1)
    lab.until(lambda: pipe.job.refresh().done_sequences == 2)
    pipe.job.cancel()
    assert pipe.process.wait(60) == 1
    assert "after 1 prompt: the job was cancelled" in (words := pipe.end()[1]) and "Fatal" not in words
    assert worker.poll() is None
