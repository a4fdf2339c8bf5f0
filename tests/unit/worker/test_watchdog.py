"""A worker that hangs ends itself, a worker that works, loads or waits does not, and a user's process is left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jobs.records import Job
from jobs.snapshot import SnapshotRow
from tests.clock import Clock
from tests.unit.worker.test_drain import Bench
from worker import watchdog
from worker.engine import OnStep
from worker.vitals import Vitals
from worker.watchdog import EXIT_CODE, Watchdog

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "home")
    yield made
    made.client.close()


def start(how: str, home: Path) -> subprocess.Popen[str]:
    """A real worker process; see `hanging.py`."""
    settings = {"HOME": home, "WATCHDOG_SECONDS": 2, "HEARTBEAT_SECONDS": 0.1, "POLL_SECONDS": 0.05}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.worker.hanging", how],
        cwd=ROOT,
        env=os.environ | {f"SEQPROC_{name}": str(value) for name, value in settings.items()},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("how", "code", "last_words", "seconds"),
    [
        ("python", EXIT_CODE, r"no progress for (\d+) s at its work", 2),
        ("load", EXIT_CODE, r"no progress for (\d+) s in loading a model", 3),
        ("gil", -signal.SIGALRM, None, 2),
    ],
)
def test_a_worker_that_hangs_ends_itself_and_another_does_its_shard(
    bench: Bench, how: str, code: int, last_words: str | None, seconds: int
) -> None:
    job = bench.submit()
    hung = start(how, bench.settings.home)
    _, complaint = hung.communicate(timeout=120)
    assert hung.returncode == code, complaint
    assert " in hang_here" in complaint
    (log,) = (bench.settings.results / "logs").iterdir()
    assert " in hang_here" in log.read_text()
    if last_words is not None:
        (line,) = [line for line in job.logs() if line["level"] == "critical"]
        assert (line["shard"], line["attempt"]) == (0, 1)
        assert (said := re.search(last_words, line["message"])) is not None
        assert int(said[1]) >= seconds
        assert "Thread MainThread:" in line["traceback"] and "in hang_here" in line["traceback"]
        assert complaint.splitlines()[-1].startswith(f"Error: {said[0]}"), "what a waiting client shows"
    assert job.refresh().running_shards == 1, "it could hand nothing back"
    assert bench.drain.until_idle() is None
    record = job.refresh()
    assert (record.state, record.done_sequences, len(list(job.rows()))) == ("succeeded", 12, 12)
    attempts = [(a.shard, a.attempt, a.outcome) for a in bench.client.store.attempts(job.id)]
    assert attempts == [(0, 1, "reaped"), (0, 2, "done"), (1, 1, "done"), (2, 1, "done")]
    assert bench.client.store.shard(job.id, 0).failures == 1, "counted as any death"
    if how == "gil":
        reaped = bench.client.store.attempts(job.id)[0]
        assert re.search(r"its last words: Timeout \(.*\)! at File .* in hang_here", reaped.error or "")


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("ctypes.PyDLL(None).sleep(3600)", signal.SIGALRM),  # the watchdog's thread will never look
        ("ctypes.string_at(1)", signal.SIGSEGV),
    ],
)
def test_a_native_hang_or_crash_in_the_first_instant_of_the_work(tmp_path: Path, call: str, number: int) -> None:
    program = f"""
import ctypes, pathlib, sys
from worker.vitals import Vitals
from worker.watchdog import Watchdog
vitals = Vitals(lambda: "cpu")
with Watchdog(vitals, 0.5, pathlib.Path(sys.argv[1])), vitals.at_work():
    {call}
"""
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", program, log], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == -number
    assert b"line 7 in <module>" in log.read_bytes()


def test_waiting_for_work_is_not_hanging(tmp_path: Path) -> None:
    program = """
import pathlib, sys, time
from worker.vitals import Vitals
from worker.watchdog import Watchdog
vitals = Vitals(lambda: "cpu")
with Watchdog(vitals, 0.2, pathlib.Path(sys.argv[1])):
    with vitals.at_work():
        pass
    time.sleep(1)
"""
    command = [sys.executable, "-c", program, tmp_path / "log"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, (tmp_path / "log").read_bytes()) == (0, b"", b"")


def test_the_drain_notes_what_it_does(bench: Bench) -> None:
    vitals = bench.drain.vitals
    noted: list[tuple[str, bool, bool]] = []

    def load() -> None:
        noted.append(("load", vitals.working, vitals.loading))

    def step(job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        noted.append(("work", vitals.working, vitals.loading))
        vitals._moved_at -= 1000
        assert vitals.still >= 1000
        on_step(1, 0)
        assert vitals.still < 1000

    bench.engine.while_loading, bench.engine.fault = load, step
    job = bench.submit("a")
    assert bench.drain.until_idle() is None
    assert job.refresh().state == "succeeded"
    assert noted == [("load", True, True), ("work", True, False)]
    assert not vitals.working


def test_a_process_that_uses_the_drain_itself_is_never_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOADING_SECONDS", 0.01)
    bench.settings = bench.settings.model_copy(update={"watchdog_seconds": 0.01})

    def hang(job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        time.sleep(0.3)
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())

    bench.engine.fault = hang
    job = bench.submit("a")
    assert bench.another("w2").until_idle() is None
    assert job.refresh().state == "succeeded"


@pytest.fixture
def vitals(clock: Clock) -> Vitals:
    return Vitals(lambda: "cpu", clock)


@pytest.fixture
def dog(vitals: Vitals, clock: Clock, tmp_path: Path) -> Watchdog:
    return Watchdog(vitals, 100, tmp_path / "log", clock)


def _hangs_after(dog: Watchdog, clock: Clock, seconds: int) -> int | None:
    """How many seconds pass until it is found to hang, looking every ten; None if that is not within `seconds`."""
    for passed in range(0, seconds + 1, 10):
        if dog.hangs():
            return passed
        clock.now += 10
    return None


def test_the_limit_counts_from_the_last_step(dog: Watchdog, vitals: Vitals, clock: Clock) -> None:
    with vitals.at_work():
        clock.now += 40
        vitals.moved()
        assert _hangs_after(dog, clock, 1000) == 110
    assert not dog.hangs(), "nothing is being done any more"


def test_a_load_has_a_limit_of_its_own(
    dog: Watchdog, vitals: Vitals, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watchdog.LOADING_SECONDS >= 3600
    monkeypatch.setattr(watchdog, "LOADING_SECONDS", 500)
    with vitals.at_work(), vitals.at_loading():
        assert _hangs_after(dog, clock, 1000) == 510
    with vitals.at_work():
        with vitals.at_loading():
            assert _hangs_after(dog, clock, 400) is None
        assert _hangs_after(dog, clock, 1000) == 110, "the time of the load does not count against the work"


def test_time_in_which_nobody_looked_does_not_count(dog: Watchdog, vitals: Vitals, clock: Clock) -> None:
    """The process was stopped, or its machine: nothing could have got any further."""
    with vitals.at_work():
        assert _hangs_after(dog, clock, 50) is None
        clock.now += 10_000
        assert not dog.hangs()
        assert _hangs_after(dog, clock, 1000) == 110
