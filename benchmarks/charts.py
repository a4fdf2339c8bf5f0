"""A job of very many sequences that no model made, and how long its charts take: the first time, and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.lanes import MODEL, Lane
from benchmarks.lists import quantiles
from benchmarks.server import server
from benchmarks.wrong import Wrong
from jobs import Client
from jobs.parquet import write_rows
from jobs.paths import JobPaths
from jobs.records import Claim, ShardResult

G = 8
_SHARD_PROMPTS = 250
_MEAN_TOKENS = 150  # of a response; lengths are lognormal, as they come from models


def measure(lane: Lane, *, prompts: int, samples: int) -> dict[str, Any]:
    """Seconds of the first charts of a server that knows nothing of the job, and milliseconds of those after."""
    job_id, tokens = make_job(lane, prompts)
    path, sequences = f"/jobs/{job_id}/charts", prompts * G
    with server(lane) as web:
        first, text = web.get(path)
        if f"{sequences:,}" not in text:
            raise Wrong(f"The charts do not say that they are of {sequences:,} sequences.")
        after = [web.get(path)[0] for _ in range(samples)]
        polls = [web.get(path, poll=True)[0] for _ in range(samples)]
    return {"sequences": sequences, "tokens": tokens, "first_s": first, "after": quantiles(after + polls)}


def make_job(lane: Lane, prompts: int) -> tuple[str, int]:
    """A job of `prompts` × G sequences, all of them there; its id and tokens."""
    rng = np.random.default_rng(0)
    with Client(lane.settings) as client:
        asked = [{"prompt": f"{n} + {n} = ?", "answer": str(2 * n)} for n in range(prompts)]
        job = client.submit(model=MODEL, prompts=asked, G=G, shard_size=_SHARD_PROMPTS, seed=0)
        paths = JobPaths(lane.settings.results, job.id)
        while (claim := client.store.claim("bench", queues=["default"], model=None, age_limit=None)) is not None:
            if not client.store.commit(claim, _write(paths, claim, rng)):
                raise Wrong(f"The commit of {claim.key} was refused.")
        job.refresh()
        if not job.record.state.ended or job.record.done_sequences != prompts * G:
            raise Wrong(f"The job has {job.record.done_sequences} sequences, and not {prompts * G}.")
        return job.id, job.record.done_tokens


def _write(paths: JobPaths, claim: Claim, rng: np.random.Generator) -> ShardResult:
    file, _ = paths.attempt_files(claim.shard.index, claim.shard.attempt)
    paths.resolve(file).parent.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(claim, rng))
    written = write_rows(paths.resolve(file), rows)
    tokens = sum(len(row["response_ids"]) for row in rows)
    made = {"sequences": len(rows), "tokens": tokens, "prompt_errors": 0}
    return ShardResult(file=file, errors_file=None, sha256=written.sha256, bytes=written.bytes, **made)


def _rows(claim: Claim, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One row a sequence; one in three is right."""
    shard = claim.shard
    for prompt in range(shard.first_prompt, shard.first_prompt + shard.stop - shard.start):
        for sample in range(G):
            length = int(np.clip(rng.lognormal(np.log(_MEAN_TOKENS), 0.5), 1, 1_000))
            entropies = rng.gamma(1.0, 0.5, length).astype(np.float32)
            logprobs = -rng.exponential(entropies).astype(np.float32)
            yield {
                "prompt_index": prompt,
                "sample_index": sample,
                "custom_id": str(prompt),
                "prompt": f"{prompt} + {prompt} = ?",
                "response": "x" * (length - 1) + f"<answer>{2 * prompt + sample % 3}</answer>",
                "answer": str(2 * prompt),
                "prompt_ids": [1, 2, 3],
                "response_ids": np.arange(length, dtype=np.int32),
                "logprobs": logprobs,
                "entropies": entropies,
                "sampling_logprobs": logprobs,
                "sampling_entropies": entropies,
                "finish_reason": "length" if length == 1_000 else "stop",
                "stop_offset": None,
                "token_ends": np.arange(1, length + 1, dtype=np.int32),
            }
