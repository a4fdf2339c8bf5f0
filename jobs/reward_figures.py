"""What the rewards of a job's sequences say in figures. One number a sequence is kept in memory, and its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.errors import UsageError
from jobs.estimates import Interval, interval, mean_over_prompts, pass_at_every_k
from jobs.parquet import as_numpy, read_columns
from jobs.results import ResultFile
from jobs.sidecars import REWARD, values_of

BY_DEFAULT = "math_answer"  # where a job has it; else the plain rule of `jobs.gold`

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class RewardFigures:
    """Of the judged sequences. Every prompt counts the same, however many of its sequences were judged."""

    judged: int
    accuracy: Interval | None  # only of rewards that are all 0 or 1
    pass_at_k: dict[int, float]  # likewise; over the prompts with at least k judged sequences
    mean: float | None  # of the prompts' means
    error: float | None  # its standard error, clustered by prompt; None with fewer than two prompts


def choose(job_id: str, files: Iterable[ResultFile], name: str | None) -> str | None:
    """The reward to report: `name`, or the one by default if the job has it, or None.

    Raises UsageError if the job has no such reward.
    """
    wanted = name or BY_DEFAULT
    there = {added.column for file in files for added in file.added if added.path is not None}
    if f"{REWARD}_{wanted}" in there:
        return wanted
    if name is None:
        return None
    names = (column.removeprefix(f"{REWARD}_") for column in there if column.startswith(f"{REWARD}_"))
    has = ", ".join(sorted(names)) or "none"
    raise UsageError(
        f"job {job_id} has no reward {name} (it has {has}); judge it: seqproc reward {job_id} --reward {name}"
    )


def rewards_of(file: ResultFile, name: str) -> tuple[np.ndarray[Any, Any], Floats]:
    """([rows] prompt indices, [rows] rewards, NaN where there is none) of one shard. Raises ResultsError."""
    [added] = [added for added in file.added if added.column == f"{REWARD}_{name}"]
    values = np.asarray(values_of(file, added).to_numpy(zero_copy_only=False), np.float64)
    return as_numpy(read_columns(file.path, ["prompt_index"])["prompt_index"]), values


def figures(parts: Iterable[tuple[np.ndarray[Any, Any], Floats]]) -> RewardFigures:
    """The figures of all shards' `rewards_of`."""
    prompts, values = (np.concatenate(column) for column in zip((np.zeros(0), np.zeros(0)), *parts, strict=True))
    there = ~np.isnan(values)
    if not there.any():
        return RewardFigures(0, None, {}, None, None)
    values = values[there]
    _, prompt, samples = np.unique(prompts[there], return_inverse=True, return_counts=True)
    sums = np.bincount(prompt, weights=values)
    mean, error = mean_over_prompts(sums / samples)
    if not np.isin(values, (0.0, 1.0)).all():
        return RewardFigures(len(values), None, {}, mean, error)
    groups = Counter(zip(samples.tolist(), sums.astype(np.int64).tolist(), strict=True))
    passes = pass_at_every_k([(*group, count) for group, count in groups.items()])
    return RewardFigures(len(values), interval(mean, error, len(samples)), passes, mean, error)
