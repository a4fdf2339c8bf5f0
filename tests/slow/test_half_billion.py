"""Over 20,000 tokens of a random model of Qwen2.5-0.5B's shape: how they are batched changes no bit of any row."""

import random

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sequence_processing import GenerationConfig, SequenceProcessor
from tests.unit.core.support import make_tokenizer

QUANTITIES = ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")
PROMPTS, G, NEW_TOKENS = 24, 8, 110


def half_billion() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=896,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            vocab_size=151_936,
            tie_word_embeddings=True,
            eos_token_id=None,
        )
    ).eval()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_deterministic(dtype):
    draw = random.Random(0)
    prompts = [[draw.randrange(4000) for _ in range(draw.randrange(20, 90))] for _ in range(PROMPTS)]
    model, tokenizer = half_billion().to(dtype), make_tokenizer()

    def run(size, order):
        config = GenerationConfig(0.9, 0.95, NEW_TOKENS, gen_batch_size=size, stop_strings=(), deterministic=True)
        processor = SequenceProcessor(model, tokenizer, config)
        rollouts = processor.rollouts([prompts[i] for i in order], G, seed=3, prompt_keys=list(order))
        return {(order[r.prompt_index], r.sample_index): r for r in rollouts}

    want = run(128, range(PROMPTS))
    got = run("auto", list(reversed(range(PROMPTS)))[: PROMPTS // 2]) | run(37, range(PROMPTS // 2))
    assert sum(len(r.response_ids) for r in want.values()) >= 20_000
    assert got.keys() == want.keys()
    for name, rollout in want.items():
        assert got[name].response_ids == rollout.response_ids
        for quantity in QUANTITIES:
            assert np.array_equal(getattr(got[name], quantity), getattr(rollout, quantity))
