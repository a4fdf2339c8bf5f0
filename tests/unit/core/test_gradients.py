"""Teacher forcing with gradient: against float64 autograd on unpadded single sequences, all at once and in parts."""

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sequence_processing import splits
from sequence_processing.model import CausalModel

from .support import (
    CONFIGS,
    PHI3,
    doubled,
    given,
    make_model,
    naive_gradients,
    prefix_logits,
    reference,
    with_range,
)
from .test_rollouts import PROMPTS, OutOfMemoryOver
from .test_scoring import LONG_ROWS, ROWS, processor_for


def own_gradients(processor, sequences, weight=0.3, **options):
    """By one backward over everything."""
    processor.model.zero_grad()
    results = processor.teacher_force_logprobs(sequences, with_grad=True, **options)
    loss = sum(s for group in results.sequence_logprobs for s in group)
    loss = loss + weight * sum(e.sum() for group in results.entropies for e in group)
    loss.backward()
    return gradients_of(processor.model)


def added_gradients(processor, sequences, weight=0.3, **options):
    """By one backward a micro-batch."""
    processor.model.zero_grad()
    for part in processor.micro_batches(sequences, **options):
        sum([*part.sequence_logprobs, *(weight * e.sum() for e in part.entropies)], start=part.zero).backward()
    return gradients_of(processor.model)


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_exact(got, want):
    """Per tensor |d| <= 1e-4 max(|g|, 1e-3 |g_all|)."""
    assert got.keys() == want.keys()
    everything = torch.cat([g.flatten() for g in want.values()]).norm()
    for name, gradient in want.items():
        error = (got[name].double() - gradient).norm()
        assert error <= 1e-4 * max(gradient.norm(), 1e-3 * everything), name


def lora(targets):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    return get_peft_model(make_model(tie_word_embeddings=False), config).eval()


class TestExactness:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_full_fine_tuning(self, tokenizer, kind):
        model = make_model(kind)
        got = own_gradients(processor_for(model, tokenizer), given(ROWS, left=True), tf_batch_size=3)
        assert_exact(got, naive_gradients(model, ROWS))

    @pytest.mark.parametrize("weight", [0.0, -2.0])
    @pytest.mark.parametrize("tied", [True, False])
    def test_peaked_distributions(self, tokenizer, tied, weight):
        model = with_range(make_model(tie_word_embeddings=tied), 50)
        got = own_gradients(processor_for(model, tokenizer), given(ROWS), weight)
        assert_exact(got, naive_gradients(model, ROWS, weight))

    @pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "down_proj"]])
    def test_lora_over_the_head_and_beside_it(self, tokenizer, targets):
        model = lora(targets)
        got = own_gradients(processor_for(model, tokenizer), given(ROWS))
        assert all("lora" in name for name in got)
        assert_exact(got, naive_gradients(model, ROWS))

    def test_over_many_blocks_and_tiles(self, model, tokenizer, monkeypatch):
        monkeypatch.setattr("sequence_processing.distribution.BLOCK_ELEMENTS", 2 * 272)
        monkeypatch.setattr("sequence_processing.head.TILE_ELEMENTS", 100)
        got = own_gradients(processor_for(model, tokenizer), given(ROWS))
        assert_exact(got, naive_gradients(model, ROWS))

    def test_positions_that_change_with_the_length(self, tokenizer):
        model = make_model("phi3", **PHI3)
        double = doubled(model)
        for [(prompt, response)] in LONG_ROWS:
            log = prefix_logits(double, prompt, response).log_softmax(-1)
            (log[range(len(response)), response].sum() - 0.3 * (log.exp() * log).sum()).backward()
        processor = processor_for(model, tokenizer)
        assert_exact(own_gradients(processor, given(LONG_ROWS), tf_batch_size=2), gradients_of(double))
        assert_exact(added_gradients(processor, given(LONG_ROWS), tf_batch_size=1), gradients_of(double))


class TestResults:
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
        processor = processor_for(model, tokenizer)
        for measured in (
            lambda: processor.teacher_force_logprobs(given(ROWS), with_grad=True),
            lambda: list(processor.micro_batches(given(ROWS))),
        ):
            with pytest.warns(RuntimeWarning, match="dropout") as caught:
                measured()
            assert caught[0].filename == __file__
        assert model.training

    def test_adapters_leave_the_base_as_it_is(self, tokenizer):
        model = lora(["q_proj", "lm_head"])
        r = next(iter(processor_for(model, tokenizer).rollouts(["hi"], 1, seed=0)))
        np.testing.assert_allclose(r.logprobs, reference(model, r.prompt_ids, r.response_ids).logprobs, atol=1e-4)

    def test_bfloat16(self, tokenizer):
        model = make_model().bfloat16()
        _sequences, results = processor_for(model, tokenizer).generate_with_logprobs(
            ["hi"], G=2, seed=0, with_grad=True
        )
        results.sequence_logprobs[0][0].backward()
        assert model.model.embed_tokens.weight.grad.isfinite().all()
        assert results.logprobs[0][0].dtype == torch.float32


class TestMicroBatches:
    @pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2", "mamba"])
    def test_gradients_add_up_to_those_of_everything(self, tokenizer, kind):
        model = make_model(kind)
        assert_exact(
            added_gradients(processor_for(model, tokenizer), given(ROWS), tf_batch_size=2), naive_gradients(model, ROWS)
        )

    def test_every_response_once_longest_first(self, model, tokenizer):
        processor = processor_for(model, tokenizer)
        sequences = processor.generate_batched(PROMPTS, G=2, seed=0)
        want = processor.teacher_force_logprobs(sequences, with_grad=True)
        parts = list(processor.micro_batches(sequences, tf_batch_size=4))
        assert [len(part.rows) for part in parts] == [4, 2]
        assert sorted(row for part in parts for row in part.rows) == [(b, g) for b in range(3) for g in range(2)]
        lengths = [sequences.prompt_lens[b] + sequences.gen_lens[b][g] for part in parts for b, g in part.rows]
        assert lengths == sorted(lengths, reverse=True)
        for part in parts:
            assert part.zero == 0 and part.zero.requires_grad and part.zero.dim() == 0
            for i, (b, g) in enumerate(part.rows):
                for name in ("logprobs", "entropies", "sequence_logprobs"):
                    one, whole = getattr(part, name)[i], getattr(want, name)[b][g]
                    assert one.requires_grad
                    torch.testing.assert_close(one, whole, atol=1e-4, rtol=0)
                for name in ("sampling_logprobs", "sampling_entropies"):
                    np.testing.assert_allclose(getattr(part, name)[i], getattr(want, name)[b][g], atol=1e-4)
                assert torch.equal(part.old_logprobs[i], want.old_logprobs[b][g])

    @pytest.mark.parametrize("backward", [True, False])
    def test_one_graph_at_a_time(self, model, tokenizer, backward):
        """Of what a forward saves nothing is left when the next one begins, called backward on or dropped."""
        saved: list[weakref.ref] = []
        alive: list[int] = []

        class Kept:
            def __init__(self, tensor):
                self.tensor = tensor.detach()  # an output that held itself would never go

        def keep(tensor):
            kept = Kept(tensor)
            saved.append(weakref.ref(kept))
            return kept

        model.register_forward_pre_hook(lambda *_: alive.append(sum(k() is not None for k in saved)))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            for part in processor_for(model, tokenizer).micro_batches(given(ROWS), tf_batch_size=1):
                if backward:
                    part.zero.backward()
                else:
                    del part
                gc.collect()
        assert len(alive) == 1 + 4 and len(saved) > 40  # one forward looks for the head
        assert not any(alive)

    def test_a_loss_per_response(self, model, tokenizer):
        """As its docstring has it: the gradient is the sum over responses, weighed by their advantages."""
        advantages = [[0.5, -1.0], [2.0, 3.0]]
        processor = processor_for(model, tokenizer)
        for part in processor.micro_batches(given(ROWS), tf_batch_size=3):
            loss = part.zero
            for (b, g), logprobs in zip(part.rows, part.logprobs, strict=True):
                loss = loss - advantages[b][g] * logprobs.sum()
            loss.backward()
        got, want = gradients_of(model), {}
        for b, group in enumerate(ROWS):
            for g, row in enumerate(group):
                for name, gradient in naive_gradients(model, [[row]], 0.0).items():
                    if gradient is not None:
                        want[name] = want.get(name, 0) - advantages[b][g] * gradient
        assert_exact(got, want)

    def test_out_of_memory_makes_them_smaller(self, model, tokenizer):
        want = naive_gradients(model, ROWS)
        OutOfMemoryOver(model, 1)
        processor, before = processor_for(model, tokenizer), splits.count
        assert_exact(added_gradients(processor, given(ROWS)), want)
        assert [len(part.rows) for part in processor.micro_batches(given(ROWS))] == [1, 1, 1, 1]
        assert splits.count > before

    def test_mistakes_are_told_at_once(self, model, tokenizer):
        processor = processor_for(model, tokenizer)
        with pytest.raises(ValueError, match="tf_batch_size"):
            processor.micro_batches(given(ROWS), tf_batch_size=0)
        with pytest.raises(ValueError, match="at least one token"):
            processor.micro_batches(given([[([], [1, 2])]]))

    def test_the_callers_grad_mode_is_kept(self, model, tokenizer):
        with torch.no_grad():
            for part in processor_for(model, tokenizer).micro_batches(given(ROWS), tf_batch_size=2):
                assert not torch.is_grad_enabled() and part.zero.requires_grad


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
        assert_exact(gradients_of(inner), want)
        scored = processor.teacher_force_logprobs(given(ROWS))
        np.testing.assert_allclose(scored.logprobs[0][1], reference(plain, *ROWS[0][1]).logprobs, atol=1e-4, rtol=0)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain(input_ids=ids).logits)
