"""Estimates from samples, each as the literature defines it. Pure functions of counts and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that one of k responses is correct, estimated without bias from `samples` of which some are correct.

    1 − C(n−c, k) / C(n, k), from Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1. Raises
    ValueError unless 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {correct} correct among {samples} samples: k must be 1 to {samples}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_at_every_k(groups: Sequence[tuple[int, int, int]]) -> dict[int, float]:
    """k → mean of `pass_at_k` over the prompts with at least k samples, for every k that one has.

    `groups`: (samples, correct, how many prompts are so), of at least one prompt each.
    """
    means = {}
    for k in range(1, max((samples for samples, _, _ in groups), default=0) + 1):
        enough = [group for group in groups if group[0] >= k]
        found = sum(count * pass_at_k(samples, correct, k) for samples, correct, count in enough)
        means[k] = found / sum(count for _, _, count in enough)
    return means


def accuracy(correct: np.ndarray[Any, Any], samples: int) -> Interval:
    """Share of correct responses, with an interval that knows that one prompt's responses are not independent.

    Args:
        correct: [samples + 1] at most; entry c counts the prompts with c correct responses of `samples`.
        samples: responses to each prompt.

    The interval is Wilson's (1927), for as many independent responses as have the same standard error as these,
    clustered by prompt (Korn and Graubard 1998). If all prompts have the same share, each counts as one response.
    Raises ValueError without a prompt.
    """
    return interval(*clustered(correct, samples), int(correct.sum()))


def interval(share: float, error: float | None, prompts: int) -> Interval:
    """The interval of `accuracy`, of a share with its standard error over so many prompts."""
    independent = share * (1 - share) / error**2 if error else prompts
    return Interval(share, *wilson(share, independent))


def mean_over_prompts(means: np.ndarray[Any, Any]) -> tuple[float, float | None]:
    """(the mean of the prompts' means [prompts], its standard error; None of fewer than two)."""
    error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(means.mean()), error


def clustered(correct: np.ndarray[Any, Any], samples: float) -> tuple[float, float | None]:
    """(share of correct responses, its standard error over prompts, whose responses are not independent).

    Arguments as `accuracy` takes them; no error of fewer than two prompts. Raises ValueError without a prompt.
    """
    prompts = int(correct.sum())
    if not prompts:
        raise ValueError("there is no prompt with a gold answer")
    shares = np.arange(len(correct)) / samples
    mean = float(correct @ shares) / prompts
    if prompts < 2:
        return mean, None
    return mean, math.sqrt(float(correct @ (shares - mean) ** 2) / (prompts - 1) / prompts)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Bounds of Wilson's 95 % interval of a share among so many independent trials (Wilson 1927)."""
    shrink = 1 + _Z95**2 / count
    middle = (share + _Z95**2 / (2 * count)) / shrink
    reach = _Z95 * math.sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2)) / shrink
    return max(0.0, middle - reach), min(1.0, middle + reach)


def effective_samples(log_weights: np.ndarray[Any, Any]) -> float:
    """Effective sample size of importance weights, (Σ w)² / Σ w², from their logarithms [n] (Kong 1992).

    Between 1 and n; 0 of none. A weight of 0 has the logarithm −inf. Raises ValueError for NaN and +inf.
    """
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        raise ValueError("a weight is not finite")
    if not len(log_weights) or not np.isfinite(log_weights).any():
        return 0.0
    weights = np.exp(log_weights - log_weights.max())  # the largest is 1: nothing overflows
    return float(weights.sum() ** 2 / (weights**2).sum())
