"""Rows of sequences that no model made: each is a function of its name, so any run of them has the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.snapshot import SnapshotRow


def made_row(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
    """The row of one sequence: its length and values follow from (prompt_index, sample_index)."""
    length = (3 * prompt.prompt_index + sample) % 5
    values = -0.25 * np.arange(1, length + 1, dtype=np.float32)
    sampling = values.copy()
    sampling[:1] = -np.inf
    return {
        "prompt_index": prompt.prompt_index,
        "sample_index": sample,
        "custom_id": prompt.custom_id,
        "prompt": prompt.prompt,
        "response": "é" * length,
        "answer": prompt.answer,
        "prompt_ids": [7, prompt.prompt_index],
        "response_ids": list(range(length)),
        "logprobs": values,
        "entropies": -values,
        "sampling_logprobs": sampling,
        "sampling_entropies": None,
        "finish_reason": "length",
        "stop_offset": None,
        "token_ends": list(range(1, length + 1)),
    }
