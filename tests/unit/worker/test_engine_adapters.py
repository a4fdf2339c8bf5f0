"""One base for many adapters, and what a narrow model's numbers drifted: both seen through jobs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import sequence_processing
from jobs import Client
from jobs.client import JobHandle
from jobs.settings import Settings
from jobs.shard_files import write_attempt
from sequence_processing import drift, load_model
from worker import attempt
from worker.drain import Drain
from worker.engine import CoreEngine
from worker.stop import Stop

QUESTION = "Think in <think> </think>, then answer in <answer> </answer>.\nUser: What is 2 + 3?\nAssistant: <think>"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For a model this small a second one only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(Settings(home=tmp_path / "home")) as made:
        yield made


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two LoRA folders for tiny-arithmetic, and one that fits another width."""
    folders = []
    for seed, width in ((1, None), (2, None), (3, 64)):
        model, _ = load_model("tiny-arithmetic", device="cpu")
        if width is not None:
            model = type(model)(type(model.config)(hidden_size=width, num_hidden_layers=1, num_attention_heads=4))
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, 0, 0.1)
        folders.append(str(tmp_path_factory.mktemp("adapter")))
        adapted.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each call that read a model."""
    calls: list[dict[str, Any]] = []

    def counted(name: str, **options: Any) -> Any:
        calls.append(options)
        return load_model(name, **options)

    monkeypatch.setattr(sequence_processing, "load_model", counted)
    return calls


def run(client: Client, engine: CoreEngine, **spec: Any) -> JobHandle:
    """Submit a job and drain it with the engine."""
    given = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "max_new_tokens": 8, "prompts": [QUESTION, "2+3="]}
    job = client.submit(**given | spec)
    Drain(client.store, client.settings, engine, "w", ["default"], Stop()).until_idle()
    job.refresh()
    return job


def numbers(job: JobHandle) -> list[Any]:
    return [(row["response_ids"], row["logprobs"], row["entropies"]) for row in job.rows()]


class TestAdapters:
    def test_the_next_one_comes_over_the_same_base(
        self, client: Client, adapters: list[str], loads: list[dict[str, Any]]
    ) -> None:
        engine, order = CoreEngine(), [None, adapters[0], adapters[1], None]
        jobs, places = [], []
        for adapter in order:
            jobs.append(run(client, engine, adapter=adapter))
            places.append({p.data_ptr() for name, p in engine._model.named_parameters() if "lora_" not in name})
        assert len(loads) == 1
        assert all(place == places[0] for place in places)
        for adapter, job in zip(order[1:], jobs[1:], strict=True):
            assert numbers(job) == numbers(run(client, CoreEngine(), adapter=adapter)), "as if freshly loaded"
        assert numbers(jobs[0]) != numbers(jobs[1]) != numbers(jobs[2])
        assert jobs[1].record.identity != jobs[2].record.identity

    def test_the_last_one_leaves_no_memory_behind(self, client: Client, adapters: list[str]) -> None:
        engine = CoreEngine()
        run(client, engine, adapter=adapters[0])
        last = [weakref.ref(p) for name, p in engine._model.named_parameters() if "lora_" in name]
        run(client, engine, adapter=adapters[1])
        assert last and all(parameter() is None for parameter in last)

    def test_one_that_does_not_fit_fails_its_job_and_leaves_the_base(
        self, client: Client, adapters: list[str], loads: list[dict[str, Any]]
    ) -> None:
        engine = CoreEngine()
        before = run(client, engine)
        failed = run(client, engine, adapter=adapters[2])
        assert failed.record.state == "failed"
        assert f"The adapter '{adapters[2]}' does not fit the model 'tiny-arithmetic': " in str(failed.record.error)
        assert "has shape [2, 64] in the adapter" in str(failed.record.error)
        assert numbers(run(client, engine)) == numbers(before)
        assert len(loads) == 1

    def test_merged(self, client: Client, adapters: list[str], loads: list[dict[str, Any]]) -> None:
        engine = CoreEngine()
        over = run(client, engine, adapter=adapters[0])
        rows = [
            {"prompt_token_ids": row["prompt_ids"], "response_token_ids": row["response_ids"]} for row in over.rows()
        ]
        into = run(client, engine, kind="score", prompts=rows, adapter=adapters[0], merge_adapter=True)
        for ours, theirs in zip(into.rows(), over.rows(), strict=True):
            for name in ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies"):
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
        after = run(client, engine, adapter=adapters[0])
        assert numbers(after) == numbers(over), "the merged weights are not taken for the base"
        assert [call.get("merge_adapter", False) for call in loads] == [False, True, False]
        told = [job.results.manifest()["details"][0]["adapter_merged"] for job in (over, into, run(client, engine))]
        assert told == [False, True, None]


class TestDrift:
    def test_stands_in_the_manifest(self, client: Client) -> None:
        job = run(client, CoreEngine(), dtype="bfloat16", prompts=[QUESTION, "2+3=", "4+5="], shard_size=1)
        manifest = job.results.manifest()
        assert len(manifest["attempts"]) == 3
        (details,) = manifest["details"]
        (found,) = manifest["drift"]
        assert found == details["drift"], "measured once, told with each attempt of this process"
        first = next(job.rows())
        assert found["sequences"] == [[0, 0]]
        assert (found["dtype"], found["tokens"]) == ("bfloat16", len(first["response_ids"]))
        for quantity in ("logprobs", "entropies"):
            spread = found[quantity]
            assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["max"] < 0.2

    def test_is_of_the_jobs_own_rows(self, client: Client, adapters: list[str]) -> None:
        """Each job has its own, whatever was in memory before; prompts are named as the job names them."""
        engine = CoreEngine()
        prompts = ["1 " * 3000, *(f"{i}+3=" for i in range(9))]
        jobs = [run(client, engine, dtype="bfloat16", adapter=a, prompts=prompts) for a in (None, adapters[0])]
        (one,), (other,) = (job.results.manifest()["drift"] for job in jobs)
        assert one["sequences"] == other["sequences"] == [[1, 0], [3, 0], [5, 0], [7, 0]]
        assert one != other

    def test_measurements_that_were_not_asked_for(self, client: Client) -> None:
        job = run(client, CoreEngine(), dtype="bfloat16", measurements=["entropies"])
        assert job.results.manifest()["drift"][0]["logprobs"]["max"] > 0

    def test_float32(self, client: Client) -> None:
        job = run(client, CoreEngine(), dtype="float32")
        assert job.results.manifest()["drift"] == [{"reason": "dtype float32: nothing to compare"}]

    def test_no_shard_fails_of_it(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def out_of_memory(*_: Any) -> Any:
            raise torch.OutOfMemoryError("no room\nat all")

        monkeypatch.setattr(drift, "measure_drift", out_of_memory)
        with caplog.at_level(logging.WARNING):
            job = run(client, CoreEngine(), dtype="bfloat16", shard_size=1)
        assert (job.record.state, job.record.failed_shards) == ("succeeded", 0)
        assert job.results.manifest()["drift"] == [{"reason": "OutOfMemoryError: no room"}]
        assert caplog.text.count("the drift against float32 could not be measured: OutOfMemoryError: no room") == 1

    def test_an_attempt_that_was_lost_does_not_lose_it(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        def lost(*_: Any) -> Any:
            monkeypatch.setattr(attempt, "write_attempt", write_attempt)
            raise ValueError("after the rows, before the commit")

        monkeypatch.setattr(attempt, "write_attempt", lost)
        job = run(client, CoreEngine(), dtype="bfloat16")
        manifest = job.results.manifest()
        assert [tried["outcome"] for tried in manifest["attempts"]] == ["failed", "done"]
        assert [found["sequences"] for found in manifest["drift"]] == [[[0, 0], [1, 0]]]

    def test_a_shard_without_rows_leaves_it_to_the_next(self, client: Client) -> None:
        job = run(client, CoreEngine(), dtype="bfloat16", prompts=["1 " * 3000, "2+3="], shard_size=1)
        assert [found["sequences"] for found in job.results.manifest()["drift"]] == [[[1, 0]]]
