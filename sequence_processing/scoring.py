"""Teacher forcing: the four quantities of given responses, with or without gradient.

Rows are right-padded and need no mask: a causal model's outputs on a row do not see what stands to its right. The
off-by-one, once: response token j of a prompt of n tokens is predicted at position n - 1 + j.

The head runs in chunks, so that float logits exist for one block of tokens at a time; with gradient a block is
recomputed in the backward pass. A model whose way from hidden states to logits is not understood gets its own full
logits instead.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from sequence_processing import distribution
from sequence_processing.distribution import Measured, Policy
from sequence_processing.model import CausalModel, is_out_of_memory

log = logging.getLogger(__name__)

Project: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt of at least one token, and a response that may be empty."""

    prompt_ids: list[int]
    response_ids: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class Head:
    """Hidden states [n, H] to logits [n, V]: the model's output embedding and what the model does to its product."""

    module: nn.Module
    finish: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.finish(self.module(hidden))


def score(
    model: CausalModel, pairs: Sequence[Pair], policy: Policy, batch_size: int
) -> Iterator[list[tuple[int, Measured]]]:
    """Without gradient, in eval mode: yields batches of (index into pairs, measurements [len(response)]), in any order.

    Out of memory halves the batch; a single row that does not fit raises `MemoryError`.
    """
    waiting = _longest_first(pairs)
    head = find_head(model) if waiting else None
    while waiting:
        batch, rest = waiting[:batch_size], waiting[batch_size:]
        try:
            with model.evaluating():
                measured = _score_batch(model, model.module, head, [pairs[i] for i in batch], policy)
        except Exception as error:
            batch_size = _halved(error, batch, pairs)
        else:
            waiting = rest
            yield list(zip(batch, measured, strict=True))


def score_with_grad(model: CausalModel, pairs: Sequence[Pair], policy: Policy, batch_size: int) -> list[Measured]:
    """In the caller's own mode, `logprobs` and `entropies` carrying the graph; one `Measured` a pair.

    Under DDP every forward goes through the wrapper, so that one backward over the results averages the gradients
    over the ranks. Its forwards may synchronise, so all ranks run the same number of them; `ValueError` on every rank
    if some have rows and some have none.
    """
    results: list[Measured | None] = [None] * len(pairs)
    model.warn_of_dropout()
    head = find_head(model)
    waiting = _longest_first(pairs)
    forwards = _agreed_forwards(model, sum(_forwards(model, pairs[i].length) for i in waiting[::batch_size]))
    with torch.enable_grad():
        while waiting:
            batch, rest = waiting[:batch_size], waiting[batch_size:]
            try:
                measured = _score_batch(model, model.outer, head, [pairs[i] for i in batch], policy)
            except Exception as error:
                if model.distributed is not None:
                    raise  # one rank alone must not change the number of forwards
                batch_size = _halved(error, batch, pairs)
                continue
            waiting = rest
            forwards -= _forwards(model, pairs[batch[0]].length)
            for i, m in zip(batch, measured, strict=True):
                results[i] = m
        for _ in range(forwards if model.distributed is not None else 0):
            # Other ranks have more rows. This forward's output weighs nothing: it is not part of any result.
            _score_batch(model, model.outer, head, [Pair(pairs[0].prompt_ids[:1], [])], policy)
    return [m for m in results if m is not None]


def find_head(model: CausalModel) -> Head | None:
    """The model's head if `Head` reproduces its logits bit for bit on a probe of a few tokens; None otherwise.

    None as well if the head runs inside compiled code: a hook there is not seen, or compiled in for good.
    """
    module = model.base.get_output_embeddings()
    if module is None or _is_compiled(model.outer, module):
        return None
    calls: list[tuple[tuple[torch.Tensor, ...], torch.Tensor]] = []
    handle = module.register_forward_hook(lambda _module, args, output: calls.append((args, output)))
    with model.evaluating():
        ids = torch.arange(4, device=model.device)[None] % model.vocab_size
        try:
            logits = model.module(**_inputs(model, ids)).logits
        finally:
            handle.remove()
        if len(calls) != 1 or not _repeats(module, *calls[0]):
            return None
    product = calls[0][1]
    for finish in _finishes(model.text_config):
        if product.shape == logits.shape and torch.equal(finish(product).to(logits.dtype), logits):
            return Head(module, finish)
    return None


def _repeats(module: nn.Module, args: tuple[torch.Tensor, ...], product: torch.Tensor) -> bool:
    """Whether `module`, called from outside the model's forward, gives its product again; under autocast it may not."""
    if len(args) != 1:
        return False
    try:
        again = module(args[0])
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False  # inside, its operands had other types
    return again.dtype == product.dtype and torch.equal(again, product)


def _is_compiled(forward: nn.Module, head: nn.Module) -> bool:
    """Whether `forward` reaches `head` through torch.compile: a wrapper, in place, or of a `forward` alone."""

    def is_compiled(module: nn.Module) -> bool:
        in_place = module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
        return in_place or hasattr(module, "_orig_mod")

    return any(inner is head for m in forward.modules() if is_compiled(m) for inner in m.modules())


def _finishes(config: Any) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """What architectures do to the product of their head: nothing (most), scale (Cohere, Granite), soft-cap (Gemma)."""
    yield lambda x: x
    if scale := getattr(config, "logit_scale", None):
        yield lambda x: x * scale
    if scaling := getattr(config, "logits_scaling", None):
        yield lambda x: x / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda x: torch.tanh(x / cap) * cap


def _score_batch(
    model: CausalModel, forward: nn.Module, head: Head | None, batch: Sequence[Pair], policy: Policy
) -> list[Measured]:
    """One forward over right-padded rows, then the head over the positions that predict a response token."""
    device = model.device
    width = max(p.length for p in batch)
    ids = torch.tensor([[*p.prompt_ids, *p.response_ids] + [0] * (width - p.length) for p in batch], device=device)
    states, project = _states(model, forward, head, ids)
    rows = [r for r, p in enumerate(batch) for _ in p.response_ids]
    places = [len(p.prompt_ids) - 1 + j for p in batch for j in range(len(p.response_ids))]
    targets = torch.tensor([t for p in batch for t in p.response_ids], dtype=torch.int64, device=states.device)
    picked = states[torch.tensor(rows, dtype=torch.int64), torch.tensor(places, dtype=torch.int64)]

    def block(hidden: torch.Tensor, tokens: torch.Tensor) -> Measured:
        return distribution.measure(project(hidden), tokens, policy)

    size = distribution.block_rows(model.vocab_size)
    parts = []
    for start in range(0, max(len(rows), 1), size):  # at least one block: an empty response carries the graph as well
        hidden, tokens = picked[start : start + size], targets[start : start + size]
        if torch.is_grad_enabled():
            parts.append(checkpoint(block, hidden, tokens, use_reentrant=False))
        else:
            parts.append(block(hidden, tokens))
    lengths = [len(p.response_ids) for p in batch]
    joined = distribution.join(parts)
    columns = (joined.logprobs, joined.entropies, joined.sampling_logprobs, joined.sampling_entropies)
    return [Measured(*row) for row in zip(*(c.split(lengths) for c in columns), strict=True)]


def _states(
    model: CausalModel, forward: nn.Module, head: Head | None, ids: torch.Tensor
) -> tuple[torch.Tensor, Project]:
    """What stands at each of ids [rows, tokens], and what makes logits of it.

    Where rotary frequencies change with a forward's length, a position counts as its prefix has it - which is how it
    was sampled - whatever stands to its right, its own response or a longer neighbour: hence a second forward.
    """
    states, project = _one_forward(model, forward, head, ids)
    if _forwards(model, ids.shape[1]) == 1:
        return states, project
    early, _ = _one_forward(model, forward, head, ids[:, : model.rope_change])
    return torch.cat([early, states[:, model.rope_change :]], dim=1), project


def _forwards(model: CausalModel, width: int) -> int:
    """How many forwards of the model `_states` takes for rows of up to `width` tokens."""
    return 1 if model.rope_change is None or width <= model.rope_change else 2


def _one_forward(
    model: CausalModel, forward: nn.Module, head: Head | None, ids: torch.Tensor
) -> tuple[torch.Tensor, Project]:
    """What the forward hands to its head [rows, tokens, H], the head itself seeing one token a row only; or the logits.

    The logits where there is no head, or where the forward ran past the hook.
    """
    captured: list[torch.Tensor] = []

    def capture(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        captured.append(args[0])
        return (args[0][:, :1], *args[1:])

    with nullcontext() if head is None else head.module.register_forward_pre_hook(capture):
        logits: torch.Tensor = forward(**_inputs(model, ids)).logits
    return (logits, _identity) if head is None or not captured else (captured[0], head)


def _inputs(model: CausalModel, ids: torch.Tensor) -> dict[str, Any]:
    return {"input_ids": ids, "use_cache": False} if "use_cache" in model.accepts else {"input_ids": ids}


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _longest_first(pairs: Sequence[Pair]) -> list[int]:
    return sorted(range(len(pairs)), key=lambda i: -pairs[i].length)


def _agreed_forwards(model: CausalModel, mine: int) -> int:
    """The largest number of forwards of any rank under DDP; `mine` otherwise."""
    if model.distributed is None:
        return mine
    bounds = torch.tensor([mine, -mine], device=model.device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=model.distributed.process_group)
    most, least = int(bounds[0]), -int(bounds[1])
    if least == 0 < most:
        raise ValueError("With with_grad under DDP every rank needs at least one prompt, but some rank has none.")
    return most


def _halved(error: Exception, batch: Sequence[int], pairs: Sequence[Pair]) -> int:
    """Half the batch's size if `error` is out of memory; raises it otherwise, or `MemoryError` for a single row."""
    if not is_out_of_memory(error):
        raise error
    if len(batch) == 1:
        raise MemoryError(
            f"One sequence of {pairs[batch[0]].length} tokens does not fit in memory; shorten it, or use a smaller "
            "type or a larger device."
        ) from error
    log.warning("Out of memory with %d rows; going on with %d.", len(batch), len(batch) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return len(batch) // 2
