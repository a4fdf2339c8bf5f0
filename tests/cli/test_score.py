"""`seqproc score`: a job's sequences under something else, and how far they moved, said here and in the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.client import Client
from jobs.paths import JobPaths
from jobs.snapshot import read_all
from tests.cli.conftest import Run, do_shard, row, the_json


@pytest.fixture
def scored(seqproc: Run, finished: str, client: Client) -> str:
    """The id of a job that scored the four sequences of `finished`, each token 0.5 nats more probable."""
    job_id = seqproc("score", finished, "-dq", "--name", "after").stdout.strip()
    paths = JobPaths(client.settings.results, job_id)
    rows = [
        row(
            prompt.prompt_index,
            0,
            custom_id=prompt.custom_id,
            logprobs=[-0.025, -2.5],
            sampling_logprobs=[-0.025, -2.5],
            finish_reason="scored",
        )
        for prompt in read_all(paths, 1)
    ]
    assert do_shard(client, job_id, rows).state == "succeeded"
    return job_id


def test_what_is_submitted(seqproc: Run, finished: str, client: Client) -> None:
    job = the_json(
        seqproc("score", finished, "-d", "--json", "--adapter", "o/a", "--temperature", "0.5", "--name", "n")
    )
    spec = job["spec"]
    assert (job["kind"], job["model"], job["adapter"], job["name"]) == ("score", "tiny-arithmetic", "o/a", "n")
    assert (spec["source"], spec["temperature"], spec["seed"]) == (
        finished,
        0.5,
        client.get(finished).record.spec["seed"],
    )
    assert (job["num_prompts"], job["num_shards"]) == (4, 1)


def test_a_dry_run_stores_nothing(seqproc: Run, finished: str, client: Client) -> None:
    plan = the_json(seqproc("score", finished, "--dry-run", "--json"))
    assert (plan["num_sequences"], plan["spec"]["source"]) == (4, finished)
    assert len(client.jobs()) == 1


def test_the_same_through_submit(seqproc: Run, finished: str) -> None:
    words = ("submit", "--kind", "score", "--source", finished[:6], "--model", "o/m", "-d", "--json")
    assert the_json(seqproc(*words))["spec"]["source"] == finished


def test_the_report_compares(seqproc: Run, finished: str, scored: str) -> None:
    lines = seqproc("report", finished, scored).stdout.splitlines()
    header, sampling, model = (line.split() for line in lines[-3:])
    assert header == ["ID", "SOURCE", "OF", "SEQUENCES", "KL", "k1", "KL", "k3", "LARGEST", "ESS", "UNKNOWN"]
    assert sampling[:4] == [scored, finished, "sampling", "4"]
    assert sampling[-1] == "4", "the source's sampling distribution had no mass for the second token of each"
    # k1 of the log-ratios 0.025 and 0.5.
    assert model[2:5] == ["model", "4", "−0.2625"] and model[-1] == "0"
    compared = the_json(seqproc("report", scored, "--json"))["compared"]
    assert (compared["source"], compared["model"]["ess"], compared["sampling"]["unweighted"]) == (finished, 4.0, 4)
    assert the_json(seqproc("report", finished, "--json"))["compared"] is None
    assert seqproc("report", scored, "--html", "report.html", "-q").exit_code == 0
    assert "−0.2625" in Path("report.html").read_text().partition("whose sequences were scored")[2]
    markdown = seqproc("report", scored, "--markdown").stdout.splitlines()
    assert markdown[3] == "" and markdown[4].startswith("| ID | SOURCE | OF |")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top-p", "0"], "--top-p: input should be greater than 0"),
        (["--tokenizer", "other"], "--tokenizer: string should match pattern"),
        (["--adapter", "./nowhere"], "--adapter: no folder of a model at ./nowhere"),
        (["-G", "2"], "No such option: -G"),
        (["--detach", "--local"], "give one of them"),
    ],
)
def test_asked_wrongly(seqproc: Run, finished: str, client: Client, words: list[str], says: str) -> None:
    result = seqproc("score", finished, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in " ".join(result.stderr.split())
    assert len(client.jobs()) == 1


def test_a_job_that_has_not_ended(seqproc: Run, submitted: str) -> None:
    result = seqproc("score", submitted, "-d")
    assert result.exit_code == 2
    assert (
        f"--source: job {submitted} is queued; score it once it has ended (seqproc wait {submitted})" in result.stderr
    )


def test_from_beginning_to_end(client: Client) -> None:
    """In processes of their own, with the real model, which finds its own sequences as probable as before."""

    def run(*words: str) -> Any:
        done = subprocess.run([sys.executable, "-m", "jobs", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = json.loads(run(*_SUBMIT, "--json"))
    lines = run("score", job["id"]).splitlines()
    assert lines[1].split()[:3] == ["ID", "SOURCE", "OF"]
    assert lines[2].split()[1:5] == [job["id"], "sampling", "6", "0.0000"] and lines[2].endswith("100.0 %")
    assert lines[3].split()[0] == lines[0] == client.jobs()[0].id


_SUBMIT = ["submit", "--model", "tiny-arithmetic", "--prompts", "2+3=", "--prompts", "4+5=", "-G", "3", "--seed", "1"]
_SUBMIT += ["--max-new-tokens", "8"]
