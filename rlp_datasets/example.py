"""`Example`: one prompt with what is needed to judge a response to it.

Immutable. `text` is the whole prompt as a model reads it; nothing is added to it afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One prompt of a dataset.

    text: the full prompt, template included. question: the bare question. answer: the gold answer as it would
    stand between the answer tags, or None where there is none. meta: anything else, JSON-like.
    """

    text: str
    question: str
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
