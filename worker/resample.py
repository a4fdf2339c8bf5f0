"""Sampling anew the prompts whose responses all have the same reward: groups that teach a policy nothing.

As DAPO's dynamic sampling (Yu et al. 2025, arXiv:2503.14476), but prompt by prompt and with an end: after the last
round a group stays as it is. Round 0 is the job itself; every other one draws from a seed that follows from the job's
and the round's number, so that a shard which runs again takes the same rounds to the same responses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs.parquet import write_rows
from jobs.records import Job
from jobs.rewards.judge import Judged
from jobs.sidecars import RESAMPLING, REWARD, ROUND
from jobs.snapshot import SnapshotRow
from worker.engine import Engine, OnStep, ShardRows

log = logging.getLogger(__name__)

Judge = Callable[[str, Path, int], Judged | None]  # (reward, file of rows, how many); None: it cannot be run here
Rewards = dict[int, list[float | None]]  # by prompt, in order of its samples

_KEY = itemgetter("prompt_index", "sample_index")


def seed_of(seed: int, number: int) -> int:
    """The seed of a round's draws, in [0, 2**63): the job's own for round 0."""
    if number == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:round:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def is_equal(rewards: Collection[float | None]) -> bool:
    """Whether a prompt's responses are all rewarded alike. Those that were not judged have no say; if none was, no."""
    return len(set(rewards) - {None}) == 1


def run_in_rounds(engine: Engine, job: Job, prompts: Sequence[SnapshotRow], on_step: OnStep, judge: Judge) -> ShardRows:
    """Run a shard, then up to `resample_equal` times again those of its prompts whose responses are rewarded alike.

    Rows come in order of (prompt_index, sample_index), with the first reward of each and the round that it is of, None
    if its group is equal in all rounds. A prompt that fails in a later round keeps what it has. Raises as `engine.run`.
    """
    made, most = engine.run(job, prompts, on_step), int(job.spec.get("resample_equal") or 0)
    if not most:
        return made
    name = job.spec["rewards"][0]
    made.rows.sort(key=_KEY)
    rewards = _judged(judge, name, made.rows)
    if rewards is None:
        return made
    rounds = dict.fromkeys(rewards, 0)
    equal = {prompt for prompt in rewards if is_equal(rewards[prompt])}
    for number in range(1, most + 1):
        again = [prompt for prompt in prompts if prompt.prompt_index in equal]
        if not again:
            break
        anew = replace(job, spec=job.spec | {"seed": seed_of(job.spec["seed"], number)})
        rows = engine.run(anew, again, lambda tokens, _sequences: on_step(tokens, 0)).rows
        rows.sort(key=_KEY)
        found = _judged(judge, name, rows)
        if found is None:
            break
        made.rows = [row for row in made.rows if row["prompt_index"] not in found] + rows
        rewards, rounds = rewards | found, rounds | dict.fromkeys(found, number)
        equal = {prompt for prompt in equal if is_equal(rewards[prompt])}
    made.rows.sort(key=_KEY)
    made.measured[REWARD, name] = [value for prompt in sorted(rewards) for value in rewards[prompt]]
    made.measured[RESAMPLING, ROUND] = [
        None if row["prompt_index"] in equal else float(rounds[row["prompt_index"]]) for row in made.rows
    ]
    resampled = sum(number > 0 for number in rounds.values())
    log.info("%d of %d prompts sampled again; %d rewarded alike in all rounds", resampled, len(rounds), len(equal))
    return made


def _judged(judge: Judge, name: str, rows: Sequence[dict[str, Any]]) -> Rewards | None:
    """The rewards of rows that come in order; None if the reward cannot be run."""
    with TemporaryDirectory(prefix="seqproc-") as folder:
        file = Path(folder) / "rows.parquet"
        write_rows(file, rows)
        judged = judge(name, file, len(rows)) if rows else Judged()
    if judged is None:
        return None
    found: Rewards = {}
    for row, value in zip(rows, judged.values, strict=True):
        found.setdefault(row["prompt_index"], []).append(value)
    return found
