"""The engine: exact quantities, draws by name, stops, limits, interruptions."""

import copy
import inspect
import logging
import re

import numpy as np
import pytest
import torch

from sequence_processing import GenerationConfig, PromptError, SequenceProcessor, rollout, splits
from sequence_processing.model import is_out_of_memory

from .support import EOS, PHI3, ROPE_CHANGE, make_model, naive_quantities, prefix_logits, reference

PROMPTS = ["What is 2+3?", "hi", "Tom has 4 apples, and then some more"]
QUANTITIES = ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")


def run(model, tokenizer, prompts=PROMPTS, G=3, *, seed=1, **settings):
    """Rollouts by (prompt, sample); a `prompt_keys` or `on_step` setting goes to the call."""
    call = {name: settings.pop(name) for name in ("prompt_keys", "on_step", "max_new_tokens") if name in settings}
    config = GenerationConfig(**{"max_new_tokens": 16, **settings})
    if isinstance(call.get("max_new_tokens"), int):
        config.max_new_tokens = call.pop("max_new_tokens")
    processor = SequenceProcessor(model, tokenizer, config)
    return {(r.prompt_index, r.sample_index): r for r in processor.rollouts(prompts, G, seed=seed, **call)}


def tokens(rollouts):
    return {name: r.response_ids for name, r in rollouts.items()}


class TestExactness:
    def test_rows_that_pass_a_change_of_their_positions(self, tokenizer):
        """LongRoPE: the longest row of a forward decides for all, past tokens included."""
        model = make_model("phi3", **PHI3)
        double = copy.deepcopy(model).double()
        lengths = set()
        for r in run(model, tokenizer, ["hi", PROMPTS[0], PROMPTS[2]], G=2).values():
            with torch.no_grad():
                want = naive_quantities(
                    prefix_logits(double, r.prompt_ids, r.response_ids).numpy(), r.response_ids, 1, 1
                )
            np.testing.assert_allclose(r.logprobs, want.logprobs, atol=1e-4, rtol=0)
            lengths.add(np.sign(len(r.prompt_ids) - ROPE_CHANGE) + np.sign(len(r.prompt_ids) + 16 - ROPE_CHANGE))
        assert lengths == {-2, 0, 2}  # rows on either side of the change, and one that crosses it
        short = run(model, tokenizer, ["hi"], G=2)
        assert tokens(short) == {
            (0, g): run(model, tokenizer, [PROMPTS[2], "hi"], prompt_keys=[1, 0])[1, g].response_ids for g in (0, 1)
        }

    def test_do_sample_false_is_greedy(self, model, tokenizer):
        assert tokens(run(model, tokenizer, do_sample=False)) == tokens(run(model, tokenizer, temperature=0))

    def test_bfloat16(self, tokenizer):
        model = make_model().bfloat16()
        for r in run(model, tokenizer, temperature=0.8).values():
            assert np.isfinite(r.logprobs).all() and (r.entropies >= 0).all()


class TestDraws:
    def test_neither_batch_nor_order_nor_neighbours(self, model, tokenizer):
        want = tokens(run(model, tokenizer, gen_batch_size=32))
        for size in (1, 5):
            assert tokens(run(model, tokenizer, gen_batch_size=size)) == want
        order = [2, 0, 1]
        shuffled = run(model, tokenizer, [PROMPTS[i] for i in order], prompt_keys=order)
        assert {(order[b], g): r.response_ids for (b, g), r in shuffled.items()} == want
        assert tokens(run(model, tokenizer, PROMPTS[1:2], prompt_keys=[1]))[0, 0] == want[1, 0]

    def test_deterministic_is_bit_for_bit(self, tokenizer):
        model = make_model().bfloat16()
        forwards = OutOfMemoryOver(model, rows=100)
        many = run(model, tokenizer, deterministic=True, gen_batch_size=8)
        one = run(model, tokenizer, PROMPTS[2:], prompt_keys=[2], deterministic=True)
        assert forwards.largest == 1  # on some machines larger batches happen to give the same bits
        for g in range(3):
            assert many[2, g].response_ids == one[0, g].response_ids
            for name in QUANTITIES:
                assert np.array_equal(getattr(many[2, g], name), getattr(one[0, g], name))

    def test_seed_key_and_sample_each_change_them(self, model, tokenizer):
        base = run(model, tokenizer)
        assert tokens(run(model, tokenizer)) == tokens(base)
        assert len({tuple(base[0, g].response_ids) for g in range(3)}) == 3
        assert tokens(run(model, tokenizer, seed=2)) != tokens(base)
        assert tokens(run(model, tokenizer, prompt_keys=[5, 6, 7])) != tokens(base)

    def test_equal_prompts_draw_apart(self, model, tokenizer):
        out = run(model, tokenizer, ["hi", "hi"])
        assert out[0, 0].response_ids != out[1, 0].response_ids
        assert out[0, 0].response_ids == run(model, tokenizer, ["hi"])[0, 0].response_ids

    def test_ranks_draw_apart(self, model, tokenizer, monkeypatch):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
        processor = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=1))
        assert processor.generate_batched(["a", "b"], G=1, seed=0).prompt_keys == [3 << 32, (3 << 32) + 1]


def biased(model, token, by):
    """The model with `by` added to the logit of `token`."""
    model.lm_head = torch.nn.Linear(32, 272)
    with torch.no_grad():
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = by
    return model


class TestEnds:
    def test_eos_counts_and_every_eos_of_generation_config_stops(self, model, tokenizer):
        model = biased(model, 65, 100.0)
        model.generation_config.eos_token_id = [EOS, 65]
        r = run(model, tokenizer, G=1)[0, 0]
        assert (r.response_ids, r.finish_reason, r.stop_offset) == ([65], "eos", None)
        ignoring = run(model, tokenizer, G=1, ignore_eos=True)[0, 0]
        assert (ignoring.response_ids, ignoring.finish_reason) == ([65] * 16, "length")

    def test_stop_string(self, model, tokenizer):
        model = biased(model, tokenizer.convert_tokens_to_ids("a"), 100.0)
        r = run(model, tokenizer, G=1, stop_strings=["zz", "aaa"])[0, 0]
        assert (r.text, r.finish_reason, r.stop_offset, len(r.response_ids)) == ("aaa", "stop", 0, 3)
        assert run(model, tokenizer, G=1, stop_strings=())[0, 0].finish_reason == "length"

    def test_limit_of_a_call_a_prompt_and_a_row(self, model, tokenizer):
        model = biased(model, 65, 100.0)
        for limits, lengths in ((3, [3] * 4), ([2, 0], [2, 2, 0, 0]), ([1, 2, 3, 4], [1, 2, 3, 4])):
            out = run(model, tokenizer, ["a", "b"], 2, max_new_tokens=limits)
            assert [len(out[b, g].response_ids) for b in (0, 1) for g in (0, 1)] == lengths
            assert {r.finish_reason for r in out.values()} == {"length"}
        with pytest.raises(ValueError, match="max_new_tokens has 3 values for 2 prompts with 2 responses"):
            run(model, tokenizer, ["a", "b"], 2, max_new_tokens=[1, 2, 3])

    @pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
    def test_context_caps_a_row_and_not_its_neighbours(self, tokenizer, kind):
        model = make_model(kind)
        prompts = [[65] * 120, [65] * 60]
        out = run(model, tokenizer, prompts, 1, max_new_tokens=64, stop_strings=(), ignore_eos=True)
        assert [len(out[b, 0].response_ids) for b in (0, 1)] == [8, 64]
        assert out[0, 0].finish_reason == "length"
        np.testing.assert_allclose(
            out[1, 0].logprobs, reference(model, prompts[1], out[1, 0].response_ids).logprobs, atol=1e-4
        )

    def test_prompt_longer_than_the_context(self, model, tokenizer):
        with pytest.raises(PromptError, match=r"Prompt 1: The prompt has 128 tokens.*context of 128"):
            run(model, tokenizer, ["fine", [65] * 128])


class OutOfMemoryOver:
    """Wraps a model's forward: raises as CUDA does over `rows` rows, or at its n-th forward."""

    def __init__(self, model, rows, at=None):
        self.forward, self.rows, self.at, self.calls, self.largest = model.forward, rows, at, 0, 0
        self.__signature__ = inspect.signature(model.forward)
        model.forward = self

    def __call__(self, *args, **kwargs):
        self.calls += 1
        rows = kwargs["input_ids"].shape[0]
        self.largest = max(self.largest, rows)
        if rows > self.rows or self.calls == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.forward(*args, **kwargs)


class Grudging:
    """A decoder that has no memory for a third token as long as it has held more than one row."""

    def __init__(self, decoder):
        self.decoder, self.most, self.steps = decoder, 0, 0

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def add(self, prompts, repeats):
        self.most = max(self.most, sum(repeats))
        return self.decoder.add(prompts, repeats)

    def step(self, tokens):
        self.steps += 1
        if self.steps >= 2 and self.most > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.decoder.step(tokens)


class TestMemory:
    def test_the_last_row_of_a_batch_may_fit_by_itself(self, model, tokenizer, monkeypatch):
        """What its neighbours held is still held when they have ended."""
        want = run(model, tokenizer, G=2, max_new_tokens=[1, 1, 1, 1, 1, 9])
        real = rollout.decoder_for
        monkeypatch.setattr(rollout, "decoder_for", lambda *args, **kwargs: Grudging(real(*args, **kwargs)))
        got = run(model, tokenizer, G=2, max_new_tokens=[1, 1, 1, 1, 1, 9])
        assert tokens(got) == tokens(want) and len(got[2, 1].response_ids) == 9

    @pytest.mark.parametrize(("rows", "at"), [(2, None), (100, 7)])
    def test_smaller_batches_go_on_and_change_nothing(self, tokenizer, rows, at, caplog):
        before = splits.count
        want = run(make_model(), tokenizer, G=4)
        model = make_model()
        OutOfMemoryOver(model, rows, at)
        told = []
        processor = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=16))
        with caplog.at_level("WARNING"):
            got = list(processor.rollouts(PROMPTS, 4, seed=1, on_step=lambda new, live: told.append(new)))
        assert splits.count - before == caplog.text.count("Out of memory with") > 0
        assert len(got) == 12  # nothing twice
        assert {(r.prompt_index, r.sample_index): r.response_ids for r in got} == tokens(want)
        assert sum(told) == sum(len(r.response_ids) for r in got) and min(told) >= 0

    def test_one_row_that_does_not_fit(self, model, tokenizer):
        OutOfMemoryOver(model, 0)
        before = splits.count
        with pytest.raises(MemoryError, match=r"2 prompt tokens and up to 16 new ones"):
            run(model, tokenizer, ["hi"], 2)
        assert splits.count == before + 1  # two rows became one, and one cannot become less


@pytest.mark.parametrize(
    ("kind", "words", "yes"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB", True),
        (torch.AcceleratorError, "CUDA error: out of memory\nCUDA kernel errors might be reported later", True),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        (RuntimeError, "MPS backend out of memory (MPS allocated: 9.00 GB)", True),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes", True),
        (RuntimeError, "could not create a primitive", True),  # oneDNN
        (torch.AcceleratorError, "CUDA error: an illegal memory access was encountered", False),
        (ValueError, "MPS backend out of memory", False),
    ],
)
def test_what_out_of_memory_calls_itself(kind, words, yes):
    assert is_out_of_memory(kind(words)) == yes


class TestIteration:
    def test_on_step_tells_every_token(self, model, tokenizer):
        told = []
        out = run(model, tokenizer, on_step=lambda new, live: told.append((new, live)), gen_batch_size=4)
        assert sum(new for new, _ in told) == sum(len(r.response_ids) for r in out.values())
        assert max(live for _, live in told) <= 4 and told[-1][1] == 0

    def test_what_on_step_raises_goes_through_and_modes_come_back(self, model, tokenizer):
        model.train()
        model.model.layers[0].eval()
        modes = [m.training for m in model.modules()]

        def cancel(new, live):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(model, tokenizer, on_step=cancel)
        assert [m.training for m in model.modules()] == modes

    def test_running_out_of_memory_in_the_callers_code_is_the_callers(self, model, tokenizer, caplog):
        def cancel(new, live):
            raise torch.OutOfMemoryError("the caller's own")

        with pytest.raises(torch.OutOfMemoryError, match="the caller's own"):
            run(model, tokenizer, on_step=cancel)
        rollouts = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=4)).rollouts(["a", "b"], 2)
        next(rollouts)
        with pytest.raises(torch.OutOfMemoryError, match="the caller's own"):
            rollouts.throw(torch.OutOfMemoryError("the caller's own"))
        assert "Out of memory" not in caplog.text

    def test_a_fresh_seed_stands_in_the_log(self, model, tokenizer, caplog):
        processor = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=8))
        with caplog.at_level(logging.INFO, logger="sequence_processing"):
            rollouts = list(processor.rollouts(["hi"], 1))
        seed = int(re.search(r"seed=(\d+)", caplog.text)[1])
        assert next(processor.rollouts(["hi"], 1, seed=seed)).response_ids == rollouts[0].response_ids

    def test_between_rollouts_mode_and_gradient_are_the_callers(self, model, tokenizer):
        model.train()
        processor = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=4))
        for _ in processor.rollouts(["a", "b"], 2):
            assert model.training and torch.is_grad_enabled()

    def test_dropout_is_off_while_generating(self, tokenizer):
        model = make_model("gpt2", resid_pdrop=0.5)
        want = tokens(run(model, tokenizer))
        assert tokens(run(model.train(), tokenizer)) == want

    def test_mistakes_show_before_the_first_rollout(self, model, tokenizer):
        processor = SequenceProcessor(model, tokenizer)
        for bad in ({"G": 0}, {"prompt_keys": [1, 2]}):
            with pytest.raises(ValueError, match=r"G must be|prompt_keys has 2 keys for 1 prompts"):
                processor.rollouts(["a"], **{"G": 1, **bad})

    def test_logits_that_are_not_finite(self, model, tokenizer):
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="not finite at token 0 of prompt 0"):
            run(model, tokenizer, ["hi"], 1)
