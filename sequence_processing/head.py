"""From hidden states to measurements: the model's head, in blocks of tokens, with a backward pass that recomputes.

Float logits exist for one block at a time, forward and backward. A head that is a plain linear layer has a backward
pass of its own: it walks the vocabulary in slices, so that the weight's gradient is summed over all tokens in one
product and never stands in float32 as a whole. A head that is anything else (an adapter on it, hooks, quantised
weights) is called as the model calls it, and each block of tokens is checkpointed.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sequence_processing import distribution
from sequence_processing.config import HeadDtype
from sequence_processing.distribution import Measured, Policy
from sequence_processing.model import CausalModel, is_out_of_memory
from sequence_processing.native.ops import kernels

log = logging.getLogger(__name__)

Project: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# The backward pass works on tiles of this many logits (32 MiB of float32) and of at most so many tokens: wide enough
# for an efficient product, small beside a gradient of the weight.
TILE_ELEMENTS = 1 << 23
TILE_TOKENS = 4096

# Weights of a narrower type than the product's are widened in slices of this many elements (32 MiB of float32).
SLICE_ELEMENTS = 1 << 23

_LEAST = {"float32": torch.float32, "float64": torch.float64}  # type of the product, by `head_dtype`


@dataclass(frozen=True)
class Head:
    """Hidden states [n, H] to logits [n, V]: the model's output embedding and what the model does to its product.

    `dtype` "float32" and "float64" compute the product of narrower types in that type. "auto" leaves it to the
    backend: CUDA accumulates and returns float32, a CPU rounds each logit to the type of its operands.
    """

    module: nn.Module
    finish: Callable[[torch.Tensor], torch.Tensor]  # elementwise
    dtype: HeadDtype = "auto"

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.is_linear(hidden):
            return self.finish(self.module(hidden))
        return self.finish(product(hidden, *self.parameters(), self.dtype))

    def parameters(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight [V, H] and bias [V] of a linear head."""
        module: Any = self.module
        return module.weight, module.bias

    def is_linear(self, hidden: torch.Tensor) -> bool:
        """Whether the module does nothing to `hidden` but multiply by its weight and add its bias."""
        module: Any = self.module
        return (
            type(module) is nn.Linear
            and type(module.weight) in (nn.Parameter, torch.Tensor)  # and no quantised or sharded kind of tensor
            and (module.weight.dtype, module.weight.device) == (hidden.dtype, hidden.device)
            and "forward" not in vars(module)
            and not (module._forward_hooks or module._forward_pre_hooks)
            and not (module._backward_hooks or module._backward_pre_hooks)
            and not torch.is_autocast_enabled(hidden.device.type)
        )


def measure(project: Project, hidden: torch.Tensor, tokens: torch.Tensor, policy: Policy, vocab_size: int) -> Measured:
    """The four quantities of `tokens` [n] predicted at `hidden` [n, H], through `project`: a `Head`, or any function
    from [m, H] to logits [m, V].

    With gradient enabled `logprobs` and `entropies` carry the graph, also of no tokens at all.
    """
    size, names = distribution.block_rows(vocab_size), policy.diagnostics.widths
    if not torch.is_grad_enabled():
        return Measured.of(_in_blocks(project, hidden, tokens, policy, size)[1:], names)
    if isinstance(project, Head) and project.is_linear(hidden):
        return Measured.of(_LinearHead.apply(hidden, *project.parameters(), tokens, policy, project), names)

    def block(some: torch.Tensor, some_tokens: torch.Tensor) -> Measured:
        return distribution.measure(project(some), some_tokens, policy)

    blocks = zip(hidden.split(size), tokens.split(size), strict=True)
    return distribution.join([checkpoint(block, h, t, use_reentrant=False) for h, t in blocks])


def product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: HeadDtype) -> torch.Tensor:
    """hidden [n, H] times weight [v, H] transposed, plus bias [v]: float32 (or wider) logits [n, v].

    Operands of a narrower type are multiplied as `Head` says of its `dtype`.
    """
    least = _LEAST.get(dtype, weight.dtype)
    if weight.dtype in (torch.float32, torch.float64) and least.itemsize <= weight.dtype.itemsize:
        return nn.functional.linear(hidden, weight, bias)
    if dtype in _LEAST:
        logits, wide = hidden.new_empty(len(hidden), len(weight), dtype=least), hidden.to(least)
        for part in _slices(len(weight), max(1, SLICE_ELEMENTS // weight.shape[1])):
            torch.mm(wide, weight[part].to(least).T, out=logits[:, part])
    else:
        logits = _wide_mm(hidden, weight.T).float()
    return logits if bias is None else logits.add_(bias)


def _in_blocks(
    project: Project, hidden: torch.Tensor, tokens: torch.Tensor, policy: Policy, size: int
) -> tuple[torch.Tensor, ...]:
    """The log sum exp of each token's logits, and the columns of `Measured`, made `size` tokens at a time.

    Written into tensors made beforehand: small ones that stay would cut up the room that large ones leave, and each
    block would need more of it (measured: 2.4 GB instead of 0.1 for 75 blocks).
    """
    four = [tokens.new_empty(len(tokens), dtype=policy.dtype) for _ in range(4)]
    columns = [*four, *policy.diagnostics.empty(len(tokens), policy.dtype, tokens.device).values()]
    norms = torch.empty_like(four[0], dtype=torch.promote_types(hidden.dtype, policy.dtype))
    for some in _slices(len(tokens), size):
        logits = project(hidden[some])
        m = distribution.measure(logits, tokens[some], policy)
        for column, values in zip(columns, m.columns, strict=True):
            column[some] = values
        norms[some] = logits.gather(-1, tokens[some, None])[:, 0] - m.logprobs
        del logits  # before the next block's
    return norms, *columns


class _LinearHead(torch.autograd.Function):
    """The columns of `Measured` of a linear head. The backward recomputes the logits, in tiles of tokens x vocabulary.

    For loss gradients g_lp of log p(y) and g_H of the entropy H, with z the logits and p = softmax(z), a logit has the
    gradient dz = g_lp (1[y] - p) - g_H p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        policy: Policy,
        head: Head,
    ) -> tuple[torch.Tensor, ...]:
        norms, *measured = _in_blocks(head, hidden, tokens, policy, distribution.block_rows(len(weight)))
        ctx.save_for_backward(hidden, weight, bias, tokens, norms, *measured[:2])
        ctx.head = head
        ctx.mark_non_differentiable(*measured[2:])
        return tuple(measured)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # the caller's may differ by now
            return _LinearHead._backward(ctx, *gradients)

    @staticmethod
    def _backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, tokens, norms, logprobs, entropies = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(weight.dtype, _LEAST.get(ctx.head.dtype, weight.dtype))
        d_hidden = _accumulator(hidden, wide) if need_hidden else None
        d_weight = torch.empty_like(weight) if need_weight else None
        d_bias = torch.empty_like(bias) if need_bias else None
        tokens_at_once = min(max(len(hidden), 1), TILE_TOKENS)
        size = min(TILE_ELEMENTS // tokens_at_once, max(1, SLICE_ELEMENTS // weight.shape[1]))
        for part in _slices(len(weight), size):
            w, b = weight[part].to(wide), None if bias is None else bias[part].to(wide)
            part_weight = _accumulator(w) if need_weight else None
            part_bias = _accumulator(w[:, 0])
            for some in _slices(len(hidden), tokens_at_once):
                h = hidden[some].to(w.dtype)
                x = product(h, w, b, ctx.head.dtype)
                place = tokens[some, None] - part.start
                known = [v[some, None] for v in (norms, logprobs, entropies, *gradients[:2])]
                dx = _product_gradient(ctx.head.finish, x, place, *known)
                part_bias += dx.sum(dim=0)
                dx = dx.to(w.dtype)
                if d_hidden is not None:
                    d_hidden[some] += _wide_mm(dx, w)
                if part_weight is not None:
                    part_weight += _wide_mm(dx.T, h)
            if d_weight is not None and part_weight is not None:
                d_weight[part] = part_weight
            if d_bias is not None:
                d_bias[part] = part_bias
        return (None if d_hidden is None else d_hidden.to(hidden.dtype)), d_weight, d_bias, None, None, None


def _product_gradient(
    finish: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    place: torch.Tensor,
    norms: torch.Tensor,
    logprobs: torch.Tensor,
    entropies: torch.Tensor,
    g_lp: torch.Tensor,
    g_H: torch.Tensor,
) -> torch.Tensor:
    """The loss's gradient by a tile x [n, v] of the head's product, which is overwritten; all others are [n, 1].

    `place` is the column of the row's own token, which may lie outside the tile; `norms` the log sum exp of its logits.
    """
    with torch.enable_grad():
        z = finish(x.requires_grad_())
    dz = z.detach().sub_(norms)  # log p
    p = dz.exp()
    dz.masked_fill_(p == 0, 0.0)  # a banned token's is -inf
    dz.add_(entropies).mul_(g_H).add_(g_lp).mul_(p).neg_()
    # 1 - p of the row's own token, of which nothing may be left in float32, comes from the exact log p.
    own = -g_lp * logprobs.expm1() - g_H * logprobs.exp() * (logprobs + entropies)
    inside = (place >= 0) & (place < dz.shape[1])
    place = place.clamp(0, dz.shape[1] - 1)
    dz.scatter_(1, place, torch.where(inside, own.to(dz.dtype), dz.gather(1, place)))
    return torch.autograd.grad(z, x, dz)[0]


def _wide_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b; of two narrow matrices the product is accumulated and returned in float32 where the backend can."""
    if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.device.type == "cpu" and a.dtype == torch.bfloat16 and b.T.is_contiguous() and (fast := kernels()) is not None:
        y = a.new_empty(len(a), b.shape[1], dtype=torch.float32)
        fast.linear(wide := a.float(), b.T, y, torch.empty_like(wide))
        return y
    return a @ b


def _accumulator(like: torch.Tensor, least: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros in float32, `least` or wider."""
    widest = torch.promote_types(torch.promote_types(like.dtype, torch.float32), least)
    return torch.zeros_like(like, dtype=widest)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def find_head(model: CausalModel, dtype: HeadDtype = "auto") -> Head | None:
    """The model's head if `Head` reproduces its logits bit for bit on a probe of a few tokens; None otherwise.

    None as well if the head runs inside compiled code: a hook there is not seen, or compiled in for good.
    """
    module = model.base.get_output_embeddings()
    if module is None or _is_compiled(model.outer, module):
        return None
    calls: list[tuple[tuple[torch.Tensor, ...], torch.Tensor]] = []
    handle = module.register_forward_hook(lambda _module, args, output: calls.append((args, output)))
    with model.evaluating():
        ids = torch.arange(4, device=model.device)[None] % model.vocab_size
        try:
            logits = model.module(**model.accepted(input_ids=ids, use_cache=False)).logits
        finally:
            handle.remove()
        if len(calls) != 1 or not _repeats(module, *calls[0]):
            return None
    product = calls[0][1]
    for finish in _finishes(model.text_config):
        if product.shape == logits.shape and torch.equal(finish(product).to(logits.dtype), logits):
            head = Head(module, finish, dtype)
            if dtype != "auto" and not head.is_linear(calls[0][0][0]):
                log.warning("The head is no plain linear layer (%s): head_dtype does not apply.", type(module).__name__)
            return head
    return None


def _repeats(module: nn.Module, args: tuple[torch.Tensor, ...], product: torch.Tensor) -> bool:
    """Whether `module`, called from outside the model's forward, gives its product again; under autocast it may not."""
    if len(args) != 1:
        return False
    try:
        again = module(args[0])
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False  # inside, its operands had other types
    return again.dtype == product.dtype and torch.equal(again, product)


def _is_compiled(forward: nn.Module, head: nn.Module) -> bool:
    """Whether `forward` reaches `head` through torch.compile: a wrapper, in place, or of a `forward` alone."""

    def is_compiled(module: nn.Module) -> bool:
        in_place = module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
        return in_place or hasattr(module, "_orig_mod")

    return any(inner is head for m in forward.modules() if is_compiled(m) for inner in m.modules())


def _finishes(config: Any) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """What architectures do to the product of their head: nothing (most), scale (Cohere, Granite), soft-cap (Gemma)."""
    yield lambda x: x
    if scale := getattr(config, "logit_scale", None):
        yield lambda x: x * scale
    if scaling := getattr(config, "logits_scaling", None):
        yield lambda x: x / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda x: torch.tanh(x / cap) * cap
