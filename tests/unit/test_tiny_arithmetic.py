"""The packaged model `tiny-arithmetic`: what its card promises, measured again on held-out problems."""

import re
import runpy
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import sequence_processing
from rlp_datasets import DATASET_REGISTRY
from rlp_datasets.template import r1_prompt
from sequence_processing import GenerationConfig, SequenceProcessor

ROOT = Path(__file__).parents[2]
FOLDER = Path(sequence_processing.__file__).parent / "models" / "tiny-arithmetic"


@pytest.fixture(scope="module")
def loaded():
    """Model and tokenizer, by transformers' own loaders."""
    return AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=True).eval(), AutoTokenizer.from_pretrained(
        FOLDER
    )


@pytest.fixture(scope="module")
def test_split():
    return list(DATASET_REGISTRY["arithmetic_r1_template"](split="test"))


def test_it_is_a_small_float32_qwen2(loaded):
    model, tokenizer = loaded
    assert model.config.model_type == "qwen2"
    assert model.config.max_position_embeddings >= 2048
    assert model.config.vocab_size == len(tokenizer)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= 4_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 - tied, and safe_open does not iterate
    assert not list(FOLDER.glob("*.bin"))


def shares(model, tokenizer, examples, G: int, **config) -> tuple[float, float]:
    """(right, closed): the shares of G responses to each example that are right, and that end `</answer>`, EOS.

    With no stop string of ours: the model must come to its end by itself.
    """
    settings = GenerationConfig(max_new_tokens=120, gen_batch_size=500, stop_strings=(), **config)
    sequences = SequenceProcessor(model, tokenizer, settings).generate_batched(
        [example.text for example in examples], G=G, seed=0
    )
    right = closed = 0
    for b, example in enumerate(examples):
        for g in range(G):
            begin = sequences.prompt_lens[b]
            ids = sequences.sequences[b, g, begin : begin + sequences.gen_lens[b][g]].tolist()
            text = tokenizer.decode(ids[:-1])
            closed += ids[-1] == tokenizer.eos_token_id and text.endswith("</answer>")
            answer = re.fullmatch(r".* </think> <answer> (\d+) </answer>", text)
            right += answer is not None and answer[1] == example.answer
    return right / (len(examples) * G), closed / (len(examples) * G)


def test_greedy_it_is_right_and_closes_its_answers(loaded, test_split):
    right, closed = shares(*loaded, test_split[:1000], G=1, do_sample=False)
    assert right >= 0.7
    assert closed >= 0.99


def test_sampled_its_responses_differ_in_reward(loaded, test_split):
    right, _ = shares(*loaded, test_split[1000:1040], G=4, temperature=1.0)
    assert 0.2 <= right <= 0.9


def test_the_tokenizer_keeps_every_text(loaded):
    """Characters from all over Unicode, after the NFC that Qwen2 tokenizers begin with."""
    _, tokenizer = loaded
    many = "".join(chr(point) for point in range(0, 0x110000, 17) if not 0xD800 <= point < 0xE000)
    for text in [many, "naïve — “Grüße” 你好 \U0001f468\u200d\U0001f469 \t\r\n\n  x", "", " ", "  47 +  3"]:
        text = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text


def test_digits_stand_alone(loaded):
    _, tokenizer = loaded
    assert tokenizer.tokenize(" 4711") == ["Ġ", *"4711"]


def test_end_of_text_is_end_and_pad(loaded):
    model, tokenizer = loaded
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


def test_one_user_message_gives_the_template_s_prompt(loaded, test_split):
    _, tokenizer = loaded
    question = test_split[0].question
    messages = [{"role": "user", "content": question}]
    templated = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert templated == r1_prompt(question)
    assert (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        == tokenizer(templated)["input_ids"]
    )
    prefill = [*messages, {"role": "assistant", "content": "<think> 4"}]
    assert (
        tokenizer.apply_chat_template(prefill, tokenize=False, continue_final_message=True)
        == r1_prompt(question) + " 4"
    )


def test_the_script_makes_the_same_tokenizer(loaded):
    """The committed tokenizer is what the committed script makes; the weights take minutes and are not made again."""
    script = runpy.run_path(str(ROOT / "scripts" / "train_tiny_arithmetic.py"))
    model, tokenizer = loaded
    made = script["train_tokenizer"]()
    assert made.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert made.chat_template == tokenizer.chat_template
    assert script["new_model"](made).num_parameters() == model.num_parameters()
