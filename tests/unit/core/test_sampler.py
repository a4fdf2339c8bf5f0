"""What is drawn is distributed as q says, and draws of different names are independent.

Goodness of fit through the public calls: every token counted, and its distribution worked out in float64 from the
definition of q. Seeds are fixed, so a p-value is the same at every run; below 1e-4 it is no accident.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from sequence_processing import GenerationConfig, SequenceProcessor

from .support import double_logits, doubled, make_model, make_tokenizer, naive_q, ranked_q, with_range

POLICIES = [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (0.7, 0.9), (2.0, 0.5)]
PROMPT = [3, 1, 2]
LEAST = 10.0  # draws that a cell of a chi-square test must expect


def small_model(V: int, nats: float, kind: str = "qwen2", *, deaf: bool = False, **settings) -> torch.nn.Module:
    """A model of V ids whose logits span `nats`; a deaf one gives every context the same."""
    model = make_model(kind, vocab_size=V, eos_token_id=None, tie_word_embeddings=False, **settings)
    if deaf:
        with torch.no_grad():
            embedding = model.get_input_embeddings().weight
            embedding.copy_(embedding[:1].clone().expand_as(embedding))
    return with_range(model, nats)


def drawn(model, tokenizer, policy, prompts, G, tokens, *, seed=0, rows=512) -> np.ndarray:
    """Response tokens [prompts, G, tokens]."""
    config = GenerationConfig(*policy, tokens, gen_batch_size=rows, stop_strings=(), ignore_eos=True)
    batch = SequenceProcessor(model, tokenizer, config).generate_batched(prompts, G, seed=seed)
    return batch.sequences[:, :, -tokens:].numpy()


def next_q(double, ids, policy) -> np.ndarray:
    """q [V] of the token that follows `ids`, in float64."""
    with torch.no_grad():
        return naive_q(double_logits(double, ids, [0])[0].numpy(), *policy)


def p_value(counts: np.ndarray, q: np.ndarray) -> float:
    """Pearson's chi-square of `counts` against probabilities `q`; 0 if anything fell where q is 0.

    The cells that expect least are pooled until each expects `LEAST` draws.
    """
    if counts[q == 0].any():
        return 0.0
    cells = np.array(list(pooled(counts[q > 0], counts.sum() * q[q > 0])))
    return stats.chisquare(cells[:, 0], cells[:, 1] * cells[:, 0].sum() / cells[:, 1].sum()).pvalue


def pooled(counts: np.ndarray, expected: np.ndarray) -> Iterator[tuple[float, float]]:
    """(observed, expected) of the cells; small ones added up, and what remains at the end is left out."""
    observed = total = 0.0
    for i in np.argsort(expected, kind="stable"):
        observed, total = observed + counts[i], total + expected[i]
        if total >= LEAST:
            yield observed, total
            observed = total = 0.0


class TestSmallVocabulary:
    """Sequences of two tokens, every one of them counted."""

    V, N = 12, 6000

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
    def test_sequences_are_distributed_as_q(self, tokenizer, kind, policy):
        model = small_model(self.V, 5.0, kind)
        double = doubled(model)
        first = next_q(double, PROMPT, policy)
        q = np.stack([first[a] * next_q(double, [*PROMPT, a], policy) for a in range(self.V)])
        (sequences,) = drawn(model, tokenizer, policy, [PROMPT], self.N, 2)
        counts = np.zeros((self.V, self.V))
        np.add.at(counts, tuple(sequences.T), 1)
        assert p_value(counts.ravel(), q.ravel()) > 1e-4

    def test_a_sampler_that_is_a_little_off_would_be_noticed(self):
        """As many draws as above, made elsewhere from distributions that are nearly the right one."""
        rng = np.random.default_rng(0)
        row = np.linspace(0.0, 5.0, self.V)
        q = naive_q(row, 0.7, 0.9)
        assert p_value(rng.multinomial(self.N, q), q) > 1e-4
        top, least = q.argmax(), np.where(q > 0, q, 1).argmin()
        ids, untruncated = np.arange(self.V), naive_q(row, 0.7, 1)
        wrong = {
            "no top-p": untruncated,
            "top-p before the temperature": naive_q(np.log(naive_q(row, 1, 0.9) + 1e-300), 0.7, 1),
            "a little warmer": np.where(q > 0, naive_q(row, 0.75, 1), 0),
            "without the token that crosses the threshold": np.where(ids == least, 0, q),
            "what was cut off goes to the most probable": np.where(
                ids == top, q[top] + 1 - untruncated[q > 0].sum(), np.where(q > 0, untruncated, 0)
            ),
        }
        for name, other in wrong.items():
            assert p_value(rng.multinomial(self.N, other / other.sum()), q) < 1e-4, name


class TestLargeVocabulary:
    """As many ids as Qwen2.5 has, most of them in the tail."""

    V, N = 151_936, 2048

    @pytest.mark.parametrize("policy", [(1.0, 1.0), (0.8, 0.95)])
    @pytest.mark.parametrize("nats", [2.0, 50.0], ids=["flat", "peaked"])
    def test_ids_are_distributed_as_q(self, tokenizer, nats, policy):
        model = small_model(self.V, nats, hidden_size=16, num_hidden_layers=1)
        with torch.no_grad():
            q = ranked_q(double_logits(doubled(model), PROMPT, [0])[0].numpy(), *policy)
        tokens = drawn(model, tokenizer, policy, [PROMPT], self.N, 1, rows=64)[0, :, 0]
        assert (q[tokens] > 0).all()
        counts = np.bincount(tokens, minlength=self.V)
        assert p_value(counts, q) > 1e-4  # ids of like probability together
        ids = np.arange(self.V)
        for cells in (ids * 40 // self.V, ids % 40):  # neighbours in the vocabulary, and every fortieth of it
            assert p_value(np.bincount(cells, counts), np.bincount(cells, q)) > 1e-4


# Along (seed, prompt key, sample, position), one of each step and its opposite.
STEPS = [step for step in product((0, 1), (-1, 0, 1), (-1, 0, 1), (-1, 0, 1)) if step > (0, 0, 0, 0)]


class TestNames:
    """A model that hears nothing has one q for every token, so that draws differ by their names alone."""

    V, SEEDS, KEYS, SAMPLES, TOKENS = 8, 2, 600, 4, 4

    @staticmethod
    @cache
    def draws() -> tuple[np.ndarray, np.ndarray]:
        """Tokens [seeds, prompt keys, samples, positions], and the q [V] that all of them come from."""
        self, policy = TestNames, (1.0, 0.9)
        model = small_model(self.V, 3.0, deaf=True)
        q = next_q(doubled(model), PROMPT, policy)
        np.testing.assert_allclose(next_q(doubled(model), [7, 7, 1, 5], policy), q, rtol=1e-9)
        of_seeds = [
            drawn(model, make_tokenizer(), policy, [PROMPT] * self.KEYS, self.SAMPLES, self.TOKENS, seed=7 + s)
            for s in range(self.SEEDS)
        ]
        return np.stack(of_seeds), q

    @pytest.mark.parametrize("axis", range(4), ids=["seed", "prompt key", "sample", "position"])
    def test_each_is_distributed_as_q(self, axis):
        tokens, q = self.draws()
        for some in np.array_split(tokens, min(4, tokens.shape[axis]), axis):
            assert p_value(np.bincount(some.ravel(), minlength=self.V), q) > 1e-4

    @pytest.mark.parametrize("step", STEPS, ids=str)
    def test_neighbours_are_independent(self, step):
        """Pairs of draws one step apart, each draw in one pair, against the product of their distributions."""
        tokens, q = self.draws()
        one, other = pairs(tokens, step)
        assert len(one) > 1000
        counts = np.bincount(one * self.V + other, minlength=self.V**2)
        assert p_value(counts, np.outer(q, q).ravel()) > 1e-4


def pairs(tokens: np.ndarray, step: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flat draws, and those one `step` further; along the first axis that the step moves on, every second one."""
    first = next(axis for axis, by in enumerate(step) if by)
    one, other = [], []
    for axis, by in enumerate(step):
        start, stop = max(0, -by), tokens.shape[axis] - max(0, by)
        at = np.arange(start, stop, 2 if axis == first else 1)
        one.append(at)
        other.append(at + by)
    return tokens[np.ix_(*one)].ravel(), tokens[np.ix_(*other)].ravel()


def test_every_draw_of_a_long_run_is_in_the_nucleus(tokenizer):
    """A small nucleus in a flat distribution: sampled where most of the mass is cut off."""
    model = make_model(seed=3)
    double = doubled(model)
    for policy in ((1.0, 0.05), (1.5, 0.3)):
        for response in drawn(model, tokenizer, policy, [PROMPT], 8, 40)[0].tolist():
            with torch.no_grad():
                logits = double_logits(double, PROMPT, response).numpy()
            for row, token in zip(logits, response, strict=True):
                assert naive_q(row, policy[0], policy[1] + 1e-6)[token] > 0
