"""Teacher forcing with gradient, one micro-batch at a time, alone or in step with the other ranks."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sequence_processing.config import HeadDtype
from sequence_processing.distribution import Policy
from sequence_processing.forwards import forwards_of, score_rows
from sequence_processing.head import Head, find_head
from sequence_processing.model import CausalModel, does_not_fit, release
from sequence_processing.pairs import (
    Pair,
    Scored,
    Size,
    batches_of,
    halved,
    longest_first,
    rows_of,
    width_of,
)


def micro_batches(
    model: CausalModel, pairs: Sequence[Pair], policy: Policy, batch_size: Size, head_dtype: HeadDtype = "auto"
) -> Iterator[tuple[Scored, torch.Tensor]]:
    """In the caller's own mode, `logprobs` and `entropies` carrying the graph: some pairs at a time, and a zero.

    The zero is a 0-d tensor that carries the micro-batch's graph. Nothing of a micro-batch is held here when the next
    one is asked for.

    Under DDP every forward goes through the wrapper, so that a backward averages the gradients over the ranks. Both
    may synchronise, so all ranks run the same number of them in the same order: a rank that has run out yields
    micro-batches of no pairs, whose zero still joins the reduction. `ValueError` on every rank if some have pairs and
    some have none.
    """
    model.warn_of_dropout()
    head = find_head(model, head_dtype)
    if model.distributed is None:
        return _alone(model, head, pairs, policy, batch_size)
    batches = list(batches_of(longest_first(pairs), lambda i: pairs[i].length, batch_size))
    agreed = _agreed_forwards(
        model.distributed, model.device, [forwards_of(model, width_of(pairs, b)) for b in batches]
    )
    return _in_step(model, head, pairs, policy, batches, agreed)


def _alone(
    model: CausalModel, head: Head | None, pairs: Sequence[Pair], policy: Policy, size: Size
) -> Iterator[tuple[Scored, torch.Tensor]]:
    """The micro-batches of a process by itself; out of memory makes them smaller."""
    waiting = longest_first(pairs)
    while waiting:
        batch = waiting[: rows_of(size, width_of(pairs, waiting))]
        try:
            micro_batch = _with_graph(model, head, pairs, batch, policy)
        except Exception as error:
            if (failed := does_not_fit(error, len(batch), f"{pairs[batch[0]].length} tokens")) is not None:
                raise failed from error
            size = halved(pairs, batch, size)
        else:
            waiting = waiting[len(batch) :]
            yield micro_batch
            del micro_batch
            continue
        release()


def _in_step(
    model: CausalModel,
    head: Head | None,
    pairs: Sequence[Pair],
    policy: Policy,
    batches: Sequence[list[int]],
    agreed: Sequence[int],
) -> Iterator[tuple[Scored, torch.Tensor]]:
    """The micro-batches of one rank among others, each with the agreed number of forwards.

    Out of memory goes through: one rank alone must not change the number of forwards.
    """
    for n, forwards in enumerate(agreed):
        batch = batches[n] if n < len(batches) else []
        own = forwards_of(model, width_of(pairs, batch)) if batch else 0
        micro_batch = _with_graph(model, head, pairs, batch, policy)
        for _ in range(forwards - max(own, 1)):
            _with_graph(model, head, pairs, [], policy)  # part of no result
        yield micro_batch
        del micro_batch


def _with_graph(
    model: CausalModel, head: Head | None, pairs: Sequence[Pair], batch: Sequence[int], policy: Policy
) -> tuple[Scored, torch.Tensor]:
    """Of no pairs, the zero of a forward over a single token."""
    rows = [pairs[i] for i in batch] or [Pair(pairs[0].prompt_ids[:1], [])]
    with torch.enable_grad():
        measured = score_rows(model, model.outer, head, rows, policy)
        zero = measured[0].logprobs[:0].sum()
    return list(zip(batch, measured, strict=bool(batch))), zero


def _agreed_forwards(wrapper: DistributedDataParallel, device: torch.device, mine: Sequence[int]) -> list[int]:
    """For each micro-batch, the most forwards that it takes on any rank."""
    bounds = torch.tensor([len(mine), -len(mine)], device=device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=wrapper.process_group)
    most, least = int(bounds[0]), -int(bounds[1])
    if least == 0 < most:
        raise ValueError("With with_grad under DDP every rank needs at least one prompt, but some rank has none.")
    forwards = torch.tensor([*mine, *[0] * (most - len(mine))], dtype=torch.int64, device=device)
    dist.all_reduce(forwards, op=dist.ReduceOp.MAX, group=wrapper.process_group)
    return forwards.tolist()
