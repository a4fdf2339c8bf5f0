"""`math_answer`: whether the one `<answer>` block of a response means the same as the gold answer.

1.0 or 0.0. Equal texts and equal numbers are the same (`jobs.gold`); a gold answer of plain words is compared as text
alone; everything else is judged by math-verify (Kydlíček 2025, github.com/huggingface/Math-Verify), to which `1/2`,
`0.5`, `50%` and `\\frac{1}{2}` are one number. Without a gold answer, or with one that is not mathematics, nothing can
be judged: None. Math-verify has no time limit here: its own needs signals. `jobs.rewards.judge` has one.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import Basic, MatrixBase

from jobs.gold import is_same, the_answer
from jobs.rewards.registry import reward

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: it has ours

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'.-]+[^\W\d_]+)*\.?")
_FUNCTIONS = {"pi", "inf", "infty", "infinity", "oo"}  # words that are mathematics
# `18 dollars`, `5 km`, `$1 000`: a number and its unit. As LaTeX the letters would be variables.
_QUANTITY = re.compile(r"[$€£¥]?\s*[+-]?\d[\d.,/ ]*(?:%|(?:\s*(?!pi\b)[^\W\d_]{2,}\.?)+)?")
_ENVIRONMENTS = ("$", "\\(", "\\[", "\\boxed")


@reward("math_answer", columns=("response", "answer"), seconds=5)
def math_answer(row: dict[str, Any]) -> float | None:
    """1.0 if the response gives the gold answer, 0.0 if not or if it has no or several blocks, None without gold."""
    gold = row["answer"]
    if gold is None:
        return None
    given = the_answer(row["response"] or "")
    if given is None:
        return 0.0
    if is_same(given, gold):
        return 1.0
    if not given.strip() or _is_words(gold):
        return 0.0
    expected = _parsed(gold)
    if not any(isinstance(item, Basic | MatrixBase) for item in expected):
        return None
    return float(verify(list(expected), list(_parsed(given)), timeout_seconds=None, raise_on_error=True))


def _is_words(text: str) -> bool:
    text = text.strip()
    return _WORDS.fullmatch(text) is not None and text.casefold() not in _FUNCTIONS


@lru_cache(maxsize=1024)  # a gold answer stands in each of a prompt's rows
def _parsed(text: str) -> tuple[Any, ...]:
    """What math-verify reads in the text; bare text is a LaTeX expression, unless it is a number with a unit."""
    text = text.strip()
    bare = _QUANTITY.fullmatch(text) or any(sign in text for sign in _ENVIRONMENTS)
    return tuple(parse(text if bare else f"${text}$", parsing_timeout=None, raise_on_error=True))
