"""The one definition of p and q, used by the sampler, the scorer and the entropies.

p is the model's own distribution: temperature 1, no truncation. q is the distribution sampled from: temperature
first, then top-p; a token is kept if the mass of strictly more probable tokens is at most top_p (ties stay together),
and what is kept is renormalised. Temperature 0 is a point mass at the argmax, the lowest id among equals. All
arithmetic is float64, results are float32, in nats. On the CPU and without gradient a kernel does the same with sums in
float64 of float32 terms, in one or two passes over the logits. Diagnostics that a policy asks for come from the same
logits (`diagnostics.py`); the draws and the four quantities are the same bit for bit without them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from sequence_processing import noise
from sequence_processing.diagnostics import Columns, Diagnostics, moments
from sequence_processing.native.ops import Kernels, kernels

# Rows are worked on in blocks of at most this many logits: 64 MiB for each float64 temporary.
BLOCK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Policy:
    """How q follows from p, and what of the two is measured beside the four quantities. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    dtype: torch.dtype = torch.float32  # of what is measured

    @property
    def is_p(self) -> bool:
        """Whether q is p."""
        return self.temperature == 1 and self.top_p == 1


@dataclass(frozen=True, slots=True)
class Measured:
    """The four quantities of n tokens: float32 tensors [n], nats; and what diagnostics were asked for, detached."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    sampling_logprobs: torch.Tensor
    sampling_entropies: torch.Tensor
    diagnostics: Columns = field(default_factory=dict)

    @property
    def four(self) -> tuple[torch.Tensor, ...]:
        """The four, in the order of the fields."""
        return self.logprobs, self.entropies, self.sampling_logprobs, self.sampling_entropies

    @property
    def columns(self) -> tuple[torch.Tensor, ...]:
        """The four, and the diagnostics behind them."""
        return *self.four, *self.diagnostics.values()

    @classmethod
    def of(cls, columns: Iterable[torch.Tensor], names: Iterable[str]) -> "Measured":
        """`columns` again, with the names of their diagnostics."""
        logprobs, entropies, sampling_logprobs, sampling_entropies, *others = columns
        named = dict(zip(names, others, strict=True))
        return cls(logprobs, entropies, sampling_logprobs, sampling_entropies, named)

    def split(self, lengths: Sequence[int]) -> "list[Measured]":
        """Of each of several sequences of these lengths, which stand one behind the other."""
        rows = zip(*(c.split(list(lengths)) for c in self.columns), strict=True)
        return [Measured.of(row, self.diagnostics) for row in rows]


def block_rows(vocab_size: int) -> int:
    """How many rows of logits one block holds."""
    return max(1, BLOCK_ELEMENTS // vocab_size)


def exact(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float64, moved to the CPU where the device has no float64 (Apple's)."""
    return (logits.cpu() if logits.device.type == "mps" else logits).double()


def log_p(logits: torch.Tensor) -> torch.Tensor:
    """log p for float64 logits [n, V]."""
    return torch.log_softmax(logits, dim=-1)


def log_q(logits: torch.Tensor, policy: Policy) -> torch.Tensor:
    """log q for float64 logits [n, V]; -inf outside the nucleus."""
    top = logits.amax(dim=-1, keepdim=True)
    if policy.temperature == 0:
        ids = torch.arange(logits.shape[-1], device=logits.device)
        argmax = torch.where(logits == top, ids, ids.numel()).amin(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, argmax.clamp(max=ids.numel() - 1), 0.0)
    # Shifted before it is divided: a tiny temperature then sends the rest to -inf instead of everything to inf - inf.
    scaled = (logits - top) / policy.temperature
    if policy.top_p == 1:
        return torch.log_softmax(scaled, dim=-1)
    ranked = scaled.sort(dim=-1, descending=True).values
    mass = torch.softmax(ranked, dim=-1)
    before = mass.cumsum(dim=-1) - mass
    last = ((before <= policy.top_p).sum(dim=-1, keepdim=True) - 1).clamp_(min=0)
    kept = scaled >= ranked.gather(-1, last)
    return torch.log_softmax(scaled.masked_fill(~kept, -torch.inf), dim=-1)


def entropy(logs: torch.Tensor) -> torch.Tensor:
    """Shannon entropy of log-probabilities [n, V]; a token of probability 0 adds 0, to the gradient as well."""
    return -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(dim=-1)


def measure(logits: torch.Tensor, tokens: torch.Tensor, policy: Policy) -> Measured:
    """The four quantities of `tokens` [n] under `logits` [n, V] of any float type, for one block of rows.

    `logprobs` and `entropies` carry the graph if `logits` do; q is never differentiated.
    """
    if (fast := _kernels_for(logits)) is not None:
        given = tokens.contiguous()
        rows = _rows(logits)
        quantities = fast.sample_rows(rows, policy.temperature, policy.top_p, given, None)
        return _of_kernel(fast, rows, quantities, policy)
    z = exact(logits)
    p = log_p(z)
    with torch.no_grad():
        q = p if policy.is_p else log_q(z, policy)
    return _gather(z, p, q, tokens.to(z.device), policy, logits.device)


def sample(
    logits: torch.Tensor, row_keys: Sequence[int], positions: Sequence[int], policy: Policy, *, measured: bool = True
) -> tuple[torch.Tensor, Measured]:
    """Draw one token a row from q by Gumbel-max, and measure it: tokens int64 [n] and the four quantities.

    argmax(log q + Gumbel noise) is distributed as q (Gumbel 1954). The noise is named by (row key, position). Not
    `measured`: zeros, where that saves work (how much is a benchmark's question).
    """
    n, vocab_size = logits.shape
    if (fast := _kernels_for(logits)) is not None:
        drawn = torch.empty(n, dtype=torch.int64, device="cpu")
        rows, names = _rows(logits), (row_keys, positions)
        quantities = fast.sample_rows(rows, policy.temperature, policy.top_p, drawn, names, measure=measured)
        return drawn, _of_kernel(fast, rows, quantities, policy)
    size = block_rows(vocab_size)
    tokens, parts = [], []
    for start in range(0, n, size):
        block = slice(start, start + size)
        z = exact(logits[block])
        p = log_p(z)
        q = p if policy.is_p else log_q(z, policy)
        if policy.temperature == 0:
            chosen = q.argmax(dim=-1)
        else:
            chosen = (q + noise.gumbel(row_keys[block], positions[block], vocab_size, z.device)).argmax(dim=-1)
        tokens.append(chosen.to(logits.device))
        parts.append(_gather(z, p, q, chosen, policy, logits.device))
    return torch.cat(tokens), join(parts)


def join(parts: Sequence[Measured]) -> Measured:
    """Measurements of consecutive blocks as one."""
    return Measured.of(map(torch.cat, zip(*(m.columns for m in parts), strict=True)), parts[0].diagnostics)


def _kernels_for(logits: torch.Tensor) -> Kernels | None:
    wanted = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return kernels() if wanted and not (logits.requires_grad and torch.is_grad_enabled()) else None


def _rows(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach().float().contiguous()


def _of_kernel(fast: Kernels, rows: torch.Tensor, quantities: torch.Tensor, policy: Policy) -> Measured:
    """The four quantities [n, 4] of float32 logits [n, V], and the diagnostics if they are asked for."""
    asked = policy.diagnostics
    if not asked:
        return Measured.of(quantities.unbind(dim=1), ())
    numbers, top, ids = fast.diagnose_rows(
        rows, policy.temperature, policy.top_p, of_q=asked.of_q, k=min(asked.leaders, rows.shape[1])
    )
    norms, kept, collisions, means, variances = numbers.unbind(dim=1)
    of_q = {"kept_mass": kept, "collision_probs": collisions, "logit_means": means, "logit_variances": variances}
    found = asked.columns(rows, norms, top, ids, of_q)
    columns = [values.to(_type_of(values, policy)) for values in found.values()]
    return Measured.of([*quantities.unbind(dim=1), *columns], found)


def _diagnosed(z: torch.Tensor, q: torch.Tensor, policy: Policy) -> Columns:
    """The diagnostics of float64 logits and log q [n, V]."""
    asked = policy.diagnostics
    if not asked:
        return {}
    with torch.no_grad():
        z = z.detach()
        top, ids = z.topk(min(asked.leaders, z.shape[-1]), dim=-1)
        of_q = moments(z, q.detach(), policy.temperature) if asked.of_q else {}
        return asked.columns(z, z.logsumexp(dim=-1), top, ids, of_q)


def _gather(
    z: torch.Tensor, p: torch.Tensor, q: torch.Tensor, tokens: torch.Tensor, policy: Policy, device: torch.device
) -> Measured:
    """What is measured of logits z, log p and log q [n, V], on `device`."""
    pick = tokens[:, None]
    entropies = entropy(p)
    diagnosed = _diagnosed(z, q, policy)
    return Measured(
        p.gather(-1, pick)[:, 0].to(device, policy.dtype),
        entropies.to(device, policy.dtype),
        q.gather(-1, pick)[:, 0].detach().to(device, policy.dtype),
        (entropies if q is p else entropy(q)).detach().to(device, policy.dtype),
        {name: values.to(device, _type_of(values, policy)) for name, values in diagnosed.items()},
    )


def _type_of(values: torch.Tensor, policy: Policy) -> torch.dtype:
    return policy.dtype if values.is_floating_point() else values.dtype
