"""Counter-based noise: the draw for a token is a pure function of its name (seed, prompt key, sample, position).

One algorithm on every device: BLAKE2b names the row, the finaliser of SplitMix64 (Steele, Lea, Flood 2014) mixes in the
position, and the two 32-bit words of that stream key a 32-bit mixer (the multipliers are those of Wellons' and Skeeto's
hash prospector) over the vocabulary ids. Ids are hashed before any filtering, so truncating a distribution never
changes the noise of the tokens that stay. `native/kernels/sampling.cpp` is the same algorithm.
"""

import hashlib
from collections.abc import Sequence

import torch

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2**64 / golden ratio, odd
_WORD = 0xFFFFFFFF


def row_key(seed: int, prompt_key: int, sample_index: int) -> int:
    """The 64-bit key of one row's draws, signed so that it fits torch.int64."""
    digest = hashlib.blake2b(f"{seed}:{prompt_key}:{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel(row_keys: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise, float64 [n, vocab_size]: row i is that of `row_keys[i]` at token `positions[i]`.

    From 64-bit uniforms w: -log1p(-w) is a unit exponential whose small values, the ones that win a draw, keep full
    precision.
    """
    keys = torch.tensor(row_keys, dtype=torch.int64, device=device)
    steps = torch.tensor(positions, dtype=torch.int64, device=device)
    streams = _splitmix(keys + (steps + 1) * _signed(_GOLDEN))[:, None]
    low, high = streams & _WORD, _shift(streams, 32)
    ids = torch.arange(vocab_size, dtype=torch.int64, device=device)[None]
    upper = _word(ids, low, high)
    lower = _word(upper ^ 0x6A09E667, high, upper)
    w = ((upper.double() * 2.0**32 + lower.double() + 0.5) * 2.0**-64).clamp_(max=1.0 - 2.0**-53)
    return torch.log1p(w.neg_()).neg_().log_().neg_()


def _word(ids: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """A mixed 32-bit word for each id, in int64."""
    x = (ids * 0x9E3779B9 + low) & _WORD
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = x ^ high
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)


def _splitmix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser, in int64 arithmetic that wraps."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
