"""Teacher forcing without gradient: the four quantities of given responses.

Where prompts repeat, a prompt is computed once and its responses continue from its keys and values: by the CPU kernels
where they serve the model, else by its own modules and a cache.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import DynamicCache

from sequence_processing.config import HeadDtype
from sequence_processing.distribution import Policy
from sequence_processing.forwards import forwards_of, measured_of, one_forward, score_rows
from sequence_processing.head import Head, Project, find_head
from sequence_processing.model import CausalModel
from sequence_processing.native.forward import Forward
from sequence_processing.native.serve import forward_for
from sequence_processing.native.teacher import teacher_force
from sequence_processing.pairs import Pair, Scored, Size, batches_of, halved, longest_first, refused, release, rows_of


def score(
    model: CausalModel,
    pairs: Sequence[Pair],
    policy: Policy,
    batch_size: Size,
    head_dtype: HeadDtype = "auto",
    on_failed: Callable[[int, MemoryError], None] | None = None,
    deterministic: bool = False,
) -> Iterator[Scored]:
    """Without gradient, in eval mode: yields the measurements of some pairs at a time, in any order.

    `deterministic`: what is computed for a row depends on that row alone. Out of memory halves the batch; a single row
    that does not fit is told to `on_failed(index into pairs, error)`, or raises its `MemoryError`.
    """
    waiting, size = longest_first(pairs), batch_size
    way = _way(model, pairs, waiting, head_dtype, deterministic)
    if deterministic and way.func is not _with_kernels:
        size = batch_size = 1
    while waiting:
        done: set[int] = set()
        held: list[int] = []
        failed: MemoryError | None = None
        try:
            for scored in way(pairs, waiting, policy, size, held):
                done.update(i for i, _ in scored)
                yield scored
        except Exception as error:
            waiting = [i for i in waiting if i not in done]
            failed = refused(error, pairs, held)
            size = batch_size if failed else halved(pairs, held, size)
        else:
            return
        release()
        if failed is not None:
            if on_failed is None:
                raise failed
            waiting.remove(held[0])
            on_failed(held[0], failed)


# A way takes all pairs, the order of those that are left (longest first), the policy, how many at once, and a list in
# which it keeps those whose tensors it holds: should memory run out, they were too many.
def _way(
    model: CausalModel,
    pairs: Sequence[Pair],
    order: list[int],
    head_dtype: HeadDtype,
    deterministic: bool,
) -> "partial[Iterator[Scored]]":
    """How to score these pairs."""
    longest = pairs[order[0]].length if order else 1
    native = forward_for(model, longest, deterministic=deterministic)
    if native is not None:
        return partial(_with_kernels, model, native)
    return partial(_with_modules, model, find_head(model, head_dtype) if order else None)


def _with_modules(
    model: CausalModel,
    head: Head | None,
    pairs: Sequence[Pair],
    order: list[int],
    policy: Policy,
    size: Size,
    held: list[int],
) -> Iterator[Scored]:
    way = _with_shared_prompts if _sharing_pays(model, pairs, order, size) else _row_by_row
    return way(model, head, pairs, order, policy, size, held)


def _with_kernels(
    model: CausalModel,
    native: Forward,
    pairs: Sequence[Pair],
    order: list[int],
    policy: Policy,
    size: Size,
    held: list[int],
) -> Iterator[Scored]:
    """Nothing is padded, and the responses of a batch share what their prompts have in common."""
    for batch in _packed(pairs, order, size):
        held[:] = batch
        with model.evaluating():
            prompts, responses = [pairs[i].prompt_ids for i in batch], [pairs[i].response_ids for i in batch]
            measured = teacher_force(native, prompts, responses, policy)
        yield list(zip(batch, measured, strict=True))


def _packed(pairs: Sequence[Pair], order: list[int], size: Size) -> Iterator[list[int]]:
    """Batches of whole groups of one prompt as far as `size` goes; a prompt's tokens count once."""
    batch: list[int] = []
    prompts: set[tuple[int, ...]] = set()
    used = 0
    for prompt, group in _by_prompt(pairs, order).items():
        for i in group:
            tokens = len(pairs[i].response_ids) + (0 if prompt in prompts else len(prompt))
            cost, most = (1, size) if isinstance(size, int) else (tokens, size.tokens)
            if batch and used + cost > most:
                yield batch
                batch, prompts, used = [], set(), 0
                cost = 1 if isinstance(size, int) else pairs[i].length
            batch.append(i)
            prompts.add(prompt)
            used += cost
    if batch:
        yield batch


def _by_prompt(pairs: Sequence[Pair], order: list[int]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in order:
        groups.setdefault(tuple(pairs[i].prompt_ids), []).append(i)
    return groups


def _row_by_row(
    model: CausalModel,
    head: Head | None,
    pairs: Sequence[Pair],
    order: list[int],
    policy: Policy,
    size: Size,
    held: list[int],
) -> Iterator[Scored]:
    """Each row whole, its prompt included."""
    for batch in batches_of(order, lambda i: pairs[i].length, size):
        held[:] = batch
        with model.evaluating():
            measured = score_rows(model, model.module, head, [pairs[i] for i in batch], policy)
        yield list(zip(batch, measured, strict=True))


def _sharing_pays(model: CausalModel, pairs: Sequence[Pair], order: list[int], size: Size) -> bool:
    """Whether prompts repeat, and can be computed apart from their responses.

    Never for rows that go one by one: what is computed for a row must not depend on which others there are.
    """
    longest = pairs[order[0]].length
    return (
        model.caches_attention
        and forwards_of(model, longest) == 1
        and rows_of(size, longest) > 1
        and 2 * len({tuple(pairs[i].prompt_ids) for i in order}) <= len(order)
    )


def _with_shared_prompts(
    model: CausalModel,
    head: Head | None,
    pairs: Sequence[Pair],
    order: list[int],
    policy: Policy,
    size: Size,
    held: list[int],
) -> Iterator[Scored]:
    """As many distinct prompts as a batch takes stay in a cache while their responses, longest first, are scored."""
    by_prompt = _by_prompt(pairs, order)
    for some in batches_of(sorted(by_prompt, key=len, reverse=True), len, size):
        held[:] = [i for prompt in some for i in by_prompt[prompt]]
        with model.evaluating():
            prompts = _Prompts.computed(model, head, some)
        which = {i: p for p, prompt in enumerate(some) for i in by_prompt[prompt]}
        widths = {i: len(some[0]) + len(pairs[i].response_ids) for i in which}
        for batch in batches_of(sorted(widths, key=widths.__getitem__, reverse=True), widths.__getitem__, size):
            responses = [pairs[i].response_ids for i in batch]
            with model.evaluating():
                states, project = prompts.followed_by(model, head, [which[i] for i in batch], responses)
                measured = measured_of(project, states, [0] * len(batch), responses, policy, model.vocab_size)
            del states
            yield list(zip(batch, measured, strict=True))
        del prompts  # before the next ones are computed


@dataclass(frozen=True)
class _Prompts:
    """Distinct prompts, left-padded: what their responses need of them."""

    cache: DynamicCache
    mask: torch.Tensor  # [prompts, width], 0 on padding
    last: torch.Tensor  # [prompts, H], at their last tokens
    project: Project

    @classmethod
    def computed(cls, model: CausalModel, head: Head | None, prompts: Sequence[Sequence[int]]) -> "_Prompts":
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        cache = DynamicCache(config=model.text_config)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_(min=0)}
        states, project = one_forward(model.module, head, {**inputs, "past_key_values": cache, "use_cache": True})
        return cls(cache, mask, states[:, -1].clone(), project)

    def followed_by(
        self, model: CausalModel, head: Head | None, which: list[int], responses: Sequence[list[int]]
    ) -> tuple[torch.Tensor, Project]:
        """What predicts the tokens of responses to prompts `which` [rows, longest response, H], and what makes logits
        of it.
        """
        first, width = self.last[which][:, None], max(map(len, responses)) - 1
        if width < 1:  # nothing follows upon a response's first token
            return first, self.project
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(torch.tensor(which, device=model.device))
        ids = [[*r[:width], *[0] * (width - len(r))] for r in responses]
        mask, steps = self.mask[which], torch.arange(width, device=model.device)
        inputs = {
            "input_ids": torch.tensor(ids, device=model.device),
            "attention_mask": torch.cat([mask, mask.new_ones(len(responses), width)], dim=1),
            # Those of padding must not run past a table of positions.
            "position_ids": (mask.sum(-1, keepdim=True) + steps).clamp_(max=(model.context or sys.maxsize) - 1),
        }
        states, project = one_forward(model.module, head, {**inputs, "past_key_values": cache, "use_cache": True})
        return torch.cat([first, states], dim=1), project
