"""Teacher forcing without gradient: the four quantities of given responses.

Where prompts repeat, a prompt is computed once and its responses continue from its keys and values: by the CPU kernels
where they serve the model, else by its own modules and a cache.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sequence_processing.config import HeadDtype
from sequence_processing.distribution import Policy
from sequence_processing.forwards import measured_of, one_forward, score_rows
from sequence_processing.head import Head, Project, find_head
from sequence_processing.model import CausalModel, does_not_fit, release
from sequence_processing.native.forward import Forward
from sequence_processing.native.serve import forward_for
from sequence_processing.native.teacher import teacher_force
from sequence_processing.pairs import Pair, Scored, Size, batches_of, halved, longest_first, rows_of
from sequence_processing.prefill import Prefilled, prefill


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
    waiting = longest_first(pairs)
    if not waiting:
        return
    kernels = head_dtype != "float64"
    native = forward_for(model, pairs[waiting[0]].length, deterministic=deterministic) if kernels else None
    head = find_head(model, head_dtype) if native is None else None
    scorer = _Scorer(model, pairs, policy, native, head)
    size = batch_size = 1 if deterministic and native is None else batch_size
    while waiting:
        done: set[int] = set()
        failed: MemoryError | None = None
        try:
            for scored in scorer.run(waiting, size):
                done.update(i for i, _ in scored)
                yield scored
        except Exception as error:
            waiting = [i for i in waiting if i not in done]
            held = scorer.held
            failed = does_not_fit(error, len(held), f"{pairs[held[0]].length} tokens" if held else "")
            size = batch_size if failed else halved(pairs, held, size)
        else:
            return
        release()
        if failed is not None:
            if on_failed is None:
                raise failed
            waiting.remove(held[0])
            on_failed(held[0], failed)


@dataclass
class _Scorer:
    """The ways to score pairs: each takes those that are left, longest first, and how many at once."""

    model: CausalModel
    pairs: Sequence[Pair]
    policy: Policy
    native: Forward | None
    head: Head | None
    held: list[int] = field(default_factory=list)  # those whose tensors it holds: too many, should memory run out

    def run(self, order: list[int], size: Size) -> Iterator[Scored]:
        """The way that serves."""
        if self.native is not None:
            return self._with_kernels(self.native, order, size)
        if self._sharing_pays(order, size):
            return self._with_shared_prompts(order, size)
        return self._row_by_row(order, size)

    def _with_kernels(self, native: Forward, order: list[int], size: Size) -> Iterator[Scored]:
        """Nothing is padded, and the responses of a batch share what their prompts have in common."""
        for batch in self._packed(order, size):
            self.held = batch
            with self.model.evaluating():
                prompts = [self.pairs[i].prompt_ids for i in batch]
                measured = teacher_force(native, prompts, [self.pairs[i].response_ids for i in batch], self.policy)
            yield list(zip(batch, measured, strict=True))

    def _packed(self, order: list[int], size: Size) -> Iterator[list[int]]:
        """Batches of whole groups of one prompt as far as `size` goes; a prompt's tokens count once."""
        batch: list[int] = []
        prompts: set[tuple[int, ...]] = set()
        used = 0
        for prompt, group in self._by_prompt(order).items():
            for i in group:
                tokens = len(self.pairs[i].response_ids) + (0 if prompt in prompts else len(prompt))
                cost, most = (1, size) if isinstance(size, int) else (tokens, size.tokens)
                if batch and used + cost > most:
                    yield batch
                    batch, prompts, used = [], set(), 0
                    cost = 1 if isinstance(size, int) else self.pairs[i].length
                batch.append(i)
                prompts.add(prompt)
                used += cost
        if batch:
            yield batch

    def _row_by_row(self, order: list[int], size: Size) -> Iterator[Scored]:
        """Each row whole, its prompt included."""
        for batch in batches_of(order, lambda i: self.pairs[i].length, size):
            self.held = batch
            with self.model.evaluating():
                rows = [self.pairs[i] for i in batch]
                measured = score_rows(self.model, self.model.module, self.head, rows, self.policy)
            yield list(zip(batch, measured, strict=True))

    def _sharing_pays(self, order: list[int], size: Size) -> bool:
        """Whether prompts repeat, and can be computed apart from their responses.

        Never for rows that go one by one: what is computed for a row must not depend on which others there are.
        """
        longest = self.pairs[order[0]].length
        return (
            self.model.recomputed(longest) is None
            and rows_of(size, longest) > 1
            and 2 * len(self._by_prompt(order)) <= len(order)
        )

    def _with_shared_prompts(self, order: list[int], size: Size) -> Iterator[Scored]:
        """As many prompts as a batch takes stay in a cache while their responses, longest first, are scored."""
        by_prompt = self._by_prompt(order)
        for some in batches_of(sorted(by_prompt, key=len, reverse=True), len, size):
            self.held = [i for prompt in some for i in by_prompt[prompt]]
            with self.model.evaluating():
                prompts = prefill(self.model, self.head, some)
            which = {i: p for p, prompt in enumerate(some) for i in by_prompt[prompt]}
            widths = {i: len(some[0]) + len(self.pairs[i].response_ids) for i in which}
            for batch in batches_of(sorted(widths, key=widths.__getitem__, reverse=True), widths.__getitem__, size):
                responses = [self.pairs[i].response_ids for i in batch]
                with self.model.evaluating():
                    states, project = _followed_by(self.model, self.head, prompts, [which[i] for i in batch], responses)
                    vocab_size = self.model.vocab_size
                    measured = measured_of(project, states, [0] * len(batch), responses, self.policy, vocab_size)
                del states
                yield list(zip(batch, measured, strict=True))
            del prompts  # before the next ones are computed

    def _by_prompt(self, order: list[int]) -> dict[tuple[int, ...], list[int]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i in order:
            groups.setdefault(tuple(self.pairs[i].prompt_ids), []).append(i)
        return groups


def _followed_by(
    model: CausalModel, head: Head | None, prompts: Prefilled, which: list[int], responses: Sequence[list[int]]
) -> tuple[torch.Tensor, Project]:
    """What predicts the tokens of responses to prompts `which` [rows, longest response, H]; what makes logits of it."""
    first, width = prompts.last[which][:, None], max(map(len, responses)) - 1
    if width < 1:  # nothing follows upon a response's first token
        return first, prompts.project
    cache = copy.copy(prompts.cache)
    cache.layers = [copy.copy(layer) for layer in prompts.cache.layers]
    cache.batch_select_indices(torch.tensor(which, device=model.device))
    ids = [[*r[:width], *[0] * (width - len(r))] for r in responses]
    mask, steps = prompts.mask[which], torch.arange(width, device=model.device)
    inputs = {
        "input_ids": torch.tensor(ids, device=model.device),
        "attention_mask": torch.cat([mask, mask.new_ones(len(responses), width)], dim=1),
        # Those of padding must not run past a table of positions.
        "position_ids": (prompts.lengths[which][:, None] + steps).clamp_(max=(model.context or sys.maxsize) - 1),
    }
    states, project = one_forward(model.module, head, {**inputs, "past_key_values": cache, "use_cache": True})
    return torch.cat([first, states], dim=1), project
