"""The kernels as functions of torch tensors on the CPU: float32 in and out, weights float32 or bfloat16.

The only file that knows how the library is called. Tensors that a kernel writes are given to it.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from sequence_processing.native.build import library

PAGE = 16  # tokens of a page, as in attention.cpp
_HEADS_AT_ONCE = 7

_INT, _LONG, _FLOAT, _DOUBLE, _POINTER = (
    ctypes.c_int, ctypes.c_long, ctypes.c_float, ctypes.c_double, ctypes.c_void_p,
)  # fmt: skip
_SIGNATURES = {
    "linear": [_POINTER] * 5 + [_LONG] * 4 + [_FLOAT] + [_INT] * 3,
    "rms_norm": [_POINTER] * 3 + [_LONG] * 2 + [_FLOAT] + [_INT] * 2,
    "rotate": [_POINTER] * 4 + [_LONG] * 4 + [_INT],
    "gated_silu": [_POINTER] * 2 + [_LONG] * 2 + [_INT],
    "put_tokens": [_POINTER] * 3 + [_LONG] * 5 + [_POINTER] + [_LONG] * 2 + [_INT] * 2,
    "attention": [_POINTER] * 3 + [_LONG] * 5 + [_POINTER, _LONG] + [_POINTER] * 3 + [_LONG] * 3
    + [_FLOAT, _POINTER] + [_INT] * 2,
    "sample_rows": [_POINTER] + [_LONG] * 2 + [_DOUBLE] * 2 + [_POINTER] * 2 + [_INT] * 2 + [_POINTER] * 2 + [_INT],
    "diagnose_rows": [_POINTER] + [_LONG] * 2 + [_DOUBLE] * 2 + [_INT, _LONG] + [_POINTER] * 3 + [_INT],
}  # fmt: skip
_MAY_FAIL = ("sample_rows", "diagnose_rows")


@dataclass(frozen=True)
class Store:
    """Where keys and values are: slabs of `slab_pages` pages each, one page holding PAGE tokens of every layer."""

    slabs: np.ndarray  # addresses, uint64
    slab_pages: int
    layers: int
    kv_heads: int
    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Tokens:
    """Tokens to compute, in an order in which none sees a later one; arrays int64 [n] except the tables.

    Token m belongs to row sequences[m] of `tables` [sequences, pages] int32. It sees prefix[m] keys in that row's first
    pages, and own[m] in the pages that follow, itself the last of them.
    """

    ids: np.ndarray
    sequences: np.ndarray
    prefix: np.ndarray
    own: np.ndarray
    tables: np.ndarray

    def part(self, start: int, end: int) -> "Tokens":
        at = slice(start, end)
        return Tokens(self.ids[at], self.sequences[at], self.prefix[at], self.own[at], self.tables)

    @property
    def positions(self) -> np.ndarray:
        return self.prefix + self.own - 1

    @property
    def slots(self) -> np.ndarray:
        """page * PAGE + place of each token."""
        page = (self.prefix + PAGE - 1) // PAGE + (self.own - 1) // PAGE
        return self.tables[self.sequences, page].astype(np.int64) * PAGE + (self.own - 1) % PAGE


class Kernels:
    """One method a kernel; all run on torch's number of threads."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        for name, types in _SIGNATURES.items():
            function = getattr(compiled, name)
            function.argtypes, function.restype = types, ctypes.c_int if name in _MAY_FAIL else None
        self._compiled = compiled

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        y: torch.Tensor,
        panel: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        add: bool = False,
        scale: float = 1.0,
    ) -> None:
        """y [n, outputs] (its rows may be apart) = x [n, inputs] weight^T * scale + bias, added to y if `add`.

        `panel`: float32 scratch as large as x.
        """
        self._compiled.linear(
            x.data_ptr(), panel.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
            x.shape[0], weight.shape[1], weight.shape[0], y.stride(0), scale, add, _half(weight),
            torch.get_num_threads(),
        )  # fmt: skip

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, epsilon: float) -> None:
        """Over the last dimension, which is `weight`'s; x and y contiguous."""
        width = weight.shape[0]
        self._compiled.rms_norm(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // width, width, epsilon, _half(weight),
            _threads(x.numel()),
        )  # fmt: skip

    def rotate(
        self, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, positions: np.ndarray, heads: int
    ) -> None:
        """x [n, heads * width] in place, its rows may be apart; positions int32 [n]."""
        self._compiled.rotate(
            x.data_ptr(), cosines.data_ptr(), sines.data_ptr(), positions.ctypes.data, x.shape[0], x.stride(0), heads,
            cosines.shape[1], _threads(x.numel()),
        )  # fmt: skip

    def gated_silu(self, gate_up: torch.Tensor, y: torch.Tensor) -> None:
        """y [n, width] = silu(gate) * up for gate_up [n, 2 * width]."""
        self._compiled.gated_silu(gate_up.data_ptr(), y.data_ptr(), y.shape[0], y.shape[1], _threads(4 * y.numel()))

    def put_tokens(self, k: torch.Tensor, v: torch.Tensor, store: Store, layer: int, slots: np.ndarray) -> None:
        """k and v [n, kv_heads * width], rows equally far apart, to their slots."""
        self._compiled.put_tokens(
            k.data_ptr(), v.data_ptr(), store.slabs.ctypes.data, store.slab_pages, store.layers, layer, store.kv_heads,
            store.width, slots.ctypes.data, k.shape[0], k.stride(0), store.dtype == torch.bfloat16,
            _threads(2 * k.numel()),
        )  # fmt: skip

    def attention(
        self, q: torch.Tensor, out: torch.Tensor, store: Store, layer: int, tokens: Tokens, scale: float,
        work: torch.Tensor,
    ) -> None:  # fmt: skip
        """out [n, heads * width] for q of that shape; `work` has `attention_work` floats."""
        self._compiled.attention(
            q.data_ptr(), out.data_ptr(), store.slabs.ctypes.data, store.slab_pages, store.layers, layer,
            store.kv_heads, store.width, tokens.tables.ctypes.data, tokens.tables.shape[1],
            tokens.sequences.ctypes.data, tokens.prefix.ctypes.data, tokens.own.ctypes.data, q.shape[0], q.stride(0),
            out.shape[1] // (store.kv_heads * store.width), scale, work.data_ptr(), store.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )  # fmt: skip

    def sample_rows(
        self,
        logits: torch.Tensor,
        temperature: float,
        top_p: float,
        tokens: torch.Tensor,
        names: tuple[Sequence[int], Sequence[int]] | None,
        *,
        measure: bool = True,
    ) -> torch.Tensor:
        """The four quantities float32 [n, 4] of tokens int64 [n], which are drawn if they have names.

        `names`: row keys and positions. logits float32 [n, V], contiguous.
        """
        rows, size = logits.shape
        if names is None and len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise IndexError(f"A token is none of the {size} that the logits are of.")
        quantities = tokens.new_empty(rows, 4, dtype=torch.float32)
        keys, positions = (np.asarray(part, dtype=np.int64) for part in names or ((), ()))
        failed = self._compiled.sample_rows(
            logits.data_ptr(), rows, size, temperature, top_p, keys.ctypes.data, positions.ctypes.data,
            names is not None, measure, tokens.data_ptr(), quantities.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("The host has no memory left for sampling.")
        return quantities

    def diagnose_rows(
        self, logits: torch.Tensor, temperature: float, top_p: float, *, of_q: bool, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of logits float32 [n, V], contiguous: numbers float64 [n, 5], the k largest [n, k], falling, and their ids.

        The numbers: log of the sum of e^z; and if `of_q` kept mass, collision probability, mean and variance of the
        logits under q, else nothing that means anything. Among equal logits the lowest ids come first.
        """
        rows, size = logits.shape
        numbers = logits.new_empty(rows, 5, dtype=torch.float64)
        values, ids = logits.new_empty(rows, k), logits.new_empty(rows, k, dtype=torch.int64)
        failed = self._compiled.diagnose_rows(
            logits.data_ptr(), rows, size, temperature, top_p, of_q, k, numbers.data_ptr(), values.data_ptr(),
            ids.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("The host has no memory left for diagnostics.")
        return numbers, values, ids


def attention_work(table_width: int, width: int) -> int:
    """Floats that `Kernels.attention` needs for its scores."""
    return _HEADS_AT_ONCE * (PAGE * table_width + width) * torch.get_num_threads()


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """The kernels, or None where they cannot be compiled."""
    compiled = library()
    return None if compiled is None else Kernels(compiled)


def _threads(elements: int) -> int:
    """One thread for what takes a few microseconds: waking another takes as long."""
    return torch.get_num_threads() if elements > 1 << 17 else 1


def _half(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.bfloat16
