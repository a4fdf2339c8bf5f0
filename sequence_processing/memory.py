"""How many rows fit: what the device has free against what a row of this model needs at worst. Bytes throughout.

Estimates from the model's config, on the safe side. Where one is wrong all the same, running out of memory makes the
batch smaller (`rollout.py`, `scoring.py`): an estimate decides about time and memory, never about results.
"""

import logging
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from sequence_processing.distribution import BLOCK_ELEMENTS
from sequence_processing.model import CausalModel
from sequence_processing.native.ops import kernels
from sequence_processing.pairs import TokenBudget

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

# Of what is free. The other half is for buffers that are copied as they grow, and for the caller's own.
_SHARE = 0.5

# Beyond these, more at once only takes memory.
_MOST_ROWS, _MOST_ROWS_CPU = 1024, 256
_MOST_TOKENS, _MOST_TOKENS_CPU = 65_536, 8_192

# What `distribution` holds of each logit in a block: six float64 arrays, or float32 twice where a kernel does the rest.
_BLOCK_BYTES, _BLOCK_BYTES_FUSED = 48, 8


@dataclass(frozen=True, slots=True)
class Cost:
    """What a forward of a model holds beside its weights, without gradient."""

    cache: int  # a token: its keys and values in all layers; 0 if the model keeps none
    activations: int  # a token, while it passes a layer
    attention: int  # a pair of tokens of one row, while it passes a layer: mask and, where they are stored, scores
    logits: int  # a row: one token's, and a float32 copy
    block: int  # a logit in a block of them, while it is measured
    vocab_size: int

    @classmethod
    def of(cls, model: CausalModel) -> "Cost":
        config: Any = model.text_config
        size = model.base.get_input_embeddings().weight.element_size()
        stored = getattr(config, "_attn_implementation", None) == "eager"
        fused = model.device.type == "cpu" and kernels() is not None
        return cls(
            cache=kv_bytes_per_token(model),
            activations=_activation_bytes(config, size),
            attention=4 + (8 * config.num_attention_heads if stored and hasattr(config, "num_attention_heads") else 0),
            logits=model.vocab_size * (size + 4),
            block=_BLOCK_BYTES_FUSED if fused else _BLOCK_BYTES,
            vocab_size=model.vocab_size,
        )

    def forward(self, tokens: int) -> int:
        """Bytes of one row of `tokens` that passes the layers."""
        return tokens * (self.activations + tokens * self.attention)

    def blocks(self, rows: int) -> int:
        """Bytes of the arithmetic over `rows` of logits, block by block."""
        return self.block * min(rows * self.vocab_size, max(BLOCK_ELEMENTS, self.vocab_size))


def rows_at_once(model: CausalModel, prompt_lens: Sequence[int], limits: Sequence[int]) -> int:
    """What "auto" comes to now for rows to generate (`rows_for_generation`); told to the log."""
    if not limits:
        return 1
    free = free_bytes(model.device)
    rows = rows_for_generation(model, prompt_lens, limits, free)
    log.info("Generating %d rows at once: %.1f GB of memory are free.", rows, free / 1e9)
    return rows


def tokens_at_once(model: CausalModel, longest: int, with_grad: bool) -> TokenBudget:
    """What "auto" comes to now for rows to score (`tokens_for_scoring`); told to the log."""
    free = free_bytes(model.device)
    tokens = tokens_for_scoring(model, longest, free, with_grad)
    log.info("Scoring up to %d tokens at once: %.1f GB of memory are free.", tokens, free / 1e9)
    return TokenBudget(tokens)


def rows_for_generation(model: CausalModel, prompt_lens: Sequence[int], limits: Sequence[int], free: int) -> int:
    """How many rows to decode at once: one at least, and no more than there are.

    Each counts as the longest prompt with the highest limit.

    Args:
        prompt_lens: tokens of each of B prompts, B > 0.
        limits: new tokens at most of each of B x G rows, a prompt's G rows together.
        free: bytes that the device has (`free_bytes`).
    """
    cost, samples = Cost.of(model), len(limits) // len(prompt_lens)
    prompt = max(prompt_lens)
    longest = min(prompt + max(limits), model.context or sys.maxsize)
    recomputed = model.recomputed(longest) is not None

    def need(rows: int) -> int:
        if recomputed:  # every token passes its whole row through the model again
            held = rows * cost.forward(longest)
        else:
            held = rows * longest * cost.cache + -(-rows // samples) * cost.forward(prompt)
        return held + rows * cost.logits + cost.blocks(rows)

    most = _MOST_ROWS_CPU if model.device.type == "cpu" else _MOST_ROWS
    return _steady(_most_that_fit(min(most, len(limits)), need, free), len(limits))


def tokens_for_scoring(model: CausalModel, longest: int, free: int, with_grad: bool = False) -> int:
    """How many tokens to score at once, padding included, in rows of up to `longest` tokens; at least one such row.

    With gradient every layer's activations are kept for the backward pass.
    """
    cost = Cost.of(model)
    layers = int(getattr(model.text_config, "num_hidden_layers", 1)) if with_grad else 1

    def need(tokens: int) -> int:
        a_token = layers * (cost.activations + longest * cost.attention) + cost.cache
        return tokens * a_token + cost.blocks(tokens)

    most = _MOST_TOKENS_CPU if model.device.type == "cpu" else _MOST_TOKENS
    return max(longest, _steady(_most_that_fit(most, need, free), most))


def _steady(count: int, wanted: int) -> int:
    """All that are wanted, or else a power of 2: a little more or less free memory then makes the same batches."""
    return count if count >= wanted else 1 << (count.bit_length() - 1)


def _most_that_fit(most: int, need: Callable[[int], int], free: int) -> int:
    """The largest count from 1 to `most` whose need, which grows with it, stays within our share of what is free."""
    return max(1, bisect_right(range(1, most + 1), int(_SHARE * free), key=need))


def kv_bytes_per_token(model: CausalModel) -> int:
    """Bytes of one token's keys and values in all layers' caches; a layer with a window counts as one without."""
    if not model.caches_attention:
        return 0
    config: Any = model.text_config
    if latent := getattr(config, "kv_lora_rank", None):  # the cache holds what keys and values are unfolded from
        width = latent + config.qk_rope_head_dim
    else:
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = 2 * kv_heads * _head_dim(config)
    return int(config.num_hidden_layers * width * model.base.get_input_embeddings().weight.element_size())


def _activation_bytes(config: Any, size: int) -> int:
    """Bytes of one token in the widest place of a layer, elements of `size` bytes.

    Either the states around the feed-forward block and its inner ones, or those of the attention; a state-space layer
    holds a state for every token, in float32.
    """
    hidden = config.hidden_size
    inner = _inner_size(config)
    if states := getattr(config, "state_size", None):
        return size * 4 * hidden + 4 * 3 * inner * states
    heads = getattr(config, "num_attention_heads", 1)
    attention = 4 * heads * _head_dim(config)
    return int(size * (4 * hidden + max(3 * inner, attention)) + 4 * 2 * hidden)  # norms work in float32


def _inner_size(config: Any) -> int:
    """Width inside a feed-forward block, over all experts that a token goes to; 4 hidden sizes where it is not said."""
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    names = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    given = [size for name in names if (size := getattr(config, name, None))]
    sizes = [max(size) if isinstance(size, list | tuple) else size for size in given]  # one a layer, or one for all
    return experts * int(sizes[0]) if experts > 1 and sizes else int(max(sizes, default=4 * config.hidden_size))


def _head_dim(config: Any) -> int:
    """Width of an attention head; of a model without them, of its hidden states."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1))


# --- what is free ---------------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """What can still be allocated on `device`, what torch holds there without using it included.

    For devices without a memory of their own, the host's, within the limits that were set for this process.
    """
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min(psutil.virtual_memory().available, *_left_of_groups(), *_left_of_address_space()))


def _left_of_address_space() -> list[int]:
    """What RLIMIT_AS leaves to this process, if it is set."""
    if sys.platform == "win32":
        return []
    limit, _hard = resource.getrlimit(resource.RLIMIT_AS)
    return [] if limit == resource.RLIM_INFINITY else [limit - psutil.Process().memory_info().vms]


def _left_of_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each memory limit over this process leaves: of its control group and of those around it, version 2 or 1.

    Inside a container `own` may name a path of the host's: what is there of it counts, its root at least.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            if (left := _left_of_group(folder, *names)) is not None:
                yield left


def _left_of_group(folder: Path, limit_name: str, usage_name: str) -> int | None:
    """Limit less usage, where what the kernel can drop at once (file pages not used lately) does not count as used."""
    try:
        limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return None if limit == "max" else int(limit) - usage + droppable
