"""`gsm8k_r1_template`: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168) in the R1 template.

Read from `$SEQPROC_DATA_DIR/gsm8k/{train,test}.jsonl` where that file exists, lines `{"question", "answer"}` as the
authors publish them; else from the hub, `openai/gsm8k`, configuration `main`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DatasetFileError, DatasetUnavailableError
from .example import Example
from .files import BadRow, read_rows
from .registry import check_split, register_dataset
from .template import r1_prompt

SPLITS = ("train", "test")
DATA_DIR_VARIABLE = "SEQPROC_DATA_DIR"
_GOLD = "####"  # stands before the final number of a worked solution


@register_dataset("gsm8k_r1_template")
def gsm8k_r1_template(split: str = "train") -> list[Example]:
    """The questions of `split` ("train", "test"), in the published order; `meta["solution"]` is the worked solution.

    Raises UnknownSplitError, DatasetFileError for a damaged local file, DatasetUnavailableError if there is neither
    a local file nor a hub that answers.
    """
    check_split("gsm8k_r1_template", split, SPLITS)
    folder = os.environ.get(DATA_DIR_VARIABLE)
    path = Path(folder) / "gsm8k" / f"{split}.jsonl" if folder else None
    rows = _local_rows(path) if path and path.exists() else _hub_rows(split)
    return [_example(place, row) for place, row in rows]


def _local_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in read_rows(path):
        if isinstance(row, BadRow):
            raise DatasetFileError(f"{row.place}: {row.message}. Fetch the file again, or unset {DATA_DIR_VARIABLE}.")
        yield row.place, row.data


def _hub_rows(split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        from datasets import load_dataset

        rows = load_dataset("openai/gsm8k", "main", split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated types for "not reached"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DatasetUnavailableError(
            f"gsm8k_r1_template cannot be loaded from the hub (openai/gsm8k): {reason}. Without network, set "
            f"{DATA_DIR_VARIABLE} to a folder that holds gsm8k/{split}.jsonl."
        ) from error
    return ((f"openai/gsm8k {split}:{number}", row) for number, row in enumerate(rows, start=1))


def _example(place: str, row: Mapping[str, Any]) -> Example:
    question, solution = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str) or _GOLD not in solution:
        raise DatasetFileError(
            f'{place}: expected {{"question": text, "answer": text with the gold answer after {_GOLD}}}. '
            "Compare the file with the published one."
        )
    gold = solution.rpartition(_GOLD)[2].strip().replace(",", "")
    return Example(r1_prompt(question), question, gold, {"solution": solution})
