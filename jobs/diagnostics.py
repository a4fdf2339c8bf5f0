"""The diagnostics that a job may keep of every token, beside its measurements: names, which are the columns' own.

What each is and of which distribution stands in `sequence_processing.diagnostics`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

Diagnostic = Literal[
    "top1_probs", "margins", "kept_mass", "collision_probs", "eos_probs", "logit_means", "logit_variances"
]
DIAGNOSTICS: tuple[Diagnostic, ...] = get_args(Diagnostic)
ALTERNATIVES = ("top_ids", "top_logprobs")
"""Columns of the most probable tokens, a list for each token of the response."""


def columns_of(spec: Mapping[str, Any]) -> list[str]:
    """The columns that a job with this stored spec has for its diagnostics; none for one from before there were any."""
    return [*(spec.get("diagnostics") or ()), *(ALTERNATIVES if spec.get("top_k_alternatives") else ())]


def split_names(value: Any) -> Any:
    """Names that stand together, as `margins,top1_probs` or one a line, taken apart, each once; all else as it is."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        return value
    return tuple(dict.fromkeys(name for text in given for name in re.split(r"[,\s]+", text) if name))
