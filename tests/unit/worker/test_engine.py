"""The engine on the real small model: each kind of prompt, scoring, and models that do not load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sequence_processing
from jobs import Client
from jobs.client import JobHandle
from jobs.diagnostics import ALTERNATIVES, DIAGNOSTICS
from jobs.export import export
from jobs.parquet import SHARD_SCHEMA
from jobs.results import JobResults
from sequence_processing import ModelError
from sequence_processing.diagnostics import NAMES
from tests.unit.worker.conftest import MODEL, QUESTION
from worker.drain import Drain
from worker.engine import CoreEngine
from worker.faults import DeviceLost
from worker.stop import Stop


def run(client: Client, engine: CoreEngine, **spec: Any) -> JobHandle:
    """Submit a job and drain it with the engine."""
    job = client.submit(**{"model": "tiny-arithmetic", "G": 2, "seed": 1, "max_new_tokens": 8} | spec)
    drain = Drain(client.store, client.settings, engine, "w", ["default"], Stop())
    drain.until_idle()
    job.refresh()
    return job


def test_text_messages_and_tokens(client: Client, engine: CoreEngine) -> None:
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    job = run(client, engine, prompts=["2+3=", messages, [5, 6, 7]])
    assert job.record.state == "succeeded"
    rows = list(job.rows())
    assert [row["prompt_index"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert json.loads(rows[2]["prompt"]) == messages
    assert rows[4]["prompt_ids"] == [5, 6, 7]
    for row in rows:
        assert len(row["response_ids"]) == len(row["logprobs"]) == len(row["entropies"]) == len(row["token_ends"])
        assert row["token_ends"][-1] == len(row["response"])


def test_a_prompt_longer_than_the_context_is_an_error_with_its_lengths(client: Client, engine: CoreEngine) -> None:
    job = run(client, engine, prompts=["2+3=", "1 " * 3000, "4+5="])
    assert (job.record.state, job.record.prompt_errors, job.record.done_sequences) == ("succeeded", 1, 4)
    (error,) = job.results.errors()
    assert error["prompt_index"] == 1
    assert "2048" in error["error"]
    tokens = len(engine._tokenizer("1 " * 3000)["input_ids"])
    assert str(tokens) in error["error"]
    assert job.to_batched()[0].prompt_indices == [0, 2]


@pytest.mark.parametrize("kind", ["generate", "score"])
def test_a_row_that_does_not_fit_in_memory_is_its_prompts_error(
    client: Client, engine: CoreEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    method = "rollouts" if kind == "generate" else "score"
    real, last = getattr(sequence_processing.SequenceProcessor, method), 1 if kind == "generate" else 0

    def too_little(*args: Any, on_failed: Any, **options: Any) -> Iterator[Any]:
        """Memory ends at the last sample of the second prompt; others of it are there by then, or still to come."""
        for rollout in real(*args, **options):
            if (rollout.prompt_index, rollout.sample_index) == (1, last):
                on_failed(1, last, MemoryError("One sequence of 3 prompt tokens does not fit."))
            else:
                yield rollout

    monkeypatch.setattr(sequence_processing.SequenceProcessor, method, too_little)
    prompts = [{"custom_id": f"q{i}", "prompt": f"{i}+3=", "response": "5"} for i in range(3)]
    job = run(client, engine, kind=kind, prompts=prompts, G=3)
    samples = 3 if kind == "generate" else 1
    assert (job.record.state, job.record.prompt_errors, job.record.done_sequences) == ("succeeded", 1, 2 * samples)
    assert [row["prompt_index"] for row in job.rows()] == [0] * samples + [2] * samples
    sentence = "One sequence of 3 prompt tokens does not fit."
    assert list(job.results.errors()) == [
        {"prompt_index": 1, "sample_index": None, "custom_id": "q1", "error": sentence}
    ]
    assert job.to_batched()[0].prompt_indices == [0, 2]


def test_scoring_gives_the_numbers_of_the_sampling_pass(client: Client, engine: CoreEngine) -> None:
    sampled = list(run(client, engine, prompts=[QUESTION], G=4, temperature=0.7, top_p=0.9).rows())
    prompts = [{"prompt_token_ids": r["prompt_ids"], "response_token_ids": r["response_ids"]} for r in sampled]
    prompts.append({"prompt": "2+3=", "response": "5 " * 3000})
    job = run(client, engine, kind="score", prompts=prompts, temperature=0.7, top_p=0.9)
    scored = list(job.rows())
    assert [row["finish_reason"] for row in scored] == ["scored"] * 4
    for ours, theirs in zip(scored, sampled, strict=True):
        assert ours["response_ids"] == theirs["response_ids"]
        assert ours["response"] == theirs["response"]
        assert ours["token_ends"] == theirs["token_ends"]
        for name in ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
    (error,) = job.results.errors()
    assert "2048" in error["error"]


def test_measurements_that_were_not_asked_for_are_null(client: Client, engine: CoreEngine) -> None:
    (row, _) = run(client, engine, prompts=["2+3="], measurements=["entropies"]).rows()
    assert row["entropies"] is not None
    assert row["logprobs"] is row["sampling_logprobs"] is row["sampling_entropies"] is None


def test_diagnostics_are_columns_of_both_kinds_of_job(client: Client, engine: CoreEngine, tmp_path: Path) -> None:
    asked = {"diagnostics": DIAGNOSTICS, "top_k_alternatives": 3, "temperature": 0.7, "top_p": 0.9, "shard_size": 1}
    job = run(client, engine, prompts=[QUESTION, "1 " * 3000, "2+3="], **asked)  # the second shard has no row
    sampled = list(job.results.rows(arrays=True))
    assert [list(row)[-9:] for row in sampled] == [[*DIAGNOSTICS, *ALTERNATIVES]] * 4
    for row in sampled:
        n = len(row["response_ids"])
        assert {name: row[name].shape for name in DIAGNOSTICS} == dict.fromkeys(DIAGNOSTICS, (n,))
        assert row["top_ids"].shape == row["top_logprobs"].shape == (n, 3)
        np.testing.assert_allclose(np.exp(row["top_logprobs"][:, 0]), row["top1_probs"], rtol=1e-5)
        np.testing.assert_allclose(row["top_logprobs"][:, 0] - row["top_logprobs"][:, 1], row["margins"], atol=1e-5)
        place, token = np.nonzero(row["top_ids"] == row["response_ids"][:, None])
        np.testing.assert_allclose(row["top_logprobs"][place, token], row["logprobs"][place], atol=1e-5)
        assert len(place) > 0
    prompts = [
        {"prompt_token_ids": r["prompt_ids"].tolist(), "response_token_ids": r["response_ids"].tolist()}
        for r in sampled
    ]
    scored = run(client, engine, kind="score", prompts=prompts, **asked)
    for ours, theirs in zip(scored.results.rows(arrays=True), sampled, strict=True):
        for name in (*DIAGNOSTICS, "top_logprobs"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-4)
    _, results = job.to_batched()
    np.testing.assert_array_equal(results.diagnostics["top_ids"][0][1], sampled[1]["top_ids"])
    frame = job.to_pandas()
    assert [values.tolist() for values in frame["margins"]] == [row["margins"].tolist() for row in sampled]
    assert frame["top_ids"][0][0].tolist() == sampled[0]["top_ids"][0].tolist()
    dataset = job.dataset()
    assert dataset["top_logprobs"][1] == [list(map(float, token)) for token in sampled[1]["top_logprobs"]]
    for format in ("parquet", "jsonl"):
        export(job.results, tmp_path / format, format)
    again = JobResults.from_folder(tmp_path / "parquet").rows()
    lines = map(json.loads, (tmp_path / "jsonl" / "sequences.jsonl").read_text().splitlines())
    for row, line, plain in zip(again, lines, job.rows(), strict=True):
        assert row == plain and line["top_ids"] == plain["top_ids"]


def test_a_job_without_diagnostics_has_no_columns_for_them(client: Client, engine: CoreEngine) -> None:
    job = run(client, engine, prompts=["2+3="])
    assert all(list(row) == SHARD_SCHEMA.names for row in job.rows())
    assert list(job.to_pandas().columns) == SHARD_SCHEMA.names
    assert job.to_batched()[1].diagnostics == {}


def test_diagnostics_have_the_names_of_the_cores() -> None:
    assert DIAGNOSTICS == NAMES


@pytest.mark.parametrize(("permanent", "state"), [(True, "failed"), (False, "running")])
def test_a_model_that_does_not_load(
    client: Client, monkeypatch: pytest.MonkeyPatch, permanent: bool, state: str
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ModelError("The hub has no such model.", permanent=permanent)

    monkeypatch.setattr(sequence_processing, "load_model", refuse)
    job = run(client, CoreEngine(), model="org/none", prompts=["a"])
    assert job.record.state == state
    assert (job.record.error if permanent else job.record.notice) == "The hub has no such model."


def test_only_trusted_models_may_bring_code(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}

    def note(name: str, *, trust_remote_code: bool, **options: Any) -> Any:
        asked[name] = trust_remote_code
        raise ModelError("noted", permanent=True)

    monkeypatch.setattr(sequence_processing, "load_model", note)
    for name in ("org/trusted", "org/other"):
        run(client, CoreEngine(["org/trusted"]), model=name, prompts=["a"])
    assert asked == {"org/trusted": True, "org/other": False}


def test_a_local_model_that_changed_is_loaded_anew(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    engine = CoreEngine()
    first = run(client, engine, model=str(folder), prompts=["2+3="])
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    second = run(client, engine, model=str(folder), prompts=["2+3="])
    identities = [job.record.identity for job in (first, second)]
    assert identities[0] is not None
    assert identities[1] is not None
    assert identities[0]["model"] == identities[1]["model"]
    assert identities[0]["chat_template"] != identities[1]["chat_template"]


def test_a_broken_device_leaves_the_shard_unharmed_and_ends_the_worker(
    client: Client, engine: CoreEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def broken(*args: Any, **options: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(sequence_processing.SequenceProcessor, "rollouts", broken)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        run(client, engine, prompts=["2+3="])
    (job,) = client.jobs()
    shard = client.store.shard(job.id, 0)
    assert (shard.state, shard.failures) == ("pending", 0)
