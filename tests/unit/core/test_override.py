"""Other parameters in the place of the model's own, and heads in float64: against the same done by hand."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from sequence_processing import GenerationConfig, SequenceProcessor, step_along
from sequence_processing.override import overridden

from .support import VOCAB, Widened, doubled, given, make_model, naive_gradients

# One that has a faster way on the CPU, its head its own; a tied one with a soft-cap; and one of other modules.
KINDS = {"llama": {"tie_word_embeddings": False}, "gemma2": {}, "gpt2": {}}
ROWS = [[([5, 6, 7], [8, 9, 10]), ([5, 6, 7], [11, 12])]]


def processor_for(model, **settings):
    from .support import make_tokenizer

    return SequenceProcessor(model, make_tokenizer(), GenerationConfig(**settings))


def forced(model, *, with_grad=False, override=None, **settings):
    return processor_for(model, **settings).teacher_force_logprobs(
        given(ROWS), with_grad=with_grad, params_override=override
    )


def directions(model, names=None, scale=0.02):
    generator = torch.Generator().manual_seed(3)
    return {
        name: scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in model.named_parameters()
        if names is None or name in names
    }


def loaded(model, tensors):
    """The override done for real, in a copy."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            other.get_parameter(name).copy_(tensor)
    return other


def state(model):
    return {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters(remove_duplicate=False)}


def assert_untouched(model, before):
    for name, p in model.named_parameters(remove_duplicate=False):
        pointer, values = before[name]
        assert p.data_ptr() == pointer and torch.equal(p, values) and p.grad is None, name
        assert type(p) is torch.nn.Parameter


def values(results):
    return [torch.as_tensor(x).detach() for name in ("logprobs", "entropies") for x in getattr(results, name)[0]]


@pytest.mark.parametrize("kind", KINDS)
class TestValues:
    @pytest.mark.parametrize("with_grad", [False, True])
    def test_as_if_they_were_loaded_in_turns_with_the_models_own(self, kind, with_grad):
        """Nothing that was derived from the other's parameters is used."""
        model = make_model(kind, **KINDS[kind])
        before = state(model)
        own = values(forced(model, with_grad=with_grad))
        for scale in (0.02, 0.2):
            override = step_along(model, directions(model, scale=scale), 1.0)
            want = values(forced(loaded(model, override), with_grad=with_grad))
            got = values(forced(model, override=override, with_grad=with_grad))
            for one, two, three in zip(got, want, own, strict=True):
                assert torch.equal(one, two) and not torch.allclose(one, three, atol=1e-3)
            for one, two in zip(values(forced(model, with_grad=with_grad)), own, strict=True):
                assert torch.equal(one, two)
        assert_untouched(model, before)

    def test_an_override_of_some_parameters_and_none(self, kind):
        model = make_model(kind, **KINDS[kind])
        names = [name for name, p in model.named_parameters() if p.dim() == 2][-2:]
        override = step_along(model, directions(model, names, 0.3), -0.5)
        assert list(override) == names
        for one, two in zip(
            values(forced(model, override=override)), values(forced(loaded(model, override))), strict=True
        ):
            assert torch.equal(one, two)
        for one, two in zip(values(forced(model, override={})), values(forced(model)), strict=True):
            assert torch.equal(one, two)


def of_step(model, direction, step, quantity, grad=True):
    """The sum of a quantity at theta + step * v, as a function of step."""
    override = step_along(model, direction, step)
    results = forced(model, override=override, with_grad=grad, head_dtype="float64")
    return sum(torch.as_tensor(row).sum() for row in getattr(results, quantity)[0])


@pytest.mark.parametrize("kind", KINDS)
class TestGradients:
    """In float64 throughout, what a model's modules do in float32 included."""

    @pytest.mark.parametrize("quantity", ["entropies", "logprobs"])
    def test_by_the_step_against_finite_differences(self, kind, quantity):
        double = doubled(make_model(kind, **KINDS[kind]))
        before, direction = state(double), directions(double, scale=0.05)
        with Widened():
            for at in (0.0, 0.3):
                step = torch.tensor(at, dtype=torch.float64, requires_grad=True)
                (slope,) = torch.autograd.grad(of_step(double, direction, step, quantity), step)
                h = 1e-4
                # Richardson: the error of the central difference falls with h^4.
                d = [
                    (
                        of_step(double, direction, at + x, quantity, False)
                        - of_step(double, direction, at - x, quantity, False)
                    )
                    / (2 * x)
                    for x in (h, 2 * h)
                ]
                assert float(slope) == pytest.approx(float((4 * d[0] - d[1]) / 3), rel=1e-7)
        assert_untouched(double, before)

    def test_by_the_tensors_is_that_of_the_loaded_model(self, kind):
        model = make_model(kind, **KINDS[kind])
        override = {n: t.requires_grad_() for n, t in step_along(model, directions(model), 1.0).items()}
        results = forced(model, override=override, with_grad=True, tf_batch_size=1)
        loss = sum(row.sum() for row in results.logprobs[0]) + 0.3 * sum(row.sum() for row in results.entropies[0])
        gradients = torch.autograd.grad(loss, list(override.values()))
        want = naive_gradients(loaded(model, override), ROWS)
        for name, gradient in zip(override, gradients, strict=True):
            torch.testing.assert_close(gradient.double(), want[name], atol=2e-4, rtol=2e-4)

    def test_by_one_entry_against_finite_differences(self, kind):
        """Of the head's weight, which is read outside the forward, and of a layer's."""
        double = doubled(make_model(kind, **KINDS[kind]))
        names = list(dict(double.named_parameters()))
        for name in (names[0], next(n for n in names if ".1." in n and "weight" in n), names[-1]):
            unit = torch.zeros_like(double.get_parameter(name))
            unit.view(-1)[7] = 1.0
            with Widened():
                tensor = double.get_parameter(name).detach().clone().requires_grad_()
                results = forced(double, override={name: tensor}, with_grad=True, head_dtype="float64")
                (gradient,) = torch.autograd.grad(sum(row.sum() for row in results.entropies[0]), tensor)
                h = 1e-4
                up, down = (of_step(double, {name: unit}, x, "entropies", False) for x in (h, -h))
            assert float(gradient.view(-1)[7]) == pytest.approx(float((up - down) / (2 * h)), rel=1e-5, abs=1e-8)


def test_layers_that_are_computed_again_in_the_backward_pass_see_the_override():
    """As `functional_call` would not have them: it is over by then."""
    model = make_model("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    direction = directions(model, scale=0.3)

    def slope():
        step = torch.tensor(0.5, requires_grad=True)
        return torch.autograd.grad(of_step(model, direction, step, "entropies"), step)[0]

    again = slope()
    assert model.training and all(m.training for m in model.modules())
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(again, slope(), rtol=1e-4, atol=1e-4)


def test_a_head_that_is_no_plain_layer_sees_the_override_in_the_backward_pass():
    model = make_model("llama", tie_word_embeddings=False)
    want = make_model("llama", tie_word_embeddings=False)
    model.lm_head.register_forward_hook(lambda _module, _args, out: out * 1.0)
    direction = directions(model, ["lm_head.weight", "model.norm.weight"], 0.3)
    slopes = []
    for each in (model, want):
        step = torch.tensor(0.5, requires_grad=True)
        slopes.append(torch.autograd.grad(of_step(each, direction, step, "entropies"), step)[0])
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_adapters():
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"], r=2)).eval()
    names = [name for name, p in model.named_parameters() if p.requires_grad and "lora_B" in name]
    override = step_along(model, directions(model, names, 0.5), 1.0)
    got, want = forced(model, override=override), forced(loaded(model, override))
    for one, two, three in zip(values(got), values(want), values(forced(model)), strict=True):
        assert torch.equal(one, two) and not torch.allclose(one, three, atol=1e-4)


class TestTied:
    def test_all_uses_of_a_parameter_change_together(self):
        model = make_model("qwen2")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        new = model.lm_head.weight.detach() * 1.1
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            tree = overridden(model, {name: new})
            assert tree.lm_head.weight is tree.model.embed_tokens.weight is new
        with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight and lm_head\.weight are one parameter"):
            overridden(model, {"model.embed_tokens.weight": new, "lm_head.weight": new.clone()})


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "tensor", "says"),
        [
            ("lm_head.wieght", torch.zeros(VOCAB, 32), r"no parameter 'lm_head\.wieght'; the closest name is lm_head"),
            ("lm_head.weight", torch.zeros(32, VOCAB), r"has shape \[32, 272\], its parameter \[272, 32\]"),
            (
                "lm_head.weight",
                torch.zeros(VOCAB, 32).double(),
                r"has dtype torch\.float64, its parameter torch\.float32",
            ),
            ("lm_head.weight", torch.zeros(VOCAB, 32, device="meta"), r"has device meta, its parameter cpu"),
        ],
    )
    def test_what_has_no_place(self, name, tensor, says):
        model = make_model("llama")
        with pytest.raises(ValueError, match=says):
            forced(model, override={name: tensor})

    def test_directions(self):
        model = make_model("llama")
        with pytest.raises(ValueError, match="no parameter 'x'"):
            step_along(model, {"x": torch.zeros(1)}, 0.1)
        with pytest.raises(ValueError, match=r"The direction of lm_head\.weight has shape \[1\]"):
            step_along(model, {"lm_head.weight": torch.zeros(1)}, 0.1)

    def test_under_ddp_with_gradient(self, tmp_path):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            model = torch.nn.parallel.DistributedDataParallel(make_model("llama"))
            override = step_along(model, directions(model.module), 1.0)
            with pytest.raises(ValueError, match="DDP"):
                forced(model, override=override, with_grad=True)
            want = values(forced(loaded(model.module, override)))
            for one, two in zip(values(forced(model, override=override)), want, strict=True):
                assert torch.equal(one, two)
        finally:
            torch.distributed.destroy_process_group()


def head_by_hand(model, prompt, response):
    """log p [n, V] in float64 of the hidden states that the model makes, whatever its type."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).last_hidden_state[0]
        return (hidden.double() @ model.lm_head.weight.double().T)[len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestFloat64Head:
    ROW = ([5, 6, 7], [8, 9, 10])

    def results(self, dtype, with_grad=False):
        model = make_model("llama", tie_word_embeddings=False).to(dtype)
        processor = processor_for(model, head_dtype="float64", diagnostics=["margins"], top_k_alternatives=2)
        return model, processor, processor.teacher_force_logprobs(given([[self.ROW]]), with_grad=with_grad)

    @pytest.mark.parametrize("with_grad", [False, True])
    def test_teacher_forcing(self, dtype, with_grad):
        model, _, results = self.results(dtype, with_grad)
        log = head_by_hand(model, *self.ROW)
        got, entropies = results.logprobs[0][0].detach(), torch.as_tensor(results.entropies[0][0]).detach()
        torch.testing.assert_close(got, log[range(3), self.ROW[1]], atol=1e-13, rtol=1e-13)
        torch.testing.assert_close(entropies, -(log.exp() * log).sum(-1), atol=1e-13, rtol=1e-13)
        top = log.sort(descending=True)
        np.testing.assert_allclose(results.diagnostics["margins"][0][0], top[0][:, 0] - top[0][:, 1], atol=1e-13)
        np.testing.assert_allclose(results.diagnostics["top_logprobs"][0][0], top[0][:, :2], atol=1e-13)
        assert results.sampling_logprobs[0][0].dtype == torch.float64
        assert results.sampling_entropies[0][0].dtype == results.diagnostics["margins"][0][0].dtype == np.float64

    def test_gradients_of_the_head(self, dtype):
        model, _, results = self.results(dtype, with_grad=True)
        (results.logprobs[0][0].sum() + 0.3 * results.entropies[0][0].sum()).backward()
        weight = model.lm_head.weight.detach().double().requires_grad_()
        with torch.no_grad():
            ids = torch.tensor([[*self.ROW[0], *self.ROW[1]]])
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, 2:-1].double()
        log = (hidden @ weight.T).log_softmax(-1)
        (log[range(3), self.ROW[1]].sum() - 0.3 * (log.exp() * log).sum()).backward()
        step = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]  # rounded once, to the weight's type
        torch.testing.assert_close(model.lm_head.weight.grad.double(), weight.grad, rtol=step, atol=1e-9)

    def test_sampling(self, dtype):
        """The pass that samples runs the head over hidden states of its own, a token at a time."""
        model, processor, _ = self.results(dtype)
        (r,) = processor.rollouts([self.ROW[0]], 1, seed=0, max_new_tokens=4)
        log = head_by_hand(model, self.ROW[0], r.response_ids)
        assert r.logprobs.dtype == r.entropies.dtype == r.diagnostics["margins"].dtype == np.float64
        atol = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
        np.testing.assert_allclose(r.logprobs, log[range(len(r.response_ids)), r.response_ids], atol=atol)
        assert not (r.logprobs == r.logprobs.astype(np.float32)).all(), "it was rounded to float32 on its way"
        _, sampled = processor.generate_with_logprobs([self.ROW[0]], G=1, seed=0)
        assert sampled.logprobs[0][0].dtype == torch.float64 and sampled.entropies[0][0].dtype == np.float64


def test_entropy_changes_at_small_steps():
    """H(theta + eta v) - H(theta) is eta dH/deta to five digits at 1e-8, where float32 has nothing left of it."""
    double = doubled(make_model("llama"))
    direction, eta = directions(double, scale=0.05), 1e-8
    with Widened():
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(of_step(double, direction, step, "entropies"), step)
        change = of_step(double, direction, eta, "entropies", False) - of_step(
            double, direction, 0.0, "entropies", False
        )
    assert float(change) == pytest.approx(eta * float(slope), rel=1e-4)
    assert np.float32(float(slope) * eta + 5.0) == np.float32(5.0)
