"""Every architecture, exactly: the four quantities against float64, and greedy against transformers' own `generate`.

Tiny random models, ragged prompts in one batch. Where the mass before a token comes within 1e-5 of top_p, float32 may
put it on the other side: there q is compared on the nucleus just below or just above.
"""

import copy
from functools import cache

import numpy as np
import pytest
import torch

from sequence_processing import GenerationConfig, SequenceProcessor

from .support import CONFIGS, EOS, WINDOW, double_logits, doubled, make_model, naive_quantities, with_range

TOKENS = 16  # new ones a row
PROMPTS = ["Tom has 4 apples, and then some more", "hi", "What is 2+3?", "hi"]
ATOL = 1e-4  # nats
MASS = 1e-5  # a nucleus that hangs on less may come out either way
POLICIES = [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (0.7, 0.9), (1.3, 0.95)]
SHAPES = ["flat", "peaked"]
# Each architecture meets every policy, on one shape or the other in turn.
CASES = [(kind, SHAPES[(i + j) % 2], *policy) for i, kind in enumerate(CONFIGS) for j, policy in enumerate(POLICIES)]


@cache
def models(kind: str, shape: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model and its float64 copy. "peaked": its logits span 50 nats, and its head is not its embedding."""
    if shape == "flat":
        model = make_model(kind)
    else:
        cap = {"final_logit_softcapping": 40.0} if "final_logit_softcapping" in CONFIGS[kind] else {}
        model = with_range(make_model(kind, tie_word_embeddings=False, **cap), 50.0)
    return model, doubled(model)


def assert_exact(rollout, double, temperature, top_p):
    """The four quantities of a rollout against float64."""
    ids = rollout.response_ids
    with torch.no_grad():
        logits = double_logits(double, rollout.prompt_ids, ids).numpy()
    want = naive_quantities(logits, ids, temperature, top_p)
    for name in vars(want):
        assert getattr(rollout, name).dtype == np.float32 and getattr(rollout, name).shape == (len(ids),)
    np.testing.assert_allclose(rollout.logprobs, want.logprobs, atol=ATOL, rtol=0)
    np.testing.assert_allclose(rollout.entropies, want.entropies, atol=ATOL, rtol=0)
    got = np.stack([rollout.sampling_logprobs, rollout.sampling_entropies], axis=1)
    fits = np.isclose(got, np.stack([want.sampling_logprobs, want.sampling_entropies], axis=1), atol=ATOL, rtol=0)
    for i in np.flatnonzero(~fits.all(axis=1)):
        near = [naive_quantities(logits[i : i + 1], ids[i : i + 1], temperature, top_p + d) for d in (-MASS, MASS)]
        values = [(*q.sampling_logprobs, *q.sampling_entropies) for q in near]
        assert any(np.allclose(got[i], v, atol=ATOL, rtol=0) for v in values), (i, got[i], values)


@pytest.mark.parametrize(("kind", "shape", "temperature", "top_p"), CASES)
def test_four_quantities_against_float64(tokenizer, kind, shape, temperature, top_p):
    model, double = models(kind, shape)
    config = GenerationConfig(temperature, top_p, TOKENS, stop_strings=(), ignore_eos=True)
    processor = SequenceProcessor(model, tokenizer, config)
    generated = list(processor.rollouts(PROMPTS, 2, seed=1))
    assert len(generated) == 2 * len(PROMPTS)
    for r in generated:
        assert len(r.response_ids) == TOKENS and np.isfinite(r.sampling_logprobs).all()
        assert_exact(r, double, temperature, top_p)
    strangers = [(r.prompt_ids, [(7 * token + 5) % EOS for token in r.response_ids]) for r in generated[:2]]
    for r in processor.score([*strangers, *((r.prompt_ids, r.response_ids) for r in generated[-2:])]):
        assert_exact(r, double, temperature, top_p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_is_generate(tokenizer, kind, shape):
    model = copy.deepcopy(models(kind, shape)[0])
    model.generation_config.repetition_penalty = 1.5  # asked for by the model, and not applied
    config = GenerationConfig(temperature=0, max_new_tokens=TOKENS, stop_strings=())
    for r in SequenceProcessor(model, tokenizer, config).rollouts(PROMPTS, 1):
        ids = torch.tensor([r.prompt_ids])
        out = model.generate(
            ids, do_sample=False, max_new_tokens=TOKENS, pad_token_id=EOS, eos_token_id=EOS, repetition_penalty=1.0
        )
        assert r.response_ids == out[0, ids.shape[1] :].tolist()
        assert not r.sampling_logprobs.any() and not r.sampling_entropies.any()
        assert (r.logprobs < 0).all() and (r.entropies > 0).all()


@pytest.mark.parametrize("kind", [kind for kind, config in CONFIGS.items() if "sliding_window" in config])
def test_the_sliding_windows_matter(tokenizer, kind):
    """What the tests above say of windows, they say only if a decoder that forgot them would be noticed."""
    model, double = models(kind, "flat")
    wide = make_model(kind, sliding_window=100)
    wide.load_state_dict(model.state_dict())
    ids = tokenizer(PROMPTS[0])["input_ids"]
    assert len(ids) > 2 * WINDOW
    with torch.no_grad():
        apart = double_logits(doubled(wide), ids, [1]) - double_logits(double, ids, [1])
    assert apart.abs().max() > 100 * ATOL
