"""Every row owns a slot: a decoder over the model's own modules with room of its own for keys and values.

A row's token n stands in column n of its slot, whatever the other rows do; in a layer with a sliding window of W tokens
the W columns are a ring, and it stands in column n mod W. Either way the columns that a row may see are those up to
its newest token's position, so one mask, from lengths alone, serves every kind of layer, and rows come, go and differ
in length without a copy of the cache. Live rows fill the first slots when a step runs: new rows take the places of
those that were dropped, and the last ones move into gaps that are left.
"""

import logging
import sys
from collections.abc import Iterator, Sequence

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from sequence_processing.graphs import StepGraphs
from sequence_processing.head import Head
from sequence_processing.model import CausalModel, is_out_of_memory
from sequence_processing.prefill import Prefilled, next_logits, prefill

log = logging.getLogger(__name__)

_COLUMNS = 64  # the cache grows by multiples; a recorded step serves so many tokens of its longest row
_PREFILL_TOKENS = 8192  # of one forward, padding included: enough to keep a device busy, little enough to hold


def refusal(model: CausalModel) -> str | None:
    """Why `SlotDecoder` cannot serve a model that `caches_attention`, to follow its name; None if it can.

    It asks of a model what transformers' static cache asks: that the columns of the cache mean nothing beside what the
    mask and the positions say of them.
    """
    config = model.text_config
    if not getattr(model.base, "_can_compile_fullgraph", False):
        return "does not say that it works with a cache of fixed size"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attends by {config._attn_implementation}, which takes no mask of its columns"
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    if any(type(layer) not in known for layer in DynamicCache(config=config).layers):
        return "has layers that cache something else than keys and values of their own"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "attends in chunks"
    return None


class SlotLayer(CacheLayerMixin):
    """Keys and values [slots, heads, columns, head_dim] of one layer; with a window, at most so many columns: a ring.

    Columns that hold no token are masked, but finite: a weight of 0 times their value is 0.
    """

    is_compileable = True  # the mask is always made, without a look at its values

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self._window = window or sys.maxsize
        self._positions = torch.empty(0)  # int64 [slots of the step]
        self._columns = 0  # of the step

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """No slots yet, in the type and shape of these states."""
        self.keys, self.values = key_states[:0, :, :0], value_states[:0, :, :0]
        self.is_initialized = True

    def grow(self, slots: int, columns: int) -> None:
        """Room for so many; what is held stays. (A layer that its model skips holds nothing, here as below.)"""
        if not self.is_initialized:
            return
        self.keys, self.values = (_enlarged(t, slots, min(columns, self._window)) for t in (self.keys, self.values))

    def write(self, slots: torch.Tensor, source: DynamicLayer, rows: torch.Tensor, lengths: torch.Tensor) -> None:
        """Slot `slots[i]` takes row `rows[i]` of `source`, whose last column is its token `lengths[i] - 1`. All [n]."""
        if not self.is_initialized:
            return
        slots, rows, newest = (t.to(source.keys.device)[:, None] for t in (slots, rows, lengths - 1))
        columns = torch.arange(min(int(lengths.max()), self.keys.shape[2]), device=newest.device)
        # The newest token of a column in a ring is so many tokens old; one that is not held is one the row cannot see.
        age = (newest - columns) % self.keys.shape[2]
        held = (source.keys.shape[2] - 1 - age).clamp_(min=0)
        for own, given in ((self.keys, source.keys), (self.values, source.values)):
            own.transpose(1, 2)[slots, columns] = given.transpose(1, 2)[rows, held]

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Slots `sources` [n] to `targets` [n]."""
        if not self.is_initialized:
            return
        for t in (self.keys, self.values):
            t[targets.to(t.device)] = t[sources.to(t.device)]

    def aim(self, positions: torch.Tensor, columns: int) -> None:
        """The next tokens are of the first slots, at `positions` [slots]; they see `columns` columns at most."""
        self._columns = min(columns, self._window)
        if self.is_initialized:
            self._positions = positions.to(self.keys.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the states [slots, heads, 1, head_dim] where `aim` said; keys and values of the columns it named."""
        slots = torch.arange(len(key_states), device=key_states.device)
        at = self._positions % self._window if self.is_sliding else self._positions
        self.keys[slots, :, at] = key_states[:, :, 0]
        self.values[slots, :, at] = value_states[:, :, 0]
        return self.keys[: len(slots), :, : self._columns], self.values[: len(slots), :, : self._columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns, and the first of them."""
        return self._columns, 0

    def get_seq_length(self) -> int:
        """The query's column, for the causal mask: the last, as the mask of columns says the rest."""
        return self._columns - 1

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class SlotDecoder:
    """A `Decoder`; on CUDA its steps are recorded graphs, whose logits are valid until the next step."""

    refills = True
    independent_rows = False

    def __init__(self, model: CausalModel, head: Head | None = None) -> None:
        layers = DynamicCache(config=model.text_config).layers
        self._model = model
        self._head = head
        self._layers = [SlotLayer(getattr(layer, "sliding_window", None)) for layer in layers]
        self._cache = Cache(layers=self._layers)
        # Of the live rows, on the host: their slots and the tokens that these hold.
        self._slots = torch.empty(0, dtype=torch.int64)
        self._lengths = torch.empty(0, dtype=torch.int64)
        self._order: torch.Tensor | None = None  # the slots on the device; None if row i has slot i
        self._room = (0, 0)  # slots, columns
        # Of all slots, on the device: the next step's tokens and their positions.
        self._tokens = torch.zeros(0, dtype=torch.int64, device=model.device)
        self._positions = torch.zeros(0, dtype=torch.int64, device=model.device)
        self._records = {p.device.type for p in model.module.parameters()} == {"cuda"}
        self._graphs: StepGraphs | None = None

    def add(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        free = torch.ones(len(self._slots) + sum(repeats), dtype=torch.bool)
        free[self._slots[self._slots < len(free)]] = False
        new = free.nonzero()[: sum(repeats), 0]
        places = new.split(list(repeats))
        room = max(new.tolist(), default=-1) + 1, _rounded(max(len(p) for p in prompts) + 1)
        logits = []
        for part in _parts(prompts):
            prefilled = prefill(self._model, self._head, prompts[part])
            counts = torch.tensor(repeats[part])
            logits.append(prefilled.logits.repeat_interleave(counts.to(prefilled.logits.device), dim=0))
            self._take(prefilled, torch.cat(places[part]), counts, room)
        return torch.cat(logits)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._settle()
        rows = len(self._slots)
        slots = self._of_a_step(rows)
        # Rows that have ended stay until they are dropped; theirs must not run past a table of positions.
        positions = self._lengths.clamp(max=(self._model.context or sys.maxsize) - 1)
        columns = _rounded(int(positions.max()) + 1)
        self._reserve(slots, columns)
        everywhere = torch.zeros(slots, dtype=torch.int64)
        everywhere[self._slots] = positions
        self._positions[:slots] = everywhere.to(self._positions.device)
        order = slice(rows) if self._order is None else self._order
        self._tokens[order] = tokens.to(self._tokens.device)
        self._lengths += 1
        return self._run(slots, columns)[order]

    def keep(self, rows: torch.Tensor) -> None:
        rows = rows.cpu()
        self._slots, self._lengths = self._slots[rows], self._lengths[rows]

    def _take(self, prefilled: Prefilled, slots: torch.Tensor, counts: torch.Tensor, room: tuple[int, int]) -> None:
        """New rows at the end, `counts[i]` of prompt i, in `slots` [sum(counts)]; all that are to come have `room`."""
        if not len(slots):
            return
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        lengths = prefilled.lengths.cpu()[rows]
        for layer, source in zip(self._layers, prefilled.cache.layers, strict=True):
            if source.is_initialized and not layer.is_initialized:
                layer.lazy_initialization(source.keys, source.values)
        self._reserve(*room)
        for layer, source in zip(self._layers, prefilled.cache.layers, strict=True):
            layer.write(slots, source, rows, lengths)
        self._slots = torch.cat([self._slots, slots])
        self._lengths = torch.cat([self._lengths, lengths])

    def _of_a_step(self, rows: int) -> int:
        """Slots that a step runs over: a power of 2 or three quarters of one where each number is recorded."""
        power = 1 << (rows - 1).bit_length()
        if not self._records:
            return rows
        return power * 3 // 4 if rows <= power * 3 // 4 else power

    def _settle(self) -> None:
        """Let the live rows have the first slots: those beyond move into the gaps."""
        rows = len(self._slots)
        beyond = (self._slots >= rows).nonzero()[:, 0]
        if len(beyond):
            gap = torch.ones(rows, dtype=torch.bool)
            gap[self._slots[self._slots < rows]] = False
            gaps = gap.nonzero()[:, 0]
            for layer in self._layers:
                layer.move(self._slots[beyond], gaps)
            self._slots[beyond] = gaps
        in_order = torch.equal(self._slots, torch.arange(rows))
        self._order = None if in_order else self._slots.to(self._model.device)

    def _reserve(self, slots: int, columns: int) -> None:
        """Room for so many, and a quarter more columns than there were: copies stay few."""
        slots = self._of_a_step(slots)
        if slots <= self._room[0] and columns <= self._room[1]:
            return
        if columns > self._room[1]:
            columns = max(columns, _rounded(self._room[1] * 5 // 4))
        slots, columns = self._room = (max(slots, self._room[0]), max(columns, self._room[1]))
        self._graphs = None  # they know the old addresses
        for layer in self._layers:
            layer.grow(slots, columns)
        self._tokens = _enlarged(self._tokens, slots)
        self._positions = _enlarged(self._positions, slots)

    def _run(self, slots: int, columns: int) -> torch.Tensor:
        """The step of the first `slots` slots: logits [slots, V]."""
        if self._records:
            try:
                self._graphs = self._graphs or StepGraphs(self._model.device, self._room[0])
                return self._graphs.run(self._forward, slots, columns)
            except RuntimeError as error:
                if is_out_of_memory(error) or (error.__context__ is not None and is_out_of_memory(error.__context__)):
                    raise
                name = type(self._model.base).__name__
                log.warning("A step of %s cannot be recorded as a CUDA graph: it runs its modules (%s).", name, error)
                self._records, self._graphs = False, None
        return self._forward(slots, columns)

    def _forward(self, slots: int, columns: int) -> torch.Tensor:
        positions = self._positions[:slots]
        for layer in self._layers:
            layer.aim(positions, columns)
        mask = (torch.arange(columns, device=positions.device) <= positions[:, None]).long()
        tokens = self._tokens[:slots, None]
        return next_logits(self._model, self._head, tokens, mask, positions[:, None], self._cache)


def _parts(prompts: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Neighbours, padded to their longest, of at most `_PREFILL_TOKENS` tokens; a longer prompt is alone."""
    start, longest = 0, 0
    for i, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if i > start and (i + 1 - start) * longest > _PREFILL_TOKENS:
            yield slice(start, i)
            start, longest = i, len(prompt)
    yield slice(start, len(prompts))


def _rounded(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS


def _enlarged(t: torch.Tensor, slots: int, columns: int | None = None) -> torch.Tensor:
    """A copy of `t` [slots, ...] or [slots, heads, columns, head_dim] with more of either, zeros behind."""
    if columns is None:
        new = t.new_zeros(slots, *t.shape[1:])
        new[: len(t)] = t
    else:
        new = t.new_zeros(slots, t.shape[1], columns, t.shape[3])
        new[: t.shape[0], :, : t.shape[2]] = t
    return new
