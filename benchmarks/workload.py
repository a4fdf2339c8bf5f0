"""W1: 16 GSM8K prompts with 8 responses each, whose lengths are forced and long-tailed, as real ones are.

Everything that is compared generates and measures the same number of tokens at the same places; `digest` names them.
The lengths come from `random.Random`, so they are the same on every machine; the prompts depend on the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

TEMPLATE = (
    "You are solving math problems. First think about the reasoning process step by step inside "
    "<think> and </think>, then give the final answer as a single number inside <answer> and "
    "</answer>. Check every step of the arithmetic, and do not repeat the question. "
    "For example: <think> Tom has 3 apples and buys 4 more, so he has 3 + 4 = 7 apples. </think> "
    "<answer>7</answer>. Now solve the next problem in the same way.\n"
    "Question: {q}\nResponse: <think>"
)
PROMPTS, G, SEED = 16, 8, 1234
MEDIAN, SIGMA, SHORTEST, LONGEST = 90.0, 0.6, 8, 200  # tokens of a response: lognormal, clipped
DIGEST = "d150c480f21cb92b"  # W1 on the published GSM8K, in the vocabulary that `models.py` trains on it


@dataclass(frozen=True)
class Workload:
    """B prompts with G responses each."""

    prompts: list[list[int]]  # B lists of token ids, without padding
    lengths: list[list[int]]  # [B][G] tokens that each response has

    @property
    def G(self) -> int:
        return len(self.lengths[0])

    @property
    def flat_lengths(self) -> list[int]:
        """[B * G] tokens, the responses of a prompt side by side."""
        return [n for group in self.lengths for n in group]

    @property
    def tokens(self) -> int:
        """Response tokens in all."""
        return sum(self.flat_lengths)

    @property
    def digest(self) -> str:
        """Names these prompts and lengths."""
        return hashlib.sha256(json.dumps([self.prompts, self.lengths]).encode()).hexdigest()[:16]

    def cut(self, prompts: int, longest: int) -> Workload:
        """The first `prompts` prompts, with responses of at most `longest` tokens: for warming up and trying out."""
        return Workload(self.prompts[:prompts], [[min(n, longest) for n in g] for g in self.lengths[:prompts]])

    def described(self) -> dict[str, Any]:
        prompts, lengths = [len(p) for p in self.prompts], self.flat_lengths
        return {
            "prompts": len(prompts),
            "G": self.G,
            "prompt_tokens": _spread(prompts),
            "shared_prefix_tokens": _shared_prefix(self.prompts),
            "response_tokens": _spread(lengths),
            "digest": self.digest,
        }


def response_lengths(prompts: int, seed: int = SEED) -> list[list[int]]:
    """[prompts][G] forced lengths, tokens."""
    rng = random.Random(seed)

    def length() -> int:
        return int(min(LONGEST, max(SHORTEST, round(rng.lognormvariate(math.log(MEDIAN), SIGMA)))))

    return [[length() for _ in range(G)] for _ in range(prompts)]


def w1(questions: Sequence[str], encode: Callable[[str], list[int]]) -> Workload:
    """W1 for a tokenizer: `questions` are those of GSM8K's test split, `encode` turns text into token ids."""
    return Workload([encode(TEMPLATE.format(q=q)) for q in questions[:PROMPTS]], response_lengths(PROMPTS))


def _shared_prefix(prompts: list[list[int]]) -> int:
    """Tokens with which all prompts begin."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))


def _spread(counts: list[int]) -> dict[str, float]:
    return {"min": min(counts), "median": statistics.median(counts), "max": max(counts), "sum": sum(counts)}
