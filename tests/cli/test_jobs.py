"""Submitting without a worker, listing, looking, cancelling, retrying: three forms of output, data on stdout alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.client import Client
from tests.cli.conftest import Run, do_shard, row, the_json

_SUBMIT = ("submit", "--model", "tiny-arithmetic", "-d")


def test_submit_prints_the_id_alone_on_stdout(seqproc: Run, client: Client) -> None:
    result = seqproc(*_SUBMIT, "--prompts", "1+1=", "--prompts", "2+2=", "-G", "3")
    assert re.fullmatch(r"[0-9a-f]{12}\n", result.stdout)
    assert "2 prompts × 3 = 6 sequences in 1 shard" in result.stderr
    assert "seqproc watch" in result.stderr and "No worker is alive" in result.stderr
    assert client.get(result.stdout.strip()).record.num_sequences == 6


def test_submit_quiet_and_json(seqproc: Run, client: Client) -> None:
    quiet = seqproc(*_SUBMIT, "--prompts", "a", "-q")
    assert client.get(quiet.stdout.strip()).record.state == "queued"
    assert quiet.stderr == ""
    job = the_json(seqproc(*_SUBMIT, "--prompts", "a", "--json"))
    assert client.get(job["id"]).record.model == job["model"] == "tiny-arithmetic"


def test_every_kind_of_flag_reaches_the_spec(seqproc: Run) -> None:
    result = seqproc(
        *(*_SUBMIT, "--json", "--prompts", "a", "--seed", "5", "--top-p", "0.9", "--no-do-sample", "--ignore-eos"),
        *("--stop-strings", "x", "--stop-strings", "y z", "--measurements", "logprobs"),
        *("--diagnostics", "margins,eos_probs", "--diagnostics", "kept_mass", "--top-k-alternatives", "3"),
        *("--labels", "a=1", "--labels", "b=x=y", "--chat-template-kwargs", '{"think": false}', "--name", "first"),
    )
    spec = the_json(result)["spec"]
    assert (spec["seed"], spec["top_p"], spec["do_sample"], spec["ignore_eos"]) == (5, 0.9, False, True)
    assert spec["stop_strings"] == ["x", "y z"]
    assert spec["measurements"] == ["logprobs"]
    assert (spec["diagnostics"], spec["top_k_alternatives"]) == (["margins", "eos_probs", "kept_mass"], 3)
    assert spec["labels"] == {"a": "1", "b": "x=y"}
    assert spec["chat_template_kwargs"] == {"think": False}
    assert spec["max_new_tokens"] == 200


def test_an_empty_text_means_none_of_them(seqproc: Run) -> None:
    spec = the_json(seqproc(*_SUBMIT, "--json", "--prompts", "a", "--stop-strings", "", "--measurements", ""))["spec"]
    assert spec["stop_strings"] == spec["measurements"] == []


@pytest.mark.parametrize("place", ["file", "flag", "stdin"])
def test_prompts_from_a_file(seqproc: Run, place: str) -> None:
    lines = '{"prompt": "a", "level": 3}\n\n{"messages": [{"role": "user", "content": "b"}]}\n'
    Path("prompts.jsonl").write_text(lines)
    source = {"file": ["prompts.jsonl"], "flag": ["--file", "prompts.jsonl"], "stdin": ["-"]}[place]
    result = seqproc(*_SUBMIT, "--json", *source, input=lines if place == "stdin" else None)
    assert the_json(result)["num_prompts"] == 2
    assert "level" in result.stderr, "a column that means nothing here is said once"


def test_dry_run_shows_the_resolved_spec_and_stores_nothing(seqproc: Run, home: Path, client: Client) -> None:
    arguments = ("submit", "--dry-run", "--model", "tiny-arithmetic", "--prompts", "a", "-G", "4")
    plan = the_json(seqproc(*arguments, "--json"))
    assert (plan["num_prompts"], plan["num_sequences"], plan["num_shards"]) == (1, 4, 1)
    assert isinstance(plan["spec"]["seed"], int), "resolved"
    human = seqproc(*arguments, "--seed", "12")
    assert "seed: 12\n" in human.stdout and "num_sequences: 4\n" in human.stdout
    assert client.jobs() == []
    assert not (home / "results" / "jobs").exists()


def test_the_same_key_twice_is_one_job(seqproc: Run) -> None:
    arguments = (*_SUBMIT, "--prompts", "a", "--seed", "1", "--idempotency-key", "k")
    first, second = seqproc(*arguments), seqproc(*arguments)
    assert first.stdout == second.stdout
    assert "before" in second.stderr
    other = seqproc(*_SUBMIT, "--prompts", "b", "--seed", "1", "--idempotency-key", "k")
    assert other.exit_code == 2
    assert first.stdout.strip() in other.stderr


def test_list_in_three_forms(seqproc: Run, submitted: str) -> None:
    second = seqproc(*_SUBMIT, "--prompts", "a", "-q", "--labels", "run=1", "--name", "night").stdout.strip()
    assert seqproc("list", "-q").stdout.split() == [second, submitted], "newest first"
    assert [job["id"] for job in the_json(seqproc("list", "--json"))] == [second, submitted]
    human = seqproc("ls").stdout.splitlines()
    assert human[0].split() == ["ID", "STATE", "SEQUENCES", "TOKENS", "AGE", "MODEL", "NAME"]
    assert "0/6" in human[2] and human[1].endswith("night")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--label", "run"], True),
        (["--label", "run=1"], True),
        (["--label", "run=2"], False),
        (["--state", "queued", "--state", "running"], True),
        (["--state", "failed"], False),
        (["--model", "tiny-arithmetic"], True),
        (["--queue", "other"], False),
        (["--owner", "nobody-at-all"], False),
    ],
)
def test_list_filters(seqproc: Run, filters: list[str], found: bool) -> None:
    job = seqproc(*_SUBMIT, "--prompts", "a", "-q", "--labels", "run=1").stdout.strip()
    assert seqproc("list", "-q", *filters).stdout.split() == [job] * found


def test_list_of_nothing(seqproc: Run) -> None:
    assert the_json(seqproc("list", "--json")) == []
    empty = seqproc("list")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "seqproc submit" in empty.stderr


def test_a_unique_prefix_suffices(seqproc: Run, submitted: str) -> None:
    assert seqproc("status", submitted[:4], "-q").stdout.strip() == submitted
    others = {submitted}
    while len({job[0] for job in others}) == len(others):  # at most 17 jobs: ids are hexadecimal
        others.add(seqproc(*_SUBMIT, "--prompts", "a", "-q").stdout.strip())
    letters = [job[0] for job in others]
    shared = next(letter for letter in letters if letters.count(letter) > 1)
    result = seqproc("status", shared)
    assert result.exit_code == 2
    assert all(job in result.stderr for job in others if job.startswith(shared))


@pytest.mark.parametrize(
    "command", ["status", "watch", "wait", "logs", "cancel", "retry", "fetch -o out", "show", "delete --yes"]
)
def test_an_empty_job_is_not_the_only_one(seqproc: Run, client: Client, submitted: str, command: str) -> None:
    before = client.store.job(submitted)
    result = seqproc(*command.split(), "")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: the job's id is empty; `seqproc list` shows the jobs there are\n"
    assert client.store.job(submitted) == before


def test_a_name_suffices(seqproc: Run) -> None:
    job = seqproc(*_SUBMIT, "--prompts", "a", "-q", "--name", "night run").stdout.strip()
    assert seqproc("status", "night run", "-q").stdout.strip() == job


def test_status(seqproc: Run, client: Client, submitted: str) -> None:
    do_shard(client, submitted, [row(p, g) for p in (0, 1) for g in (0, 1)])
    human = seqproc("status", submitted).stdout
    for line in ("state:       running", "sequences:   4 of 6", "tokens:      8", "shards:      1 done, 1 pending"):
        assert line in human.splitlines()
    job = the_json(seqproc("status", submitted, "--json"))
    assert job["id"] == submitted
    assert (job["state"], job["done_sequences"], job["progress"]["sequences"]) == ("running", 4, 4)


def test_status_says_what_went_wrong(seqproc: Run, client: Client, finished: str) -> None:
    assert "prompt 2 (2): the prompt is too long" in seqproc("status", finished).stdout


def test_cancel_then_retry(seqproc: Run, submitted: str) -> None:
    assert seqproc("cancel", submitted[:6]).stdout == f"{submitted} cancelled\n"
    assert seqproc("cancel", submitted, "-q").stdout == f"{submitted}\n", "twice is once"
    assert "cancelled" in seqproc("status", submitted).stdout
    refused = seqproc("retry", submitted, "--failed-only")
    assert refused.exit_code == 1, "nothing failed"
    assert refused.stderr.startswith("Error: ")
    assert the_json(seqproc("retry", submitted, "--json"))["state"] == "queued"
    again = seqproc("retry", submitted)
    assert again.exit_code == 1
    assert submitted in again.stderr


def test_cancel_of_a_finished_job(seqproc: Run, finished: str) -> None:
    result = seqproc("cancel", finished)
    assert result.exit_code == 1
    assert "succeeded" in result.stderr


def test_logs_of_a_job_that_nobody_touched(seqproc: Run, submitted: str) -> None:
    result = seqproc("logs", submitted)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "queued" in result.stderr


def test_gc(seqproc: Run, home: Path, finished: str, client: Client) -> None:
    orphan = home / "results" / "jobs" / finished / "shards" / "shard-000000-a001-deadbeef.parquet"
    orphan.write_bytes(b"x" * 1500)
    assert "Would remove 1 file and 0 folders, 1.5 kB" in seqproc("gc", "--dry-run").stdout
    assert orphan.exists()
    assert the_json(seqproc("gc", "--json"))["files"] == 1
    assert not orphan.exists()
    assert len(list(client.get(finished).rows())) == 4


def test_json_of_a_job_is_its_row(seqproc: Run, submitted: str, client: Client) -> None:
    from dataclasses import asdict

    (listed,) = the_json(seqproc("list", "--json"))
    assert listed == json.loads(json.dumps(asdict(client.get(submitted).record)))


def test_db_upgrade(seqproc: Run, home: Path) -> None:
    (home / "seqproc.db").unlink()
    first, again = seqproc("db", "upgrade"), seqproc("db", "upgrade")
    assert first.exit_code == again.exit_code == 0
    assert "seqproc.db" in first.stdout and first.stdout != again.stdout
    assert seqproc("list", "-q").exit_code == 0
