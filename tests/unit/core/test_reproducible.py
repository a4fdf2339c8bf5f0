"""The same tokens whatever the batch, the order and the neighbours, on the packaged model.

`WAYS` and what judges them serve `tests/slow/test_reproducible.py` as well, on more tokens. A draw is the largest of
log q + noise. It may come out otherwise only if, in float64, its lead over what was drawn is within the drift of the
logits that was measured.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
import torch

import sequence_processing.rollout
from rlp_datasets import DATASET_REGISTRY
from sequence_processing import GenerationConfig, SequenceProcessor, noise
from sequence_processing.containers import Rollout
from sequence_processing.loading import load_model

from .support import double_logits, doubled, ranked_q

SEED = 11
MASS = 1e-5  # a nucleus that hangs on less may come out either way
QUANTITIES = ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")
POLICIES = [(1.0, 1.0), (0.8, 0.95)]
MOST_NEW_TOKENS = 100

Rows = dict[tuple[int, int], Rollout]  # by prompt key and sample


@cache
def loaded(dtype: str) -> tuple[torch.nn.Module, Any]:
    """tiny-arithmetic and its tokenizer."""
    return load_model("tiny-arithmetic", dtype=dtype, device="cpu")


@cache
def prompts(count: int) -> list[str]:
    examples = DATASET_REGISTRY["arithmetic_r1_template"](split="test")
    return [example.text for example, _ in zip(examples, range(count), strict=False)]


def generate(dtype: str, keys: Sequence[int], G: int, limits: Sequence[int] | None = None, **settings) -> Rows:
    """Responses to the prompts whose numbers are `keys`, in that order; a limit a row, in the same order."""
    model, tokenizer = loaded(dtype)
    processor = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=MOST_NEW_TOKENS, **settings))
    texts = [prompts(max(keys) + 1)[key] for key in keys]
    rows = processor.rollouts(texts, G, seed=SEED, prompt_keys=keys, max_new_tokens=limits)
    return {(keys[r.prompt_index], r.sample_index): r for r in rows}


class Cramped:
    """A decoder that runs out of memory in a step of more than `rows` rows."""

    def __init__(self, decoder: Any, rows: int) -> None:
        self._decoder, self._rows = decoder, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        if len(tokens) > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._decoder.step(tokens)


def in_batches_of(size: Any) -> Callable[..., Rows]:
    return lambda dtype, keys, G, **settings: generate(dtype, keys, G, gen_batch_size=size, **settings)


def in_another_order(dtype, keys, G, **settings) -> Rows:
    return generate(dtype, [*keys[1::2], *reversed(keys[::2])], G, **settings)


def in_two_parts(dtype, keys, G, **settings) -> Rows:
    third = len(keys) // 3
    return generate(dtype, keys[:third], G, **settings) | generate(dtype, keys[third:], G, **settings)


def out_of_memory(dtype, keys, G, **settings) -> Rows:
    decoder_for = sequence_processing.rollout.decoder_for
    with pytest.MonkeyPatch.context() as patch:
        cramped = lambda *args, **kwargs: Cramped(decoder_for(*args, **kwargs), 9)  # noqa: E731
        patch.setattr("sequence_processing.rollout.decoder_for", cramped)
        return generate(dtype, keys, G, **settings)


def beside_shorter_rows(dtype, keys, G, **settings) -> Rows:
    limits = [MOST_NEW_TOKENS if g % 2 else 3 + 2 * i % 11 for i in range(len(keys)) for g in range(G)]
    rows = generate(dtype, keys, G, limits, **settings)
    return {name: r for name, r in rows.items() if name[1] % 2}


WAYS = {
    "one by one": in_batches_of(1),
    "in fives": in_batches_of(5),
    "128 at once": in_batches_of(128),
    "auto": in_batches_of("auto"),
    "in another order": in_another_order,
    "in two parts": in_two_parts,
    "after running out of memory": out_of_memory,
    "beside shorter rows": beside_shorter_rows,
}


def splits(one: Rows, other: Rows) -> list[tuple[tuple[int, int], int]]:
    """(row, token) where rows of `other` first leave those of `one`."""
    found = []
    for name, row in other.items():
        tokens = zip_longest(one[name].response_ids, row.response_ids)
        found += [(name, i) for i, (a, b) in enumerate(tokens) if a != b][:1]
    return found


def unexplained(dtype: str, rows: Rows, policy: tuple[float, float]) -> list[tuple[tuple[int, int], int, float]]:
    """(row, token, lead) of draws that float64 would have decided otherwise by more than the drift allows."""
    double = doubled(loaded(dtype)[0])
    leads, drift = [], 0.0
    for (key, g), r in rows.items():
        with torch.no_grad():
            logits = double_logits(double, r.prompt_ids, r.response_ids)
        exact = logits.log_softmax(-1).gather(1, torch.tensor(r.response_ids)[:, None])[:, 0].numpy()
        drift = max(drift, np.abs(exact - r.logprobs).max())
        names = [noise.row_key(SEED, key, g)] * len(exact)
        drawn = noise.gumbel(names, range(len(exact)), logits.shape[1], torch.device("cpu")).numpy()
        for i, token in enumerate(r.response_ids):
            leads.append(((key, g), i, lead(logits[i].numpy(), drawn[i], token, *policy)))
    return [found for found in leads if found[2] > 2 * drift / policy[0]]


def lead(logits: np.ndarray, drawn: np.ndarray, token: int, temperature: float, top_p: float) -> float:
    """By how much another token beats `token` in float64; 0 if none does. The best of the nuclei within `MASS`."""
    behind = []
    for mass in (top_p,) if top_p == 1 else (top_p, top_p - MASS, top_p + MASS):
        with np.errstate(divide="ignore"):
            scores = np.log(ranked_q(logits, temperature, mass)) + drawn
        behind.append(scores.max() - scores[token])
    return min(behind)


def assert_bit_equal(one: Rows, other: Rows) -> None:
    assert splits(one, other) == []
    for name, row in other.items():
        for quantity in QUANTITIES:
            assert np.array_equal(getattr(one[name], quantity), getattr(row, quantity)), (name, quantity)


KEYS = range(8)


@cache
def first(policy: tuple[float, float]) -> Rows:
    return generate("float32", KEYS, 6, temperature=policy[0], top_p=policy[1])


@pytest.mark.parametrize("way", WAYS)
def test_default(way):
    """2,000 tokens; of so few, none may differ."""
    temperature, top_p = POLICIES[1]
    want = first(POLICIES[1])
    assert sum(len(r.response_ids) for r in want.values()) > 2000
    got = WAYS[way]("float32", KEYS, 6, temperature=temperature, top_p=top_p)
    assert splits(want, got) == [] and len(got) in (len(want), len(want) // 2)


@pytest.mark.parametrize("way", ["in fives", "in another order", "after running out of memory", "beside shorter rows"])
def test_the_models_own_modules_draw_the_same(monkeypatch, way):
    keys, want = range(3), first(POLICIES[0])
    monkeypatch.setattr("sequence_processing.decode.forward_for", lambda *args, **kwargs: None)
    got = WAYS[way]("float32", keys, 4)
    assert splits(want, got) == [] and len(got) in (12, 6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_draw_is_the_winner_in_float64(policy):
    assert unexplained("float32", first(policy), policy) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic(dtype):
    want = generate(dtype, range(3), 4, deterministic=True)
    for way in ("in fives", "in another order", "beside shorter rows"):
        assert_bit_equal(want, WAYS[way](dtype, range(3), 4, deterministic=True))
