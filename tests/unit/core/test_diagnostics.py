"""Diagnostics: by hand on five tokens, in plain loops over float64 forwards, and without a trace on everything else."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from sequence_processing import GenerationConfig, SequenceProcessor
from sequence_processing.diagnostics import NAMES, Diagnostics
from sequence_processing.distribution import Policy, measure, sample

from .support import CONFIGS, EOS, VOCAB, double_logits, doubled, given, make_model, naive_q, with_range
from .test_rollouts import PROMPTS, QUANTITIES, OutOfMemoryOver

LN2 = math.log(2)
HALVES = [-LN2, -2 * LN2, -3 * LN2, -4 * LN2, -4 * LN2]  # log of 1/2, 1/4, 1/8, 1/16, 1/16
ALL = Diagnostics(NAMES, 3, frozenset({1, 4, 99}))
TYPES = [torch.float32, torch.float64]  # the kernel, where there is one, and torch


def diagnosed(row, policy, dtype=torch.float64):
    """The diagnostics of one row of logits, as plain numbers and lists."""
    m = measure(torch.tensor([row], dtype=dtype), torch.tensor([0]), policy)
    return {name: values[0].tolist() for name, values in m.diagnostics.items()}


@pytest.mark.parametrize("dtype", TYPES)
class TestByHand:
    def check(self, dtype, policy, **want):
        for shift in (0.0, 4 * LN2):  # a constant added to all logits moves their mean and nothing else
            got = diagnosed([z + shift for z in HALVES], policy, dtype)
            for name, value in want.items():
                assert got[name] == pytest.approx(value + shift * (name == "logit_means"), abs=2e-6), name

    def test_of_p(self, dtype):
        """Whatever the temperature and top_p."""
        for temperature, top_p in ((1.0, 1.0), (0.5, 0.9), (0.0, 1.0)):
            self.check(
                dtype,
                Policy(temperature, top_p, ALL),
                top1_probs=1 / 2,
                margins=LN2,
                eos_probs=1 / 4 + 1 / 16,
            )

    def test_plain(self, dtype):
        """q is p."""
        mean = -LN2 * (1 / 2 + 2 / 4 + 3 / 8 + 4 / 16 + 4 / 16)
        squares = LN2**2 * (1 / 2 + 4 / 4 + 9 / 8 + 16 / 16 + 16 / 16)
        self.check(
            dtype,
            Policy(1.0, 1.0, ALL),
            kept_mass=1.0,
            collision_probs=1 / 4 + 1 / 16 + 1 / 64 + 2 / 256,
            logit_means=mean,
            logit_variances=squares - mean**2,
        )

    def test_nucleus(self, dtype):
        """1/2 and 1/4 stay: 3/4 stand before 1/8."""
        self.check(
            dtype,
            Policy(1.0, 0.7, ALL),
            kept_mass=3 / 4,
            collision_probs=5 / 9,
            logit_means=-4 / 3 * LN2,
            logit_variances=2 / 9 * LN2**2,
        )

    def test_temperature_comes_first(self, dtype):
        """p_T = (64, 16, 4, 1, 1) / 86, of which two make up 0.93."""
        self.check(
            dtype,
            Policy(0.5, 0.9, ALL),
            kept_mass=80 / 86,
            collision_probs=0.68,
            logit_means=-1.2 * LN2,
            logit_variances=0.16 * LN2**2,
        )

    def test_greedy(self, dtype):
        self.check(
            dtype, Policy(0.0, 1.0, ALL), kept_mass=1.0, collision_probs=1.0, logit_means=-LN2, logit_variances=0.0
        )

    def test_alternatives(self, dtype):
        got = diagnosed(HALVES[::-1], Policy(0.3, 0.5, ALL), dtype)
        assert got["top_ids"] == [4, 3, 2]
        assert got["top_logprobs"] == pytest.approx([-LN2, -2 * LN2, -3 * LN2], abs=1e-6)

    def test_ties_and_banned_tokens(self, dtype):
        got = diagnosed([1.0, 1.0, -math.inf, 0.0, -math.inf], Policy(1.0, 1.0, ALL), dtype)
        q = 1 / (2 + math.exp(-1))
        assert got["margins"] == 0 and sorted(got["top_ids"][:2]) == [0, 1]
        assert got["logit_means"] == pytest.approx(2 * q, abs=1e-6)
        assert got["logit_variances"] == pytest.approx(2 * q - (2 * q) ** 2, abs=1e-6)
        assert diagnosed([0.0, *[-math.inf] * 4], Policy(1.0, 1.0, ALL), dtype)["margins"] == math.inf

    def test_rows_of_every_length_and_shape_alike(self, dtype):
        """Lengths around the kernel's sixteens and blocks, ties, and tokens far below the top."""
        for n in (1, 2, 15, 16, 17, 1023, 1025, 3000):
            rows = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32) * 5
            rows[1] = rows[1].round()
            rows[2, 1:] -= 150
            for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (3.0, 0.99), (1.0, 0.5), (0.0, 1.0)):
                k = min(5, n)
                policy = Policy(temperature, top_p, Diagnostics(NAMES, k, frozenset({0, n - 1, n})))
                got = measure(torch.tensor(rows).to(dtype), torch.zeros(3, dtype=torch.int64), policy).diagnostics
                for i, row in enumerate(rows.astype(np.float64)):
                    p, q = naive_q(row, 1.0, 1.0), naive_q(row, temperature, top_p)
                    mean = (q * row).sum()
                    falling = np.sort(row)[::-1]
                    want = {
                        "top1_probs": p.max(),
                        "margins": falling[0] - falling[1] if n > 1 else math.inf,
                        "kept_mass": naive_q(row, temperature, 1.0)[q > 0].sum(),
                        "collision_probs": (q**2).sum(),
                        "eos_probs": p[[*{0, n - 1}]].sum(),
                        "logit_means": mean,
                        "logit_variances": (q * (row - mean) ** 2).sum(),
                    }
                    for name, value in want.items():
                        assert float(got[name][i]) == pytest.approx(value, rel=2e-5, abs=2e-5), (name, n, temperature)
                    ids = got["top_ids"][i].numpy()
                    np.testing.assert_array_equal(row[ids], falling[:k])
                    assert len(set(ids)) == k
                    with np.errstate(divide="ignore"):
                        log = row - np.logaddexp.reduce(row)
                    np.testing.assert_allclose(got["top_logprobs"][i].numpy(), log[ids], atol=2e-5, rtol=1e-6)

    def test_small_differences_of_large_logits(self, dtype):
        """The variance is summed around the mean: nothing of it is lost beside 1024^2."""
        row = [1024.0, 1024.0 + 2**-10, 1024.0, 1024.0 + 2**-10]
        got = diagnosed(row, Policy(1.0, 1.0, Diagnostics(("logit_variances",))), dtype)
        assert got["logit_variances"] == pytest.approx(2**-22, rel=1e-3)


class TestAsked:
    @pytest.mark.parametrize("dtype", TYPES)
    def test_only_what_was_asked_for_in_that_order(self, dtype):
        for name in NAMES:
            assert list(diagnosed(HALVES, Policy(0.7, 0.9, Diagnostics((name,))), dtype)) == [name]
        asked = Diagnostics(("margins", "top1_probs"), 2)
        assert list(diagnosed(HALVES, Policy(1.0, 1.0, asked), dtype)) == [
            "margins",
            "top1_probs",
            "top_ids",
            "top_logprobs",
        ]
        assert diagnosed(HALVES, Policy(0.7, 0.9), dtype) == {}

    @pytest.mark.parametrize("dtype", TYPES)
    def test_blocks_change_nothing(self, dtype, monkeypatch):
        logits = torch.randn(11, 40, dtype=dtype)
        policy = Policy(0.7, 0.9, ALL)
        whole = sample(logits, [1] * 11, range(11), policy)[1]
        monkeypatch.setattr("sequence_processing.distribution.BLOCK_ELEMENTS", 160)
        parts = sample(logits, [1] * 11, range(11), policy)[1]
        for name, values in whole.diagnostics.items():
            assert torch.equal(values, parts.diagnostics[name]), name


# --- through models ---------------------------------------------------------------------------------------------------

POLICIES = [(1.0, 1.0), (0.7, 0.9), (0.0, 1.0)]
CASES = [(kind, ["flat", "peaked"][(i + j) % 2], *p) for i, kind in enumerate(CONFIGS) for j, p in enumerate(POLICIES)]
ATOL = 1e-4
K = 4


@cache
def models(kind, shape):
    if shape == "flat":
        model = make_model(kind)
    else:
        cap = {"final_logit_softcapping": 40.0} if "final_logit_softcapping" in CONFIGS[kind] else {}
        model = with_range(make_model(kind, tie_word_embeddings=False, **cap), 20.0)
    return model, doubled(model)


def processor_for(model, tokenizer, **settings):
    defaults = {"max_new_tokens": 10, "stop_strings": (), "diagnostics": NAMES, "top_k_alternatives": K}
    return SequenceProcessor(model, tokenizer, GenerationConfig(**{**defaults, **settings}))


def naive(row, temperature, top_p):
    """By the definitions, of one row of float64 logits."""
    p, q = naive_q(row, 1.0, 1.0), naive_q(row, temperature, top_p)
    falling = np.sort(p)[::-1]
    mean = (q * row).sum()
    return {
        "top1_probs": falling[0],
        "margins": np.log(falling[0]) - np.log(falling[1]),
        "kept_mass": naive_q(row, temperature, 1.0)[q > 0].sum(),
        "collision_probs": (q**2).sum(),
        "eos_probs": p[EOS],
        "logit_means": mean,
        "logit_variances": (q * (row - mean) ** 2).sum(),
        "top_logprobs": np.log(falling[:K]),
    }


def assert_exact(rollout, double, temperature, top_p):
    with torch.no_grad():
        logits = double_logits(double, rollout.prompt_ids, rollout.response_ids).numpy()
    assert list(rollout.diagnostics) == [*NAMES, "top_ids", "top_logprobs"]
    assert {name: values.dtype for name, values in rollout.diagnostics.items()} == {
        **dict.fromkeys((*NAMES, "top_logprobs"), np.dtype(np.float32)),
        "top_ids": np.dtype(np.int64),
    }
    for t, row in enumerate(logits):
        got = {name: values[t] for name, values in rollout.diagnostics.items()}
        # A nucleus that hangs on less than 1e-5 of mass may come out either way.
        near = [naive(row, temperature, top_p + d) for d in ((0, -1e-5, 1e-5) if top_p < 1 else (0,))]
        scale = 1 + np.abs(row).max()  # variances are of squares
        fits = [all(np.allclose(got[name], want[name], atol=ATOL * scale, rtol=ATOL) for name in want) for want in near]
        assert any(fits), (t, got, near[0])
        log = row - np.logaddexp.reduce(row)
        np.testing.assert_allclose(got["top_logprobs"], log[got["top_ids"]], atol=ATOL, rtol=0)
        assert len(set(got["top_ids"])) == K


@pytest.mark.parametrize(("kind", "shape", "temperature", "top_p"), CASES)
def test_both_passes_against_float64(tokenizer, kind, shape, temperature, top_p):
    model, double = models(kind, shape)
    processor = processor_for(model, tokenizer, temperature=temperature, top_p=top_p, ignore_eos=True)
    generated = list(processor.rollouts(PROMPTS, 1, seed=1))
    stranger = (generated[0].prompt_ids, [(7 * token + 5) % EOS for token in generated[0].response_ids])
    scored = list(processor.score([stranger, (generated[1].prompt_ids, generated[1].response_ids)]))
    for rollout in (*generated, *scored):
        assert_exact(rollout, double, temperature, top_p)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
class TestNothingElseChanges:
    def test_the_same_tokens_and_quantities_bit_for_bit(self, tokenizer, kind):
        model = make_model(kind)
        runs = []
        for asked in ({}, {"diagnostics": (), "top_k_alternatives": 0}):
            processor = processor_for(model, tokenizer, temperature=0.8, top_p=0.95, **asked)
            sequences, sampled = processor.generate_with_logprobs(PROMPTS, G=3, seed=5)
            runs.append((sequences, sampled, processor.teacher_force_logprobs(sequences)))
        (with_all, *measured), (without, *plain) = runs
        assert torch.equal(with_all.sequences, without.sequences)
        for one, two in zip(measured, plain, strict=True):
            assert set(one.diagnostics) == {*NAMES, "top_ids", "top_logprobs"} and two.diagnostics == {}
            for name in QUANTITIES:
                for b, g in np.ndindex(3, 3):
                    np.testing.assert_array_equal(getattr(one, name)[b][g], getattr(two, name)[b][g])

    def test_refill_and_running_out_of_memory(self, tokenizer, kind):
        model = make_model(kind)
        model.register_forward_hook(lambda *_: None)  # the kernels then leave it to its modules, which may raise
        settings = {"max_new_tokens": 6, "temperature": 0.8}
        want = run(processor_for(model, tokenizer, gen_batch_size=16, **settings))
        assert_alike(run(processor_for(model, tokenizer, gen_batch_size=2, **settings)), want)
        OutOfMemoryOver(model, 3)
        assert_alike(run(processor_for(model, tokenizer, gen_batch_size=16, **settings)), want)

    def test_scoring_with_less_memory_and_with_gradient(self, tokenizer, kind):
        model = make_model(kind)
        model.register_forward_hook(lambda *_: None)
        processor = processor_for(model, tokenizer, temperature=0.8, top_p=0.9)
        sequences, sampled = processor.generate_with_logprobs(PROMPTS, G=2, seed=5)
        wholes = [processor.teacher_force_logprobs(sequences, with_grad=with_grad) for with_grad in (False, True)]
        (part, *_) = processor.micro_batches(sequences, tf_batch_size=2)
        OutOfMemoryOver(model, 1)
        for results in (*wholes, processor.teacher_force_logprobs(sequences)):
            for name, grid in sampled.diagnostics.items():
                for b, g in np.ndindex(3, 2):
                    np.testing.assert_allclose(results.diagnostics[name][b][g], grid[b][g], atol=1e-4, rtol=1e-4)
        assert wholes[1].logprobs[0][0].requires_grad
        for name, arrays in part.diagnostics.items():
            for (b, g), values in zip(part.rows, arrays, strict=True):
                np.testing.assert_allclose(values, sampled.diagnostics[name][b][g], atol=1e-4, rtol=1e-4)


def run(processor):
    return sorted(processor.rollouts(PROMPTS, 3, seed=2), key=lambda r: (r.prompt_index, r.sample_index))


def assert_alike(got, want):
    for one, two in zip(got, want, strict=True):
        assert one.response_ids == two.response_ids
        for name, values in two.diagnostics.items():
            np.testing.assert_allclose(one.diagnostics[name], values, atol=1e-4, rtol=1e-4)


class TestEdges:
    def test_more_alternatives_than_tokens(self, model, tokenizer):
        (r,) = processor_for(model, tokenizer, top_k_alternatives=1000, max_new_tokens=2).rollouts(["hi"], 1, seed=0)
        assert [sorted(ids) for ids in r.diagnostics["top_ids"]] == [list(range(VOCAB))] * len(r.response_ids)
        np.testing.assert_allclose(np.exp(r.diagnostics["top_logprobs"].astype(np.float64)).sum(1), 1, atol=1e-5)

    def test_empty_responses(self, model, tokenizer):
        processor = processor_for(model, tokenizer, max_new_tokens=0)
        sequences, sampled = processor.generate_with_logprobs(["hi"], G=1)
        for results in (sampled, processor.teacher_force_logprobs(sequences)):
            shapes = {name: grid[0][0].shape for name, grid in results.diagnostics.items()}
            assert shapes == {**dict.fromkeys(NAMES, (0,)), "top_ids": (0, K), "top_logprobs": (0, K)}

    def test_all_ids_that_end_a_response_count_also_where_eos_is_ignored(self, model, tokenizer):
        plain = processor_for(model, tokenizer).teacher_force_logprobs(given([[([5], [6, 7])]]))
        model.generation_config.eos_token_id = [EOS, int(plain.diagnostics["top_ids"][0][0][0, 0])]
        both = processor_for(model, tokenizer, ignore_eos=True).teacher_force_logprobs(given([[([5], [6, 7])]]))
        more = both.diagnostics["eos_probs"][0][0][0] - plain.diagnostics["eos_probs"][0][0][0]
        assert more == pytest.approx(plain.diagnostics["top1_probs"][0][0][0], abs=1e-6)
