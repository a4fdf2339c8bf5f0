"""A Llama-like model's forward over any mixture of tokens: prompts, decode steps and responses to score are the same.

Hidden states stay float32; a product with bfloat16 weights rounds its input to bfloat16 as the model's own modules do,
and not its output.
"""

import numpy as np
import torch

from sequence_processing.native.ops import Kernels, Store, Tokens, attention_work
from sequence_processing.native.weights import Layer, Linear, Norm, Weights

_TOKENS_AT_ONCE = 1024  # more would only need more memory


class Forward:
    """The kernels over one model's weights. Buffers are kept between calls: fresh memory costs page faults."""

    def __init__(self, weights: Weights, kernels: Kernels) -> None:
        self.weights = weights
        self.kernels = kernels
        self._buffers: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[str, int, int], torch.Tensor] = {}  # as (rows, columns)

    def hidden(self, tokens: Tokens, store: Store, wanted: np.ndarray) -> torch.Tensor:
        """Computes all tokens, their keys and values included; returns what stands before the head at the `wanted`.

        `wanted`: ascending places among `tokens`. float32 [len(wanted), H].
        """
        out = torch.empty(len(wanted), self.weights.embedding.shape[1], dtype=torch.float32, device="cpu")
        for start in range(0, len(tokens.ids), _TOKENS_AT_ONCE):
            part = tokens.part(start, start + _TOKENS_AT_ONCE)
            x = self._layers(part, store)
            first, last = np.searchsorted(wanted, [start, start + _TOKENS_AT_ONCE])
            if first < last:
                out[first:last] = x[torch.from_numpy(wanted[first:last] - start)]
        self._norm(out, self.weights.last_norm, out)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [n, V], in a buffer that the next call overwrites."""
        logits = self._buffer("logits", len(hidden), self.weights.head.weight.shape[0])
        self._linear(hidden, self.weights.head, logits)
        return logits

    def _layers(self, tokens: Tokens, store: Store) -> torch.Tensor:
        w, n = self.weights, len(tokens.ids)
        x = self._buffer("hidden", n, w.embedding.shape[1])
        x.copy_(w.embedding[torch.from_numpy(tokens.ids)])
        work = self._buffer("work", 1, attention_work(tokens.tables.shape[1], w.width))
        slots, positions = tokens.slots, tokens.positions.astype(np.int32)
        for i, layer in enumerate(w.layers):
            self._attend(x, layer, i, tokens, store, slots, positions, work)
            self._gated_mlp(x, layer)
        return x

    def _attend(
        self, x: torch.Tensor, layer: Layer, index: int, tokens: Tokens, store: Store, slots: np.ndarray,
        positions: np.ndarray, work: torch.Tensor,
    ) -> None:  # fmt: skip
        """x += attention(norm(x))."""
        w, n = self.weights, len(x)
        normed = self._buffer("normed", *x.shape)
        q = self._buffer("q", n, w.heads * w.width)
        k, v = (self._buffer(name, n, w.kv_heads * w.width) for name in "kv")
        self._norm(x, layer.before_attention, normed)
        for linear, y in ((layer.q, q), (layer.k, k), (layer.v, v)):
            self._linear(normed, linear, y)
        for norm, y, heads in ((layer.q_norm, q, w.heads), (layer.k_norm, k, w.kv_heads)):
            if norm is not None:
                self._norm(y, norm, y)
            self.kernels.rotate(y, w.cosines, w.sines, positions, heads)
        self.kernels.put_tokens(k, v, store, index, slots)
        mixed = self._buffer("mixed", n, w.heads * w.width)
        self.kernels.attention(q, mixed, store, index, tokens, layer.scale, work)
        self._linear(mixed, layer.o, x, add=True)

    def _gated_mlp(self, x: torch.Tensor, layer: Layer) -> None:
        """x += down(silu(gate(norm(x))) * up(norm(x)))."""
        n, width = len(x), layer.gate.weight.shape[0]
        normed = self._buffer("normed", *x.shape)
        gate_up, gated = self._buffer("gate_up", n, 2 * width), self._buffer("gated", n, width)
        self._norm(x, layer.before_mlp, normed)
        self._linear(normed, layer.gate, gate_up[:, :width])
        self._linear(normed, layer.up, gate_up[:, width:])
        self.kernels.gated_silu(gate_up, gated)
        self._linear(gated, layer.down, x, add=True)

    def _norm(self, x: torch.Tensor, norm: Norm, y: torch.Tensor) -> None:
        self.kernels.rms_norm(x, norm.weight, y, norm.epsilon)

    def _linear(self, x: torch.Tensor, linear: Linear, y: torch.Tensor, *, add: bool = False) -> None:
        self.kernels.linear(x, linear.weight, y, self._buffer("panel", *x.shape), linear.bias, add=add)
        for low in linear.low_rank:
            inner = self._buffer("inner", len(x), low.a.shape[0])
            self.kernels.linear(x, low.a, inner, self._buffer("panel", *x.shape))
            self.kernels.linear(inner, low.b, y, self._buffer("panel", *inner.shape), add=True, scale=low.scale)

    def _buffer(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """float32 [rows, columns], with whatever stood there."""
        view = self._views.get((name, rows, columns))
        if view is None:
            view = self._views[name, rows, columns] = self._grown(name, rows * columns).view(rows, columns)
        return view

    def _grown(self, name: str, size: int) -> torch.Tensor:
        """The first `size` elements of the buffer; views of one that was too small are gone."""
        kept = self._buffers.get(name)
        if kept is None or kept.numel() < size:
            self._buffers.pop(name, None)
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
            kept = None  # its memory first: two logits of a large batch need not exist at once
            self._buffers[name] = kept = torch.empty(size, dtype=torch.float32, device="cpu")
        return kept[:size]
