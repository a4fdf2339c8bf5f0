"""Estimates against brute force over all subsets, closed forms, and scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from jobs.estimates import accuracy, effective_samples, pass_at_k, wilson


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(samples: int) -> None:
    for correct in range(samples + 1):
        right = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(combinations(right, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_has_no_bias() -> None:
    """Its mean over all outcomes of 6 draws is the probability itself; "any of the first k" is not asked for."""
    p, samples = 0.3, 6
    outcomes = [(c, p**c * (1 - p) ** (samples - c) * len(list(combinations(range(samples), c)))) for c in range(7)]
    for k in range(1, samples + 1):
        mean = sum(weight * pass_at_k(samples, c, k) for c, weight in outcomes)
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(2_000, 1, 1_000) == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_of_nonsense(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, correct, k)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 10), (70, 100)])
def test_wilson_against_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_accuracy_of_one_response_a_prompt_is_wilsons() -> None:
    found = accuracy(np.array([30, 70]), 1)
    assert found.mean == 0.7
    # The variance over prompts is estimated with n − 1: 99 independent ones.
    assert found[1:] == pytest.approx(wilson(0.7, 99), abs=1e-12)


def test_accuracy_counts_prompts_and_not_responses() -> None:
    """Prompts whose responses all agree are worth one response each, however many there are."""
    counts = np.zeros(9)
    counts[[0, 8]] = 30, 70
    assert accuracy(counts, 8) == pytest.approx(accuracy(np.array([30, 70]), 1), abs=1e-12)
    alike = accuracy(np.array([0, 50, 0]), 2)
    assert alike == pytest.approx((0.5, *wilson(0.5, 50)), abs=1e-12)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, hits, rounds, prompts, samples = np.random.default_rng(0), 0, 2_000, 60, 4
    for _ in range(rounds):
        each = rng.beta(1.0, 2.0, prompts)  # prompts are of different difficulty
        counts = np.bincount(rng.binomial(samples, each), minlength=samples + 1)
        _, low, high = accuracy(counts, samples)
        hits += low <= 1 / 3 <= high
    assert 0.93 < hits / rounds < 0.97


def test_accuracy_of_nothing() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        accuracy(np.zeros(3), 2)


def test_effective_samples_against_the_formula() -> None:
    weights = np.random.default_rng(0).gamma(0.5, 1.0, 1_000)
    expected = sum(weights.tolist()) ** 2 / sum(w * w for w in weights.tolist())
    assert effective_samples(np.log(weights)) == pytest.approx(expected, rel=1e-12)
    assert effective_samples(np.log(weights) - 5_000) == pytest.approx(expected, rel=1e-9)
    assert effective_samples(np.full(7, -900.0)) == 7
    assert effective_samples(np.array([0.0, -np.inf])) == 1
    assert effective_samples(np.zeros(0)) == 0
    with pytest.raises(ValueError, match="finite"):
        effective_samples(np.array([0.0, np.nan]))
