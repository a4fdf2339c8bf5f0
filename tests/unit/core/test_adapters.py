"""An adapter over a base that stays, or merged into it, held against peft's own; and adapters that do not fit."""

import gc
import json
import weakref

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sequence_processing import ModelError, SequenceProcessor, load_model
from sequence_processing.adapters import attach, merged
from sequence_processing.loading import with_adapter

from .support import given, make_model, make_tokenizer

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])


def lora(**settings):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings})


def save_adapter(folder, config, kind="qwen2", seed=1, **settings):
    """Save an adapter with random weights for `make_model(kind, **settings)`; returns peft's own model of it."""
    model = get_peft_model(make_model(kind, **settings), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def content(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(base, before):
    now = base.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)


CASES = {
    "lora": ("qwen2", lora()),
    "every linear layer": ("llama", lora(target_modules="all-linear")),
    "dora": ("qwen2", lora(use_dora=True)),
    "rank-stabilised": ("qwen2", lora(use_rslora=True, lora_alpha=16)),
    "biases of all": ("qwen2", lora(bias="all")),
    "biases of its layers": ("qwen2", lora(bias="lora_only")),
    "tied embedding": ("qwen2", lora(target_modules=["embed_tokens"])),
    "tied head": ("qwen2", lora(target_modules=["lm_head"])),
    "whole modules": ("llama", lora(modules_to_save=["lm_head", "embed_tokens"])),
    "some tokens": ("qwen2", lora(trainable_token_indices=[1, 2])),
    "transposed weights": ("gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True)),
    "no attention": ("mamba", lora(target_modules=["in_proj", "x_proj"])),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(architecture, the adapter's folder, logits of the model that was saved)"""
    kind, config = CASES[request.param]
    return kind, tmp_path, logits(save_adapter(tmp_path, config, kind))


class TestAttach:
    def test_equals_the_model_that_was_saved(self, case):
        kind, folder, expected = case
        base = make_model(kind)
        before, plain = content(base), logits(base)
        adapted = attach(base, folder)
        assert not adapted.training
        assert torch.equal(logits(adapted), expected)
        assert (expected - plain).abs().max() > 0.05, "the adapter does something"
        assert_untouched(base, before)

    def test_nothing_of_the_last_adapter_stays(self, case, tmp_path):
        kind, folder, _ = case
        elsewhere = ["gate_proj", "c_fc", "in_proj"]  # whichever of them the architecture has
        other = save_adapter(tmp_path / "other", lora(target_modules=elsewhere), kind, seed=2)
        base = make_model(kind)
        plain = logits(base)
        first = attach(base, folder)
        logits(first)
        gone = [weakref.ref(p) for name, p in first.named_parameters() if "lora_" in name]
        del first
        gc.collect()  # modules of some architectures refer to themselves
        assert gone and not any(ref() is not None for ref in gone), "its memory is free"
        assert torch.equal(logits(attach(base, tmp_path / "other")), logits(other))
        assert torch.equal(logits(base), plain)

    def test_shares_the_bases_storage(self, tmp_path):
        save_adapter(tmp_path, lora())
        base = make_model()
        adapted = attach(base, tmp_path)
        mine = {p.data_ptr() for p in base.parameters()}
        assert {p.data_ptr() for name, p in adapted.named_parameters() if "lora_" not in name} == mine

    def test_a_row_scored_and_sampled(self, tmp_path, tokenizer):
        """The processor takes the adapted model: what it samples is what it scores."""
        save_adapter(tmp_path, lora())
        processor = SequenceProcessor(attach(make_model(), tmp_path), tokenizer)
        sequences, sampled = processor.generate_with_logprobs(["ab"], G=2, seed=1)
        scored = processor.teacher_force_logprobs(sequences)
        for a, b in zip(sampled.logprobs[0], scored.logprobs[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


class TestMerged:
    def test_equals_the_adapter_over_its_base(self, case):
        kind, folder, expected = case
        model = merged(attach(make_model(kind), folder))
        assert not any("lora_" in name for name, _ in model.named_parameters())
        ours, theirs = logits(model).log_softmax(-1), expected.log_softmax(-1)
        assert (ours - theirs).abs().max() < 1e-4

    def test_the_four_quantities(self, tmp_path, tokenizer):
        save_adapter(tmp_path / "adapter", lora(target_modules="all-linear"))
        make_model().save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
        rows = given([[([1, 2, 3], list(range(40)))]])

        def measured(merge):
            base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
            model, _ = load_model(base, adapter=adapter, merge_adapter=merge, device="cpu")
            return SequenceProcessor(model, tokenizer).teacher_force_logprobs(rows)

        over, into = measured(False), measured(True)
        for name in ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies"):
            a, b = (torch.as_tensor(getattr(result, name)[0][0]) for result in (over, into))
            assert (a - b).abs().max() < 1e-4, name

    def test_in_bf16_each_sum_is_rounded_once_more(self, tmp_path):
        """Merging moves log-probabilities by about as much as bf16 itself has moved them from float32."""
        exact = logits(save_adapter(tmp_path, lora(target_modules="all-linear"))).log_softmax(-1)
        over = logits(attach(make_model().bfloat16(), tmp_path)).float().log_softmax(-1)
        into = logits(merged(attach(make_model().bfloat16(), tmp_path))).float().log_softmax(-1)
        drift, merging = ((a - b).abs().mean().item() for a, b in ((over, exact), (into, over)))
        assert 0 < merging < 3 * drift

    def test_nothing_to_merge(self):
        with pytest.raises(ModelError, match="There is no adapter to merge") as caught:
            load_model("tiny-arithmetic", merge_adapter=True)
        assert caught.value.permanent


class TestThatDoNotFit:
    @pytest.mark.parametrize(
        ("config", "settings", "says"),
        [
            (lora(), {"hidden_size": 64}, r"q_proj\.lora_A\.weight has shape \[2, 64\] in the adapter and \[2, 32\]"),
            (lora(modules_to_save=["embed_tokens"]), {"vocab_size": 300}, r"embed_tokens\S* has shape \[300, 32\] in"),
            (lora(), {"num_hidden_layers": 3}, r"no place for model\.layers\.2\S+ and 3 more"),
            (lora(), {"num_hidden_layers": 1}, r"its file lacks model\.layers\.1\S+ and 3 more"),
            (lora(target_modules=["fc1"]), {"kind": "opt"}, "fc1.* not found in the base model"),
            (peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), {}, "of type IA3, and only LoRA"),
            (lora(init_lora_weights="pissa"), {}, "init_lora_weights 'pissa' changes the base's weights"),
        ],
        ids=["width", "vocabulary", "more layers", "fewer layers", "other modules", "no LoRA", "changes the base"],
    )
    def test_one_sentence_and_the_base_is_as_before(self, config, settings, says, tmp_path):
        save_adapter(tmp_path / "bad", config, **settings)
        save_adapter(tmp_path / "good", lora())
        base = make_model()
        before = content(base)
        with pytest.raises(ModelError, match=says) as caught:
            with_adapter(base, "base", str(tmp_path / "bad"))
        sentence = str(caught.value)
        assert sentence.startswith(f"The adapter '{tmp_path / 'bad'}' does not fit the model 'base': ")
        assert sentence.endswith(".") and "\n" not in sentence and caught.value.permanent
        assert_untouched(base, before)
        after = with_adapter(base, "base", str(tmp_path / "good"))
        assert torch.equal(logits(after), logits(attach(make_model(), tmp_path / "good")))

    def test_virtual_tokens(self, tmp_path):
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        get_peft_model(make_model(), config).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="of type PROMPT_TUNING, and only LoRA is supported"):
            with_adapter(make_model(), "base", str(tmp_path))

    @pytest.mark.parametrize("setting", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}, {}])
    def test_a_file_that_lacks_weights(self, setting, tmp_path):
        save_adapter(tmp_path, lora(**setting))
        path = tmp_path / "adapter_model.safetensors"
        weights = load_file(path)
        lost = max(weights, key=lambda key: "lora_" not in key)
        del weights[lost]
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(ModelError, match="its file lacks") as caught:
            with_adapter(make_model(), "base", str(tmp_path))
        assert lost.removeprefix("base_model.model.") in str(caught.value)

    def test_an_activated_adapter(self, tmp_path):
        save_adapter(tmp_path, lora())
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"alora_invocation_tokens": [5]}))
        with pytest.raises(ModelError, match="activated LoRA"):
            with_adapter(make_model(), "base", str(tmp_path))
