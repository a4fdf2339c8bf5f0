"""One worker a GPU: started, started again, stopped, never left behind. The GPUs are made up, the processes real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import Client, kept
from jobs.errors import SeqprocError, UsageError
from jobs.settings import Settings
from worker import device, fleet
from worker.fleet import Fleet, chosen
from worker.stop import Stop

_SEQPROC = """
import sys
from worker import device
device.gpus = lambda: ["0", "2"]
from jobs.cli import main
main()
"""

_FLEET = """
import sys
from jobs import kept
from worker import device, fleet
from worker.command import leave_on_signals
from worker.stop import Stop
device.gpus = lambda: ["0", "2"]
kept.GRACE = 0.5
stop = Stop()
leave_on_signals(stop)
sys.exit(fleet.Fleet(["0", "2"], [sys.executable, "-c", sys.argv[1]], stop, print).run())
"""

# Whole lines in one write each: several children share a pipe.
_DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asked\\n"))
os.write(1, b"up\\n")
time.sleep(600)
"""
_PLAIN = "import os, time; os.write(1, b'up\\n'); time.sleep(600)"


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen[str]], *arguments: str, **settings: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments],
        env=os.environ | {f"SEQPROC_{name.upper()}": str(value) for name, value in settings.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    return process


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def gone(found: list[psutil.Process]) -> bool:
    return all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in found)


# --- whole: the command and real workers ----------------------------------------------------------------------------


def test_the_workers_of_a_fleet_leave_when_no_work_is_left(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    settings = {"home": tmp_path / "home", "poll_seconds": 0.1}
    with Client(Settings(**settings)) as client:
        job = client.submit(model="tiny-arithmetic", prompts=["2+3="])
        held = client.store.claim("somebody else", queues=["default"], model=None, age_limit=600)
        assert held is not None
        process = start(processes, _SEQPROC, "worker", "--gpus", "all", "--idle-exit", **settings)
        until(lambda: {worker.device for worker in client.store.workers()} == {"cuda:0", "cuda:2"})
        assert process.poll() is None, "somebody may hand back what he holds"
        job.cancel()
        client.store.hand_back(held, "for the test")
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
        assert client.store.workers() == [], "all left in order"


def test_a_killed_worker_is_started_again_and_a_stop_ends_all(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    settings = {"home": tmp_path / "home", "poll_seconds": 0.1}
    with Client(Settings(**settings)) as client:
        process = start(processes, _SEQPROC, "worker", "--gpus", "2,0", **settings)
        until(lambda: len(client.store.workers()) == 2)
        victim = client.store.workers()[0]
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: len({w.id for w in client.store.workers()} - {victim.id}) == 2)
        assert {w.device for w in client.store.workers() if w.id != victim.id} == {"cuda:0", "cuda:2"}
        until(lambda: victim.id not in {w.id for w in client.store.workers()})  # the others saw that it is dead
        process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
        assert f"GPU {victim.device[5:]} ended by signal 9" in complaint
        assert client.store.workers() == []


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_second_signal_leaves_at_once_and_leaves_no_child_behind(processes: list[subprocess.Popen[str]]) -> None:
    process = start(processes, _FLEET, _DEAF)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    deaf = children(process)
    assert all(os.getsid(child.pid) == child.pid for child in deaf), "Ctrl-C in a terminal must not reach them twice"
    process.send_signal(signal.SIGINT)
    assert [process.stdout.readline() for _ in range(2)] == ["asked\n"] * 2
    assert process.poll() is None and not gone(deaf), "the first one waits for the workers"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    assert gone(deaf)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_no_child_outlives_a_killed_fleet(processes: list[subprocess.Popen[str]]) -> None:
    process = start(processes, _FLEET, _PLAIN)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    orphans = children(process)
    assert len(orphans) == 2
    process.kill()
    until(lambda: gone(orphans))


def test_a_child_that_the_stop_met_while_it_started_is_no_failure(processes: list[subprocess.Popen[str]]) -> None:
    process = start(processes, _FLEET, _PLAIN)
    until(lambda: len(children(process)) == 2)
    process.terminate()
    assert process.wait(30) == 0


# --- starting again -------------------------------------------------------------------------------------------------


class Crew:
    """A fleet in this process whose children are one-line programs."""

    def __init__(self, program: str, *, idle_exit: bool = True, gpus: tuple[str, ...] = ("0", "2")) -> None:
        self.said: list[str] = []
        command = [sys.executable, "-c", program]
        self.fleet = Fleet(gpus, command, Stop(), self.said.append, idle_exit=idle_exit)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda: ["0", "2"])
    monkeypatch.setattr(fleet, "_LOOK_EVERY", 0.01)


def test_the_pause_grows_with_each_death_in_a_row() -> None:
    crew = Crew("raise SystemExit(5)", idle_exit=False)
    child = crew.fleet._child("0")
    for _ in range(11):
        child.died(5, "it ended")
    pauses = [int(seconds) for said in crew.said for seconds in re.findall(r"again in (\d+) s", said)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("program", "code"), [("raise SystemExit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_who_waits_for_idle_workers_is_told_when_none_can_work(
    program: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "FIRST_PAUSE", 0.001)
    crew = Crew(program, gpus=("0",))
    assert crew.fleet.run() == code
    assert len(crew.said) == 5
    assert "giving it up" in crew.said[-1]


@pytest.mark.usefixtures("two_gpus")
def test_nobody_is_started_again_when_another_found_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FIRST_PAUSE", 3600.0)
    crew = Crew("import os; raise SystemExit(0 if os.environ['CUDA_VISIBLE_DEVICES'] == '2' else 5)")
    assert crew.fleet.run() == 0
    assert len(crew.said) == 1


def test_a_worker_that_cannot_go_on_when_idle_is_not_started_again() -> None:
    crew = Crew("raise SystemExit(3)")
    assert crew.fleet.run() == 3
    assert crew.said == []


def test_a_gpu_that_fell_away_is_not_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would take the CPU without a word, and hold its shards for days."""
    monkeypatch.setattr(kept, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(device, "gpus", lambda: ["0"])
    notes = tmp_path / "notes"
    crew = Crew(
        f"import os; open({str(notes)!r}, 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' '); raise SystemExit(5)"
    )
    assert crew.fleet.run() == 5
    assert sorted(notes.read_text().split()) == ["0"] * 5 + ["2"]
    assert any("GPU 2 is not there any more" in said for said in crew.said)


def test_each_worker_has_a_port_of_its_own_for_metrics(tmp_path: Path) -> None:
    program = (
        "import os, pathlib; "
        f"note = pathlib.Path({str(tmp_path)!r}, os.environ['CUDA_VISIBLE_DEVICES']); "
        "note.write_text(os.environ['SEQPROC_METRICS_PORT'])"
    )
    crew = Crew(program, idle_exit=False)
    crew.fleet.metrics_port = 9100
    assert crew.fleet.run() == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"0": "9100", "2": "9101"}


# --- which GPUs -----------------------------------------------------------------------------------------------------


def test_which_gpus_are_taken() -> None:
    assert chosen("all", ["0", "1"]) == ["0", "1"]
    assert chosen("2, 0,2", ["0", "1", "2"]) == ["2", "0"]
    with pytest.raises(UsageError, match="no GPU 3 here; give all, or some of 0,1"):
        chosen("0,3", ["0", "1"])
    with pytest.raises(UsageError, match="no GPU '' here"):
        chosen("", ["0"])
    with pytest.raises(UsageError, match="torch sees no GPU here"):
        chosen("all", [])


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 3, ["0", "1", "2"]),
        ("5,7", 2, ["5", "7"]),
        ("5, 7", 1, ["5"]),  # the second is not there
        ("", 0, []),
        (None, 0, []),
    ],
)
def test_gpus_are_called_as_the_host_calls_them(
    visible: str | None, count: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_COUNT", f"print({count})")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.gpus() == names


def test_a_torch_that_does_not_load_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_COUNT", "raise ImportError('libcudart is missing')")
    with pytest.raises(SeqprocError, match=r"torch cannot be used: ImportError: libcudart is missing"):
        device.gpus()


@pytest.mark.parametrize(
    ("visible", "torch_name", "shown"),
    [
        ("4,6", "cuda:1", "cuda:6"),
        ("4,6", "cuda", "cuda:4"),
        (None, "cuda:1", "cuda:1"),
        ("4", "", "cuda:4"),
        ("4", "cpu", "cpu"),
        ("GPU-abc", "cuda:0", "cuda:GPU-abc"),
    ],
)
def test_a_device_is_shown_by_the_hosts_name(
    visible: str | None, torch_name: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.shown(torch_name) == shown


def test_memory_is_that_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used, total = device.memory("cpu")
    assert used is not None and total is not None
    assert 0 < used < total == psutil.virtual_memory().total
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert device.memory("") == (None, None), "a GPU that is not in use is not asked: that would take some of it"

    class Cuda:
        @staticmethod
        def mem_get_info(name: str) -> tuple[int, int]:
            assert name == "cuda:0"
            return 30, 80

    monkeypatch.setitem(sys.modules, "torch", type("torch", (), {"cuda": Cuda}))
    assert device.memory("cuda:0") == (50, 80)
