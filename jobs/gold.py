"""Whether a response gives the gold answer: by one plain rule, so that the figure means the same for every job.

A response is correct if it holds exactly one `<answer>…</answer>` block and what stands in it equals the gold answer,
white space, case, and the way a number is written (`1,000.0` is `1000`) aside. Anything else is wrong.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

RULE = "exactly one <answer> block, equal to the gold answer but for white space, case and how a number is written"
_OPEN, _CLOSE = "<answer>", "</answer>"
_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d*)?|[+-]?\.\d+", re.ASCII)


def is_correct(response: str, gold: str) -> bool:
    """Whether the response gives the gold answer."""
    return bool(verdicts(pa.array([response]), pa.array([gold]))[0])


def verdicts(responses: Any, golds: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For string columns of equal length without nulls: whether each response gives its gold answer.

    The texts are searched by Arrow, and each different pair of answers is compared once.
    """
    at_open, at_close = pc.split_pattern(responses, _OPEN), pc.split_pattern(responses, _CLOSE)
    once = pc.and_(pc.equal(pc.list_value_length(at_open), 2), pc.equal(pc.list_value_length(at_close), 2))
    behind = pc.list_element(pc.if_else(once, at_open, pa.scalar(["", ""])), 1)
    parts = pc.split_pattern(behind, _CLOSE)  # a single one if the block ends before it begins
    given = pc.if_else(pc.equal(pc.list_value_length(parts), 2), pc.list_element(parts, 0), None)
    pairs = pa.table({"given": given, "gold": golds})
    codes = [_codes(column) for column in pairs.columns]
    width = len(codes[1][1]) or 1
    different, which = np.unique(codes[0][0] * width + codes[1][0], return_inverse=True)
    equal = [_same(codes[0][1][code // width], codes[1][1][code % width]) for code in different.tolist()]
    return np.array(equal, dtype=bool)[which]


def _codes(column: Any) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str | None]]:
    """(number of each row's text, the texts), null as a text of its own."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _same(given: str | None, gold: str | None) -> bool:
    return given is not None and gold is not None and _plain(given) == _plain(gold)


def _plain(answer: str) -> str | Decimal:
    text = " ".join(answer.split()).casefold()
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else text
