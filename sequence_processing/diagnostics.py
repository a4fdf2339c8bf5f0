"""What else can be measured of a token's distribution, on request and in the pass that makes the four quantities.

z are the token's logits, as the model hands them out; p = softmax(z) is the model's own distribution; p_T =
softmax(z / T) is p at the sampling temperature; q is what was sampled from: p_T cut to its nucleus and renormalised
(`distribution.py`). Nothing here depends on the token that was drawn.

| name | of | formula |
|---|---|---|
| `top1_probs` | p | max p(v) |
| `margins` | p | log p(first) - log p(second) of the two most probable tokens, nats; 0 where they tie |
| `kept_mass` | p_T | sum of p_T(v) over the nucleus; 1 without top-p, and of a greedy policy |
| `collision_probs` | q | sum of q(v)^2; -log of it is the Renyi entropy of order 2 (Renyi 1961), nats |
| `eos_probs` | p | sum of p(e) over all ids that end a response; 0 if there are none |
| `logit_means` | z, q | m = sum of q(v) z(v), nats; adding a constant to all logits adds it |
| `logit_variances` | z, q | sum of q(v) (z(v) - m)^2, nats^2; adding a constant changes nothing |
| `top_ids` | p | the k most probable ids, falling; among equals in any order |
| `top_logprobs` | p | log p of those, nats |

All are computed in float64, by the CPU's kernel with sums in float64 of float32 terms. They are handed out as the four
quantities are: float32, or float64 where the head is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

NAMES = ("top1_probs", "margins", "kept_mass", "collision_probs", "eos_probs", "logit_means", "logit_variances")
"""What a `GenerationConfig` may ask for; the alternatives are asked for by their number."""

_OF_Q = frozenset({"kept_mass", "collision_probs", "logit_means", "logit_variances"})

_LISTS = ("top_ids", "top_logprobs")  # k values a token
# By name: [n], and [n, k] of the alternatives; detached.
Columns: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What is asked for; nothing by default. `alternatives` is at most the vocabulary's size."""

    names: tuple[str, ...] = ()
    alternatives: int = 0
    eos_ids: frozenset[int] = field(default_factory=frozenset)

    def __bool__(self) -> bool:
        return bool(self.names or self.alternatives)

    @property
    def widths(self) -> dict[str, int]:
        """Values a token of each column, the alternatives last."""
        k = self.alternatives
        return dict.fromkeys(self.names, 1) | (dict.fromkeys(_LISTS, k) if k else {})

    @property
    def of_q(self) -> bool:
        """Whether anything of q is among them."""
        return not _OF_Q.isdisjoint(self.names)

    @property
    def leaders(self) -> int:
        """How many of the largest logits are needed."""
        return max(self.alternatives, 2 if "margins" in self.names else 0)

    def columns(
        self, z: torch.Tensor, norms: torch.Tensor, top: torch.Tensor, ids: torch.Tensor, of_q: Columns
    ) -> Columns:
        """Of logits z [n, V], the log of the sum of their e^z [n], the `leaders` of them, falling, with their ids.

        `of_q`: the columns of q, as `moments` makes them.
        """
        norms, top = norms[:, None], top.double()
        found = dict(of_q)
        if "margins" in self.names:
            second = top[:, 1] if top.shape[1] > 1 else torch.full_like(top[:, 0], -torch.inf)
            found["margins"] = top[:, 0] - second
        if "top1_probs" in self.names:
            found["top1_probs"] = (z.amax(dim=-1, keepdim=True).double() - norms).exp()[:, 0]
        if "eos_probs" in self.names:
            eos = torch.tensor(sorted(i for i in self.eos_ids if i < z.shape[-1]), dtype=torch.int64, device=z.device)
            found["eos_probs"] = (z[:, eos].double() - norms).exp().sum(dim=-1)
        found["top_ids"], found["top_logprobs"] = ids[:, : self.alternatives], (top - norms)[:, : self.alternatives]
        return {name: found[name] for name in self.widths}

    def empty(self, n: int, dtype: torch.dtype, device: torch.device) -> Columns:
        """Room for n tokens."""

        def room(name: str, width: int) -> torch.Tensor:
            kind = torch.int64 if name == "top_ids" else dtype
            return torch.empty((n, width) if name in _LISTS else n, dtype=kind, device=device)

        return {name: room(name, width) for name, width in self.widths.items()}

    def arrays(self, table: np.ndarray, dtype: type[np.floating]) -> dict[str, np.ndarray]:
        """A row's columns of its values [tokens, sum of widths], as `flat` has them."""
        cuts = np.cumsum([0, *self.widths.values()])
        return {
            name: (table[:, a:b] if name in _LISTS else table[:, a]).astype(np.int64 if name == "top_ids" else dtype)
            for name, a, b in zip(self.widths, cuts[:-1], cuts[1:], strict=True)
        }


def moments(z: torch.Tensor, log_q: torch.Tensor, temperature: float) -> Columns:
    """The columns of q, for float64 logits and log q [n, V]."""
    kept = torch.ones_like(z[:, 0])
    if temperature > 0:  # of a kept token log q = log p_T - log(kept mass), and the most probable one is kept
        norms = ((z - z.amax(dim=-1, keepdim=True)) / temperature).logsumexp(dim=-1)
        kept = (-norms - log_q.amax(dim=-1)).exp().clamp_(max=1.0)
    q = log_q.exp()
    z = z.masked_fill(q == 0, 0.0)  # a banned token's is -inf
    means = (q * z).sum(dim=-1)
    return {
        "kept_mass": kept,
        "collision_probs": q.square().sum(dim=-1),
        "logit_means": means,
        "logit_variances": (q * (z - means[:, None]).square()).sum(dim=-1),
    }


def flat(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """Columns [n] and [n, k] side by side, float64 [n, sum of widths]: an id is exact in it."""
    return torch.cat([c.double().reshape(len(c), -1) for c in columns], dim=1)
