"""A job's results by the keys of TRL's rollouts: `prompt_ids`, `completion_ids`, `logprobs`.

`logprobs` are `sampling_logprobs`, log q: GRPOTrainer takes what a `rollout_func` returns for the distribution that was
sampled from, after temperature and top-p (it has vLLM give "processed_logprobs"), and corrects by its ratio to the
trainer's own, which are of logits over temperature. So give GRPOConfig the job's temperature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from jobs.errors import ResultsError

_KEYS = {
    "prompt_ids": "prompt_ids",
    "completion_ids": "response_ids",
    "logprobs": "sampling_logprobs",
    "prompt_index": "prompt_index",
    "sample_index": "sample_index",
    "custom_id": "custom_id",
    "completion_text": "response",
    "answer": "answer",
}
_REWARD = "reward_"  # what the column of a reward begins with


def rollout_rows(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A job's rows by these keys, one in memory at a time.

    Beside TRL's three: prompt_index, sample_index, custom_id, completion_text, answer, and rewards if there are.
    Raises ResultsError if the job kept no `sampling_logprobs`.
    """
    for row in rows:
        if row["sampling_logprobs"] is None:
            raise ResultsError(
                "the job kept no sampling_logprobs, which are the logprobs of a rollout: "
                "submit it with them among its measurements, or read its rows"
            )
        found = {key: row[column] for key, column in _KEYS.items()}
        yield found | {name: value for name, value in row.items() if name.startswith(_REWARD)}


def rollouts(rows: Iterable[dict[str, Any]], prompts: int) -> Iterator[dict[str, list[Any]]]:
    """What a `rollout_func` returns, for so many prompts at a time: dicts of lists, an element a sequence.

    The samples of a prompt stand together, and prompts that failed are left out. Raises as `rollout_rows`.
    """
    groups = groupby(rollout_rows(rows), key=itemgetter("prompt_index"))
    while batch := [row for _, group in islice(groups, prompts) for row in group]:
        yield {key: [row[key] for row in batch] for key in batch[0]}
