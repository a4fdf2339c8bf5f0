"""Sequences in order of a measurement or a reward: which are the longest, the least likely, the best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.parquet import as_numpy, read_columns
from jobs.ragged import row_sums
from jobs.sidecars import values_of

if TYPE_CHECKING:
    from jobs.results import ResultFile

SCANNED = 200_000  # sequences that are compared, the first of a job: about a second
_NAMES = ("prompt_index", "sample_index")

Place = tuple[float, int, int]  # (key, prompt_index, sample_index)


class Measure(StrEnum):
    """What sequences are ordered by: their tokens, or the sum or mean of a measurement over them, in nats."""

    LENGTH = "length"
    LOGPROBS_SUM = "logprobs_sum"
    LOGPROBS_MEAN = "logprobs_mean"
    ENTROPIES_SUM = "entropies_sum"
    ENTROPIES_MEAN = "entropies_mean"
    SAMPLING_LOGPROBS_SUM = "sampling_logprobs_sum"
    SAMPLING_LOGPROBS_MEAN = "sampling_logprobs_mean"
    SAMPLING_ENTROPIES_SUM = "sampling_entropies_sum"
    SAMPLING_ENTROPIES_MEAN = "sampling_entropies_mean"

    @property
    def column(self) -> str:
        """The column of a shard's file that it is made of."""
        return "response_ids" if self is Measure.LENGTH else self.rpartition("_")[0]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A sequence in its place, and where it stands. Smaller places come first."""

    place: Place
    file: ResultFile
    position: int  # of its row in the file


def rank(
    files: Iterable[ResultFile],
    by: Measure | str,
    *,
    descending: bool = False,
    prompt_index: int | None = None,
    after: Place | None = None,
    limit: int,
) -> tuple[list[Ranked], int]:
    """(The first `limit` sequences `after` a place, how many were compared: no more than SCANNED).

    `by` may also be one of the files' added columns, `reward_math_answer`. Equals stand in order of (prompt_index,
    sample_index); a mean over no tokens, or what was not judged, comes last. Raises ResultsError.
    """
    read: list[ResultFile] = []
    columns: list[np.ndarray[Any, Any]] = []
    scanned = 0
    for file in files:
        if scanned >= SCANNED:
            break
        columns.append(_places(file, by, len(read), descending))
        read.append(file)
        scanned += columns[-1].shape[1]
    if not columns:
        return [], 0
    keys, prompts, samples, numbers, positions = np.concatenate(columns, axis=1)
    wanted = np.ones(len(keys), dtype=bool)
    if prompt_index is not None:
        wanted = prompts == prompt_index
    if after is not None:
        later = (prompts > after[1]) | ((prompts == after[1]) & (samples > after[2]))
        wanted &= (keys > after[0]) | ((keys == after[0]) & later)
    chosen = np.flatnonzero(wanted)
    order = np.lexsort((samples[chosen], prompts[chosen], keys[chosen]))[:limit]
    found = [
        Ranked((float(keys[i]), int(prompts[i]), int(samples[i])), read[int(numbers[i])], int(positions[i]))
        for i in chosen[order]
    ]
    return found, scanned if prompt_index is None else int(np.count_nonzero(prompts == prompt_index))


def _places(file: ResultFile, by: Measure | str, number: int, descending: bool) -> np.ndarray[Any, Any]:
    """[5, rows]: key, prompt, sample, the file's number, position. Exact in float64 as long as prompts are < 2**53."""
    measured = [by.column] if isinstance(by, Measure) else []
    table = read_columns(file.path, [*_NAMES, *measured])
    values = _values(table[by.column].combine_chunks(), by) if isinstance(by, Measure) else _added(file, by)
    keys = np.where(np.isnan(values), np.inf, -values if descending else values)
    rows = len(table)
    names = [table[name].to_numpy() for name in _NAMES]
    return np.stack([keys, *names, np.full(rows, number), np.arange(rows)], dtype=np.float64, casting="unsafe")


def _added(file: ResultFile, column: str) -> np.ndarray[Any, Any]:
    """The values of an added column; nan where there is none."""
    added = next(added for added in file.added if added.column == column)
    return as_numpy(values_of(file, added).fill_null(np.nan))


def _values(lists: Any, measure: Measure) -> np.ndarray[Any, Any]:
    """The measure of each row; nan for a mean of nothing and for what was not measured."""
    lengths = np.asarray(lists.value_lengths().fill_null(0), dtype=np.int64)
    if measure is Measure.LENGTH:
        return np.asarray(lengths, dtype=np.float64)
    sums = row_sums(np.asarray(lists.flatten(), dtype=np.float64), lengths)
    sums[np.asarray(lists.is_null())] = np.nan
    if measure.endswith("_sum"):
        return sums
    means = np.full(len(sums), np.nan)
    np.divide(sums, lengths, out=means, where=lengths > 0)
    return means
