"""Following a job: what is shown, what is printed, and the exit code of every way it can end.

The worker is played by the test: where a waiting client would look after its child process, the next shard is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from jobs.client import Client
from jobs.errors import SeqprocError
from jobs.records import Job
from jobs.store import Store
from tests.cli.conftest import COLOUR, Run, do_shard, row, the_json

_SUBMIT = ("submit", "--model", "tiny-arithmetic", "--prompts", "0+2=", "--prompts", "1+2=", "-G", "1")
Play = Callable[[Callable[[Store, Job], object]], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Sets what happens each time a waiting client looks after its child worker."""
    monkeypatch.setattr("jobs.handle._LOOK_EVERY", 0.0)

    def become(worker: Callable[[Store, Job], object]) -> None:
        monkeypatch.setattr("jobs.child.ChildWorker.keep_running", lambda self, job: worker(self.store, job))

    return become


@pytest.fixture
def good(play: Play, client: Client) -> None:
    """A worker that does one shard a look."""
    play(lambda _store, job: do_shard(client, job.id, [row(n, 0) for n in _prompts(client, job)]))


def _prompts(client: Client, job: Job) -> range:
    done = client.store.job(job.id).done_shards
    shard = client.store.shard(job.id, done)
    return range(shard.first_prompt, shard.first_prompt + shard.stop - shard.start)


@pytest.mark.usefixtures("good")
def test_submit_follows_to_the_end(seqproc: Run) -> None:
    result = seqproc(*_SUBMIT, "--shard-size", "1")
    assert result.exit_code == 0
    assert re.fullmatch(r"[0-9a-f]{12}\n", result.stdout)
    job = result.stdout.strip()
    assert f"Job {job} succeeded: 2 of 2 sequences, 4 tokens" in result.stderr
    assert f"{job} queued  0/2 sequences" in result.stderr, "a plain line where there is no terminal"
    assert f"seqproc fetch {job}" in result.stderr and f"seqproc show {job}" in result.stderr


@pytest.mark.usefixtures("good")
def test_quiet_is_the_id_and_json_the_finished_job(seqproc: Run) -> None:
    quiet = seqproc(*_SUBMIT, "-q")
    assert re.fullmatch(r"[0-9a-f]{12}\n", quiet.stdout)
    assert quiet.stderr == ""
    job = the_json(seqproc(*_SUBMIT, "--json"))
    assert (job["state"], job["done_sequences"]) == ("succeeded", 2)


@pytest.mark.usefixtures("good")
def test_a_bar_on_a_terminal(seqproc: Run) -> None:
    result = seqproc(*_SUBMIT, "--shard-size", "1", env=COLOUR)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stderr)
    assert "━" in shown
    assert re.search(r"succeeded ━+ 2/2 sequences 4 tokens", shown)


@pytest.mark.usefixtures("good")
def test_wait_and_watch_of_an_ended_job(seqproc: Run) -> None:
    job = seqproc(*_SUBMIT, "-dq").stdout.strip()
    assert seqproc("wait", job).exit_code == 0
    for command in ("wait", "watch"):
        again = seqproc(command, job, "-q")
        assert (again.exit_code, again.stdout, again.stderr) == (0, f"{job}\n", "")
        assert the_json(seqproc(command, job, "--json"))["state"] == "succeeded"


def test_a_job_that_fails(seqproc: Run, play: Play) -> None:
    def fail(store: Store, job: Job) -> None:
        claim = store.claim("w", queues=[job.queue], model=None, age_limit=600)
        assert claim is not None
        store.fail_job(claim, "the hub knows no model \x1b[31mm/x")

    play(fail)
    result = seqproc(*_SUBMIT)
    job = result.stdout.strip()
    assert result.exit_code == 1
    assert f"Error: job {job} failed: the hub knows no model [31mm/x\n" in result.stderr
    assert f"seqproc retry --failed-only {job}" in result.stderr
    assert seqproc("wait", job).exit_code == seqproc("watch", job).exit_code == 1
    assert "the hub knows no model" in seqproc("wait", job, "-q").stderr, "a failure is said even under -q"


def test_a_job_that_is_cancelled(seqproc: Run, play: Play) -> None:
    play(lambda store, job: store.cancel(job.id))
    result = seqproc(*_SUBMIT)
    assert result.exit_code == 1
    assert "cancelled: 0 of 2 sequences" in result.stderr


def test_a_wait_that_takes_too_long(seqproc: Run, play: Play, submitted: str) -> None:
    play(lambda _store, _job: None)
    result = seqproc("wait", submitted, "--timeout", "0")
    assert result.exit_code == 124
    assert submitted in result.stderr and "queued" in result.stderr
    assert the_json(seqproc("wait", submitted, "--timeout", "0", "--json"))["state"] == "queued"
    assert seqproc("wait", submitted, "--timeout", "-1").exit_code == 2


@pytest.mark.parametrize("form", ["", "--json"])
def test_ctrl_c_leaves_the_job_alone(seqproc: Run, play: Play, client: Client, form: str) -> None:
    def interrupt(_store: Store, _job: Job) -> None:
        raise KeyboardInterrupt

    play(interrupt)
    result = seqproc(*_SUBMIT, *form.split())
    assert result.exit_code == 130
    job = the_json(result)["id"] if form else result.stdout.strip()
    assert client.get(job).record.state == "queued"
    assert f"seqproc watch {job}" in result.stderr and f"seqproc cancel {job}" in result.stderr


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_child_that_cannot_go_on(seqproc: Run, play: Play, client: Client, form: str) -> None:
    def refuse(_store: Store, _job: Job) -> None:
        raise SeqprocError("the worker here cannot go on: no network")

    play(refuse)
    result = seqproc(*_SUBMIT, *form.split())
    assert result.exit_code == 1
    assert "no network" in result.stderr
    job = the_json(result)["id"] if form else result.stdout.strip()
    assert client.get(job).record.state == "queued"


@pytest.mark.parametrize("env", [{}, COLOUR])
def test_a_notice_is_told_once(seqproc: Run, play: Play, client: Client, env: dict[str, str]) -> None:
    looks = []

    def paused_twice_then_cancel(store: Store, job: Job) -> None:
        looks.append(job)
        claim = store.claim("w", queues=["default"], model=None, age_limit=600)
        assert claim is not None
        store.hand_back(claim, "worker w: the \u202edisk is full", notice=True)
        if len(looks) == 3:
            store.cancel(job.id)

    play(paused_twice_then_cancel)
    result = seqproc(*_SUBMIT, env=env)
    assert result.stderr.count("worker w: the disk is full") == 1


def test_watch_says_that_nobody_works(seqproc: Run, submitted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.handle.time.sleep", interrupt)
    result = seqproc("watch", submitted)
    assert result.exit_code == 130
    assert "No worker is alive for queue default" in result.stderr
