"""The whole job system over the core called directly, on a real model with the same batches, in one process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.lanes import Lane
from benchmarks.wrong import Wrong
from jobs import Client
from jobs.records import Job
from jobs.snapshot import SnapshotRow
from rlp_datasets import DATASET_REGISTRY
from sequence_processing import GenerationConfig, SequenceProcessor, load_model
from worker.drain import Drain
from worker.engine import CoreEngine, OnStep, ShardRows
from worker.stop import Stop

MODEL, DATASET, G, SEED = "tiny-arithmetic", "arithmetic_r1_template", 8, 7
_BATCH = 512  # rows decoded at once, by both

Key = tuple[int, int]  # (prompt, sample)


def overhead(lane: Lane, *, pairs: int, shards: int, shard_prompts: int, max_new_tokens: int) -> dict[str, Any]:
    """Seconds of one job from its submit to its manifest, over those of the core called on the same shards.

    The core runs each shard right before or right after the job system does, in turns, and its time is taken off the
    job's: whatever makes the machine faster or slower for a while does so for both. `percent` is the median over
    `pairs` jobs. `Wrong` if a token or a number differs.
    """
    examples = DATASET_REGISTRY[DATASET](split="train")[: shards * shard_prompts]
    prompts = [example.text for example in examples]
    if len(prompts) < shards * shard_prompts:
        raise Wrong(f"{DATASET} has only {len(prompts)} prompts.")
    jobs = _System(lane, prompts, shard_prompts, {"max_new_tokens": max_new_tokens, "gen_batch_size": _BATCH})
    jobs.run()  # warms up
    runs = [jobs.run() for _ in range(pairs)]
    jobs.close()
    return {
        "percent": statistics.median(100 * (system / core - 1) for system, core in runs),
        "runs": [{"system": round(system, 3), "core": round(core, 3)} for system, core in runs],
        "shards": shards,
        "tokens": sum(len(made.response_ids) for made in jobs.core.made.values()),
    }


class Made(NamedTuple):
    """What was made of one sequence."""

    response_ids: list[int]
    logprobs: list[float]


class _Beside(CoreEngine):
    """The real engine, which calls the core directly on the same prompts as well, first or last in turns."""

    def __init__(self, prompts: list[str], settings: dict[str, Any]) -> None:
        super().__init__()
        self._prompts = prompts
        self._processor = SequenceProcessor(*load_model(MODEL), GenerationConfig(**settings))
        self._core_first = True
        self.made: dict[Key, Made] = {}  # by the core
        self.seconds = 0.0  # of the core

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        self._core_first = not self._core_first
        if self._core_first:
            self._core(rows)
        made = super().run(job, rows, on_step)
        if not self._core_first:
            self._core(rows)
        return made

    def _core(self, rows: Sequence[SnapshotRow]) -> None:
        keys = [row.prompt_index for row in rows]
        began = time.perf_counter()
        prompts = [self._prompts[key] for key in keys]
        rollouts = list(self._processor.rollouts(prompts, G, seed=SEED, prompt_keys=keys))
        self.seconds += time.perf_counter() - began
        for r in rollouts:
            self.made[keys[r.prompt_index], r.sample_index] = Made(list(r.response_ids), r.logprobs.tolist())


class _System:
    """A client and a worker's drain in this process, with the real engine and the core beside it."""

    def __init__(self, lane: Lane, prompts: list[str], shard_prompts: int, settings: dict[str, Any]) -> None:
        self.lane = lane
        self.core = _Beside(prompts, settings)
        self._prompts = prompts
        self._spec = {"model": MODEL, "G": G, "seed": SEED, "shard_size": shard_prompts, **settings}
        self._client = Client(lane.settings)
        self._drain = Drain(self._client.store, lane.settings, self.core, "w", ["default"], Stop())
        self._drain.register()

    def run(self) -> tuple[float, float]:
        """Seconds of one job to its manifest, and of the core alone."""
        self.core.seconds, began = 0.0, time.perf_counter()
        job = self._client.submit(prompts=self._prompts, **self._spec)
        self._drain.once()
        seconds = time.perf_counter() - began - self.core.seconds
        record = job.refresh()
        if record.state != "succeeded" or record.manifest_revision != record.revision:
            raise Wrong(f"The job on {self.lane.name} ended {record.state}: {record.error}")
        rows = {(row["prompt_index"], row["sample_index"]): row for row in job.rows()}
        made = {key: Made(list(row["response_ids"]), list(row["logprobs"])) for key, row in rows.items()}
        if made != self.core.made:
            raise Wrong(f"The job on {self.lane.name} made other sequences than the core called directly.")
        print(f"{self.lane.name}: {seconds:.2f} s, the core {self.core.seconds:.2f} s", file=sys.stderr, flush=True)
        return seconds, self.core.seconds

    def close(self) -> None:
        self._client.close()
