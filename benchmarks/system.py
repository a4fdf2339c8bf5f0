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
    """What a job takes from its submit to its manifest beyond the core called on the same shards, in percent of that.

    The core runs each shard right before or right after the job's engine does, in turns, and its time is no part of the
    job's. All that the job does outside its engine counts as it is; what its engine takes longer counts as the median
    over the shards: one that the machine interrupted says nothing. `percent` is the median over `pairs` jobs.
    `Wrong` if a token or a number differs.
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
        "percent": statistics.median(run["percent"] for run in runs),
        "runs": [{name: round(value, 3) for name, value in run.items()} for run in runs],
        "shards": shards,
        "tokens": sum(len(made.response_ids) for made in jobs.core.made.values()),
    }


class Made(NamedTuple):
    """What was made of one sequence."""

    response_ids: list[int]
    logprobs: list[float]


class _Shard(NamedTuple):
    """Seconds of one shard."""

    own: float  # by the job's engine
    core: float  # by the core called directly
    both: float  # and all that this benchmark does besides


class _Beside(CoreEngine):
    """The real engine, which calls the core directly on the same prompts as well, first or last in turns."""

    def __init__(self, prompts: list[str], settings: dict[str, Any]) -> None:
        super().__init__()
        self._prompts = prompts
        self._processor = SequenceProcessor(*load_model(MODEL), GenerationConfig(**settings))
        self._core_first = True
        self.made: dict[Key, Made] = {}  # by the core
        self.shards: list[_Shard] = []

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        self._core_first = not self._core_first
        began = time.perf_counter()
        core = self._core(rows) if self._core_first else 0.0
        own_began = time.perf_counter()
        made = super().run(job, rows, on_step)
        own = time.perf_counter() - own_began
        core = core or self._core(rows)
        self.shards.append(_Shard(own, core, time.perf_counter() - began))
        return made

    def _core(self, rows: Sequence[SnapshotRow]) -> float:
        keys = [row.prompt_index for row in rows]
        began = time.perf_counter()
        prompts = [self._prompts[key] for key in keys]
        rollouts = list(self._processor.rollouts(prompts, G, seed=SEED, prompt_keys=keys))
        seconds = time.perf_counter() - began
        for r in rollouts:
            self.made[keys[r.prompt_index], r.sample_index] = Made(list(r.response_ids), r.logprobs.tolist())
        return seconds


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

    def run(self) -> dict[str, float]:
        """Of one job to its manifest: seconds of the core alone, milliseconds a shard in and outside of the engine."""
        self.core.shards, began = [], time.perf_counter()
        job = self._client.submit(prompts=self._prompts, **self._spec)
        self._drain.once()
        outside = time.perf_counter() - began - sum(shard.both for shard in self.core.shards)
        record = job.refresh()
        if record.state != "succeeded" or record.manifest_revision != record.revision:
            raise Wrong(f"The job on {self.lane.name} ended {record.state}: {record.error}")
        rows = {(row["prompt_index"], row["sample_index"]): row for row in job.rows()}
        made = {key: Made(list(row["response_ids"]), list(row["logprobs"])) for key, row in rows.items()}
        if made != self.core.made:
            raise Wrong(f"The job on {self.lane.name} made other sequences than the core called directly.")
        shards, core = len(self.core.shards), sum(shard.core for shard in self.core.shards)
        longer = statistics.median(shard.own - shard.core for shard in self.core.shards)
        run = {"core_s": core, "outside_ms": 1e3 * outside / shards, "longer_ms": 1e3 * longer}
        run["percent"] = 0.1 * (run["outside_ms"] + run["longer_ms"]) * shards / core
        print(self.lane.name, {name: round(value, 2) for name, value in run.items()}, file=sys.stderr, flush=True)
        return run

    def close(self) -> None:
        self._client.close()
