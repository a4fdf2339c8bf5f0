"""p, q and the draws, against their definitions in plain Python."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from sequence_processing import noise
from sequence_processing.distribution import Policy, entropy, log_p, log_q, measure, sample

from .support import naive_q, naive_quantities

MASK = (1 << 64) - 1


def splitmix_by_hand(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def word_by_hand(number: int, low: int, high: int) -> int:
    x = (number * 0x9E3779B9 + low) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x ^= high
    x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return x ^ (x >> 15)


class TestNoise:
    def test_against_pure_integers(self):
        key = noise.row_key(42, 7, 3)
        assert key % 2**64 == int.from_bytes(hashlib.blake2b(b"42:7:3", digest_size=8).digest(), "little")
        drawn = noise.gumbel([key], [5], 50, torch.device("cpu"))[0]
        stream = splitmix_by_hand((key + 6 * 0x9E3779B97F4A7C15) & MASK)
        low, high = stream & 0xFFFFFFFF, stream >> 32
        for token in range(50):
            upper = word_by_hand(token, low, high)
            w = ((upper << 32) + word_by_hand(upper ^ 0x6A09E667, high, upper) + 0.5) / 2**64
            assert drawn[token].item() == pytest.approx(-math.log(-math.log1p(-w)), rel=1e-12, abs=1e-12)

    def test_is_the_published_splitmix64(self):
        # First outputs of the generator seeded with 1234567, as listed with its reference implementation.
        state = 1234567
        expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        assert [splitmix_by_hand((state + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(4)] == expected

    def test_is_gumbel(self):
        drawn = noise.gumbel([noise.row_key(0, i, 0) for i in range(20)], range(20), 5000, torch.device("cpu"))
        assert stats.kstest(drawn.flatten().numpy(), "gumbel_r").pvalue > 0.01
        assert torch.isfinite(drawn).all()

    def test_a_name_is_enough(self):
        keys = [noise.row_key(0, i, 0) for i in range(8)]
        together = noise.gumbel(keys, range(8), 100, torch.device("cpu"))
        alone = noise.gumbel(keys[5:6], [5], 100, torch.device("cpu"))
        assert torch.equal(together[5], alone[0])

    def test_names_do_not_collide(self):
        names = [(s, k, g) for s in (0, 1, 11) for k in (0, 1, 11, 111) for g in (0, 1, 11)]
        assert len({noise.row_key(*name) for name in names}) == len(names)


class TestQ:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
    @pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
    def test_against_the_definition(self, temperature, top_p):
        rows = np.random.default_rng(0).normal(size=(20, 60)) * 3
        rows[:5] = rows[:5].round()  # many ties
        q = log_q(torch.tensor(rows), Policy(temperature, top_p)).exp().numpy()
        for row, got in zip(rows, q, strict=True):
            np.testing.assert_allclose(got, naive_q(row, temperature, top_p), atol=1e-12)

    def test_the_token_that_crosses_the_threshold_stays(self):
        q = log_q(torch.log(torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)), Policy(1.0, 0.7)).exp()
        torch.testing.assert_close(q, torch.tensor([[2 / 3, 1 / 3, 0]], dtype=torch.float64))

    def test_ties_stay_together(self):
        q = log_q(torch.zeros(1, 4, dtype=torch.float64), Policy(1.0, 0.1)).exp()
        torch.testing.assert_close(q, torch.full((1, 4), 0.25, dtype=torch.float64))

    def test_greedy_is_the_lowest_id_of_the_largest(self):
        q = log_q(torch.tensor([[0.0, 3.0, 3.0]], dtype=torch.float64), Policy(0.0))
        assert q.tolist() == [[-math.inf, 0.0, -math.inf]]

    def test_temperature_near_zero_is_finite(self):
        q = log_q(torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64), Policy(1e-308)).exp()
        assert q.tolist() == [[0.0, 0.5, 0.5]]

    def test_temperature_comes_before_top_p(self):
        row = np.log(np.array([0.5, 0.3, 0.2]))
        q = log_q(torch.tensor(row)[None], Policy(0.1, 0.9)).exp()[0]
        assert (q > 0).tolist() == [True, False, False]


class TestMeasure:
    @pytest.mark.parametrize("policy", [Policy(), Policy(0.7, 0.9), Policy(0.0)])
    def test_against_plain_loops(self, policy):
        rng = np.random.default_rng(1)
        logits, tokens = rng.normal(size=(12, 40)) * 4, rng.integers(0, 40, 12)
        got = measure(torch.tensor(logits), torch.tensor(tokens), policy)
        want = naive_quantities(logits, tokens, policy.temperature, policy.top_p)
        for name in vars(want):
            values = getattr(got, name)
            assert values.dtype == torch.float32
            np.testing.assert_allclose(values.numpy(), getattr(want, name), rtol=1e-6, atol=1e-6)

    def test_gradient_of_both_heads_is_the_closed_form(self):
        # dz = g_lp (1[y] - p) - g_H p (log p + H)
        z = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
        y, g_lp, g_h = torch.tensor([1, 5, 9]), torch.randn(3).double(), torch.randn(3).double()
        m = measure(z, y, Policy())
        (g_lp * m.logprobs + g_h * m.entropies).sum().backward()
        log = log_p(z.detach())
        p, h = log.exp(), entropy(log)[:, None]
        onehot = torch.nn.functional.one_hot(y, 20)
        want = g_lp[:, None] * (onehot - p) - g_h[:, None] * p * (log + h)
        torch.testing.assert_close(z.grad, want, rtol=1e-6, atol=1e-7)

    def test_impossible_tokens_leave_entropy_and_gradient_finite(self):
        z = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
        m = measure(z, torch.tensor([0]), Policy())
        (m.logprobs + m.entropies).sum().backward()
        assert torch.isfinite(m.entropies).all() and torch.isfinite(z.grad).all()


class TestSample:
    @pytest.mark.parametrize("policy", [Policy(), Policy(0.7, 0.8)])
    def test_is_distributed_as_q(self, policy):
        row = torch.tensor(np.random.default_rng(2).normal(size=30) * 1.5)
        n = 20_000
        keys = [noise.row_key(3, i, 0) for i in range(n)]
        tokens, _ = sample(row.expand(n, -1), keys, [0] * n, policy)
        q = naive_q(row.numpy(), policy.temperature, policy.top_p)
        counts = np.bincount(tokens.numpy(), minlength=30)
        assert counts[q == 0].sum() == 0
        assert stats.chisquare(counts[q > 0], n * q[q > 0]).pvalue > 0.01

    def test_truncation_does_not_change_the_noise_of_what_stays(self):
        rows = torch.randn(300, 50, dtype=torch.float64)
        keys = [noise.row_key(0, i, 0) for i in range(300)]
        free, _ = sample(rows, keys, [0] * 300, Policy())
        cut, m = sample(rows, keys, [0] * 300, Policy(1.0, 0.6))
        inside = log_q(rows, Policy(1.0, 0.6)).gather(1, free[:, None])[:, 0] > -math.inf
        assert inside.any() and torch.equal(free[inside], cut[inside])
        assert torch.isfinite(m.sampling_logprobs).all()

    def test_blocks_change_nothing(self, monkeypatch):
        rows, keys = torch.randn(9, 50), [noise.row_key(0, i, 0) for i in range(9)]
        whole = sample(rows, keys, range(9), Policy(0.8, 0.9))
        monkeypatch.setattr("sequence_processing.distribution.BLOCK_ELEMENTS", 100)
        parts = sample(rows, keys, range(9), Policy(0.8, 0.9))
        assert torch.equal(whole[0], parts[0])
        assert torch.equal(whole[1].sampling_entropies, parts[1].sampling_entropies)
