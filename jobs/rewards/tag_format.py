"""`tag_format`: whether a response has the form that the R1 template asks for (`rlp_datasets.template`)."""

from __future__ import annotations

import re
from typing import Any

from jobs.rewards.registry import reward

_FORM = re.compile(r"\s*(?:<think>)?(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@reward("tag_format", columns=("response",))
def tag_format(row: dict[str, Any]) -> float:
    """1.0 for reasoning, `</think>`, and one `<answer>…</answer>` with nothing but white space around; else 0.0.

    The opening `<think>` may stand in the prompt, as the template has it, or at the start of the response.
    """
    found = _FORM.fullmatch(row["response"] or "")
    return float(found is not None and not any(tag in part for part in found.groups() for tag in _TAGS))
