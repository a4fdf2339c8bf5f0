"""Which models the kernels serve: those whose modules are all understood, and whose logits agree on a probe."""

import logging
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from sequence_processing.model import CausalModel
from sequence_processing.native.decoder import tables_of, tokens_of
from sequence_processing.native.forward import Forward
from sequence_processing.native.ops import kernels
from sequence_processing.native.pages import Pages
from sequence_processing.native.weights import NotServedError, Weights, weights_of

log = logging.getLogger(__name__)

_PROBE = 8  # tokens
# Largest difference of logits between the kernels and the modules, as a share of their range: rounding is far below,
# and a term that is missing far above.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}

# Models that were probed: what their modules were then, and the outcome. Weights may change between calls without
# another probe; modules may not.
_agrees: "WeakKeyDictionary[nn.Module, tuple[tuple[type, ...], bool]]" = WeakKeyDictionary()


def forward_for(model: CausalModel, longest: int, *, deterministic: bool = False) -> Forward | None:
    """The kernels over this model as it is now, for rows of up to `longest` tokens; None where its modules serve.

    `deterministic`: None as well if its modules would have to serve longer rows than these.
    """
    if model.device.type != "cpu" or (compiled := kernels()) is None:
        return None
    try:
        may_reach = max(longest, model.context or 0) if deterministic else longest
        forward = Forward(weights_of(model, max(longest, _PROBE), may_reach), compiled)
    except (NotServedError, AttributeError) as reason:  # a module in another's place may lack what that one had
        log.info("%s runs through its own modules, which is slower: %s.", type(model.base).__name__, reason)
        return None
    modules = tuple(type(module) for module in model.base.modules())
    probed, agrees = _agrees.get(model.base, ((), None))
    if probed != modules or agrees is None:
        agrees = _probe(model, forward)
        if agrees is not None:
            _agrees[model.base] = modules, agrees
    return None if agrees is False else forward


def _probe(model: CausalModel, forward: Forward) -> bool | None:
    """Whether both give the same logits; None if there is nothing to compare, as they are not finite."""
    ids = (np.arange(_PROBE) % model.vocab_size).tolist()
    pages = Pages(forward.weights)
    prompt = pages.take_prompt(ids)
    tokens = tokens_of([ids], tables_of([prompt.pages]))
    with model.evaluating():
        ours = forward.logits(forward.hidden(tokens, pages.store, np.arange(_PROBE)))
        theirs = model.module(**model.accepted(input_ids=torch.tensor([ids]), use_cache=False)).logits[0].float()
    if not torch.isfinite(theirs).all():
        return None
    apart = float((ours - theirs).abs().max()) / max(float(theirs.max() - theirs.min()), 1e-3)
    if apart > _TOLERANCE[_precision(forward.weights)]:
        log.warning(
            "%s runs through its own modules, which is slower: the CPU kernels differ from them by %.2g of the range "
            "of its logits, so it does something that they do not know.", type(model.base).__name__, apart,
        )  # fmt: skip
        return False
    return True


def _precision(weights: Weights) -> torch.dtype:
    """The narrowest type that anything is multiplied in, adapters included."""
    layer = weights.layers[0]
    linears = (weights.head, layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    types = {linear.weight.dtype for linear in linears} | {low.a.dtype for linear in linears for low in linear.low_rank}
    return torch.bfloat16 if torch.bfloat16 in types else torch.float32
