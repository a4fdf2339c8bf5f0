"""Prompts through the model's own modules, once each, into a cache that transformers chooses for it.

Prompts stand left-padded, so that the last column is every prompt's last token: the head sees that column alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache

from sequence_processing.config import HeadDtype
from sequence_processing.forwards import one_forward
from sequence_processing.head import Head, Project, find_head
from sequence_processing.model import CausalModel


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What B prompts left behind."""

    cache: DynamicCache  # B rows; a layer with a window holds its last columns only
    mask: torch.Tensor  # int64 [B, longest prompt], 0 on the padding in front
    lengths: torch.Tensor  # int64 [B], tokens
    last: torch.Tensor  # [B, H], what predicts the first new token
    project: Project  # what makes logits of it

    @property
    def logits(self) -> torch.Tensor:
        """[B, V], of the first new token."""
        return self.project(self.last)


def prefill(model: CausalModel, head: Head | None, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """One forward over all `prompts`, none of them empty."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    lengths = torch.tensor([len(p) for p in prompts], device=model.device)
    mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    cache = DynamicCache(config=model.text_config)
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    last, project = _last(model, head, ids, mask, positions, cache)
    return Prefilled(cache, mask, lengths, last.clone(), project)  # a view would hold all that stands before it


def head_for(model: CausalModel, dtype: HeadDtype) -> Head | None:
    """What makes logits of hidden states where the model's own way would round them; None if its own will do."""
    embedding = model.base.get_output_embeddings()
    weight = getattr(embedding, "weight", None)
    narrow = weight is not None and weight.dtype in (torch.bfloat16, torch.float16)
    return find_head(model, dtype) if narrow or dtype == "float64" else None


def next_logits(
    model: CausalModel,
    head: Head | None,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache,
) -> torch.Tensor:
    """Append `ids` int64 [B, n] at `positions` [B, n] to `cache`; logits [B, V] behind the last of them.

    `mask` int64 [B, columns of the cache with the new tokens], 0 on the columns that a row must not see.
    """
    last, project = _last(model, head, ids, mask, positions, cache)
    return project(last)


def _last(
    model: CausalModel,
    head: Head | None,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache,
) -> tuple[torch.Tensor, Project]:
    """What stands behind the last of `ids` [B, H], and what makes logits of it."""
    inputs = model.accepted(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    states, project = one_forward(model.module, head, inputs)
    return states[:, -1], project
