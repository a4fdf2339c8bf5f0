"""Rewards of sequences that are there already: shard by shard, each stored as soon as it is judged.

What was stored stays if the rest is broken off, and is not judged again, unless that is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from jobs.parquet import as_numpy
from jobs.results import JobResults, ResultFile
from jobs.rewards.judge import Judges
from jobs.rewards.registry import Function, Reward
from jobs.sidecars import REWARD, values_of

Put = Callable[[ResultFile, str, list[float | None]], None]  # (shard's file, name of the reward, values)


@dataclass(frozen=True, slots=True)
class Rewarded:
    """One reward of a job, over all sequences that have been judged for it, now or before."""

    name: str
    sequences: int
    unjudged: int  # of these: null, never 0
    mean: float | None  # of the judged ones
    shards: int  # judged now
    skipped: int  # shards that had it already
    reasons: dict[str, int]  # why sequences could not be judged now, with counts, most frequent first


def reward_sequences(
    results: JobResults,
    put: Put,
    reward: str | Function | Reward,
    *,
    name: str | None = None,
    again: bool = False,
    partial: bool = False,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Rewarded:
    """Judge every sequence of a job by one reward.

    Args:
        put: stores the values of one shard.
        reward: the name of an installed one, or a function, which then needs a `name` unless it has a good one.
        again: also shards that have it already.
        partial: those that there are of a job that has not ended.
        on_shard: called with (shards done, all).

    Raises:
        NotFinished: the job has not ended, and not `partial`.
        UsageError: there is no such reward. CannotJudge: it cannot be run.
        ResultsError: a file is missing or damaged, or cannot be written.
    """
    files = results.contents(partial=partial).files
    shards = sequences = unjudged = 0
    total, reasons = 0.0, Counter[str]()
    with Judges(reward, name) as judges:
        column = f"{REWARD}_{judges.name}"
        for done, file in enumerate(results.here(files), start=1):
            there = next((added for added in file.added if added.column == column and added.path), None)
            if there is not None and not again:
                known = [float(value) for value in as_numpy(values_of(file, there).drop_null())]
            else:
                judged = judges.judge(file.path, file.sequences)
                put(file, judges.name, judged.values)
                shards, reasons = shards + 1, reasons + judged.reasons
                known = [value for value in judged.values if value is not None]
            sequences, unjudged = sequences + file.sequences, unjudged + file.sequences - len(known)
            total += sum(known)
            on_shard(done, len(files))
    mean = total / (sequences - unjudged) if sequences > unjudged else None
    return Rewarded(judges.name, sequences, unjudged, mean, shards, len(files) - shards, dict(reasons.most_common()))
