"""The engine: rows in, finished `Rollout`s out, each yielded as soon as it ends.

A row is one prompt and one sample; its draws are named by (seed, prompt key, sample index, position) and so do not
depend on the batch it happens to be in. A row that ends leaves at once and the next ones take its place. Running out of
memory has a simple answer for the same reason: the unfinished rows go back and run again from the start, fewer at a
time, and nothing that was already yielded changes.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, takewhile

import numpy as np
import torch

from sequence_processing import distribution
from sequence_processing.config import HeadDtype
from sequence_processing.containers import Rollout
from sequence_processing.decode import decoder_for
from sequence_processing.diagnostics import flat
from sequence_processing.distribution import Policy
from sequence_processing.model import CausalModel, does_not_fit, release
from sequence_processing.noise import row_key
from sequence_processing.stops import StopStrings, StopWatch

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
OnFailed = Callable[[int, int, MemoryError], None]  # prompt index, sample index

# Where dropping rows copies the whole cache, it is worth it once a quarter of the batch has finished.
_DROP_BELOW = 0.75
# New rows are prefilled this many at a time, as a share of the batch: a forward of few tokens costs as much as of many.
_REFILL = 1 / 8


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
    measured: list[Sequence[float]] = field(default_factory=list)  # of each token the four, then its diagnostics
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
    head_dtype: HeadDtype = "auto"

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

    def run(
        self,
        rows: Sequence[Row],
        batch_size: int,
        *,
        deterministic: bool = False,
        on_step: OnStep | None = None,
        on_failed: OnFailed | None = None,
    ) -> Iterator[Rollout]:
        """Yield each row's `Rollout` when it ends, in any order.

        `deterministic`: no row's arithmetic may depend on its neighbours; where the decoder cannot promise that, rows
        run one at a time. `on_step(new tokens, live rows)` is called after each decode step and what it raises goes
        through at once. Out of memory halves the batch; a single row that does not fit is told to `on_failed`, or
        raises its `MemoryError`.
        """
        for row in rows:
            if row.limit == 0:
                yield self._finish(row, "length")
        # Longest prompts first: like lengths share a batch, and if memory is short it shows at once.
        waiting = deque(sorted((r for r in rows if r.limit > 0), key=lambda r: (-len(r.prompt_ids), r.prompt_ids)))
        longest = max((len(row.prompt_ids) + row.limit for row in waiting), default=0)
        size = batch_size
        while waiting:
            batch = _Batch(self, waiting, size, longest, deterministic)
            failed: MemoryError | None = None
            while batch.rows or waiting:
                try:
                    step = batch.advance()  # nothing of the caller's runs in here: what that raises is not ours
                except Exception as error:
                    failed = batch.does_not_fit(error)
                    break
                if on_step is not None:
                    on_step(step.new_tokens, step.live)
                yield from step.ended
            if not batch.rows:
                continue
            # Outside the handler, so that the failed step's tensors are free by now.
            unfinished = batch.rows
            del batch
            release()
            if failed is None:
                size = self._put_back(unfinished, waiting)
            elif on_failed is None:
                raise failed
            else:
                on_failed(unfinished[0].prompt_index, unfinished[0].sample_index, failed)
                size = batch_size  # others may be smaller

    def _put_back(self, unfinished: Sequence[Row], waiting: deque[Row]) -> int:
        """The rows of a batch that ran out of memory, to start again; returns how many at once."""
        for row in reversed(unfinished):
            row.restart(self.stops.watch())
            waiting.appendleft(row)
        size = max(1, len(unfinished) // 2)
        log.warning("Out of memory with %d rows; going on with %d.", len(unfinished), size)
        return size

    def draw(self, rows: Sequence[Row | None], logits: torch.Tensor) -> torch.Tensor:
        """Draw and record one token for each row; None stands for one that has ended. Tokens int64 [rows]."""
        keys = [0 if row is None else row.key for row in rows]
        positions = [0 if row is None else len(row.response_ids) for row in rows]
        tokens, m = distribution.sample(logits, keys, positions, self.policy)
        # Lists for four numbers, which NumPy would be slow to hand out; an array where there may be hundreds.
        values = flat(m.columns).cpu().numpy() if m.diagnostics else torch.stack(m.four, dim=1).tolist()
        for row, token, measured in zip(rows, tokens.tolist(), values, strict=True):
            if row is None:
                continue
            if math.isnan(measured[0]) or math.isnan(measured[1]):
                raise FloatingPointError(
                    f"The model's logits are not finite at token {len(row.response_ids)} of prompt {row.prompt_index}, "
                    f"sample {row.sample_index}; its weights may have diverged, or its type is too narrow."
                )
            row.response_ids.append(token)
            row.measured.append(measured)
        return tokens

    def end(self, row: Row) -> Rollout | None:
        """The row's `Rollout` if it ends with its newest token."""
        reason = self._finish_reason(row)
        return None if reason is None else self._finish(row, reason)

    def _finish_reason(self, row: Row) -> str | None:
        """Why the row ends with its newest token, or None."""
        token = row.response_ids[-1]
        if token in self.eos_ids:
            return "eos"
        if row.watch.push(token):
            return "stop"
        return "length" if len(row.response_ids) == row.limit else None

    def _finish(self, row: Row, reason: str) -> Rollout:
        asked = self.policy.diagnostics
        dtype = np.float64 if self.policy.dtype == torch.float64 else np.float32
        table = np.asarray(row.measured, dtype=np.float64).reshape(-1, 4 + sum(asked.widths.values()))
        logprobs, entropies, sampling_logprobs, sampling_entropies = table[:, :4].T.astype(dtype)
        row.measured = []  # a call of many rows would keep them all
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
            diagnostics=asked.arrays(table[:, 4:], dtype),
        )


class _Batch:
    """The rows in flight: at most `size` at once, taken from `waiting` as others end."""

    def __init__(self, engine: Engine, waiting: deque[Row], size: int, longest: int, deterministic: bool) -> None:
        self._engine = engine
        self._waiting = waiting
        self._decoder = decoder_for(engine.model, longest, head_dtype=engine.head_dtype, deterministic=deterministic)
        self._size = 1 if deterministic and not self._decoder.independent_rows else size
        self.most = 0  # rows that the decoder ever held at once
        self._slots: list[Row | None] = []  # as the decoder has them; None where one has ended and is not dropped yet
        self._tokens = torch.empty(0, dtype=torch.int64)  # the newest of each slot

    @property
    def rows(self) -> list[Row]:
        """Those that have not ended."""
        return [row for row in self._slots if row is not None]

    def advance(self) -> Step:
        """One token more for each row in flight, and the first for those that come in."""
        with self._engine.model.evaluating():
            self._drop()
            if self._slots:
                self._tokens = self._engine.draw(self._slots, self._decoder.step(self._tokens))
            self._refill()
        new_tokens = _newly_reported(self.rows)
        # A row is in flight or ended and never neither, should one of them fail to end: the slots change afterwards.
        ended = {
            i: rollout
            for i, row in enumerate(self._slots)
            if row is not None and (rollout := self._engine.end(row)) is not None
        }
        self._slots = [None if i in ended else row for i, row in enumerate(self._slots)]
        return Step(new_tokens, len(self.rows), list(ended.values()))

    def does_not_fit(self, error: Exception) -> MemoryError | None:
        """`model.does_not_fit` of these rows: those that have ended may still hold memory."""
        row = self.rows[0] if self.rows else None
        what = f"{len(row.prompt_ids)} prompt tokens and up to {row.limit} new ones" if row is not None else ""
        return does_not_fit(error, self.most if row is not None else 0, what)

    def _drop(self) -> None:
        """Rows that have ended leave the decoder, at once or when it is worth a copy of its cache."""
        live = [i for i, row in enumerate(self._slots) if row is not None]
        worth_it = self._decoder.refills or len(live) < _DROP_BELOW * len(self._slots)
        if len(live) < len(self._slots) and worth_it:
            kept = torch.tensor(live, dtype=torch.int64, device=self._tokens.device)
            self._decoder.keep(kept)
            self._tokens, self._slots = self._tokens[kept], [self._slots[i] for i in live]

    def _refill(self) -> None:
        new = self._next()
        if not new:
            return
        self._slots += new  # from here on they are this batch's, whatever fails
        for _ in new:
            self._waiting.popleft()
        self.most = max(self.most, len(self._slots))
        by_prompt = [(prompt, len(list(rows))) for prompt, rows in groupby(new, key=lambda row: row.prompt_ids)]
        logits = self._decoder.add([prompt for prompt, _ in by_prompt], [count for _, count in by_prompt])
        drawn = self._engine.draw(new, logits)
        self._tokens = torch.cat([self._tokens.to(drawn.device), drawn])

    def _next(self) -> list[Row]:
        """The rows to come in now: samples of one prompt together, so that it is prefilled once."""
        if self._slots and not self._decoder.refills:
            return []
        room = self._size - len(self._slots)
        new = list(islice(self._waiting, room))
        if len(new) < len(self._waiting):
            cut = self._waiting[len(new)].prompt_ids
            apart = sum(1 for row in takewhile(lambda row: row.prompt_ids == cut, reversed(new)))
            together = apart + sum(
                1 for _ in takewhile(lambda row: row.prompt_ids == cut, islice(self._waiting, room, None))
            )
            if together <= self._size and (self._slots or apart < len(new)):
                new = new[: len(new) - apart]
        few = len(new) < min(len(self._waiting), self._size * _REFILL)
        return [] if self._slots and few else new


def _newly_reported(rows: Sequence[Row]) -> int:
    """New tokens that `on_step` has not heard of: a row that started again is not counted twice."""
    new = 0
    for row in rows:
        if len(row.response_ids) > row.reported:
            new += len(row.response_ids) - row.reported
            row.reported = len(row.response_ids)
    return new
