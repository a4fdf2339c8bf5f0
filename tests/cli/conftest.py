"""The command line through its runner, in a home of its own: no test here sees another's jobs, or the user's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.cli.app import app
from jobs.client import Client
from jobs.paths import JobPaths
from jobs.records import Job
from jobs.settings import Settings
from jobs.shard_files import write_attempt

Run = Callable[..., Result]
COLOUR = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "", "COLUMNS": "300"}  # as on a terminal


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded database without jobs, made once: migrating is tested elsewhere and takes its time."""
    folder = tmp_path_factory.mktemp("migrated")
    Client(Settings(home=folder)).close()
    return folder / "seqproc.db"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path) -> Path:
    """SEQPROC_HOME, and a folder of its own to stand in."""
    for name in [name for name in os.environ if name.startswith("SEQPROC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SEQPROC_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copy(migrated, tmp_path / "home")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def seqproc() -> Run:
    """Runs a command line. A crash of the command itself fails the test at once."""

    def run(*args: str, input: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, list(args), input=input, env=env, prog_name="seqproc")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def submitted(seqproc: Run) -> str:
    """The id of a queued job: 3 prompts, 2 samples each, 2 shards."""
    prompts = [text for n in range(3) for text in ("--prompts", f"{n}+2=")]
    result = seqproc("submit", "--model", "tiny-arithmetic", *prompts, "-G", "2", "--shard-size", "2", "-dq")
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def row(prompt_index: int, sample_index: int, **changes: Any) -> dict[str, Any]:
    """A sequence `ab c` of two tokens, `ab` and ` c`, with log-probabilities −0.05 and −3 and entropies 0.3 and 0.7."""
    return {
        "prompt_index": prompt_index,
        "sample_index": sample_index,
        "custom_id": str(prompt_index),
        "prompt": f"{prompt_index}+2=",
        "response": "ab c",
        "answer": None,
        "prompt_ids": [1, 2],
        "response_ids": [3, 4],
        "logprobs": [-0.05, -3.0],
        "entropies": [0.3, 0.7],
        "sampling_logprobs": [-0.05, float("-inf")],
        "sampling_entropies": [0.3, 0.7],
        "finish_reason": "eos",
        "stop_offset": None,
        "token_ends": [2, 4],
        **changes,
    }


def do_shard(
    client: Client, job_id: str, rows: list[dict[str, Any]], errors: list[dict[str, Any]] | None = None
) -> Job:
    """What a worker does with the job's next shard, without a model."""
    claim = client.store.claim("test-worker", queues=["default"], model=None, age_limit=600)
    assert claim is not None and claim.job.id == job_id
    paths = JobPaths(client.settings.results, job_id)
    for folder in (paths.shards, paths.errors):
        folder.mkdir(exist_ok=True)
    assert client.store.commit(claim, write_attempt(paths, claim.shard, rows, errors or [], {}))
    return client.store.job(job_id)


@pytest.fixture
def finished(submitted: str, client: Client) -> str:
    """The id of a succeeded job of `row`s whose third prompt could not be done."""
    do_shard(client, submitted, [row(p, g) for p in (0, 1) for g in (0, 1)])
    error = {"prompt_index": 2, "sample_index": None, "custom_id": "2", "error": "the prompt is too long"}
    job = do_shard(client, submitted, [], [error])
    assert job.state == "succeeded"
    return submitted


def the_json(result: Result) -> Any:
    """What a command printed on stdout, which must be JSON and nothing else."""
    return json.loads(result.stdout)
