"""Decoders: the logits of every step are those of a plain forward, whatever rows came and went before."""

import logging
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sequence_processing import slots
from sequence_processing.decode import CacheDecoder, RecomputeDecoder, decoder_for
from sequence_processing.model import CausalModel
from sequence_processing.slots import SlotDecoder, refusal

from .support import CONFIGS, EOS, VOCAB, WINDOW, double_logits, doubled, make_model

DEVICES = ["cuda"] if torch.cuda.is_available() else ["cpu"]
ATTENDING = [kind for kind in CONFIGS if kind not in ("mamba", "bloom", "lfm2")]
LENGTHS = (3, 58, WINDOW - 1, WINDOW, 17, 1, WINDOW + 1)  # 58: a row that outgrows the first columns of its slot


@pytest.fixture(autouse=True)
def without_gradient():
    with torch.no_grad():
        yield


def prompts_of(*lengths, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB) for _ in range(n)] for n in lengths]


class Unseen(TorchDispatchMode):
    """In here nothing looks at a tensor's values from the host, which a recording on CUDA does not allow."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "equal", "masked_select"), func
        return func(*args, **(kwargs or {}))


class Rows:
    """Drives a decoder with random tokens and keeps every row's prompt, tokens and logits."""

    def __init__(self, decoder, seed=0):
        self.decoder = decoder
        self.draw = random.Random(seed)
        self.live = []
        self.all = []

    def add(self, prompts, repeats):
        logits = self.decoder.add(prompts, repeats)
        owners = [p for p, n in zip(prompts, repeats, strict=True) for _ in range(n)]
        new = [(prompt, [], [row.clone()]) for prompt, row in zip(owners, logits, strict=True)]
        self.live += new
        self.all += new

    def step(self, times=1):
        for _ in range(times):
            for _, tokens, _ in self.live:
                tokens.append(self.draw.randrange(VOCAB))
            newest = torch.tensor([tokens[-1] for _, tokens, _ in self.live])
            for (_, _, seen), row in zip(self.live, self.decoder.step(newest), strict=True):
                seen.append(row.clone())

    def keep(self, *rows):
        self.decoder.keep(torch.tensor(rows, dtype=torch.int64))
        self.live = [self.live[i] for i in rows]

    def logits(self):
        """[tokens of all rows, V]."""
        return torch.cat([torch.stack(seen) for _, _, seen in self.all]).cpu()

    def reference(self, model):
        """The same in float64, row by row, by plain forwards without padding or cache."""
        double = doubled(model).cpu()
        return torch.cat([double_logits(double, prompt, [*tokens, EOS]) for prompt, tokens, _ in self.all])


def live_through(decoder):
    """Ragged prompts with and without repeats; rows dropped; others added to what is left, or after the last one."""
    a, b, c, d, e, f, g = prompts_of(*LENGTHS)
    rows = Rows(decoder)
    rows.add([a, b, c], [2, 1, 3])
    rows.step(4)
    rows.keep(1, 2, 4)  # a gap at the front and in the middle, and at the end
    rows.step(2)
    if not decoder.refills:
        rows.keep()
    rows.add([d, e], [1, 2])
    rows.add([f], [4]) if decoder.refills else None
    rows.step(3)
    rows.keep(*range(1, len(rows.live)))
    rows.keep(*range(len(rows.live) - 1))
    rows.step(WINDOW + 2)
    rows.keep()
    rows.add([g, f, b], [1, 1, 2])
    rows.step(4)
    return rows


@pytest.mark.parametrize("device", DEVICES)
class TestSteps:
    @pytest.mark.parametrize("decoder", [SlotDecoder, CacheDecoder, RecomputeDecoder])
    @pytest.mark.parametrize("kind", ATTENDING)
    def test_are_plain_forwards(self, kind, decoder, device):
        model = make_model(kind).to(device)
        rows = live_through(decoder(CausalModel(model)))
        torch.testing.assert_close(rows.logits().double(), rows.reference(model), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
    def test_of_eager_attention(self, kind, device):
        model = make_model(kind, attn_implementation="eager").to(device)
        rows = live_through(SlotDecoder(CausalModel(model)))
        torch.testing.assert_close(rows.logits().double(), rows.reference(model), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "mixtral"])
    def test_in_bfloat16_are_as_near_as_plain_forwards(self, kind, device):
        model = make_model(kind).bfloat16().to(device)
        rows = live_through(SlotDecoder(CausalModel(model)))
        plain = torch.cat(
            [
                model(input_ids=torch.tensor([[*prompt, *tokens]], device=device)).logits[0, len(prompt) - 1 :].cpu()
                for prompt, tokens, _ in rows.all
            ]
        )
        assert rows.logits().dtype == plain.dtype == torch.bfloat16
        want = rows.reference(model)
        drift, usual = ((logits.double() - want).abs().mean() for logits in (rows.logits(), plain))
        assert drift < 1.25 * usual

    def test_reach_the_end_of_the_context(self, device):
        """A row that has ended stays a while: it must not run past the table of positions."""
        model = make_model("gpt2", n_positions=24).to(device)
        for decoder in (SlotDecoder, CacheDecoder):
            rows = Rows(decoder(CausalModel(model)))
            rows.add(prompts_of(20, 4), [1, 1])
            rows.step(4)
            ended = rows.all.pop(0)
            rows.step(8)
            torch.testing.assert_close(rows.logits().double(), rows.reference(model), atol=1e-4, rtol=0)
            assert len(ended[0]) + len(ended[1]) > 24


class TestSlots:
    def test_prompts_in_several_forwards(self, model, monkeypatch):
        monkeypatch.setattr(slots, "_PREFILL_TOKENS", 12)
        rows = Rows(SlotDecoder(CausalModel(model)))
        rows.add(prompts_of(14, 5, 6, 1, 12, 2), [1, 2, 1, 0, 1, 3])
        rows.step(2)
        assert len(rows.live) == 8
        torch.testing.assert_close(rows.logits().double(), rows.reference(model), atol=1e-4, rtol=0)

    def test_new_rows_take_the_places_of_dropped_ones(self, model):
        decoder = SlotDecoder(CausalModel(model))
        rows = Rows(decoder)
        rows.add(prompts_of(5, 9), [4, 4])
        keys = decoder._layers[0].keys
        for seed in range(5):
            rows.keep(0, 3, 4)
            rows.add(prompts_of(7, seed=seed), [5])
            rows.step()
        assert decoder._layers[0].keys is keys and len(keys) == 8

    def test_a_window_bounds_the_cache(self):
        decoder = SlotDecoder(CausalModel(make_model("gemma3_text")))
        rows = Rows(decoder)
        rows.add(prompts_of(60), [1])
        rows.step(10)
        assert [layer.keys.shape[2] for layer in decoder._layers] == [WINDOW, 128]

    def test_a_step_that_cannot_be_recorded_runs_its_modules(self, model, monkeypatch, caplog):
        def refuse(*args):
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(slots, "StepGraphs", refuse)
        decoder = SlotDecoder(CausalModel(model))
        decoder._records = True
        rows = live_through(decoder)
        torch.testing.assert_close(rows.logits().double(), rows.reference(model), atol=1e-4, rtol=0)
        assert caplog.text.count("cannot be recorded") == 1

    @pytest.mark.parametrize("kind", ["olmo2", "gemma3_text"])
    def test_idle_slots_of_a_recorded_step_change_nothing(self, kind, monkeypatch):
        shapes = set()

        class Unrecorded:
            def __init__(self, device, most):
                self.most = most

            def run(self, forward, slots, columns):
                assert slots <= self.most
                shapes.add((slots, columns))
                return forward(slots, columns)

        monkeypatch.setattr(slots, "StepGraphs", Unrecorded)
        model = make_model(kind)
        decoder = SlotDecoder(CausalModel(model))
        decoder._records = True
        rows = live_through(decoder)
        torch.testing.assert_close(rows.logits().double(), rows.reference(model), atol=1e-4, rtol=0)
        assert {n for n, _ in shapes} == {3, 4, 6, 8, 12}

    @pytest.mark.parametrize("kind", ATTENDING)
    def test_a_recorded_forward_looks_at_no_value_and_may_run_twice(self, kind):
        decoder = SlotDecoder(CausalModel(make_model(kind)))
        decoder.add(prompts_of(3, 9), [1, 2])
        logits = decoder.step(torch.tensor([1, 2, 3])).clone()
        with Unseen():
            again = decoder._forward(3, 64)
        assert torch.equal(again, logits)

    def test_out_of_memory_is_no_reason_to_run_modules(self, model, monkeypatch):
        def full(*args):
            raise torch.OutOfMemoryError("full")

        decoder = SlotDecoder(CausalModel(model))
        decoder.add(prompts_of(3), [1])
        decoder._records = True
        monkeypatch.setattr(slots, "StepGraphs", full)
        with pytest.raises(torch.OutOfMemoryError):
            decoder.step(torch.tensor([1]))


class TestChoice:
    @pytest.mark.parametrize("kind", ATTENDING)
    def test_slots_serve(self, kind):
        assert refusal(CausalModel(make_model(kind))) is None

    @pytest.mark.parametrize(
        ("kind", "settings", "reason"),
        [
            ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2}, "fixed size"),
            ("gpt_neox", {"attn_implementation": "flex_attention"}, "flex_attention"),
            ("llama4_text", {"hidden_size": 32, "num_hidden_layers": 2}, "chunks"),
        ],
    )
    def test_one_cache_where_they_cannot(self, kind, settings, reason, caplog):
        caplog.set_level(logging.INFO)
        assert isinstance(decoder_for(CausalModel(make_model(kind, **settings)), 128), CacheDecoder)
        assert reason in caplog.text

    def test_nothing_cached_without_an_attention_cache(self, caplog):
        caplog.set_level(logging.INFO)
        assert isinstance(decoder_for(CausalModel(make_model("mamba")), 128), RecomputeDecoder)
        assert "no attention cache" in caplog.text


class TestHead:
    """The head's product on its way to the softmax, where the modules of a bfloat16 model would round it."""

    @pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
    def test_float32_products_in_the_sampling_pass(self, kind, monkeypatch):
        for place in ("native.serve", "head"):
            monkeypatch.setattr(f"sequence_processing.{place}.kernels", lambda: None)
        model = CausalModel(make_model(kind).bfloat16())

        def logits(head_dtype):
            with model.evaluating():
                decoder = decoder_for(model, 60, head_dtype=head_dtype)
                first = decoder.add([[5, 6, 7], [8, 9]], [2, 1])
                return torch.cat([first, decoder.step(torch.tensor([1, 2, 3]))]).float()

        rounded, exact = logits("auto"), logits("float32")
        assert torch.equal(rounded, rounded.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())
        torch.testing.assert_close(rounded, exact, atol=2**-7 * float(exact.abs().max()), rtol=0)
