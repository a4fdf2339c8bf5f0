"""Whether a response gives the gold answer: by one plain rule, so that the figure means the same for every job.

A response is correct if it holds exactly one `<answer>…</answer>` block and what stands in it equals the gold answer,
white space, case, and the way a number is written (`1,000.0` is `1000`) aside. Anything else is wrong.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

RULE = "exactly one <answer> block, equal to the gold answer but for white space, case and how a number is written"
_OPEN, _CLOSE = "<answer>", "</answer>"
_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d*)?|[+-]?\.\d+", re.ASCII)


def is_correct(response: str, gold: str) -> bool:
    """Whether the response gives the gold answer."""
    given = the_answer(response)
    return given is not None and is_same(given, gold)


def the_answer(response: str) -> str | None:
    """What stands in the response's one `<answer>…</answer>` block; None if there is none, or more than one."""
    if response.count(_OPEN) != 1 or response.count(_CLOSE) != 1:
        return None
    given, closed, _ = response.partition(_OPEN)[2].partition(_CLOSE)
    return given if closed else None


def is_same(given: str, gold: str) -> bool:
    """Whether two answers are equal, white space, case, and the way a number is written aside."""
    return _plain(given) == _plain(gold)


@lru_cache(maxsize=4096)  # a job's answers repeat, and a gold answer stands in each of a prompt's rows
def _plain(answer: str) -> str | Decimal:
    text = " ".join(answer.split()).casefold()
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else text
