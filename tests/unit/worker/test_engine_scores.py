"""A job's sequences scored by the real model: under itself, under an adapter, and under another tokenizer."""

from __future__ import annotations

import json
import math
import shutil
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
from sequence_processing import GenerationConfig, SequenceProcessor, load_model
from tests.unit.worker.conftest import MODEL, QUESTION
from worker.drain import Drain
from worker.engine import CoreEngine
from worker.stop import Stop


@pytest.fixture
def sampled(client: Client, engine: CoreEngine) -> JobHandle:
    """Sixteen sequences whose sampling distribution is not the model's."""
    prompts = [{"prompt": QUESTION, "custom_id": "q"}, [5, 6, 7], "4+5=", "9-2="]
    job = client.submit(
        model="tiny-arithmetic", prompts=prompts, G=4, seed=3, max_new_tokens=12, temperature=0.7, top_p=0.95
    )
    return drained(client, engine, job)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA folder for tiny-arithmetic that moves it by a little."""
    model, _ = load_model("tiny-arithmetic", device="cpu")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.03)
    folder = str(tmp_path_factory.mktemp("adapter"))
    adapted.save_pretrained(folder)
    return folder


def drained(client: Client, engine: CoreEngine, job: JobHandle) -> JobHandle:
    Drain(client.store, client.settings, engine, "w", ["default"], Stop()).until_idle()
    job.refresh()
    return job


def test_under_the_same_model_nothing_moves(client: Client, engine: CoreEngine, sampled: JobHandle) -> None:
    """Within what float32 can tell: sampled and scored are two batches of the same rows."""
    scored = drained(client, engine, sampled.score(diagnostics=["margins"]))
    assert (scored.record.state, scored.record.done_sequences) == ("succeeded", 16)
    made = scored.compared().summary()
    assert made.sampling is not None and made.model is not None
    for shift in (made.model, made.sampling):
        assert shift.largest < 1e-4
        assert shift.ess == pytest.approx(16, rel=1e-6)
        assert (shift.outside, shift.unknown) == (0, 0)
    margins = [list(row["new_margins"]) for row in scored.compared().rows()]
    assert margins == [row["margins"] for row in scored.rows()], "what else it kept stands there too"
    before = {(row["prompt_index"], row["sample_index"]): row for row in sampled.rows()}
    assert [(row["prompt_index"], row["sample_index"]) for row in scored.compared().rows()] == list(before)


def test_under_an_adapter_it_is_what_the_core_measures(
    client: Client, engine: CoreEngine, sampled: JobHandle, adapter: str
) -> None:
    scored = drained(client, engine, sampled.score(adapter=adapter))
    assert scored.record.state == "succeeded"
    model, tokenizer = load_model("tiny-arithmetic", adapter=adapter, device="cpu")
    config = GenerationConfig(temperature=0.7, top_p=0.95, tf_batch_size=1)
    processor = SequenceProcessor(model, tokenizer, config)
    rows = list(sampled.rows())
    after = [teacher_forced(processor, row) for row in rows]
    differences: list[float] = []
    weights = []
    for row, item, new in zip(rows, scored.compared().rows(), after, strict=True):
        np.testing.assert_allclose(item["new_logprobs"], new["logprobs"], atol=1e-4)
        ratios = [b - a for a, b in zip(row["logprobs"], new["logprobs"], strict=True)]
        np.testing.assert_allclose(item["log_ratios"], ratios, atol=2e-4)
        differences += ratios
        weights.append(math.exp(math.fsum(ratios)))
    assert max(map(abs, differences)) > 0.01, "the adapter does something"
    shift = scored.compared().summary().model
    assert shift is not None
    assert shift.ess == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights), rel=1e-3)
    assert shift.k1 == pytest.approx(-np.mean(differences), abs=1e-4)
    assert shift.k3 == pytest.approx(np.mean([math.exp(d) - 1 - d for d in differences]), abs=1e-4)


def teacher_forced(processor: SequenceProcessor, row: dict[str, Any]) -> dict[str, list[float]]:
    """A row's log-probabilities by the core alone, without a job."""
    [measured] = processor.score([(row["prompt_ids"], row["response_ids"])])
    forced = processor.model(torch.tensor([row["prompt_ids"] + row["response_ids"]])).logits[0].double().log_softmax(-1)
    start = len(row["prompt_ids"]) - 1
    plain = [float(forced[start + i, token]) for i, token in enumerate(row["response_ids"])]
    np.testing.assert_allclose(measured.logprobs, plain, atol=1e-4)
    return {"logprobs": plain}


@pytest.fixture
def renamed(tmp_path: Path) -> str:
    """tiny-arithmetic with two tokens of its vocabulary exchanged."""
    folder = tmp_path / "renamed"
    shutil.copytree(MODEL, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["2"], vocabulary["3"] = vocabulary["3"], vocabulary["2"]
    file.write_text(json.dumps(content))
    return str(folder)


def test_another_tokenizer_is_refused(client: Client, engine: CoreEngine, sampled: JobHandle, renamed: str) -> None:
    job = drained(client, engine, sampled.score(model=renamed))
    assert job.record.state == "failed" and job.record.error is not None
    assert f"the tokenizer of {renamed} is not the one whose tokens job {sampled.id} holds" in job.record.error
    assert "tokenizer any" in job.record.error
    on_purpose = drained(client, engine, sampled.score(model=renamed, tokenizer="any"))
    assert on_purpose.record.state == "succeeded"
    # The model that this worker holds is judged for each job by itself.
    again = drained(client, engine, sampled.score(model=renamed))
    assert again.record.state == "failed"


def test_a_source_that_is_gone_before_its_score_is_run(client: Client, engine: CoreEngine, sampled: JobHandle) -> None:
    before = [row["response_ids"] for row in sampled.rows()]
    job = sampled.score()
    sampled.delete()
    assert drained(client, engine, job).record.state == "succeeded"
    assert [row["response_ids"] for row in job.rows()] == before


def test_a_sequence_that_cannot_be_scored_is_an_error_of_its_own(
    client: Client, engine: CoreEngine, sampled: JobHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sampled.score()
    monkeypatch.setattr(sequence_processing.SequenceProcessor, "score", without_one(SequenceProcessor.score))
    drained(client, engine, job)
    assert (job.record.state, job.record.prompt_errors) == ("succeeded", 1)
    assert [error["custom_id"] for error in job.errors()] == ["q#2"]
    made = job.compared().summary()
    assert (made.sequences, made.failed) == (15, 1)
    named = [(row["custom_id"], row["sample_index"]) for row in job.compared().rows()]
    assert named[:3] == [("q", 0), ("q", 1), ("q", 3)]


def without_one(real: Any) -> Any:
    def score(*args: Any, on_failed: Any, **options: Any) -> Iterator[Any]:
        for rollout in real(*args, **options):
            if rollout.prompt_index == 2:
                on_failed(2, 0, MemoryError("One sequence does not fit."))
            else:
                yield rollout

    return score
