"""One forward over given rows, and the four quantities of what it predicts.

Rows are right-padded and need no mask: a causal model's outputs on a row do not see what stands to its right. The
off-by-one, once: response token j of a prompt of n tokens is predicted at position n - 1 + j. A model whose way from
hidden states to logits is not understood gets its own full logits.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from sequence_processing.distribution import Measured, Policy
from sequence_processing.head import Head, Project, measure
from sequence_processing.model import CausalModel
from sequence_processing.pairs import Pair


def score_rows(
    model: CausalModel, forward: nn.Module, head: Head | None, rows: Sequence[Pair], policy: Policy
) -> list[Measured]:
    """Right-padded rows, the head over the positions that predict a response token."""
    width = max(p.length for p in rows)
    ids = torch.tensor([[*p.prompt_ids, *p.response_ids] + [0] * (width - p.length) for p in rows], device=model.device)
    states, project = _states(model, forward, head, ids)
    starts, responses = [len(p.prompt_ids) - 1 for p in rows], [p.response_ids for p in rows]
    return measured_of(project, states, starts, responses, policy, model.vocab_size)


def measured_of(
    project: Project,
    states: torch.Tensor,
    starts: Sequence[int],
    responses: Sequence[list[int]],
    policy: Policy,
    vocab_size: int,
) -> list[Measured]:
    """Of each row of states [rows, places, H], its response's tokens, the first predicted at the row's start."""
    rows = torch.tensor([r for r, response in enumerate(responses) for _ in response], dtype=torch.int64)
    places = [start + j for start, response in zip(starts, responses, strict=True) for j in range(len(response))]
    tokens = torch.tensor([t for response in responses for t in response], dtype=torch.int64, device=states.device)
    picked = states[rows, torch.tensor(places, dtype=torch.int64)]
    return measure(project, picked, tokens, policy, vocab_size).split([len(response) for response in responses])


def _states(
    model: CausalModel, forward: nn.Module, head: Head | None, ids: torch.Tensor
) -> tuple[torch.Tensor, Project]:
    """What stands at each of ids [rows, tokens], and what makes logits of it.

    Where rotary frequencies change with a forward's length, a position counts as its prefix has it - which is how it
    was sampled - whatever stands to its right, its own response or a longer neighbour: hence a second forward.
    """
    states, project = one_forward(forward, head, model.accepted(input_ids=ids, use_cache=False))
    if forwards_of(model, ids.shape[1]) == 1:
        return states, project
    early, _ = one_forward(forward, head, model.accepted(input_ids=ids[:, : model.rope_change], use_cache=False))
    return torch.cat([early, states[:, model.rope_change :]], dim=1), project


def forwards_of(model: CausalModel, width: int) -> int:
    """How many forwards of the model `_states` takes for rows of up to `width` tokens."""
    return 1 if model.rope_change is None or width <= model.rope_change else 2


def one_forward(forward: nn.Module, head: Head | None, inputs: dict[str, Any]) -> tuple[torch.Tensor, Project]:
    """What the forward hands to its head [rows, tokens, H], the head itself seeing one token only; or the logits.

    The logits where there is no head, or where the forward ran past the hook.
    """
    captured: list[torch.Tensor] = []

    def capture(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        captured.append(args[0])
        # Contiguous: of a slice a frozen head's product with gradient would copy its weight once a row.
        return (args[0][:1, :1].contiguous(), *args[1:])

    with nullcontext() if head is None else head.module.register_forward_pre_hook(capture):
        logits: torch.Tensor = forward(**inputs).logits
    return (logits, _identity) if head is None or not captured else (captured[0], head)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x
