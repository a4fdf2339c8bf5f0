"""Teacher forcing, with and without gradient, against float64 on unpadded single sequences."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sequence_processing import GenerationConfig, PromptError, SequenceProcessor, scoring, splits
from sequence_processing.distribution import Policy
from sequence_processing.forwards import score_rows
from sequence_processing.head import Head, find_head, product
from sequence_processing.model import CausalModel
from sequence_processing.pairs import Pair, TokenBudget, in_order
from sequence_processing.scoring import score

from .support import (
    CONFIGS,
    EOS,
    PHI3,
    ROPE_CHANGE,
    VOCAB,
    given,
    make_model,
    naive_quantities,
    prefix_logits,
    reference,
    with_range,
)
from .test_rollouts import PROMPTS, QUANTITIES, OutOfMemoryOver


def processor_for(model, tokenizer, **settings):
    return SequenceProcessor(model, tokenizer, GenerationConfig(**{"max_new_tokens": 12, **settings}))


ROWS = [
    [([5, 6, 7], [8, EOS]), ([5, 6, 7], [9, 10, 11, 12])],
    [([1], []), ([1], [EOS, EOS, 3])],
]


class TestWithoutGradient:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_given_sequences_padded_on_either_side(self, tokenizer, kind):
        model = make_model(kind)
        processor = processor_for(model, tokenizer, temperature=0.7, top_p=0.9)
        for left in (False, True):
            results = processor.teacher_force_logprobs(given(ROWS, left=left), tf_batch_size=3)
            for b, group in enumerate(ROWS):
                for g, (prompt, response) in enumerate(group):
                    want = reference(model, prompt, response, 0.7, 0.9)
                    for name in QUANTITIES:
                        got = np.asarray(getattr(results, name)[b][g])
                        np.testing.assert_allclose(got, getattr(want, name), atol=1e-4, rtol=0)
                    assert results.sequence_logprobs[b][g] == pytest.approx(sum(want.logprobs), abs=1e-4)
        assert isinstance(results.logprobs[0][0], torch.Tensor) and isinstance(results.entropies[0][0], np.ndarray)
        assert isinstance(results.sequence_logprobs[1][0], float) and results.logprobs[1][0].shape == (0,)

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_own_sequences_measure_as_they_were_sampled(self, tokenizer, kind):
        processor = processor_for(make_model(kind), tokenizer, temperature=0.8)
        sequences, sampled = processor.generate_with_logprobs(PROMPTS, G=2, seed=0)
        scored = processor.teacher_force_logprobs(sequences, tf_batch_size=4)
        for b in range(3):
            for g in range(2):
                for name in QUANTITIES:
                    one, two = getattr(sampled, name)[b][g], getattr(scored, name)[b][g]
                    np.testing.assert_allclose(np.asarray(one), np.asarray(two), atol=1e-4, rtol=0)
                assert torch.equal(scored.old_logprobs[b][g], sampled.logprobs[b][g])

    def test_greedy_gives_other_tokens_minus_infinity(self, model, tokenizer):
        results = processor_for(model, tokenizer, temperature=0).teacher_force_logprobs(given(ROWS))
        assert set(results.sampling_logprobs[0][1].tolist()) <= {0.0, -float("inf")}
        assert not results.sampling_entropies[0][1].any()

    def test_small_blocks_change_nothing(self, model, tokenizer, monkeypatch):
        processor = processor_for(model, tokenizer)
        whole = processor.teacher_force_logprobs(given(ROWS))
        monkeypatch.setattr("sequence_processing.distribution.BLOCK_ELEMENTS", 2 * 272)
        parts = processor.teacher_force_logprobs(given(ROWS))
        torch.testing.assert_close(whole.logprobs[0][1], parts.logprobs[0][1], atol=1e-5, rtol=0)

    def test_a_head_that_is_not_understood_gets_full_logits(self, tokenizer):
        model = make_model("gemma2")
        assert find_head(CausalModel(model)) is not None
        want = processor_for(model, tokenizer).teacher_force_logprobs(given(ROWS))
        model.config.final_logit_softcapping = 3.0
        model.lm_head.register_forward_hook(lambda _m, _a, out: out * 1.0)
        forward = model.forward

        def shifted(input_ids, use_cache=None):
            out = forward(input_ids=input_ids, use_cache=use_cache)
            out.logits = out.logits * 0.5
            return out

        model.forward = shifted
        assert find_head(CausalModel(model)) is None
        got = processor_for(model, tokenizer).teacher_force_logprobs(given(ROWS))
        with torch.no_grad():
            logits = model(torch.tensor([[5, 6, 7, 8, EOS]])).logits[0, 2:4].log_softmax(-1)
        torch.testing.assert_close(got.logprobs[0][0], logits[[0, 1], [8, EOS]], atol=1e-5, rtol=0)
        assert not torch.allclose(got.logprobs[0][0], want.logprobs[0][0])

    def test_a_head_that_is_not_the_same_from_outside(self, model, tokenizer):
        """Under an autocast of the model's own forward, as accelerate's `prepare` puts around it."""
        plain = model.forward

        def autocast(input_ids, use_cache=None):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return plain(input_ids=input_ids, use_cache=use_cache)

        model.forward = autocast
        assert find_head(CausalModel(model)) is None
        got = processor_for(model, tokenizer).teacher_force_logprobs(given([[([5, 6, 7], [8, EOS])]]))
        with torch.no_grad():
            logits = model(torch.tensor([[5, 6, 7, 8, EOS]])).logits[0, 2:4].double().log_softmax(-1)
        torch.testing.assert_close(got.logprobs[0][0].double(), logits[[0, 1], [8, EOS]], atol=1e-5, rtol=0)
        model.model.norm.register_forward_hook(lambda _m, _a, out: out.bfloat16())  # a type that only autocast takes
        assert find_head(CausalModel(model)) is None

    def test_a_forward_that_runs_past_the_head_gets_full_logits(self, model):
        causal, pair = CausalModel(model), Pair([5, 6, 7], [8, EOS])
        stranger = Head(torch.nn.Linear(32, VOCAB), lambda x: x)
        with causal.evaluating():
            (got,) = score_rows(causal, model, stranger, [pair], Policy())
        want = reference(model, pair.prompt_ids, pair.response_ids)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-4, rtol=0)

    def test_out_of_memory_makes_batches_smaller(self, model, tokenizer):
        want = processor_for(model, tokenizer).teacher_force_logprobs(given(ROWS))
        OutOfMemoryOver(model, 2)
        for with_grad in (False, True):
            got = processor_for(model, tokenizer).teacher_force_logprobs(given(ROWS), with_grad=with_grad)
            for b, g in ((0, 0), (0, 1), (1, 1)):
                torch.testing.assert_close(got.logprobs[b][g].detach(), want.logprobs[b][g], atol=1e-5, rtol=0)
        OutOfMemoryOver(model, 0, at=2)
        with pytest.raises(torch.OutOfMemoryError):  # not even the probe fits
            processor_for(model, tokenizer).teacher_force_logprobs(given(ROWS))


# Prompts that repeat, around a window of 6 tokens; responses of 0, 1 and more tokens.
SHARED = [
    [([*range(20, 34)], [8, EOS, 3, 4, 5, 6, 7, 8, 9]), ([*range(20, 34)], []), ([*range(20, 34)], [9, 10, 11, 12])],
    [([1], [7]), ([1], [EOS, EOS, 3]), ([1], [5] * 12)],
    [([4, 4, 9], [1, 2]), ([4, 4, 9], [2, 1]), ([4, 4, 9], [2, 1])],
]


class Fed:
    """Watches what token ids a model's forwards are given: their shapes [rows, tokens]."""

    def __init__(self, model):
        self.shapes = []
        model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: self.shapes.append(args[0].shape))

    @property
    def tokens(self):
        return sum(rows * width for rows, width in self.shapes[1:])  # the first forward looks for the head


def assert_as_reference(model, results, rows, temperature=1.0, top_p=1.0):
    for b, group in enumerate(rows):
        for g, (prompt, response) in enumerate(group):
            want = reference(model, prompt, response, temperature, top_p)
            for name in QUANTITIES:
                got = np.asarray(getattr(results, name)[b][g])
                np.testing.assert_allclose(got, getattr(want, name), atol=1e-4, rtol=0)


class TestSharedPrompts:
    """A prompt is computed once for its responses, where the model's cache allows it."""

    @pytest.mark.parametrize("kind", CONFIGS)
    @pytest.mark.parametrize("size", [64, 4, 2, TokenBudget(50)])
    def test_against_float64(self, kind, size):
        model = make_model(kind)
        fed, causal = Fed(model), CausalModel(model)
        pairs = [Pair(prompt, response) for group in SHARED for prompt, response in group]
        measured = iter(in_order(score(causal, pairs, Policy(0.7, 0.9), size)))
        tokens = fed.tokens
        grid = [[next(measured) for _ in group] for group in SHARED]
        results = SimpleNamespace(**{q: [[getattr(m, q) for m in group] for group in grid] for q in QUANTITIES})
        assert_as_reference(model, results, SHARED, 0.7, 0.9)
        if size == 64:  # distinct prompts of up to 14 tokens, then all but the last of up to 12; else rows of up to 23
            assert tokens == (3 * 14 + 9 * 11 if causal.caches_attention else 9 * 23)

    def test_a_context_that_ends_with_a_row(self, tokenizer):
        """Padding behind the longest prompt has no position of its own in a table."""
        model = make_model("gpt2", n_positions=20)
        rows = [[([3] * 18, [1, 2]), ([3] * 18, [4])], [([5, 6], [7] * 18), ([5, 6], [1])]]
        assert_as_reference(model, processor_for(model, tokenizer).teacher_force_logprobs(given(rows)), rows)

    def test_a_head_that_is_not_understood(self, model, tokenizer):
        plain = model.forward

        def halved(input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
            out = plain(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )
            out.logits = out.logits * 0.5
            return out

        model.forward = halved
        fed = Fed(model)
        assert find_head(CausalModel(model)) is None
        got = processor_for(model, tokenizer).teacher_force_logprobs(given(SHARED))
        assert fed.shapes[-1] == (9, 11)
        with torch.no_grad():
            for b, group in enumerate(SHARED):
                for g, (prompt, response) in enumerate(group):
                    logits = plain(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 :] * 0.5
                    want = logits.log_softmax(-1)[range(len(response)), response]
                    torch.testing.assert_close(got.logprobs[b][g], want, atol=1e-4, rtol=0)

    def test_rows_that_go_one_by_one_know_of_no_others(self, model, tokenizer):
        """Bit for bit, as `deterministic` promises: also of a prompt that repeats, or does not."""
        processor = processor_for(model, tokenizer, deterministic=True)
        together = processor.teacher_force_logprobs(given(SHARED))
        for b, group in enumerate(SHARED):
            for g, row in enumerate(group):
                alone = processor.teacher_force_logprobs(given([[row]]))
                for name in QUANTITIES:
                    np.testing.assert_array_equal(getattr(together, name)[b][g], getattr(alone, name)[0][0])

    def test_weights_that_change_between_two_calls(self, model, tokenizer):
        processor = processor_for(model, tokenizer)
        processor.teacher_force_logprobs(given(SHARED))
        with torch.no_grad():
            model.model.layers[0].self_attn.v_proj.weight.mul_(-1)
        assert_as_reference(model, processor.teacher_force_logprobs(given(SHARED)), SHARED)

    def test_out_of_memory_while_prompts_are_shared(self, tokenizer, caplog):
        model = make_model()
        OutOfMemoryOver(model, 3)
        with caplog.at_level("WARNING"):
            got = processor_for(model, tokenizer).teacher_force_logprobs(given(SHARED))
        assert "Out of memory with 9 rows; going on with 4." in caplog.text
        assert_as_reference(model, got, SHARED)


@pytest.fixture
def modules_only(monkeypatch):
    """As where there is no compiler: the model's own modules serve."""
    for place in ("native.serve", "distribution", "head"):
        monkeypatch.setattr(f"sequence_processing.{place}.kernels", lambda: None)


class TestHeadDtype:
    def test_float32_products_of_a_bfloat16_model(self, tokenizer, modules_only):
        """Against a float64 head on the hidden states that the model's own bfloat16 layers give."""
        model, prompt, response = with_range(make_model(), 20).bfloat16(), [5, 6, 7], [8, 9, 10, EOS]
        with torch.no_grad():
            hidden = model.model(torch.tensor([[*prompt, *response]])).last_hidden_state[0, 2:6].double()
        want = naive_quantities((hidden @ model.lm_head.weight.detach().double().T).numpy(), response, 1, 1)
        drifts = {}
        for dtype in ("auto", "float32"):
            processor = processor_for(model, tokenizer, head_dtype=dtype)
            for with_grad in (False, True):
                results = processor.teacher_force_logprobs(given([[(prompt, response)]]), with_grad)
                errors = [results.logprobs[0][0].detach().numpy() - want.logprobs]
                errors.append(np.asarray(torch.as_tensor(results.entropies[0][0]).detach()) - want.entropies)
                drifts[dtype, with_grad] = np.abs(errors).max()
        assert max(drifts["float32", False], drifts["float32", True]) < 1e-5
        assert min(drifts["auto", False], drifts["auto", True]) > 1e-3  # a CPU rounds to bfloat16

    def test_kernels_do_not_round_the_product(self, model, monkeypatch):
        """The kernel's product, as its gradient's forward takes it, against float64."""
        hidden, weight = torch.randn(9, 70).bfloat16(), torch.randn(300, 70).bfloat16()
        want = hidden.double() @ weight.double().T
        assert (product(hidden, weight, None, "auto") - want).abs().max() < 1e-4
        monkeypatch.setattr("sequence_processing.head.kernels", lambda: None)
        assert (product(hidden, weight, None, "auto") - want).abs().max() > 1e-2

    def test_a_head_to_which_it_does_not_apply(self, tokenizer, caplog):
        model = make_model()
        model.lm_head.register_forward_hook(lambda _m, _a, out: out * 1.0)
        with caplog.at_level("WARNING"):
            results = processor_for(model, tokenizer, head_dtype="float32").teacher_force_logprobs(given(ROWS))
        assert "no plain linear layer (Linear): head_dtype does not apply" in caplog.text
        assert_as_reference(model, results, ROWS)


class TestTokenBudget:
    def test_no_forward_takes_more_positions(self, model):
        fed = Fed(model)
        pairs = [Pair([1] * n, [2] * (n % 5)) for n in range(1, 40)]
        done = [i for scored in score(CausalModel(model), pairs, Policy(), TokenBudget(100)) for i, _ in scored]
        assert sorted(done) == list(range(39))
        assert all(rows * width <= 100 for rows, width in fed.shapes[1:])
        assert all((rows + 1) * width > 100 for rows, width in fed.shapes[1:-1])  # and none might have taken a row more

    def test_a_row_beyond_it_goes_alone(self, model):
        fed = Fed(model)
        pairs = [Pair([n] * 30, [1]) for n in range(3)]
        assert len(in_order(score(CausalModel(model), pairs, Policy(), TokenBudget(10)))) == 3
        assert fed.shapes[1:] == [(1, 31)] * 3

    def test_out_of_memory_halves_it(self, model, caplog):
        before = splits.count
        OutOfMemoryOver(model, 2)
        pairs = [Pair([n] * 9, [1]) for n in range(7)]
        with caplog.at_level("WARNING"):
            assert len(in_order(score(CausalModel(model), pairs, Policy(), TokenBudget(1000)))) == 7
        assert "Out of memory with 7 rows; going on with 35 tokens." in caplog.text
        assert splits.count - before == caplog.text.count("Out of memory with") > 0
        OutOfMemoryOver(model, 0, at=2)
        model.forward.rows, model.forward.calls = 100, 0
        with pytest.raises(MemoryError, match="One sequence of 10 tokens does not fit"):
            list(score(CausalModel(model), pairs[:1], Policy(), TokenBudget(1000)))


LONG_ROWS = [[([5, 6, 7], [8, 9])], [([3] * 10, [*range(40, 40 + ROPE_CHANGE)])], [([4] * (ROPE_CHANGE + 6), [1, 2])]]


class TestChangingPositions:
    """LongRoPE: a token is measured as its prefix has it, whatever stands to its right or beside it."""

    def test_without_gradient(self, tokenizer):
        model = make_model("phi3", **PHI3)
        double = copy.deepcopy(model).double()
        results = processor_for(model, tokenizer).teacher_force_logprobs(given(LONG_ROWS))
        for b, [(prompt, response)] in enumerate(LONG_ROWS):
            with torch.no_grad():
                want = naive_quantities(prefix_logits(double, prompt, response).numpy(), response, 1, 1)
            np.testing.assert_allclose(results.logprobs[b][0], want.logprobs, atol=1e-4, rtol=0)
            np.testing.assert_allclose(results.entropies[b][0], want.entropies, atol=1e-4, rtol=0)


class TestMistakes:
    @pytest.mark.parametrize("token", [-1, VOCAB])
    def test_tokens_that_the_model_does_not_have(self, model, tokenizer, token):
        sequences = given(ROWS)
        sequences.sequences[0, 1, 4] = token
        sequences.sequences[0, 0, -1] = token  # padding may be anything
        with pytest.raises(ValueError, match=rf"Token id {token} at position 4 of the row \[0\]\[1\] is outside"):
            processor_for(model, tokenizer).teacher_force_logprobs(sequences)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"prompt_lens": [3]}, "prompt_lens has 1 entries for 2 prompts"),
            ({"gen_lens": [[2, 4]]}, "gen_lens has 1 entries for 2 prompts"),
            ({"gen_lens": [[2, 4], [0]]}, r"gen_lens\[1\] has 1 entries for 2 responses"),
            (
                {"attention_masks": torch.ones(2, 2, 3)},
                r"must both be \[B, G, total_len\], not \[2, 2, 7\] and \[2, 2, 3\]",
            ),
        ],
    )
    def test_lengths_that_do_not_fit_the_grid(self, model, tokenizer, change, sentence):
        with pytest.raises(ValueError, match=sentence):
            processor_for(model, tokenizer).teacher_force_logprobs(dataclasses.replace(given(ROWS), **change))

    def test_a_hole_in_the_mask(self, model, tokenizer):
        sequences = given(ROWS)
        sequences.attention_masks[0, 1, 2] = 0
        with pytest.raises(ValueError, match=r"Row \[0\]\[1\]: the mask marks 6 tokens, but the lengths say 7"):
            processor_for(model, tokenizer).teacher_force_logprobs(sequences)
        sequences = given(ROWS)
        sequences.attention_masks[0, 0] = torch.tensor([1, 1, 0, 1, 1, 1, 0])
        with pytest.raises(ValueError, match=r"Row \[0\]\[0\]: the attention mask has holes"):
            processor_for(model, tokenizer).teacher_force_logprobs(sequences)

    def test_no_prompt(self, model, tokenizer):
        with pytest.raises(ValueError, match="at least one token"):
            processor_for(model, tokenizer).teacher_force_logprobs(given([[([], [1, 2])]]))

    def test_longer_than_the_context(self, model, tokenizer):
        with pytest.raises(ValueError, match="129 tokens, more than the model's context of 128"):
            processor_for(model, tokenizer).teacher_force_logprobs(given([[([1] * 100, [1] * 29)]]))


class TestScore:
    def test_text_and_ids(self, model, tokenizer):
        processor = processor_for(model, tokenizer, temperature=0.7, top_p=0.9)
        told = []
        pairs = [("2+2=", "4</answer>"), ([5, 6], [7, EOS]), ("q", "")]
        rows = sorted(processor.score(pairs, on_step=lambda *a: told.append(a)), key=lambda r: r.prompt_index)
        assert [r.finish_reason for r in rows] == ["scored"] * 3 and [r.sample_index for r in rows] == [0] * 3
        assert rows[0].text == "4</answer>" and rows[1].response_ids == [7, EOS] and rows[2].response_ids == []
        assert told == [(sum(len(r.response_ids) for r in rows), 3)]
        for r in rows:
            want = reference(model, r.prompt_ids, r.response_ids, 0.7, 0.9)
            for name in QUANTITIES:
                np.testing.assert_allclose(getattr(r, name), getattr(want, name), atol=1e-4, rtol=0)

    def test_mistakes_name_the_pair(self, model, tokenizer):
        processor = processor_for(model, tokenizer)
        with pytest.raises(PromptError, match=r"Pair 1: The prompt has 100 and the response 29 tokens.*context of 128"):
            list(processor.score([("a", "b"), ([1] * 100, [1] * 29)]))
        with pytest.raises(PromptError, match="Pair 0: Token id 999 at position 0 of the response"):
            list(processor.score([("a", [999])]))


class TestKernelBatches:
    """With the kernels a batch is packed: a prompt that its responses share counts once."""

    PAIRS = [Pair([n] * 30, [1 + g] * (3 + g)) for n in range(3) for g in range(4)] + [Pair([9] * 90, [4, 5])]

    def batches(self, model, size, monkeypatch, most=10**9, on_failed=None):
        """What was scored, in which batches, where more than `most` tokens at once do not fit."""
        seen = []
        real = scoring.teacher_force

        def cramped(native, prompts, responses, policy):
            seen.append((len(prompts), sum(map(len, {tuple(p) for p in prompts})) + sum(map(len, responses))))
            if seen[-1][1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return real(native, prompts, responses, policy)

        monkeypatch.setattr(scoring, "teacher_force", cramped)
        scored = list(score(CausalModel(model), self.PAIRS, Policy(), size, on_failed=on_failed))
        monkeypatch.setattr(scoring, "teacher_force", real)
        return scored, seen

    def test_budgets_of_rows_and_of_tokens(self, model, monkeypatch):
        want = in_order(score(CausalModel(model), self.PAIRS, Policy(), 1))
        for size in (1, 3, 100, TokenBudget(60), TokenBudget(100), TokenBudget(10_000)):
            scored, seen = self.batches(model, size, monkeypatch)
            assert all(
                rows <= size if isinstance(size, int) else used <= size.tokens or rows == 1 for rows, used in seen
            )
            for ours, theirs in zip(in_order(scored), want, strict=True):
                assert torch.equal(ours.logprobs, theirs.logprobs)
        assert [rows for rows, _ in self.batches(model, TokenBudget(60), monkeypatch)[1]] == [1, 4, 4, 4]

    @pytest.mark.parametrize("size", [100, TokenBudget(10_000), TokenBudget(95)])
    def test_out_of_memory_fails_no_row_that_fits(self, model, monkeypatch, size):
        scored, seen = self.batches(model, size, monkeypatch, most=92)
        assert len(in_order(scored)) == len(self.PAIRS) and seen[-1][1] <= 92

    def test_a_row_that_does_not_fit_is_the_one_that_fails(self, model, monkeypatch):
        failed = []
        scored, _ = self.batches(model, 100, monkeypatch, 91, lambda i, error: failed.append((i, str(error))))
        assert [i for i, _ in failed] == [12] and "One sequence of 92 tokens" in failed[0][1]
        assert sorted(i for part in scored for i, _ in part) == list(range(12))
