"""The drift of a narrow model, held against a real float32 copy of it; the model itself is only read."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from sequence_processing import GenerationConfig, SequenceProcessor, drift
from sequence_processing.drift import NothingToCompare, measure_drift

from .support import PHI3, ROPE_CHANGE, make_model, make_tokenizer, naive_quantities

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {**SHAPE, "num_key_value_heads": 2, "num_local_experts": 4}


def with_lora(model):
    adapter = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "lm_head"], init_lora_weights=False)
    return get_peft_model(model, adapter).eval()


MODELS = {
    "tied": lambda: make_model("qwen2").bfloat16(),
    "untied": lambda: make_model("llama").bfloat16(),
    "float16": lambda: make_model("llama").half(),
    "LoRA, itself in float32": lambda: with_lora(make_model("qwen2").bfloat16()),
    "soft-cap, windows": lambda: make_model("gemma2").bfloat16(),
    "looks at its head's type": lambda: make_model("mamba").bfloat16(),
    "takes no position": lambda: make_model("bloom").bfloat16(),
    "experts": lambda: make_model("mixtral", **EXPERTS).bfloat16(),
    "other frequencies beyond 24 tokens": lambda: make_model("phi3", **PHI3).bfloat16(),
}


def rows_of(model, prompts=((1, 2, 3), (4, 5, 6, 7)), length=30):
    """A row for each prompt, sampled to its limit."""
    config = GenerationConfig(max_new_tokens=length, stop_strings=(), ignore_eos=True)
    rows = SequenceProcessor(model, make_tokenizer(), config).rollouts([list(p) for p in prompts], 1, seed=0)
    return sorted(rows, key=lambda row: row.prompt_index)


def wide_quantities(model, row, count):
    """The first `count` log-probabilities and entropies of a row by `model.float()`, in loops over float64."""
    with torch.no_grad():
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids[: count - 1]]])  # the last is predicted, not fed
        logits = copy.deepcopy(model).float()(input_ids=ids, use_cache=False).logits[0].double()
    predicting = logits[len(row.prompt_ids) - 1 :].numpy()
    return naive_quantities(predicting, row.response_ids[:count], 1.0, 1.0)


def state(model):
    """Every tensor of a model by name: its bits and where they are."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {name: (t.data_ptr(), t.dtype, t._version, t.clone()) for name, t in tensors.items()}


def assert_untouched(model, before):
    now = state(model)
    assert now.keys() == before.keys()
    for name, (place, dtype, version, content) in now.items():
        assert (place, dtype, version) == before[name][:3], name
        assert torch.equal(content, before[name][3]), name
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_equals_a_real_float32_copy(name):
    model = MODELS[name]()
    rows = rows_of(model)
    before = state(model)
    longest = ROPE_CHANGE if "24 tokens" in name else 100
    counts = [min(len(r.response_ids), longest - len(r.prompt_ids) + 1) for r in rows]
    measured = measure_drift(model, rows)
    assert (measured.tokens, measured.sequences) == (sum(counts), [(0, 0), (1, 0)])
    assert measured.dtype == ("float16" if name == "float16" else "bfloat16")
    for quantity in ("logprobs", "entropies"):
        differences = np.concatenate(
            [
                getattr(row, quantity)[:n] - np.array(getattr(wide_quantities(model, row, n), quantity))
                for row, n in zip(rows, counts, strict=True)
            ]
        )
        found, size = getattr(measured, quantity), np.sort(np.abs(differences))
        assert found.mean == pytest.approx(differences.mean(), abs=2e-6)
        assert found.mean_abs == pytest.approx(size.mean(), abs=2e-6)
        assert found.max == pytest.approx(size[-1], abs=2e-6)
        for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
            assert value == pytest.approx(np.interp(share * (len(size) - 1), range(len(size)), size), abs=2e-6)
        assert 1e-5 < found.mean_abs < 0.1, "there is a drift, and it is no mistake"
    assert_untouched(model, before)


def test_at_most_one_layer_is_wide_at_a_time(monkeypatch):
    model = make_model("llama", num_hidden_layers=5).bfloat16()
    rows, wide, most = rows_of(model), [], []
    real_shadow, real_widen = drift.shadow, drift._widen

    def shadow(original):
        wide.append(real_shadow(original))
        return wide[0]

    def widen(modules):
        real_widen(modules)
        layers = wide[0].model.layers
        most.append(sum(any(p.dtype == torch.float32 for p in layer.parameters()) for layer in layers))

    monkeypatch.setattr(drift, "shadow", shadow)
    monkeypatch.setattr(drift, "_widen", widen)
    measure_drift(model, rows)
    assert most == [0] + [1] * 5 * len(rows)


def test_an_error_in_the_middle_leaves_the_model_as_it_was():
    model = make_model("qwen2").bfloat16()
    before, rows = state(model), rows_of(model)

    def broken(*_):
        raise RuntimeError("in the middle")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        measure_drift(model, rows)
    handle.remove()
    assert_untouched(model, before)


def test_a_long_sample_is_cut():
    model = make_model("qwen2", max_position_embeddings=1024).bfloat16()
    prompts = [[1] * 200, [2] * 250, [3] * 10]
    assert measure_drift(model, rows_of(model, prompts)).tokens == 30 + 30, "512 positions end before the third row"
    assert measure_drift(model, rows_of(model, [[1] * 200, [2] * 270])).tokens == 30 + 12
    assert measure_drift(model, rows_of(model, [[1] * 600, [2] * 3], length=100)).tokens == 64


def test_nothing_to_compare():
    model = make_model()
    with pytest.raises(NothingToCompare, match="dtype float32: nothing to compare"):
        measure_drift(model, rows_of(model))
    with pytest.raises(NothingToCompare, match="no row has a token"):
        measure_drift(model.bfloat16(), rows_of(model, length=0))


def test_numbers_that_are_not_finite():
    model = make_model().bfloat16()
    (row, _) = rows_of(model)
    row.logprobs[3] = np.nan
    with pytest.raises(FloatingPointError, match="not all finite"):
        measure_drift(model, [row])


def test_as_plain_data():
    model = make_model().bfloat16()
    measured = measure_drift(model, rows_of(model))
    data = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert set(data) == {"dtype", "sequences", "tokens", "logprobs", "entropies"}
    assert set(data["logprobs"]) == {"mean", "mean_abs", "p50", "p90", "p99", "max"}
    assert data["entropies"]["p50"] == pytest.approx(measured.entropies.p50, rel=1e-3)
