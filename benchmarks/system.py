"""The whole job system over the core called directly, on a real model with the same batches, in one process."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.lanes import Lane
from benchmarks.wrong import Wrong
from jobs import Client
from rlp_datasets import DATASET_REGISTRY
from sequence_processing import GenerationConfig, SequenceProcessor, load_model
from worker.drain import Drain
from worker.engine import CoreEngine
from worker.stop import Stop

MODEL, DATASET, G, SEED = "tiny-arithmetic", "arithmetic_r1_template", 8, 7
_BATCH = 512  # rows decoded at once, by both

Key = tuple[int, int]  # (prompt, sample)


def overhead(lane: Lane, *, pairs: int, shards: int, shard_prompts: int, max_new_tokens: int) -> dict[str, Any]:
    """Seconds of one job from its submit to its manifest, over those of the core called shard by shard, in turns.

    `percent` is the median over the pairs. `Wrong` if a token or a number differs.
    """
    examples = DATASET_REGISTRY[DATASET](split="train")[: shards * shard_prompts]
    prompts = [example.text for example in examples]
    if len(prompts) < shards * shard_prompts:
        raise Wrong(f"{DATASET} has only {len(prompts)} prompts.")
    settings = {"max_new_tokens": max_new_tokens, "gen_batch_size": _BATCH}
    processor = SequenceProcessor(*load_model(MODEL), GenerationConfig(**settings))
    expected: dict[Key, Made] = {}

    def core(_run: int) -> None:
        for start in range(0, len(prompts), shard_prompts):
            part = prompts[start : start + shard_prompts]
            keys = list(range(start, start + len(part)))
            rollouts = list(processor.rollouts(part, G, seed=SEED, prompt_keys=keys))
            for r in rollouts:
                expected[start + r.prompt_index, r.sample_index] = Made(list(r.response_ids), r.logprobs.tolist())

    jobs = _System(lane, prompts, shard_prompts, settings)
    core(0)
    jobs(0)
    jobs.check(expected)
    timings = machine.timed({"core": core, "jobs": jobs}, pairs)
    jobs.check(expected)
    jobs.close()
    each = zip(timings["jobs"]["runs"], timings["core"]["runs"], strict=True)
    percent = 100 * statistics.median(ours / alone - 1 for ours, alone in each)
    tokens = sum(len(made.response_ids) for made in expected.values())
    return {"percent": percent, "timings": timings, "shards": shards, "tokens": tokens}


class Made(NamedTuple):
    """What was made of one sequence."""

    response_ids: list[int]
    logprobs: list[float]


class _System:
    """A client and a worker's drain in this process, with the real engine; called, it runs one job to its manifest."""

    def __init__(self, lane: Lane, prompts: list[str], shard_prompts: int, settings: dict[str, Any]) -> None:
        self.lane = lane
        self._prompts = prompts
        self._spec = {"model": MODEL, "G": G, "seed": SEED, "shard_size": shard_prompts, **settings}
        self._client = Client(lane.settings)
        self._drain = Drain(self._client.store, lane.settings, CoreEngine(), "w", ["default"], Stop())
        self._drain.register()

    def __call__(self, _run: int) -> None:
        self._job = self._client.submit(prompts=self._prompts, **self._spec)
        self._drain.once()
        record = self._job.refresh()
        if record.state != "succeeded" or record.manifest_revision != record.revision:
            raise Wrong(f"The job on {self.lane.name} ended {record.state}: {record.error}")

    def check(self, expected: dict[Key, Made]) -> None:
        rows = {(row["prompt_index"], row["sample_index"]): row for row in self._job.rows()}
        made = {key: Made(list(row["response_ids"]), list(row["logprobs"])) for key, row in rows.items()}
        if made != expected:
            raise Wrong(f"The job on {self.lane.name} made other sequences than the core called directly.")

    def close(self) -> None:
        self._client.close()
