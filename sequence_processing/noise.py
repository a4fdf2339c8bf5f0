"""Counter-based noise: the draw for a token is a pure function of its name (seed, prompt key, sample, position).

One algorithm on every device: BLAKE2b names the row, the finaliser of SplitMix64 (Steele, Lea, Flood 2014) mixes in the
position and each vocabulary id, in int64 arithmetic that wraps. Ids are hashed before any filtering, so truncating a
distribution never changes the noise of the tokens that stay.
"""

import hashlib
from collections.abc import Sequence

import torch

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2**64 / golden ratio, odd


def row_key(seed: int, prompt_key: int, sample_index: int) -> int:
    """The 64-bit key of one row's draws, signed so that it fits torch.int64."""
    digest = hashlib.blake2b(f"{seed}:{prompt_key}:{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel(row_keys: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise, float64 [n, vocab_size]: row i is that of `row_keys[i]` at token `positions[i]`.

    53-bit uniforms w: -log1p(-w) is a unit exponential whose small values, the ones that win a draw, keep full
    precision.
    """
    keys = torch.tensor(row_keys, dtype=torch.int64, device=device)
    steps = torch.tensor(positions, dtype=torch.int64, device=device)
    streams = _mix(keys + (steps + 1) * _signed(_GOLDEN))
    ids = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=device)
    bits = _mix(streams[:, None] + ids[None, :] * _signed(_GOLDEN))
    w = ((_shift(bits, 11).double() + 0.5) * 2.0**-53).clamp_(max=1.0 - 2.0**-53)
    return torch.log1p(w.neg_()).neg_().log_().neg_()


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
