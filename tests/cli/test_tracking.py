"""Tracking: the real wandb (offline), TensorBoard and MLflow, read back; and libraries that fail in every way.

What was logged is held against `seqproc report --json`.
"""

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

from jobs.client import Client
from jobs.errors import UsageError
from jobs.progress import Progress
from jobs.tracking import names, sender
from jobs.tracking.figures import of_progress, of_report, run_of
from jobs.tracking.names import TRACKERS, require
from jobs.tracking.sender import Sender
from jobs.tracking.tracked import tracked
from tests.cli.conftest import COLOUR, Run, do_shard, row, the_json
from tests.trackers import Written, mlflow_runs, tensorboard_runs, wandb_runs

_HOSTILE = "mlflow.runName=../x", "a b/../\x1b[31m@=" + 250 * "ü"
_JOB = ("--model", "tiny-arithmetic", "-G", "2", "--shard-size", "1", "--name", "a sweep/of\x1b[2J one", "--seed", "7")


@pytest.fixture(autouse=True)
def local_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker reaches the network, nor the user's own account."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    here = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    here |= {"MLFLOW_TRACKING_URI": _uri(tmp_path), "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    for name, value in here.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def job(seqproc: Run, client: Client) -> str:
    """The id of a queued job with labels that no tracker should be led astray by: 3 prompts, 2 samples each."""
    prompts = [word for n in range(3) for word in ("--prompts", f"{n}+2=")]
    labels = [word for label in ("sweep=lr1", *_HOSTILE) for word in ("--labels", label)]
    hook = ("--webhook", "https://hooks.example.org/s3cret")
    env = {"SEQPROC_WEBHOOK_HOSTS": "hooks.example.org"}
    done = seqproc("submit", *_JOB, *prompts, *labels, *hook, "-dq", env=env)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def _do(client: Client, job: str, shard: int) -> None:
    """The prompt's first response is right, its second right only for prompt 0."""
    right, wrong = ({"response": f"<answer>{n}</answer>", "answer": "2"} for n in (2, 3))
    do_shard(client, job, [row(shard, 0, **right), row(shard, 1, **(wrong if shard else right))])


@pytest.fixture
def ended(client: Client, job: str) -> str:
    for shard in range(3):
        _do(client, job, shard)
    return job


def _uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def _runs(track: str, tmp_path: Path) -> list[Written]:
    here = tmp_path / "here"
    match track:
        case "wandb":
            return list(wandb_runs(here).values())
        case "tensorboard":
            return list(tensorboard_runs(here / "runs").values())
    return list(mlflow_runs(_uri(tmp_path)).values())


def _expected(report: dict[str, Any]) -> dict[str, float]:
    """The figures of `report --json` under the names that trackers are told."""
    wanted = {
        f"report/{n}": report[n] for n in ("prompts", "sequences", "tokens", "prompt_errors", "judged", "mean_length")
    }
    wanted |= dict(
        zip(("report/accuracy", "report/accuracy_low", "report/accuracy_high"), report["accuracy"], strict=True)
    )
    wanted |= {f"report/pass_at_{k}": value for k, value in report["pass_at_k"].items()}
    wanted |= {f"report/finish_{reason}": count for reason, count in report["finish_reasons"].items()}
    for name in ("logprob", "entropy", "sampling_entropy"):
        wanted |= {f"report/{name}_{figure}": value for figure, value in report[name].items()}
    return wanted


@pytest.mark.parametrize("track", TRACKERS)
def test_each_tracker_has_what_the_report_says(
    seqproc: Run, client: Client, ended: str, tmp_path: Path, track: str
) -> None:
    result = seqproc("watch", ended, "--track", track)
    assert result.exit_code == 0 and f"Tracked by {track}: " in result.stderr, result.stderr
    assert "Warning" not in result.stderr
    [run] = _runs(track, tmp_path)
    expected = _expected(the_json(seqproc("report", ended, "--json")))
    assert len(expected) > 20 and expected["report/accuracy"] == pytest.approx(4 / 6)
    for name, value in expected.items():
        assert run.last(name) == pytest.approx(value, rel=1e-6), name  # TensorBoard's are float32
        assert run.figures[name][-1][0] == 6, "the step is the number of sequences"
    assert run.last("progress/tokens") == 12 and run.last("progress/sequences") == 6
    config = {name: value for name, value in run.config.items() if name in ("model", "G", "seed", "label_sweep", "job")}
    shown = {"model": "tiny-arithmetic", "G": 2, "seed": 7, "label_sweep": "lr1", "job": ended}
    assert config == ({name: str(value) for name, value in shown.items()} if track == "mlflow" else shown)
    assert "s3cret" not in str(run), "the webhook's address is nobody's business"
    assert run.state == ("FINISHED" if track == "mlflow" else "succeeded")
    name = client.get(ended).record.name
    match track:
        case "wandb":
            assert run.name == name and "sweep=lr1" in run.tags and all(len(tag) <= 64 for tag in run.tags)
        case "tensorboard":
            assert run.name == f"a_sweep_of__2J_one-{ended}", "a name is no path"
        case "mlflow":
            assert run.name == name, "a label is no way to rename the run"
            assert {("sweep", "lr1"), ("label.mlflow.runName", "../x"), ("seqproc.job", ended)} <= set(run.tags)


def test_watching_again_goes_on_with_the_same_run(
    seqproc: Run, client: Client, job: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Watched for a while with a shard done, then to its end."""
    _do(client, job, 0)
    for track in TRACKERS:
        with pytest.raises(TimeoutError):
            client.get(job).wait(timeout=0, start_worker=False, track=track)
    assert not caplog.records
    [run] = _runs("mlflow", tmp_path)
    assert run.state == "RUNNING" and not any(name.startswith("report/") for name in run.figures)
    for shard in (1, 2):
        _do(client, job, shard)
    for track in TRACKERS:
        assert "Warning" not in seqproc("watch", job, "--track", track).stderr
    for track in ("tensorboard", "mlflow"):
        [run] = _runs(track, tmp_path)
        assert run.figures["progress/tokens"] == [(2, 4.0), (6, 12.0)]
    files = list(wandb_runs(tmp_path / "here"))
    assert [file.name for file in files] == 2 * [f"run-{job}.wandb"], "`wandb sync` puts those of one id together"


def test_steps_while_a_job_runs(client: Client, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.tracking.tracked._EVERY", 0.0)
    told: list[str] = []
    shards = iter(range(3))

    def work(_child: object, _job: object) -> None:
        if told:  # the run is open
            _do(client, job, next(shards))
            time.sleep(0.3)

    monkeypatch.setattr("jobs.child.ChildWorker.keep_running", work)
    handle = client.get(job)
    with tracked(handle, "tensorboard", lambda _level, text: told.append(text)) as look:
        handle.wait(on_progress=look)
    [run] = _runs("tensorboard", tmp_path)
    steps = [step for step, _ in run.figures["progress/tokens"]]
    assert {2, 4, 6} <= set(steps) and steps == sorted(steps)
    assert [2.0 * step for step in steps] == [value for _, value in run.figures["progress/tokens"]]
    assert run.last("progress/tokens_per_second") > 0
    assert len(told) == 1


def test_from_python_and_under_another_folder(
    client: Client, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQPROC_TENSORBOARD_DIR", str(tmp_path / "board"))
    seen: list[Progress] = []
    progress = client.get(ended).wait(track="tensorboard", on_progress=seen.append)
    assert progress.sequences == 6 and seen[-1] == progress
    [run] = tensorboard_runs(tmp_path / "board").values()
    assert run.last("report/sequences") == 6
    with pytest.raises(UsageError, match="'wandbb' is no tracker; there are wandb, tensorboard, mlflow"):
        client.get(ended).wait(track="wandbb")  # type: ignore[arg-type]


def test_what_is_asked_wrongly(seqproc: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    submit = ("submit", "--model", "tiny-arithmetic", "--prompts", "1+1=")
    left = seqproc(*submit, "-d", "--track", "wandb")
    assert left.exit_code == 2 and "seqproc watch JOB --track wandb" in left.stderr
    misspelt = seqproc(*submit, "--track", "wanbd")
    assert misspelt.exit_code == 2 and "'tensorboard'" in misspelt.stderr
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    missing = seqproc(*submit, "--track", "wandb")
    assert missing.exit_code == 2 and "pip install 'sequence-processor[wandb]'" in missing.stderr
    assert seqproc("list", "-q").stdout == "", "nothing was stored"
    (tmp_path / "here" / "leftover").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "here")
    monkeypatch.setattr(names, "TRACKERS", ("leftover",))
    with pytest.raises(UsageError, match="leftover is not installed"):
        require("leftover")


_BAD = {
    "raises when it is opened": ("raise OSError('no login at\\nhttps://me:pa55@host')", "pass", "no login at"),
    "raises at each call": ("pass", "raise ValueError('quota\\x1b[2J exceeded')", "quota[2J exceeded"),
    "leaves": ("sys.exit('so there')", "pass", "SystemExit: so there"),
    "is killed": ("pass", "os.kill(os.getpid(), 9)", "exit code -9"),
    "talks": ("print('{\"where\": 5}' * 99999); print('x' * 99999, file=sys.stderr)", "raise ValueError(1)", ": 1."),
    "lacks a library": ("raise ImportError('libfoo.so.3')", "pass", "libfoo.so.3"),
}
_FAKE = """
import os, sys, time
class Settings:
    sync_dir = '.'
    def __init__(self, **_): pass
class Run:
    url, summary, settings = 'https://track.example.org/run', {{}}, Settings()
    def define_metric(self, *_, **__): pass
    def finish(self, **_): pass
    def log(self, figures):
        {log}
def init(**_):
    {init}
    return Run()
"""

Library = Callable[[str, str], None]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Puts another `wandb` before the real one, for the tracker's process alone."""

    def put(init: str, log: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir(exist_ok=True)
        (folder / "wandb.py").write_text(_FAKE.format(init=init, log=log))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return put


@pytest.mark.parametrize(("init", "log", "why"), _BAD.values(), ids=_BAD)
def test_a_tracker_that_fails_harms_nothing(
    seqproc: Run, ended: str, library: Library, init: str, log: str, why: str
) -> None:
    before = the_json(seqproc("report", ended, "--json"))
    library(init, log)
    for quiet in ([], ["-q"]):
        result = seqproc("watch", ended, "--track", "wandb", *quiet)
        assert result.exit_code == 0 and result.stderr.count("Warning: ") == 1
        [line] = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
        assert line.startswith("Warning: wandb does not track this job any more: ") and why in line
        assert line.endswith("The job is unharmed") and "pa55" not in line
    assert the_json(seqproc("report", ended, "--json")) == before


def test_a_warning_stands_on_a_line_of_its_own_above_the_bar(seqproc: Run, ended: str, library: Library) -> None:
    library("raise ValueError('quota')", "pass")
    result = seqproc("watch", ended, "--track", "wandb", env=COLOUR)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stderr).replace("\r", "\n")
    assert "━" in shown
    assert re.search(r"^Warning: wandb .*: ValueError: quota\. The job is unharmed$", shown, flags=re.MULTILINE)


@pytest.mark.parametrize(("init", "log"), [("time.sleep(600)", "pass"), ("pass", "time.sleep(600)")])
def test_a_tracker_that_hangs_is_killed(
    seqproc: Run, ended: str, library: Library, monkeypatch: pytest.MonkeyPatch, init: str, log: str
) -> None:
    library(init, log)
    monkeypatch.setattr(sender, "LIMIT", 3.0)
    began = time.monotonic()
    result = seqproc("watch", ended, "--track", "wandb")
    assert time.monotonic() - began < 60
    assert result.exit_code == 0 and f"Job {ended} succeeded" in result.stderr
    assert "it did not answer within 3 s. The job is unharmed" in result.stderr
    assert not [p for p in psutil.Process().children(recursive=True) if "jobs.tracking" in p.cmdline()]


def test_a_hang_holds_up_nobody_meanwhile(
    client: Client, job: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("pass", "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(600)")
    told: list[str] = []
    tracking = Sender("wandb", run_of(client.get(job).record), lambda _level, text: told.append(text))
    _until(lambda: len(told) == 1)  # it is open
    monkeypatch.setattr(sender, "LIMIT", 0.5)
    deadline, slowest = time.monotonic() + 60, 0.0
    while len(told) < 2 and time.monotonic() < deadline:
        began = time.monotonic()
        for step in range(1000):  # far more than a pipe holds
            tracking.offer(step, {"progress/tokens": 1.0})
        tracking.look()
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.05)
    assert "did not answer" in told[1] and slowest < 1.0
    tracking.close("running", limit=60)
    assert len(told) == 2 and time.monotonic() < deadline


@pytest.fixture
def watcher(job: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `seqproc watch --track tensorboard` of a job that nobody does."""
    command = [sys.executable, "-m", "jobs", "watch", job, "--track", "tensorboard"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_process_outlives_no_watcher(
    watcher: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "here" / "runs"
    _until(lambda: log.is_dir() and any(log.iterdir()))
    [child] = psutil.Process(watcher.pid).children()
    watcher.send_signal(number)
    _until(lambda: watcher.poll() is not None)
    _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    [run] = tensorboard_runs(log).values()
    assert run.state == ("running" if number is signal.SIGKILL else "queued"), "it was closed, not torn off"


def test_a_report_that_cannot_be_made(seqproc: Run, client: Client, ended: str, tmp_path: Path) -> None:
    next((client.settings.results / "jobs" / ended / "shards").iterdir()).unlink()
    result = seqproc("watch", ended, "--track", "tensorboard")
    assert result.exit_code == 0
    assert f"Warning: the report on job {ended} is not tracked: " in result.stderr
    [run] = _runs("tensorboard", tmp_path)
    assert run.last("progress/tokens") == 12 and "report/accuracy" not in run.figures


def test_figures_are_finite_numbers_and_few(client: Client, ended: str) -> None:
    from dataclasses import replace

    from jobs.report import report

    made = replace(report(client.get(ended)), mean_length=float("nan"), pass_at_k=dict.fromkeys(range(1, 65001), 0.5))
    figures = of_report(made)
    powers = [2**n for n in range(16)]
    assert {name for name in figures if "pass" in name} == {f"report/pass_at_{k}" for k in (*powers, 65_000)}
    assert "report/mean_length" not in figures and "report/state" not in figures
    assert "progress/eta_seconds" not in of_progress(client.get(ended).progress)


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in a minute"
        time.sleep(0.05)
