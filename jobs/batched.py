"""A job's rows as the core's own containers: the one module of `jobs` that imports from the core, when it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.diagnostics import ALTERNATIVES, DIAGNOSTICS

if TYPE_CHECKING:
    from sequence_processing.containers import BatchedSequences, LogprobResults, Rollout


def to_batched(
    rows: Iterable[dict[str, Any]], samples: int, seed: int | None
) -> tuple[BatchedSequences, LogprobResults]:
    """Rows with arrays, each prompt with all its `samples`, as (sequences [B, G, total_len], measurements [B][G]).

    `prompt_indices` says which prompts of the job the B rows are: prompts that failed are left out. A measurement that
    the job did not keep is NaN. The draws of a job are named by the prompt's index, so `prompt_keys` are the same.
    """
    from sequence_processing.containers import BatchedSequences, LogprobResults, Rollout

    rollouts = list(_rollouts(rows, Rollout))
    indices = sorted({rollout.prompt_index for rollout in rollouts})
    sequences = BatchedSequences.from_rollouts(rollouts, samples, seed=seed, prompt_keys=indices)
    return sequences, LogprobResults.from_rollouts(rollouts, samples)


def _rollouts(rows: Iterable[dict[str, Any]], make: type[Rollout]) -> Iterator[Rollout]:
    for row in rows:
        unknown = np.full(len(row["response_ids"]), np.nan, dtype=np.float32)

        def measured(name: str, row: dict[str, Any] = row, unknown: np.ndarray[Any, Any] = unknown) -> Any:
            return unknown if row[name] is None else row[name]

        yield make(
            prompt_index=row["prompt_index"],
            sample_index=row["sample_index"],
            prompt_ids=row["prompt_ids"].tolist(),
            response_ids=row["response_ids"].tolist(),
            text=row["response"],
            logprobs=measured("logprobs"),
            entropies=measured("entropies"),
            sampling_logprobs=measured("sampling_logprobs"),
            sampling_entropies=measured("sampling_entropies"),
            finish_reason=row["finish_reason"],
            stop_offset=row["stop_offset"],
            diagnostics={name: row[name] for name in (*DIAGNOSTICS, *ALTERNATIVES) if row.get(name) is not None},
        )
