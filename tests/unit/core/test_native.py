"""The CPU kernels: each against plain torch in float64, the whole against the model's own modules, rows alone and in
company bit for bit, and the way back to the modules where the kernels do not serve.
"""

import copy
import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from sequence_processing import GenerationConfig, SequenceProcessor, decode, distribution
from sequence_processing.distribution import Policy
from sequence_processing.model import CausalModel
from sequence_processing.native import build, serve
from sequence_processing.native.decoder import NativeDecoder
from sequence_processing.native.ops import PAGE, Store, Tokens, attention_work, kernels
from sequence_processing.native.pages import Pages
from sequence_processing.native.serve import forward_for
from sequence_processing.native.teacher import teacher_force
from sequence_processing.native.weights import weights_of
from sequence_processing.noise import row_key

from .support import make_model

PROMPTS = ["What is 2+3?", "hi", "Tom has 4 apples, and then some more"]
QUANTITIES = ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}

SERVED = {
    "qwen2": ("qwen2", {}),  # biases, tied head
    "llama, one head a key": ("llama", {}),
    "odd sizes": ("llama", {"hidden_size": 36, "intermediate_size": 50, "head_dim": 18, "num_key_value_heads": 1}),
    "wide heads": ("mistral", {"head_dim": 80, "num_attention_heads": 9, "num_key_value_heads": 1,
                               "hidden_size": 32, "intermediate_size": 48, "sliding_window": None}),
    "window not reached": ("mistral", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                                       "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 128}),
    "norms of queries and keys": ("qwen3", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                                            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
    "scaled positions": ("llama", {"max_position_embeddings": 128, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
}  # fmt: skip


def served(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    kind, settings = SERVED[name]
    model = make_model(kind, **{"max_position_embeddings": 128, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases that do something
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def last_logits(model, rows):
    """Logits after each row, by the modules in float64, one row at a time."""
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        return torch.stack([double(input_ids=torch.tensor([r]), use_cache=False).logits[0, -1] for r in rows])


def assert_close(ours, want, dtype):
    assert float((ours - want).abs().max()) < ROUNDING[dtype] * float(want.max() - want.min())


class TestKernels:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rows", [1, 3, 4, 9, 300])
    @pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (16, 6), (33, 13), (64, 7), (100, 50)])
    def test_linear(self, dtype, rows, inputs, outputs):
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        weight, bias = weight.to(dtype), bias.to(dtype)
        y = torch.full((rows, outputs + 3), 2.0)  # as a part of a wider matrix
        panel = torch.empty_like(x)
        kernels().linear(x, weight, y[:, 1:-2], panel, bias, scale=0.5)
        want = x.to(dtype).double() @ weight.double().T * 0.5 + bias.double()
        torch.testing.assert_close(y[:, 1:-2].double(), want, atol=1e-5 * inputs**0.5, rtol=1e-5)
        assert (y[:, 0] == 2).all() and (y[:, -2:] == 2).all()
        kernels().linear(x, weight, y[:, 1:-2], panel, add=True)
        want += x.to(dtype).double() @ weight.double().T
        torch.testing.assert_close(y[:, 1:-2].double(), want, atol=2e-5 * inputs**0.5, rtol=1e-5)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_row_of_a_product_is_its_own(self, dtype):
        """Bit for bit alone and in company, on one thread and on two."""
        x, weight = torch.randn(77, 90), torch.randn(55, 90).to(dtype)
        panel = torch.empty_like(x)

        def product(rows, threads=1):
            torch.set_num_threads(threads)
            y = torch.empty(len(rows), 55)
            kernels().linear(rows, weight, y, panel)
            return y

        together = product(x)
        assert torch.equal(product(x, threads=2), together)
        for size in (1, 2, 5, 64):
            assert torch.equal(torch.cat([product(part.contiguous()) for part in x.split(size)]), together)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("heads", "kv_heads", "width"), [(1, 1, 8), (6, 2, 16), (7, 1, 64), (9, 1, 80), (4, 4, 18)]
    )
    def test_attention(self, dtype, heads, kv_heads, width):
        """A row with 21 shared and 5 tokens of its own, and one that has only 40 of its own, as plain softmax."""
        layers, slab_pages = 2, 3
        elements = layers * 2 * kv_heads * PAGE * width
        slabs = [torch.full((slab_pages * elements,), float("nan"), dtype=dtype) for _ in range(3)]
        addresses = np.array([s.data_ptr() for s in slabs], dtype=np.uint64)
        store = Store(addresses, slab_pages, layers, kv_heads, width, dtype)
        tables = np.array([[7, 2, 4, 0], [1, 8, 5, 0]], dtype=np.int32)
        scale, prefix, own = 0.3, np.array([21, 0]), np.array([5, 40])
        q = torch.randn(2, heads * width)
        keys, values = (torch.randn(2, 40, kv_heads * width).to(dtype) for _ in range(2))
        for row, (shared, count) in enumerate([(21, 26), (0, 40)]):
            places = [i if i < shared else -(-shared // PAGE) * PAGE + i - shared for i in range(count)]
            slots = np.array([tables[row, p // PAGE] * PAGE + p % PAGE for p in places], dtype=np.int64)
            kernels().put_tokens(keys[row, :count].float(), values[row, :count].float(), store, 1, slots)
        tokens = Tokens(np.zeros(2, dtype=np.int64), np.arange(2), prefix, own, tables)
        out = torch.empty(2, heads * width)
        work = torch.empty(attention_work(tables.shape[1], width))
        kernels().attention(q, out, store, 1, tokens, scale, work)
        for row, count in enumerate([26, 40]):
            k, v = (x[row, :count].double().view(count, kv_heads, width) for x in (keys, values))
            k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
            queries = q[row].to(dtype).double().view(heads, width)
            weights = torch.softmax(torch.einsum("hd,khd->hk", queries, k) * scale, dim=-1)
            want = torch.einsum("hk,khd->hd", weights, v).flatten()
            torch.testing.assert_close(out[row].double(), want, atol=2e-6, rtol=1e-5)


# The first two: inverse temperatures beyond float32; the third a top_p below any mass.
POLICIES = [
    Policy(1e-40),
    Policy(1e-40, 0.5),
    Policy(1.0, 1e-9),
    Policy(),
    Policy(0.7),
    Policy(1.0, 0.9),
    Policy(1.7, 0.95),
    Policy(0.0),
    Policy(1e-3, 0.5),
    Policy(50.0, 0.2),
]


class TestSampling:
    """Against distribution.py's own float64 way, which other tests hold against plain loops."""

    @pytest.mark.parametrize("policy", POLICIES, ids=str)
    @pytest.mark.parametrize("spread", [0.0, 0.02, 1.0, 10.0])
    @pytest.mark.parametrize("vocab_size", [1, 5, 16, 2500])
    def test_draws_and_quantities(self, monkeypatch, policy, spread, vocab_size):
        logits = torch.randn(20, vocab_size) * spread
        logits[:, vocab_size // 2] = -torch.inf if vocab_size > 1 else 0.0
        logits[3:6] = logits[3:6].round()  # ties
        keys, positions = [row_key(1, i, 0) for i in range(20)], list(range(20))
        given = torch.arange(20) % vocab_size
        assert distribution.kernels() is not None
        fast = distribution.sample(logits, keys, positions, policy), distribution.measure(logits, given, policy)
        monkeypatch.setattr(distribution, "kernels", lambda: None)
        plain = distribution.sample(logits, keys, positions, policy), distribution.measure(logits, given, policy)
        assert torch.equal(fast[0][0], plain[0][0])
        for ours, want in ((fast[0][1], plain[0][1]), (fast[1], plain[1])):
            for name in QUANTITIES:
                torch.testing.assert_close(getattr(ours, name), getattr(want, name), atol=5e-6, rtol=1e-6)

    def test_a_token_that_is_none(self):
        for token in (-1, 40):
            with pytest.raises(IndexError, match="none of the 40"):
                distribution.measure(torch.randn(2, 40), torch.tensor([3, token]), Policy())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_logits_that_are_not_finite(self, bad):
        logits = torch.randn(2, 40)
        logits[1, 17] = bad
        _tokens, measured = distribution.sample(logits, [1, 2], [0, 0], Policy(0.9, 0.9))
        assert measured.logprobs.isnan().tolist() == [False, True]


class TestAgainstTheModules:
    @pytest.mark.parametrize("name", SERVED)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_come_and_go(self, name, dtype):
        model = served(name, dtype)
        decoder = decode.decoder_for(CausalModel(model), 100)
        assert isinstance(decoder, NativeDecoder)
        draw = torch.Generator().manual_seed(0)

        def random(n):
            return torch.randint(0, 256, (n,), generator=draw).tolist()

        def step():
            tokens = random(len(rows))
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
            return decoder.step(torch.tensor(tokens))

        # Lengths around a page, and prompts that begin as others do.
        long = random(49)
        prompts = [random(1), random(16), long, [*long[:33], 7], long[:32], random(17)]
        rows = [list(p) for p in prompts for _ in range(2)]
        assert_close(decoder.add(prompts, [2] * 6), last_logits(model, rows), dtype)
        for _ in range(17):
            logits = step()
        assert_close(logits, last_logits(model, rows), dtype)
        kept = [0, 3, 4, 8, 11]
        decoder.keep(torch.tensor(kept))
        rows = [rows[i] for i in kept]
        step()
        new = [long[:40], random(2)]
        more = [list(new[0]), list(new[1]), list(new[1])]
        assert_close(decoder.add(new, [1, 2]), last_logits(model, more), dtype)
        rows += more
        assert_close(step(), last_logits(model, rows), dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rank", [3, 50])  # less than the inputs, and more
    @pytest.mark.parametrize("adapter_dtype", DTYPES)
    def test_low_rank_adapters(self, dtype, rank, adapter_dtype):
        narrowest = min(dtype, adapter_dtype, key=lambda t: t.itemsize)  # an adapter's product rounds its input as well
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(served("qwen2"), config).to(dtype).eval()
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.data = parameter.data.to(adapter_dtype)
        prompt = list(range(20))

        def logits():
            decoder = decode.decoder_for(CausalModel(model), 100)
            assert isinstance(decoder, NativeDecoder)
            return decoder.add([prompt], [1])

        assert_close(logits(), last_logits(model, [prompt]), narrowest)
        with model.disable_adapter():
            plain = logits()
            assert_close(plain, last_logits(model, [prompt]), dtype)
        assert (logits() - plain).abs().max() > 0.02

    def test_under_other_defaults_of_torch(self, tokenizer):
        """A caller who builds a model in bfloat16, say, sets them for the whole process."""
        model = served("qwen2")

        def run():
            processor = SequenceProcessor(model, tokenizer, GenerationConfig(0.9, 0.9, 20))
            sequences, generated = processor.generate_with_logprobs(PROMPTS, G=2, seed=1)
            return sequences.sequences, generated.logprobs, processor.teacher_force_logprobs(sequences).logprobs

        want = run()
        torch.set_default_dtype(torch.bfloat16)
        try:
            got = run()
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(got[0], want[0])
        for ours, theirs in zip(got[1:], want[1:], strict=True):
            assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("policy", [Policy(), Policy(0.8, 0.9), Policy(0.0)], ids=str)
    def test_teacher_forcing_is_the_sampling_pass_bit_for_bit(self, tokenizer, dtype, policy):
        model = served("qwen2", dtype)
        config = GenerationConfig(policy.temperature, policy.top_p, 40, gen_batch_size=7, stop_strings=())
        rollouts = list(SequenceProcessor(model, tokenizer, config).rollouts(PROMPTS, 5, seed=3))
        prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        measured = teacher_force(forward_for(CausalModel(model), 128), [*prompts, [5]], [*responses, []], policy)
        assert measured[-1].logprobs.shape == (0,)
        for rollout, again in zip(rollouts, measured, strict=False):
            for name in QUANTITIES:
                assert np.array_equal(getattr(rollout, name), getattr(again, name).numpy())


class TestIndependence:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_batch_order_neighbours_and_threads_change_no_bit(self, tokenizer, dtype):
        model = served("qwen2", dtype)

        def run(size, order=(0, 1, 2), threads=1, limit=30):
            torch.set_num_threads(threads)
            config = GenerationConfig(0.9, 0.95, limit, gen_batch_size=size)
            found = SequenceProcessor(model, tokenizer, config).rollouts(
                [PROMPTS[i] for i in order], 6, seed=5, prompt_keys=list(order)
            )
            return {(order[r.prompt_index], r.sample_index): r for r in found}

        want = run(32)
        for other in (run(1), run(5), run(7, (2, 0, 1)), run(32, threads=2), run(4, (1,))):
            for name, rollout in other.items():
                assert rollout.response_ids == want[name].response_ids
                for quantity in QUANTITIES:
                    assert np.array_equal(getattr(rollout, quantity), getattr(want[name], quantity))
        for name, rollout in run(8, limit=11).items():
            assert rollout.response_ids == want[name].response_ids[:11]

    def test_deterministic_rows_do_not_depend_on_whether_a_neighbour_passes_the_window(self, tokenizer):
        kind, settings = SERVED["window not reached"]
        model = make_model(kind, **{**settings, "sliding_window": 24}).bfloat16()
        config = GenerationConfig(max_new_tokens=8, deterministic=True, stop_strings=())
        processor = SequenceProcessor(model, tokenizer, config)
        prompts = ["hi", "Tom has 4 apples, and then some more"]  # only the second passes the window

        alone = next(iter(processor.rollouts(prompts[:1], 1, seed=0)))
        beside = next(r for r in processor.rollouts(prompts, 1, seed=0) if r.prompt_index == 0)
        for name in QUANTITIES:
            assert np.array_equal(getattr(alone, name), getattr(beside, name))
        pairs = [(p, "some words") for p in prompts]
        alone = next(iter(processor.score(pairs[:1])))
        beside = next(r for r in processor.score(pairs) if r.prompt_index == 0)
        for name in QUANTITIES:
            assert np.array_equal(getattr(alone, name), getattr(beside, name))


class TestPages:
    def test_prompts_share_what_they_begin_with(self):
        pages = Pages(weights_of(CausalModel(served("qwen2")), 8))
        first = pages.take_prompt(range(50))
        assert len(first.pages) == 4 and first.known == 0
        second = pages.take_prompt([*range(33), 99])
        assert second.known == 32 and second.pages[:2] == first.pages[:2] and second.pages[2] not in first.pages
        exact = pages.take_prompt(range(32))  # its last token must be computed: its logits are wanted
        assert exact.known == 16 and exact.pages[0] == first.pages[0] and exact.pages[1] != first.pages[1]
        pages.give_back(first.pages)
        assert pages.take_prompt(range(50)).known == 32, "the second prompt still holds them"
        assert pages.take_prompt(range(1, 50)).known == 0

    def test_what_nobody_uses_is_forgotten_and_used_again(self):
        pages = Pages(weights_of(CausalModel(served("qwen2")), 8))
        first = pages.take_prompt(range(50))
        pages.share(first.pages)
        pages.give_back(first.pages)
        second = pages.take_prompt(range(50))
        assert second.known == 48
        pages.give_back(first.pages)
        pages.give_back(second.pages)
        fresh = pages.take_prompt(range(50))
        assert fresh.known == 0 and set(fresh.pages) <= {*first.pages, *second.pages}


class TestTheWayBack:
    """Where the kernels do not serve, the model's own modules do, and the log says why."""

    def rollout(self, model, tokenizer):
        return next(iter(SequenceProcessor(model, tokenizer, GenerationConfig()).rollouts(["hi"], 1, seed=0)))

    def assert_modules_serve(self, model, tokenizer, caplog, reason):
        with caplog.at_level(logging.INFO):
            decoder = decode.decoder_for(CausalModel(model), 100)
        assert not isinstance(decoder, NativeDecoder)
        assert reason in caplog.text
        assert self.rollout(model, tokenizer).finish_reason

    def test_an_architecture_without_kernels(self, tokenizer, caplog):
        self.assert_modules_serve(make_model("gpt2"), tokenizer, caplog, "no kernels of its own")

    def test_a_window_that_may_be_passed(self, tokenizer, caplog):
        kind, settings = SERVED["window not reached"]
        model = make_model(kind, **{**settings, "sliding_window": 16})
        self.assert_modules_serve(model, tokenizer, caplog, "window of 16")

    def test_another_activation(self, tokenizer, caplog):
        self.assert_modules_serve(make_model(hidden_act="gelu"), tokenizer, caplog, "activation is gelu")

    def test_hooks(self, tokenizer, caplog):
        model = make_model()
        model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 2)
        self.assert_modules_serve(model, tokenizer, caplog, "hooked")

    def test_a_hook_that_changes_nothing(self, tokenizer):
        model = make_model()
        model.enable_input_require_grads()  # as for gradient checkpointing under an adapter
        assert isinstance(decode.decoder_for(CausalModel(model), 100), NativeDecoder)

    def test_a_layer_in_anothers_place(self, tokenizer, caplog):
        model = make_model()
        self.rollout(model, tokenizer)  # probed

        class Skipped(torch.nn.Module):
            def forward(self, hidden_states, *args, **kwargs):
                return hidden_states

        model.model.layers[1] = Skipped()
        self.assert_modules_serve(model, tokenizer, caplog, "one of its modules is a Skipped")

    def test_an_activation_put_in_later(self, tokenizer, caplog):
        model = make_model()
        self.rollout(model, tokenizer)
        model.model.layers[1].mlp.act_fn = torch.nn.GELU()
        self.assert_modules_serve(model, tokenizer, caplog, "one of its modules is a GELU")

    def test_weights_of_other_shapes(self, tokenizer, caplog):
        """Heads taken out of one layer alone: its modules do not mind."""
        model = make_model("llama")
        own = model.model.layers[1].self_attn
        for module in (own.q_proj, own.k_proj, own.v_proj):
            module.weight = torch.nn.Parameter(module.weight[:16])
        own.o_proj.weight = torch.nn.Parameter(own.o_proj.weight[:, :16].contiguous())
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3]]))
        with caplog.at_level(logging.INFO):
            assert forward_for(CausalModel(model), 100) is None
        assert "other shapes than its config says" in caplog.text

    def test_weights_that_were_not_finite_at_first(self, monkeypatch):
        """Nothing could be compared then, so it is when they are."""
        model = make_model()
        forward = type(model.model.layers[0].mlp).forward
        monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: forward(self, x) * 1.5)
        good = model.lm_head.weight.detach().clone()
        model.lm_head.weight.data.fill_(float("nan"))
        assert forward_for(CausalModel(model), 100) is not None
        model.lm_head.weight.data.copy_(good)
        assert forward_for(CausalModel(model), 100) is None

    def test_another_precision(self, tokenizer, caplog):
        self.assert_modules_serve(make_model().double(), tokenizer, caplog, "not plain float32 or bfloat16")

    def test_adapters_that_are_more_than_low_rank(self, tokenizer, caplog):
        model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)).eval()
        self.assert_modules_serve(model, tokenizer, caplog, "more than plain LoRA")

    def test_modules_that_do_something_else_are_found_out(self, tokenizer, caplog, monkeypatch):
        model = make_model()
        forward = type(model.model.layers[0].mlp).forward
        monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: forward(self, x) * 1.5)
        self.assert_modules_serve(model, tokenizer, caplog, "something that they do not know")

    def test_no_compiler(self, tokenizer, caplog, monkeypatch):
        monkeypatch.setattr(build.shutil, "which", lambda name: None)
        monkeypatch.delenv("CXX", raising=False)
        with caplog.at_level(logging.INFO):
            assert build.library.__wrapped__() is None
        assert "No C++ compiler" in caplog.text
        want = self.rollout(make_model(), tokenizer)
        monkeypatch.setattr(serve, "kernels", lambda: None)
        monkeypatch.setattr(distribution, "kernels", lambda: None)
        assert self.rollout(make_model(), tokenizer).response_ids == want.response_ids

    def test_a_compiler_that_fails(self, caplog, monkeypatch, tmp_path):
        compiler = tmp_path / "c++"
        compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no such header' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setattr(build, "_cache_folder", lambda: tmp_path / "cache")
        assert build.library.__wrapped__() is None
        assert "no such header" in caplog.text
        assert not list((tmp_path / "cache").rglob("*.so"))

    def test_compiled_once_for_all_processes(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build, "_cache_folder", lambda: tmp_path)
        first = build._compiled("g++")
        written = first.stat().st_mtime_ns
        assert build._compiled("g++") == first and first.stat().st_mtime_ns == written
