"""Teacher forcing, with and without gradient, against float64 on unpadded single sequences."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sequence_processing import GenerationConfig, PromptError, SequenceProcessor
from sequence_processing.distribution import Policy
from sequence_processing.model import CausalModel
from sequence_processing.scoring import Head, Pair, _score_batch, find_head

from .support import (
    CONFIGS,
    EOS,
    PHI3,
    ROPE_CHANGE,
    VOCAB,
    given,
    make_model,
    naive_gradients,
    naive_quantities,
    prefix_logits,
    reference,
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
            (got,) = _score_batch(causal, model, stranger, [pair], Policy())
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

    def test_with_gradient(self, tokenizer):
        model = make_model("phi3", **PHI3)
        double = copy.deepcopy(model).double()
        for [(prompt, response)] in LONG_ROWS:
            log = prefix_logits(double, prompt, response).log_softmax(-1)
            (log[range(len(response)), response].sum() - 0.3 * (log.exp() * log).sum()).backward()
        got = own_gradients(processor_for(model, tokenizer), given(LONG_ROWS), tf_batch_size=2)
        for name, p in double.named_parameters():
            torch.testing.assert_close(got[name].double(), p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max()))


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


def own_gradients(processor, sequences, weight=0.3, **options):
    processor.model.zero_grad()
    results = processor.teacher_force_logprobs(sequences, with_grad=True, **options)
    loss = sum(s for group in results.sequence_logprobs for s in group)
    loss = loss + weight * sum(e.sum() for group in results.entropies for e in group)
    loss.backward()
    return {name: p.grad for name, p in processor.model.named_parameters() if p.requires_grad}


class TestWithGradient:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_gradients_of_both_heads(self, tokenizer, kind):
        model = make_model(kind)
        want = naive_gradients(model, ROWS)
        got = own_gradients(processor_for(model, tokenizer), given(ROWS, left=True), tf_batch_size=3)
        assert got.keys() == want.keys()
        for name, gradient in want.items():
            torch.testing.assert_close(got[name].double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))

    def test_gradients_over_many_blocks(self, model, tokenizer, monkeypatch):
        want = naive_gradients(model, ROWS)
        monkeypatch.setattr("sequence_processing.distribution.BLOCK_ELEMENTS", 2 * 272)
        got = own_gradients(processor_for(model, tokenizer), given(ROWS))
        for name, gradient in want.items():
            torch.testing.assert_close(got[name].double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))

    def test_types_and_old_logprobs(self, model, tokenizer):
        processor = processor_for(model, tokenizer)
        _sequences, results = processor.generate_with_logprobs(PROMPTS, G=2, seed=0, with_grad=True)
        for b in range(3):
            for g in range(2):
                assert results.logprobs[b][g].requires_grad and results.entropies[b][g].requires_grad
                assert results.sequence_logprobs[b][g].requires_grad and results.sequence_logprobs[b][g].dim() == 0
                old = results.old_logprobs[b][g]
                assert not old.requires_grad and old.shape == results.logprobs[b][g].shape
                torch.testing.assert_close(old, results.logprobs[b][g].detach(), atol=1e-4, rtol=0)
                assert isinstance(results.sampling_entropies[b][g], np.ndarray)

    def test_a_step_of_the_optimizer_moves_new_and_not_old(self, model, tokenizer):
        processor = processor_for(model, tokenizer)
        sequences, results = processor.generate_with_logprobs(["hi"], G=2, seed=0, with_grad=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (-results.sequence_logprobs[0][0]).backward()
        optimizer.step()
        after = processor.teacher_force_logprobs(sequences)
        assert not torch.allclose(after.logprobs[0][0], results.old_logprobs[0][0])
        assert torch.equal(after.old_logprobs[0][0], results.old_logprobs[0][0])
        prompt_len = sequences.prompt_lens[0]
        ids = sequences.sequences[0, 0][: prompt_len + sequences.gen_lens[0][0]].tolist()
        want = reference(model, ids[:prompt_len], ids[prompt_len:])
        np.testing.assert_allclose(after.logprobs[0][0], want.logprobs, atol=1e-4)

    def test_callers_mode_is_kept_and_dropout_warned_of(self, tokenizer):
        model = make_model("gpt2", resid_pdrop=0.5).train()
        with pytest.warns(RuntimeWarning, match="dropout"):
            processor_for(model, tokenizer).teacher_force_logprobs(given(ROWS), with_grad=True)
        assert model.training

    def test_lora_trains_through_it_and_the_base_stays(self, model, tokenizer):
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        peft = get_peft_model(make_model(tie_word_embeddings=False), lora).eval()
        want = naive_gradients(peft, ROWS)
        got = own_gradients(processor_for(peft, tokenizer), given(ROWS))
        assert got.keys() == want.keys() and all("lora" in name for name in got)
        for name, gradient in want.items():
            torch.testing.assert_close(got[name].double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
        r = next(iter(processor_for(peft, tokenizer).rollouts(["hi"], 1, seed=0)))
        np.testing.assert_allclose(r.logprobs, reference(peft, r.prompt_ids, r.response_ids).logprobs, atol=1e-4)

    def test_bfloat16(self, tokenizer):
        model = make_model().bfloat16()
        _sequences, results = processor_for(model, tokenizer).generate_with_logprobs(
            ["hi"], G=2, seed=0, with_grad=True
        )
        results.sequence_logprobs[0][0].backward()
        assert model.model.embed_tokens.weight.grad.isfinite().all()
        assert results.logprobs[0][0].dtype == torch.float32


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


COMPILED = {
    "around": lambda model: torch.compile(model, backend="eager"),
    "in place": compiled_in_place,
    "forward": compiled_forward,
    "around DDP": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "inside DDP": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
}


class TestCompiled:
    """Compiled code does not see hooks, or keeps them for good: the caller's model must come back as it was."""

    @pytest.mark.parametrize("wrap", COMPILED)
    def test_gradients_and_the_callers_own_forward(self, tokenizer, process_group, wrap):
        plain = make_model()
        want, ids = naive_gradients(plain, ROWS), torch.arange(28).view(4, 7)  # as large as ROWS: no recompilation
        inner = make_model()
        model = COMPILED[wrap](inner)
        model(input_ids=ids, use_cache=False)
        processor = processor_for(model, tokenizer)
        assert (CausalModel(model).distributed is not None) == ("DDP" in wrap)
        own_gradients(processor, given(ROWS))
        for name, p in inner.named_parameters():
            gradient = want[name]
            torch.testing.assert_close(p.grad.double(), gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
        scored = processor.teacher_force_logprobs(given(ROWS))
        np.testing.assert_allclose(scored.logprobs[0][1], reference(plain, *ROWS[0][1]).logprobs, atol=1e-4, rtol=0)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain(input_ids=ids).logits)


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
