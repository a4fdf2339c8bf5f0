"""A real store on SQLite, and a worker's hand that runs shards without a model: rows are a function of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.paths import JobPaths
from jobs.records import Claim, Job
from jobs.results import JobResults
from jobs.settings import Settings
from jobs.shard_files import write_attempt
from jobs.snapshot import read_rows
from jobs.spec import JobSpec
from jobs.store import Store
from jobs.submit import Submitted, submit
from tests.rows import made_row


@dataclass(slots=True)
class House:
    """One store with its results root."""

    settings: Settings
    store: Store

    def submit(self, prompts: Any = None, **fields: Any) -> Submitted:
        data = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2, **fields}
        return submit(self.store, self.settings, JobSpec.parse(data), owner="ann", prompts=prompts)

    def paths(self, job: Job) -> JobPaths:
        return JobPaths(self.settings.results, job.id)

    def results(self, job: Job) -> JobResults:
        return JobResults.of(self.store, self.settings, job.id)

    def claim(self) -> Claim | None:
        return self.store.claim("w1", queues=["default"], model=None, age_limit=600)

    def run_one(self) -> Claim:
        """Claim a shard and commit it. A prompt that reads `bad`, or is none, becomes an error."""
        claim = self.claim()
        assert claim is not None
        paths, shard = self.paths(claim.job), claim.shard
        prompts = read_rows(paths, shard.segment, shard.start, shard.stop)
        samples = claim.job.num_sequences // claim.job.num_prompts
        bad = {p.prompt_index: p.error or "it is bad" for p in prompts if p.error or p.prompt == "bad"}
        rows = [made_row(p, g) for g in range(samples) for p in reversed(prompts) if p.prompt_index not in bad]
        errors = [
            {
                "prompt_index": p.prompt_index,
                "sample_index": None,
                "custom_id": p.custom_id,
                "error": bad[p.prompt_index],
            }
            for p in prompts
            if p.prompt_index in bad
        ]
        details = {"device": "hand", "drift": {"tokens": 5}}
        assert self.store.commit(claim, write_attempt(paths, shard, rows, errors, details))
        return claim

    def finish(self, job: Job) -> Job:
        while (now := self.store.job(job.id)).pending_shards:
            self.run_one()
        return now
