"""The engine: rows in, finished `Rollout`s out, each yielded as soon as it ends.

A row is one prompt and one sample; its draws are named by (seed, prompt key, sample index, position) and so do not
depend on the batch it happens to be in. That is what makes the answer to running out of memory simple: the unfinished
rows of the batch go back and run again from the start in smaller batches, and nothing that was already yielded
changes.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sequence_processing import distribution
from sequence_processing.containers import Rollout
from sequence_processing.decode import decoder_for
from sequence_processing.distribution import Policy
from sequence_processing.model import CausalModel, is_out_of_memory
from sequence_processing.noise import row_key
from sequence_processing.stops import StopStrings, StopWatch

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]

# Dropping rows copies the whole cache: worth it once a quarter of the batch has finished.
_DROP_BELOW = 0.75


@dataclass(slots=True)
class Row:
    """One sequence while it is being generated."""

    prompt_index: int
    sample_index: int
    prompt_ids: list[int]
    limit: int  # new tokens at most
    key: int  # names its draws
    watch: StopWatch
    response_ids: list[int] = field(default_factory=list)
    measured: list[list[float]] = field(default_factory=list)  # four values a token
    reported: int = 0  # tokens told to on_step; stays when the row starts again

    def restart(self, watch: StopWatch) -> None:
        self.watch = watch
        self.response_ids = []
        self.measured = []


@dataclass(frozen=True, slots=True)
class Step:
    """What one decode step of a batch came to."""

    new_tokens: int  # that on_step has not heard of
    live: int  # rows that go on
    ended: list[Rollout]


@dataclass(frozen=True)
class Engine:
    """Everything one call of the engine needs beside its rows. `decode` gives text to token ids."""

    model: CausalModel
    policy: Policy
    eos_ids: frozenset[int]  # empty if EOS is to be ignored
    stops: StopStrings
    decode: Callable[[Sequence[int]], str]

    def rows(
        self, prompts: Sequence[list[int]], G: int, limits: Sequence[int], seed: int, prompt_keys: Sequence[int]
    ) -> list[Row]:
        """G rows for each prompt, a limit for each row. A limit beyond the model's context is capped."""
        context = self.model.context or math.inf
        return [
            Row(b, g, ids, int(min(limits[b * G + g], context - len(ids))), row_key(seed, key, g), self.stops.watch())
            for b, (ids, key) in enumerate(zip(prompts, prompt_keys, strict=True))
            for g in range(G)
        ]

    def run(self, rows: Sequence[Row], batch_size: int, on_step: OnStep | None = None) -> Iterator[Rollout]:
        """Yield each row's `Rollout` when it ends, in any order.

        `on_step(new tokens, live rows)` is called after each decode step and what it raises goes through at once. Out
        of memory halves the batch; a single row that does not fit raises `MemoryError`.
        """
        for row in rows:
            if row.limit == 0:
                yield self._finish(row, "length")
        # Longest prompts first: like lengths share a batch, and if memory is short it shows at once.
        waiting = sorted((r for r in rows if r.limit > 0), key=lambda r: -len(r.prompt_ids))
        while waiting:
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            unfinished = {(row.prompt_index, row.sample_index): row for row in batch}
            steps = self._steps(batch)
            while unfinished:
                try:
                    step = next(steps)  # nothing of the caller's runs in here: what that raises is not ours to handle
                except Exception as error:
                    _refuse_unless_smaller_helps(error, batch)
                    break
                if on_step is not None:
                    on_step(step.new_tokens, step.live)
                for rollout in step.ended:
                    del unfinished[rollout.prompt_index, rollout.sample_index]
                    yield rollout
            if not unfinished:
                continue
            # Outside the handler, so that the failed step's tensors are free by now.
            batch_size = max(1, len(batch) // 2)
            log.warning("Out of memory with %d rows; going on with %d.", len(batch), batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for row in unfinished.values():
                row.restart(self.stops.watch())
            waiting = [*unfinished.values(), *waiting]

    def _steps(self, batch: Sequence[Row]) -> Iterator[Step]:
        """Decode a batch step by step until all its rows have ended."""
        longest = max(len(row.prompt_ids) for row in batch) + max(row.limit for row in batch)
        decoder = decoder_for(self.model, longest)
        # Rows of the decoder: None where a row has ended and is not dropped yet. Equal prompts stand together.
        by_prompt: dict[tuple[int, ...], list[Row]] = {}
        for row in batch:
            by_prompt.setdefault(tuple(row.prompt_ids), []).append(row)
        slots: list[Row | None] = [row for group in by_prompt.values() for row in group]
        with self.model.evaluating():
            logits = decoder.prefill(list(by_prompt), [len(group) for group in by_prompt.values()])
            tokens = self._draw(slots, logits)
        while True:
            ended: list[Rollout] = []
            new_tokens = _newly_reported([row for row in slots if row is not None])
            for i, live_row in enumerate(slots):
                if live_row is not None and (reason := self._finish_reason(live_row)) is not None:
                    ended.append(self._finish(live_row, reason))
                    slots[i] = None
            live = [i for i, row in enumerate(slots) if row is not None]
            yield Step(new_tokens, len(live), ended)
            if not live:
                return
            with self.model.evaluating():
                if len(live) < _DROP_BELOW * len(slots):
                    kept = torch.tensor(live, device=self.model.device)
                    decoder.keep(kept)
                    tokens, slots = tokens[kept], [slots[i] for i in live]
                tokens = self._draw(slots, decoder.step(tokens))

    def _draw(self, slots: Sequence[Row | None], logits: torch.Tensor) -> torch.Tensor:
        """Draw and record one token for each live row; ended rows take along whatever comes. Tokens int64 [rows]."""
        keys = [0 if row is None else row.key for row in slots]
        positions = [0 if row is None else len(row.response_ids) for row in slots]
        tokens, m = distribution.sample(logits, keys, positions, self.policy)
        values = torch.stack([m.logprobs, m.entropies, m.sampling_logprobs, m.sampling_entropies], dim=1).tolist()
        for row, token, four in zip(slots, tokens.tolist(), values, strict=True):
            if row is None:
                continue
            if any(math.isnan(v) for v in four):
                raise FloatingPointError(
                    f"The model's logits are not finite at token {len(row.response_ids)} of prompt {row.prompt_index}, "
                    f"sample {row.sample_index}; its weights may have diverged, or its type is too narrow."
                )
            row.response_ids.append(token)
            row.measured.append(four)
        return tokens

    def _finish_reason(self, row: Row) -> str | None:
        """Why the row ends with its newest token, or None."""
        token = row.response_ids[-1]
        if token in self.eos_ids:
            return "eos"
        if row.watch.push(token):
            return "stop"
        return "length" if len(row.response_ids) == row.limit else None

    def _finish(self, row: Row, reason: str) -> Rollout:
        logprobs, entropies, sampling_logprobs, sampling_entropies = (
            np.asarray(row.measured, dtype=np.float32).reshape(-1, 4).T.copy()
        )
        text = self.decode(row.response_ids)
        return Rollout(
            prompt_index=row.prompt_index,
            sample_index=row.sample_index,
            prompt_ids=row.prompt_ids,
            response_ids=row.response_ids,
            text=text,
            logprobs=logprobs,
            entropies=entropies,
            sampling_logprobs=sampling_logprobs,
            sampling_entropies=sampling_entropies,
            finish_reason=reason,
            stop_offset=row.watch.offset,
            token_ends=row.watch.token_ends(len(row.response_ids), text),
        )


def _refuse_unless_smaller_helps(error: Exception, batch: Sequence[Row]) -> None:
    """Returns if a smaller batch may help; raises `error`, or `MemoryError` for a single row."""
    if not is_out_of_memory(error):
        raise error
    if len(batch) == 1:
        raise MemoryError(
            f"One sequence of {len(batch[0].prompt_ids)} prompt tokens and up to {batch[0].limit} new ones does not "
            "fit in memory; shorten it, or use a smaller type or a larger device."
        ) from error


def _newly_reported(rows: Sequence[Row]) -> int:
    """Tokens that `on_step` has not heard of; those drawn again after running out of memory do not count twice."""
    new = 0
    for row in rows:
        new += max(0, len(row.response_ids) - row.reported)
        row.reported = max(row.reported, len(row.response_ids))
    return new
