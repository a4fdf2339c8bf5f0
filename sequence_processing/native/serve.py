"""Which models the kernels serve: those whose modules are all understood, and whose logits agree on a probe."""

import logging
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from sequence_processing.model import CausalModel
from sequence_processing.native.decoder import prompt_tokens, tables_of
from sequence_processing.native.forward import Forward
from sequence_processing.native.ops import kernels
from sequence_processing.native.pages import Pages
from sequence_processing.native.weights import NotServedError, Weights, weights_of

log = logging.getLogger(__name__)

_PROBE = 8  # tokens
# Largest difference of logits between the kernels and the modules, as a share of their range: rounding is far below,
# and a term that is missing far above.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}

# Models that were probed, and with what outcome; weights may change between calls, what the modules do hardly does.
_agrees: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def forward_for(model: CausalModel, longest: int) -> Forward | None:
    """The kernels over this model as it is now, for rows of up to `longest` tokens; None where its modules serve."""
    if model.device.type != "cpu" or (compiled := kernels()) is None:
        return None
    try:
        forward = Forward(weights_of(model, max(longest, _PROBE)), compiled)
    except NotServedError as reason:
        log.info("%s runs through its own modules, which is slower: %s.", type(model.base).__name__, reason)
        return None
    if model.base not in _agrees:
        _agrees[model.base] = _probe(model, forward)
    return forward if _agrees[model.base] else None


def _probe(model: CausalModel, forward: Forward) -> bool:
    ids = (np.arange(_PROBE) % model.vocab_size).tolist()
    pages = Pages(forward.weights)
    prompt = pages.take_prompt(ids)
    tokens = prompt_tokens([ids], [0], tables_of([prompt.pages]))
    with model.evaluating():
        ours = forward.logits(forward.hidden(tokens, pages.store, np.arange(_PROBE)))
        inputs = {"use_cache": False} if "use_cache" in model.accepts else {}
        theirs = model.module(input_ids=torch.tensor([ids]), **inputs).logits[0].float()
    if not torch.isfinite(theirs).all():
        return True  # nothing to compare; the engine will say that the logits are not finite
    apart = float((ours - theirs).abs().max()) / max(float(theirs.max() - theirs.min()), 1e-3)
    if apart > _TOLERANCE[_precision(forward.weights)]:
        log.warning(
            "%s runs through its own modules, which is slower: the CPU kernels differ from them by %.2g of the range "
            "of its logits, so it does something that they do not know.", type(model.base).__name__, apart,
        )  # fmt: skip
        return False
    return True


def _precision(weights: Weights) -> torch.dtype:
    return weights.head.weight.dtype
