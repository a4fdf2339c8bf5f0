"""What a client does, it does the same on its own machine and over HTTP: results, records, and errors word for word."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jobs import Client, JobSpec
from jobs.child import environment
from jobs.errors import IdempotencyConflict, JobNotFound, NotFinished, SpecError, UsageError, WrongState
from jobs.export import export
from jobs.manifest import verify
from jobs.paths import worker_log
from jobs.processes import ProcessName
from jobs.records import Job
from jobs.report import report
from jobs.results import JobResults
from jobs.settings import current_owner
from jobs.snapshot import read_all
from jobs.states import JobState
from tests.house import House
from tests.trackers import tensorboard_runs
from tests.unit.jobs.test_results import ERRORS, expected_rows

FIELDS: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2}
CHAT = [{"role": "user", "content": "é\u2028?"}, {"content": {"z": 1, "a": 1.5}, "role": "tool"}]
ROWS: list[Any] = ['plain\n"text"', {"prompt": "x", "custom_id": "mine", "answer": "4"}, CHAT, [1, 2, 3]]


def stored_prompts(house: House, job: Job) -> list[Any]:
    return [(row.custom_id, row.content, row.answer) for row in read_all(house.paths(job), 1)]


class TestSubmit:
    def test_every_form_of_prompt(self, client: Client, local: Client, house: House) -> None:
        counted: list[int] = []
        job = client.submit(**FIELDS, prompts=iter(ROWS), on_prompt=counted.append, labels={"run": "7"}, name="n")
        assert (job.created, job.unrung, job.ignored_columns, counted) == (True, None, [], [1, 2, 3, 4])
        assert job.record == local.store.job(job.id)
        assert job.record.owner == current_owner()
        assert job.record.snapshot_digest == local.plan(**FIELDS, prompts=ROWS).snapshot_digest
        assert stored_prompts(house, job.record) == [
            ("0", 'plain\n"text"', None),
            ("mine", "x", "4"),
            ("2", CHAT, None),
            ("3", [1, 2, 3], None),
        ]

    def test_inline_in_a_spec_and_a_dataset(self, client: Client, local: Client) -> None:
        spec = JobSpec.parse(FIELDS | {"prompts": ["a", "b", "c"]})
        job = client.submit(spec)
        assert (job.record.num_prompts, job.record.num_shards) == (3, 2)
        assert job.record.snapshot_digest == local.plan(spec).snapshot_digest
        drawn = client.submit(**FIELDS, dataset="arithmetic_r1_template", split="test", num_prompts=5)
        assert drawn.record.num_prompts == 5
        assert drawn.record.spec["dataset"] == "arithmetic_r1_template"

    def test_a_file_and_standard_input(self, client: Client, house: House, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "note": 1}, {"prompt": "b", "answer": "é"}]
        jsonl = tmp_path / "rows.jsonl"
        jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
        pd.DataFrame({"prompt": ["a", "b"], "answer": [None, "é"]}).to_parquet(tmp_path / "rows.parquet")
        first = client.submit(**FIELDS, file=str(jsonl))
        assert first.ignored_columns == ["note"]
        second = client.submit(**FIELDS, file=str(tmp_path / "rows.parquet"))
        third = client.submit(**FIELDS, file="-", stdin=BytesIO(jsonl.read_bytes()))
        for job in (first, second, third):
            assert stored_prompts(house, job.record) == [("0", "a", None), ("1", "b", "é")]

    def test_what_is_wrong_is_said_in_the_same_words(self, client: Client, local: Client, tmp_path: Path) -> None:
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"prompt": "a"}\n{"promt": "b"}\nnonsense\n{"prompt": "c", "custom_id": "0"}\n')

        def problems(**fields: Any) -> list[str]:
            with pytest.raises(SpecError) as caught:
                client.submit(**fields)
            return caught.value.problems

        one = "give exactly one of prompt, messages, prompt_token_ids; this row has none of them"
        assert problems(**FIELDS, file=str(bad)) == [
            f"{bad}:2 {one}",
            f"{bad}:3: malformed JSON at column 1: Expecting value",
            f"{bad}:4 custom_id: '0' stands already at {bad}:1; give each its own",
        ]
        assert problems(**FIELDS, prompts=[{"prompt": 5}]) == [
            "prompts[0] prompt: input should be a valid string, not 5"
        ]
        assert problems(**FIELDS, prompts=[]) == ["prompts: there are none; give at least one"]
        assert problems(**FIELDS) == [
            "prompts: there are none; give prompts, a file (- is standard input) or a dataset"
        ]
        assert problems(prompts=["a"], model="m/../n") == [
            "model: 'm/../n' is neither an existing folder nor a hub id like org/name"
        ]
        assert problems(prompts=["a"], model="m", G=0, top_p=2) == [
            "G: input should be greater than or equal to 1, not 0",
            "top_p: input should be less than or equal to 1, not 2",
        ]
        assert problems(**FIELDS, dataset="nothing")[0].startswith("dataset: ")
        assert problems(**FIELDS, prompts=["a"], webhook="https://hooks.example/x") == [
            "webhook: hooks.example is not among the hosts that may be told; see SEQPROC_WEBHOOK_HOSTS"
        ]
        with pytest.raises(SpecError) as caught:
            client.submit(**FIELDS, prompts=[{}] * 150)
        assert (len(caught.value.problems), caught.value.total) == (100, 150)
        with pytest.raises(UsageError, match="give a JobSpec or its fields, not both: G"):
            client.submit(JobSpec.parse(FIELDS), G=3)
        assert local.jobs() == []

    def test_an_idempotency_key_makes_one_job(self, client: Client) -> None:
        first = client.submit(**FIELDS, prompts=["a"], idempotency_key="k")
        again = client.submit(**FIELDS, prompts=["a"], idempotency_key="k")
        assert (first.created, again.created, again.id) == (True, False, first.id)
        with pytest.raises(IdempotencyConflict, match=f"already stands for job {first.id}, which has other prompts"):
            client.submit(**FIELDS, prompts=["b"], idempotency_key="k")

    def test_plan(self, client: Client, local: Client) -> None:
        found = client.plan(**FIELDS, prompts=[{"prompt": "a", "note": 1}, "b", "c"], name="n")
        assert found == local.plan(**FIELDS, prompts=[{"prompt": "a", "note": 1}, "b", "c"], name="n")
        assert (found.num_prompts, found.num_sequences, found.num_shards) == (3, 6, 2)
        assert found.ignored_columns == ["note"]
        assert local.jobs() == []


class TestFind:
    def test_by_id_prefix_and_name(self, client: Client, house: House) -> None:
        job = house.submit(prompts=["a"], name="night/run é?").job
        for name in (job.id, job.id[:7], "night/run é?"):
            assert client.get(name).record == job
        house.submit(prompts=["a"], name="twin"), house.submit(prompts=["a"], name="twin")
        with pytest.raises(JobNotFound, match="twin could be any of"):
            client.get("twin")
        with pytest.raises(JobNotFound, match="no job nothing; `seqproc list` shows the jobs there are"):
            client.get("nothing")

    def test_filters(self, client: Client, house: House) -> None:
        a = house.submit(prompts=["a"], name="Night", labels={"run": "7", "b": ""}).job
        b = house.submit(prompts=["a"], queue="gpu", labels={"run": "8=x"}).job
        c = house.submit(prompts=["a"], model="org/model").job
        house.store.cancel(b.id)

        def found(**filters: Any) -> list[str]:
            return [handle.id for handle in client.jobs(**filters)]

        assert found() == [c.id, b.id, a.id]
        assert found(states=[JobState.QUEUED]) == [c.id, a.id]
        assert found(states=[JobState.QUEUED, JobState.CANCELLED], limit=2) == [c.id, b.id]
        assert found(states=[]) == found(limit=0) == []
        assert found(model="org/model") == [c.id]
        assert found(queue="gpu") == found(label=("run", "8=x")) == [b.id]
        assert found(label=("run", None)) == [b.id, a.id]
        assert found(label=("b", "")) == found(text="nIGHT") == [a.id]
        assert found(owner="ann") == [c.id, b.id, a.id]
        assert found(owner="bob") == []
        assert found(before=(c.created_at, c.id)) == [b.id, a.id]

    def test_many(self, client: Client, house: House) -> None:
        made = [house.submit(prompts=["a"]).job.id for _ in range(7)]
        assert [handle.id for handle in client.jobs(limit=6)] == made[::-1][:6]


class TestResults:
    def test_every_reader(self, client: Client, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        handle = client.get(job.id)
        assert handle.record == job
        assert list(handle.rows()) == expected_rows()
        assert list(handle.errors()) == ERRORS
        assert handle.to_pandas()["response"].tolist() == [row["response"] for row in expected_rows()]
        assert list(handle.dataset()) == expected_rows()
        sequences, logprobs = handle.to_batched()
        assert sequences.prompt_indices == [0, 1, 3, 4]
        assert np.array_equal(logprobs.entropies[1][1], np.float32([0.25, 0.5, 0.75, 1.0]))
        assert [file.prompt_errors for file in handle.results.files()] == [0, 1, 0]

    @pytest.mark.parametrize("form", ["parquet", "jsonl"])
    def test_export(self, client: Client, job: Job, tmp_path: Path, form: Any) -> None:
        export(client.get(job.id).results, tmp_path / "out", form)
        assert verify(tmp_path / "out") == []
        if form == "parquet":
            assert list(JobResults.from_folder(tmp_path / "out").rows()) == expected_rows()

    def test_manifest_shards_attempts(self, client: Client, local: Client, job: Job) -> None:
        handle, here = client.get(job.id), local.get(job.id)
        assert handle.manifest() == here.manifest()
        assert handle.shards() == here.shards()
        assert handle.attempts() == here.attempts()
        assert [shard.state for shard in handle.shards()] == ["done"] * 3
        assert handle.webhooks == []

    def test_an_unfinished_job_only_when_asked(self, client: Client, house: House) -> None:
        job = house.submit(prompts=["p0", "p1", "p2"]).job
        house.run_one()
        handle = client.get(job.id)
        for read in (handle.rows, handle.errors, handle.to_batched, handle.to_pandas, handle.dataset):
            with pytest.raises(NotFinished, match=f"job {job.id} is running, with 1 of 2 shards done: wait for it"):
                read()
        assert [row["prompt_index"] for row in handle.rows(partial=True)] == [0, 0, 1, 1]
        progress = handle.progress
        assert (progress.state, progress.sequences, progress.num_sequences) == ("running", 4, 6)
        assert (progress.done_shards, progress.num_shards, progress.tokens_per_second) == (1, 2, None)


class TestSteering:
    def test_cancel_retry_delete(self, client: Client, house: House) -> None:
        job = client.submit(**FIELDS, prompts=["a", "b", "c"])
        house.run_one()
        assert job.cancel().state == "cancelled"
        assert job.cancel().cancelled_shards == 1
        assert (house.paths(job.record).folder / "manifest.json").exists()
        with pytest.raises(WrongState, match="it has no failed shard to retry; 1 were cancelled: retry without"):
            job.retry(failed_only=True)
        assert (job.retry().state, job.record.pending_shards) == ("queued", 1)
        with pytest.raises(WrongState, match=f"job {job.id} is queued"):
            job.delete()
        house.finish(job.record)
        with pytest.raises(WrongState, match="has already succeeded; there is nothing left to cancel"):
            job.cancel()
        job.delete()
        with pytest.raises(JobNotFound, match=f"no job {job.id}"):
            client.get(job.id)

    def test_tracking(self, client: Client, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEQPROC_TENSORBOARD_DIR", str(tmp_path / "board"))
        kept = ("logprobs", "entropies")
        job = house.finish(house.submit(prompts=["a", "bad", "c"], name="made", measurements=kept).job)
        made = report(client.get(job.id))
        client.get(job.id).wait(track="tensorboard")
        [run] = tensorboard_runs(tmp_path / "board").values()
        assert run.last("report/tokens") == made.tokens and run.last("progress/prompt_errors") == 1
        assert run.name == f"made-{job.id}" and run.state == "succeeded"

    def test_wait_gives_up(self, client: Client) -> None:
        job = client.submit(**FIELDS, prompts=["a"])
        with pytest.raises(TimeoutError, match=f"job {job.id} is still queued after 0.1 s; it goes on"):
            job.wait(timeout=0.1, start_worker=False)

    def test_wait_with_a_real_worker(self, client: Client, local: Client) -> None:
        job = client.submit(model="tiny-arithmetic", prompts=["What is 2 + 3?"] * 3, G=2, seed=1, max_new_tokens=8)
        seen: list[str] = []
        command = [sys.executable, "-P", "-m", "jobs", "worker", "--idle-exit", "--quiet"]
        with subprocess.Popen(command, env=environment(local.settings)) as worker:
            ended = job.wait(timeout=240, on_progress=lambda progress: seen.append(progress.state), start_worker=False)
            assert worker.wait(60) == 0
        assert (ended.state, ended.sequences, seen[-1]) == ("succeeded", 6, "succeeded")
        assert {line["job"] for line in job.logs()} == {job.id}
        sequences, _ = job.to_batched()
        assert sequences.sequences.shape[:2] == (3, 2)


class TestWorkersAndLogs:
    def test_workers(self, client: Client, house: House) -> None:
        assert client.workers() == []
        house.store.register_worker("w1", ProcessName("elsewhere", 1, 1.0, "boot"), queues=["a", "b"], device="cpu")
        [worker] = client.workers()
        assert (worker.id, worker.queues, worker.state) == ("w1", ["a", "b"], "idle")
        assert 0 <= worker.seen_seconds_ago < 60

    def test_logs(self, client: Client, house: House, job: Job) -> None:
        log = worker_log(house.settings.results, "w1")
        log.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"time": n, "job": job.id if n % 2 else "another", "message": f"{n}\u202e"} for n in range(3000)]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines) + "torn")
        assert list(client.get(job.id).logs()) == lines[1::2]
        assert list(client.get(job.id).logs(follow=True)) == lines[1::2]

    def test_logs_of_a_running_job_are_followed_to_its_end(self, client: Client, house: House) -> None:
        job = house.submit(prompts=["a", "b", "c"]).job
        house.run_one()
        log = worker_log(house.settings.results, "w1")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps({"time": 1, "job": job.id, "message": "first"}) + "\n")
        assert [line["message"] for line in client.get(job.id).logs()] == ["first"]
        lines, arrived = [], threading.Event()

        def end() -> None:
            assert arrived.wait(60)
            with log.open("a") as file:
                file.write(json.dumps({"time": 2, "job": job.id, "message": "last"}) + "\n")
            house.finish(job)

        thread = threading.Thread(target=end)
        thread.start()
        for line in client.get(job.id).logs(follow=True):
            lines.append(line["message"])
            arrived.set()
        thread.join()
        assert lines == ["first", "last"]
